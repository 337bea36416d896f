"""The set-up: one list of versions for make, pip and conda; one clear line for what goes wrong."""

import ast
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci/setup_env.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def direct() -> dict[str, Requirement]:
    """Every requirement that pyproject.toml names, extras included, the project itself left out."""
    named = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    requirements = [Requirement(line) for line in named]
    return {canonicalize_name(r.name): r for r in requirements if r.name != PROJECT["name"]}


def pins() -> dict[str, Version]:
    """constraints.txt: name -> version. Every line must be a pin or a comment."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.!+-]+)", line).groups()
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = Version(version)
    return found


# -- one list of versions --------------------------------------------------------------------------


def test_conda_installs_this_package_with_all_extras_and_states_no_version_but_python_s() -> None:
    """Conda hands the lines to pip as a requirements file beside environment.yml."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[all]"]}
    python = next(r for r in map(Requirement, conda) if r.specifier)
    assert python.name == "python" and PROJECT["requires-python"] in str(python.specifier)
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == set(PROJECT["optional-dependencies"]) - {"all"}, "one is left out"


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    assert set(direct()) - set(pins()) == set()
    for name, requirement in direct().items():
        assert requirement.specifier, f"{name} has no range in pyproject.toml"
        pin = pins()[name]
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_the_tested_set_contains_what_its_members_require_of_each_other() -> None:
    for name, version in pins().items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(installed.version).public != version.public:
            continue  # another torch was kept: its requirements are not the tested one's
        for r in map(Requirement, installed.requires or []):
            if r.marker is None or r.marker.evaluate({"extra": ""}):
                pin = pins().get(canonicalize_name(r.name))
                fits = pin is None or r.specifier.contains(pin)
                assert fits, f"{name} {version} requires {r}, the tested set has {pin}"


def test_every_import_is_installed_by_pyproject() -> None:
    package_of = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image",
                  "bs4": "beautifulsoup4", "cv2": "opencv-python-headless"}
    # what comes along with jupyterlab, matplotlib and pytest; pillow-heif only if it is there
    known = {*direct(), "ipython", "traitlets", "cycler", "pillow-heif", "packaging", "setuptools",
             "jupyter-server", "tornado"}
    paths = [path for folder in ("diffusion_lib", "tests", ".ci")
             for path in (ROOT / folder).rglob("*.py")]
    own = sys.stdlib_module_names | {"diffusion_lib", *(path.stem for path in paths)}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - own:
                package = canonicalize_name(package_of.get(top, top))
                assert package in known, f"{path.name} imports {top}: name it in pyproject.toml"


# -- setup_env.py ----------------------------------------------------------------------------------

# a build backend for a project that installs in a moment and without a network
BACKEND = """
import zipfile
def get_requires_for_build_editable(settings=None):
    return []
def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(folder + "/tiny-1-py3-none-any.whl", "w") as wheel:
        for name in ("torch", "torchvision", "diffusion_lib", "jupyterlab", "pytest"):
            wheel.writestr(name + ".py", "")
        need = open("requires.txt").read()
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\n"
                       "Version: 1\\nProvides-Extra: all\\n" + need)
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: us\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return "tiny-1-py3-none-any.whl"
"""


@pytest.fixture
def tiny(tmp_path: Path):
    """tiny(*arguments) runs a copy of setup_env.py, really, in a project that needs nothing."""
    script = tmp_path / ".ci/setup_env.py"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text(encoding="utf-8").replace("2 if torch else 8", "0"))
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "requires.txt").write_text("")
    (tmp_path / "constraints.txt").write_text("torch==2.7\ntorchvision==0.2\ntorchmetrics==1.0\n")
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = '
                                             '"backend"\nbackend-path = ["."]\n')
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"} | {
        "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    return lambda *arguments: subprocess.run([sys.executable, str(script), *arguments],
                                             capture_output=True, text=True, env=environment)


