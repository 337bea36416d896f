"""What README.md shows works as it stands there: the example, every command, every link."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffusion_lib import SAMPLERS, load_pretrained
from diffusion_lib.__main__ import changes, parser
from diffusion_lib.data.sources import SOURCES
from diffusion_lib.training.config import override, read_config, resolve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "figures/README.md"]
README = PAGES[0].read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


# -- the example -----------------------------------------------------------------------------------

# 400 steps of 64 pictures take minutes. The text runs unchanged; what it calls is made to do less,
# and notes what it was asked.
SHORT = """
import sys
import diffusion_lib as library
asked = {{}}
config, cats, ddim = library.TrainConfig, library.ToyCats, library.ddim

def short_config(**settings):
    asked.update(train_steps=settings["steps"])
    small = {{"steps": 2, "batch_size": 2, "device": "cpu", "precision": "float32"}}
    return config(**{{**settings, **small}})

def short_ddim(diffusion, model, shape, *, steps, seeds):
    asked.update(sampling_steps=steps, seeds=list(seeds), shape=shape)
    return ddim(diffusion, model, shape, steps=2, seeds=seeds)

library.TrainConfig, library.ddim = short_config, short_ddim
library.ToyCats = lambda size: cats(size=size, n=64)
program = open({path!r}, encoding="utf-8").read()
exec(compile(program, "README.md", "exec"), {{"__name__": "__main__"}})
assert asked == {{"train_steps": 400, "sampling_steps": 50, "seeds": list(range(16)),
                 "shape": (16, 3, 32, 32)}}, asked
"""


def test_the_example_runs_as_it_stands_and_draws_sixteen_pictures(tmp_path: Path) -> None:
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SHORT.format(path=str(tmp_path / "example.py"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.png", "example.py"]
    grid = Image.open(tmp_path / "cats.png")
    side = 32 + 2  # two white pixels between pictures
    assert grid.size == (4 * side + 2, 4 * side + 2) and grid.mode == "RGB"
    cells = [
        grid.crop((2 + side * i, 2 + side * j, side * (i + 1), side * (j + 1)))
        for j in range(4)
        for i in range(4)
    ]
    assert len({cell.tobytes() for cell in cells}) == 16 and all(
        len(cell.getcolors(2000)) > 1 for cell in cells
    )


def test_the_example_is_the_one_the_library_was_designed_around() -> None:
    """Twelve lines from nothing to a picture; who changes a name here changes what every reader has
    learnt.
    """
    (example,) = blocks("python")
    lines = [line.split("#")[0].rstrip() for line in example.splitlines() if line.strip()]
    assert lines[0].startswith("from diffusion_lib import ") and len(lines) == 8
    for piece in (
        "GaussianDiffusion(cosine_beta_schedule(1000))",
        "UNet(image_size=32, channels=32)",
        "Trainer(model, diffusion, ToyCats(size=32), TrainConfig(steps=400))",
        "trainer.fit()",
        "for step in ddim(diffusion, trainer.ema_model, shape=(16, 3, 32, 32), steps=50, "
        "seeds=range(16)):",
        'save_grid(step.x_t, "cats.png")',
    ):
        assert sum(piece in line for line in lines) == 1, piece
    assert "step.t, step.x_t, step.x0_hat" in example


# -- commands --------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every `python -m diffusion_lib …` in the pages, the Makefile and the configs."""
    found = []
    for path in [*PAGES, ROOT / "Makefile", *(ROOT / "diffusion_lib/configs").glob("*.yaml")]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"python -m diffusion_lib ([^`\n]+)", text)
    return found


def test_there_are_commands() -> None:
    assert {command.split()[0] for command in commands()} >= {"train", "sample", "export"}


@pytest.mark.parametrize("command", commands())
def test_every_command_line_is_understood(command: str, capsys: pytest.CaptureFixture) -> None:
    try:
        arguments, rest = parser().parse_known_args(shlex.split(command, comments=True))
        changed = changes(rest, arguments.command)
    except (SystemExit, ValueError) as error:
        pytest.fail(capsys.readouterr().err or str(error))
    if hasattr(arguments, "config"):
        config = read_config(arguments.config)
        for setting, value in changed:
            config = override(config, setting, value)
        resolve(config, arguments.config)


