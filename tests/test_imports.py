"""Who imports whom: the wings stand in an order without a circle, and the library works without
what notebooks need.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "diffusion_lib"
FILES = sorted(
    path.relative_to(LIBRARY).with_suffix("").as_posix() for path in LIBRARY.rglob("*.py")
)

# A wing may import files of its own and of these.
BELOW = {
    "core": set(), "data": set(), "lessons": {"core", "data"}, "saving": {"core", "data"},
    "training": {"core", "data", "saving"}, "measuring": {"core", "data", "saving"},
    "__main__": {"core", "data", "saving", "training", "measuring", "lessons"}, "__init__": set(),
}
NOTEBOOK_PACKAGES = {
    "matplotlib", "IPython", "ipywidgets", "ipykernel", "jupyter", "nbformat", "nbclient",
    "traitlets",
}
# Needed for some things only: imported inside the functions that use them.
LATE = {
    "torchvision", "torchmetrics", "torch_fidelity", "transformers", "accelerate", "diffusers",
    "skimage", "scipy", "matplotlib", "IPython", "cv2",
}


def imports(name: str) -> list[tuple[str, bool]]:
    """(module, at the top of the file) for every import; files of the library as "wing/file".
    TYPE_CHECKING blocks are left out.
    """
    tree, here = (
        ast.parse((LIBRARY / f"{name}.py").read_text(encoding="utf-8")), name.split("/")[:-1],
    )
    found = []

    def walk(node: ast.AST, top: bool) -> None:
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = (
                "/".join([*base, *(node.module or "").split(".")]) if node.level else node.module
            )
            found.append((module, top))
        inside = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(tree, True)
    return found


def own(name: str) -> list[str]:
    """The library's files that a file imports, anywhere in it."""
    return [module for module, _ in imports(name) if module in FILES]


@pytest.mark.parametrize("name", FILES)
def test_a_wing_imports_only_those_below_it(name: str) -> None:
    wing = name.split("/")[0]
    for other in own(name):
        assert other.split("/")[0] in BELOW[wing] | {wing}, f"{name}.py imports {other}.py"
    assert not any(module.split(".")[0] == "diffusion_lib" for module, _ in imports(name)), (
        f"{name}.py: by a dot"
    )


def test_there_is_no_circle() -> None:
    waiting = {name: set(own(name)) for name in FILES}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"a circle among {sorted(waiting)}"


def test_a_listing_of_the_library_is_six_folders_and_two_files() -> None:
    there = {
        path.name
        for path in LIBRARY.iterdir()
        if not path.name.startswith(("__pycache__", "py.typed"))
    }
    assert there == {
        "core", "data", "saving", "training", "measuring", "lessons", "configs", "weights",
        "__init__.py", "__main__.py",
    }


@pytest.mark.parametrize("name", FILES)
def test_only_lessons_know_of_notebooks(name: str) -> None:
    known = {module.split(".")[0] for module, _ in imports(name)} & NOTEBOOK_PACKAGES
    assert not known or name.startswith("lessons/"), f"{name}.py imports {', '.join(known)}"


@pytest.mark.parametrize("name", FILES)
def test_heavy_packages_are_imported_where_they_are_used(name: str) -> None:
    early = {module.split(".")[0] for module, top in imports(name) if top} & LATE
    assert not early, f"{name}.py imports {', '.join(early)} before anybody needs it"


def test_the_package_itself_imports_nothing() -> None:
    assert [module for module, top in imports("__init__") if top] == ["importlib"]


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
from diffusion_lib import GaussianDiffusion, ToyCats, TrainConfig, Trainer, UNet
from diffusion_lib import cosine_beta_schedule, ddim, load_pretrained, save_grid
diffusion = GaussianDiffusion(cosine_beta_schedule(50))
model = UNet(image_size=16, channels=8, channel_mults=(1, 2), attention=(False, False),
             blocks_per_level=1)
config = TrainConfig(steps=3, batch_size=2, device="cpu", precision="float32", save_every=2)
trainer = Trainer(model, diffusion, ToyCats(size=16, n=8), config, out="run").fit()
for step in ddim(diffusion, trainer.ema_model, shape=(2, 3, 16, 16), steps=2):
    pass
save_grid(step.x_t, "cats.png")
load_pretrained("toycats32")
from diffusion_lib.__main__ import main
assert main(["sample", "run", "--n", "1", "--steps", "1", "--out", "pictures"]) == 0
assert Path("cats.png").exists() and Path("pictures/00000.png").exists()
assert len(list(Path("run/checkpoints").iterdir())) == 2
print("loaded:", sorted(name for name in sys.modules if name.split(".")[0] in blocked))
"""


def test_it_trains_samples_and_saves_without_anything_a_notebook_needs(tmp_path: Path) -> None:
    blocked = sorted(NOTEBOOK_PACKAGES | LATE | {"huggingface_hub", "pytest"})
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(blocked=blocked)], cwd=tmp_path, capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


TIMES = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import diffusion_lib
bare = time.perf_counter()
from diffusion_lib import GaussianDiffusion, ToyCats, TrainConfig, Trainer, UNet
from diffusion_lib import cosine_beta_schedule, ddim, save_grid
end = time.perf_counter()
print(middle - start, bare - middle, end - bare)
"""


def test_how_long_the_import_takes(capsys: pytest.CaptureFixture) -> None:
    """Printed (pytest -s), not judged: a busy machine is slow at everything."""
    done = subprocess.run(
        [sys.executable, "-c", TIMES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    torch, bare, names = map(float, done.stdout.split())
    with capsys.disabled():
        print(f"\nimport torch {torch:.2f} s; import diffusion_lib {bare:.3f} s more; "
              f"all names of the README's example {names:.2f} s more")
    lazy = subprocess.run(
        [sys.executable, "-c", "import sys, diffusion_lib; print('torch' in sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    assert lazy.stdout.strip() == "False"  # a name is loaded when it is first used