def test_first_run_installs_second_does_nothing_a_change_installs_again(tiny, tmp_path) -> None:
    done = tiny("install")
    assert done.returncode == 0 and "done" in done.stdout, done.stderr
    start = time.perf_counter()
    assert (done := tiny("install")).returncode == 0 and done.stdout == done.stderr == ""
    assert time.perf_counter() - start < 3
    with (tmp_path / "constraints.txt").open("a") as pins:
        pins.write("numpy==2.0\n")
    assert tiny("install").stdout.count("installing") == 1
    used = (tmp_path / ".venv/constraints.txt").read_text().split()
    assert used == ["torchmetrics==1.0", "numpy==2.0"]  # the torch that is there is kept
    (tmp_path / "requires.txt").write_text("Requires-Dist: no-such-package\n")
    (tmp_path / "constraints.txt").write_text("")
    done = tiny("install")
    assert done.returncode == 1 and "connect to a network" in done.stderr.splitlines()[-1]
    (tmp_path / "requires.txt").write_text("")
    shutil.rmtree(tmp_path / ".venv/lib", ignore_errors=True)  # an interrupted set-up
    assert (done := tiny("install")).returncode == 0, done.stderr


@pytest.mark.parametrize("old, new, words", [
    ("OLDEST = (3, 11)", "OLDEST = (99, 0)", "make PYTHON="),
    (" = 0, ", " = 10**9, ", "the disk is too full"),
    ('"venv"', '"no_such_module"', "could not make .venv"),
])
def test_what_is_wrong_here_is_said_in_one_line(tiny, tmp_path, old, new, words) -> None:
    script = tmp_path / ".ci/setup_env.py"
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new))
    done = tiny("install")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stderr.startswith("error: ") and not (tmp_path / ".venv").exists()


def test_an_old_python_reads_the_script_far_enough_to_say_so() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.NamedExpr, ast.Match))
        if isinstance(node, (ast.FunctionDef, ast.arg, ast.AnnAssign)):  # list[str], int | None
            note = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            assert not isinstance(note, (ast.Subscript, ast.BinOp)), f"line {note.lineno}"


@pytest.mark.parametrize("port", ["0", "65536", "eight", ""])
def test_wrong_port(tiny, port: str) -> None:
    done = tiny("port", port)
    assert done.returncode == 1 and f"from 1 to 65535, not {port!r}" in done.stderr


def test_a_taken_port_is_refused_and_a_free_one_named(tiny) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = tiny("port", str(listener.getsockname()[1]))
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is taken" in done.stderr
        assert tiny("port", re.search(r"PORT=(\d+)", done.stderr)[1]).returncode == 0
    assert "use 'install'" in tiny("instal").stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_without_a_browser_the_set_up_says_so_and_goes_on(tiny, tmp_path) -> None:
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = tiny("browser")
    assert done.returncode == 0 and "are skipped" in done.stdout.splitlines()[-1]


# -- .ci/run ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt" or not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("case", ["all well", "data of mine", "no zip", "a stage fails"])
def test_ci_runs_without_and_with_data_and_leaves_none_but_touches_no_data_of_mine(
        tmp_path, case: str) -> None:
    """A `make` that only notes whether data/ was there, in a copy of the script's surroundings."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    for folder in (project / ".ci", project / ".venv/bin", tools, tmp_path / "shared/data"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", project / ".ci")
    (project / ".venv/bin/python").symlink_to(sys.executable)
    for tool in (tools / "make", tools / "chromium"):  # so that no browser is installed
        fails = "[ ! -e data ]" if case == "a stage fails" else "true"
        tool.write_text(f'#!/bin/sh\necho "$@" $(ls data 2>/dev/null) >> notes\n{fails}\n')
        tool.chmod(0o755)
    (tmp_path / "cats").mkdir()
    if case != "no zip":
        shutil.make_archive(str(tmp_path / "shared/data/cats"), "zip", tmp_path, "cats")
    if case == "data of mine":
        (project / "data").mkdir()
        (project / "data/mine").write_text("precious")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(project / ".ci/run")], cwd=tmp_path, capture_output=True,
                          text=True, env=environment)
    if case == "data of mine":
        assert done.returncode == 1 and "remove data/" in done.stderr
        assert (project / "data/mine").read_text() == "precious"
        assert not (project / "notes").exists()
        return
    both = ["test", "test-with-data cats"]
    stages = {"a stage fails": both, "no zip": ["test", "test-browser"]}
    notes = (project / "notes").read_text().splitlines()
    assert notes == stages.get(case, [*both, "test-browser"]), done.stderr
    assert (done.returncode == 0) == (case != "a stage fails")
    assert not (project / "data").exists()
