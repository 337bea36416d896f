"""Who imports whom: the library works without anything that notebooks need, and a file knows only files above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "diffusion_lib"
FILES = sorted(path.stem for path in LIBRARY.glob("*.py"))

# From the heart outwards. A file imports only files to its left.
ORDER = """
    schedules ops unet diffusion losses samplers ideal shapes toycats toyreader data augment checkpoint ema runs optimizer classifier
    metrics evaluation config training interchange panels plots widgets progress answers checks_measuring checks __main__
""".split()
# Only these may know of notebooks and of curves (panels.py draws with Pillow).
NOTEBOOK_FILES = {"plots", "widgets", "progress", "answers", "checks_measuring", "checks"}
NOTEBOOK_PACKAGES = {"matplotlib", "IPython", "ipywidgets", "ipykernel", "jupyter", "nbformat", "nbclient", "traitlets"}
# Needed for some things only: imported inside the functions that use them.
LATE = {"torchvision", "torchmetrics", "torch_fidelity", "transformers", "accelerate", "diffusers", "skimage", "scipy", "matplotlib",
        "IPython"}


def imports(name: str) -> list[tuple[str, bool]]:
    """(module, at the top of the file) for every import; files of the library as ".name". TYPE_CHECKING blocks are left out."""
    tree = ast.parse((LIBRARY / f"{name}.py").read_text(encoding="utf-8"))
    found = []

    def walk(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{name}.py, line {node.lineno}"
            if node.level == 1 and node.module is None:
                found.extend((f".{alias.name}", top) for alias in node.names)
            else:
                found.append(("." * node.level + node.module, top))
        inside = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(tree, True)
    return found


def test_every_file_has_its_place_in_the_order() -> None:
    assert set(FILES) - {"__init__"} <= set(ORDER), sorted(set(FILES) - set(ORDER))


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_file_imports_only_files_above_it(name: str) -> None:
    for module, _ in imports(name):
        if module.startswith("."):
            other = module[1:].split(".")[0]
            assert ORDER.index(other) < ORDER.index(name), f"{name}.py imports {other}.py, which stands below it"
        assert not module.startswith("diffusion_lib"), f"{name}.py: import files of the library by a dot"


@pytest.mark.parametrize("name", FILES)
def test_only_the_notebooks_files_know_of_notebooks(name: str) -> None:
    known = {module.split(".")[0] for module, _ in imports(name)} & NOTEBOOK_PACKAGES
    assert not known or name in NOTEBOOK_FILES, f"{name}.py imports {', '.join(known)}"


@pytest.mark.parametrize("name", FILES)
def test_heavy_packages_are_imported_where_they_are_used(name: str) -> None:
    early = {module.split(".")[0] for module, top in imports(name) if top} & LATE
    assert not early, f"{name}.py imports {', '.join(early)} before anybody needs it"


def test_the_package_itself_imports_nothing() -> None:
    assert [module for module, top in imports("__init__") if top] == ["importlib"]


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_too_long_to_read(name: str) -> None:
    count = len((LIBRARY / f"{name}.py").read_text(encoding="utf-8").splitlines())
    assert count <= 300, f"{name}.py has {count} lines"


def test_every_name_of_the_package_is_where_it_says() -> None:
    for name in diffusion_lib.__all__:
        value = getattr(diffusion_lib, name)
        home = getattr(value, "__module__", None) or ""
        assert home.startswith("diffusion_lib") or not callable(value), name
        assert name in dir(diffusion_lib)
    with pytest.raises(AttributeError, match="no 'Diffusion'"):
        _ = diffusion_lib.Diffusion
    assert not hasattr(diffusion_lib, "torch")


BARE = """
import sys
blocked = {blocked!r}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{{name}} is not installed (blocked by this test)")

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from diffusion_lib import GaussianDiffusion, ToyCats, TrainConfig, Trainer, UNet, cosine_beta_schedule, ddim, load_pretrained, save_grid
diffusion = GaussianDiffusion(cosine_beta_schedule(50))
model = UNet(image_size=16, channels=8, channel_mults=(1, 2), attention=(False, False), blocks_per_level=1)
config = TrainConfig(steps=3, batch_size=2, device="cpu", precision="float32", save_every=2)
trainer = Trainer(model, diffusion, ToyCats(size=16, n=8), config, out="run").fit()
for step in ddim(diffusion, trainer.ema_model, shape=(2, 3, 16, 16), steps=2):
    pass
save_grid(step.x_t, "cats.png")
load_pretrained("toycats32")
from diffusion_lib.__main__ import main
assert main(["sample", "run", "--n", "1", "--steps", "1", "--out", "pictures"]) == 0
assert Path("cats.png").exists() and Path("pictures/00000.png").exists() and len(list(Path("run/checkpoints").iterdir())) == 2
print("loaded:", sorted(name for name in sys.modules if name.split(".")[0] in blocked))
"""


def test_it_trains_samples_and_saves_without_anything_a_notebook_needs(tmp_path: Path) -> None:
    blocked = sorted(NOTEBOOK_PACKAGES | LATE | {"huggingface_hub", "pytest"})
    done = subprocess.run([sys.executable, "-c", BARE.format(blocked=blocked)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


TIMES = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import diffusion_lib
bare = time.perf_counter()
from diffusion_lib import GaussianDiffusion, ToyCats, TrainConfig, Trainer, UNet, cosine_beta_schedule, ddim, save_grid
end = time.perf_counter()
print(middle - start, bare - middle, end - bare)
"""


def test_how_long_the_import_takes(capsys: pytest.CaptureFixture) -> None:
    """Printed (pytest -s), not judged: a busy machine is slow at everything."""
    done = subprocess.run([sys.executable, "-c", TIMES], cwd=ROOT, capture_output=True, text=True, check=True)
    torch, bare, names = map(float, done.stdout.split())
    with capsys.disabled():
        print(f"\nimport torch {torch:.2f} s; import diffusion_lib {bare:.3f} s more; all names of the README's example {names:.2f} s more")
    lazy = subprocess.run([sys.executable, "-c", "import sys, diffusion_lib; print('torch' in sys.modules)"], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    assert lazy.stdout.strip() == "False"  # a name is loaded when it is first used