def test_flags_in_prose_exist() -> None:
    known = {
        flag
        for action in parser()._subparsers._group_actions[0].choices.values()
        for flag in action._option_string_actions
    }
    section = README[README.index("## Your own pictures") : README.index("## What is where")]
    # Accelerate's own flags
    section = re.sub(r"accelerate launch(.*?\\\n)*.*? -m diffusion_lib", "", section)
    flags = set(re.findall(r"--[a-z][a-z_.-]*", section)) - {"--machine_rank"}
    for setting in {flag for flag in flags if "." in flag}:
        # raises for one that does not exist
        override({}, setting.removeprefix("--"), 1)
        flags.remove(setting)
    assert flags and flags <= known, flags - known
    (samplers,) = re.findall(r"--sampler ([a-z_|]+)", section)
    assert set(samplers.split("|")) == set(SAMPLERS)
    for source in re.findall(r"`((?:cifar10|oxford_cats|toycats|folder)(?::[\w,]+)?)`", section):
        assert source in SOURCES.replace(",", " ").split(), source


def test_make_targets_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page in PAGES:
        named = set(
            re.findall(
                r"^make ([a-z]+)|`make ([a-z]+)`", page.read_text(encoding="utf-8"), re.MULTILINE
            )
        )
        assert {a or b for a, b in named} <= targets, page
    assert {"lab", "test", "notebooks"} <= targets


def test_pip_and_conda_lines_do_what_make_does() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (lines,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (pip,) = re.findall(r"^pip install (.+)$", README, re.MULTILINE)
    assert shlex.split(pip) == [word for line in lines for word in line.split()]
    assert (
        f"conda activate {environment['name']}" in README
        and "conda env create -f environment.yml" in README
    )
    (nbval,) = re.findall(r"^NBVAL := (.+)$", MAKEFILE, re.MULTILINE)
    assert f"`pytest {nbval} notebooks`" in README


# -- links, numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_and_picture_exists(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} points to {target}"


def test_pictures_have_alternative_text() -> None:
    for page in PAGES:
        for alt in re.findall(r"!\[([^\]]*)\]", page.read_text(encoding="utf-8")):
            assert len(alt) > 20, f"{page}: ![{alt}]"


def test_every_figure_is_listed_with_its_command() -> None:
    rows = [
        line.split("|")[1:-1]
        for line in PAGES[1].read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    listed = [re.fullmatch(r" `(.+)` ", row[0])[1] for row in rows]
    there = {
        p.relative_to(ROOT / "figures").as_posix()
        for p in (ROOT / "figures").rglob("*")
        if p.is_file() and p.name != "README.md"
    }
    assert len(listed) == len(set(listed)) and set(listed) == there
    assert all(len(row) == 3 and len(row[1]) > 10 and len(row[2]) > 10 for row in rows)


def test_every_notebook_is_in_the_table_and_the_reverse() -> None:
    rows = re.findall(r"^\| \[(\d\d)[^\]]*\]\(notebooks/([^)]+)\) \|(.+)\|$", README, re.MULTILINE)
    assert [name for _, name, _ in rows] == sorted(
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    for number, name, rest in rows:
        assert name.startswith(f"{number}_") and len(rest.split("|")) == 3, name


def test_numbers_are_filled_in() -> None:
    for page in PAGES:
        left = re.findall(
            r"\b(?:TIME[A-Z0-9]*|TO-?DO|TBD|X{3})\b", page.read_text(encoding="utf-8")
        )
        assert not left, f"{page.name} still says {', '.join(left)}"


def test_the_size_of_the_shipped_model_is_told_truly() -> None:
    (said,) = re.findall(r"\((\d+\.\d) million weights", README)
    count = sum(p.numel() for p in load_pretrained("catfaces128").model.parameters())
    assert float(said) == round(count / 1e6, 1), count
