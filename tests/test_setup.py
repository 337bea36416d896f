"""The set-up: one list of versions for make, pip and conda; and one clear line for whatever goes wrong on the way."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

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
    named = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
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


@functools.cache
def reachable() -> set[str]:
    """Every package that an installation of this project pulls in on this machine, by walking what each one requires."""
    seen, waiting = set(), [(name, frozenset(r.extras)) for name, r in direct().items()]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system: not installed here
        for r in map(Requirement, lines):
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""}):
                waiting.append((canonicalize_name(r.name), frozenset(r.extras)))
    return {name for name, _ in seen}


# -- one list of versions ------------------------------------------------------------------------------------------------


def pip_part() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def test_conda_installs_this_package_with_its_extras_and_nothing_else() -> None:
    """Conda hands the lines to pip as a requirements file beside environment.yml and runs it there: paths begin at ROOT."""
    options = [line.split(maxsplit=1) for line in pip_part()]
    assert [o[0] for o in options] == ["-c", "-e"]
    (_, constraint_file), (_, target) = options
    assert (ROOT / constraint_file).samefile(ROOT / "constraints.txt")
    path, extras = re.fullmatch(r"(.+)\[(.+)\]", target).groups()
    assert (ROOT / path).samefile(ROOT) and (ROOT / path / "pyproject.toml").exists()
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    named = set()
    for extra in extras.split(","):
        for r in map(Requirement, PROJECT["optional-dependencies"][extra]):
            named |= set(r.extras) if r.name == PROJECT["name"] else {extra}
    assert named == set(PROJECT["optional-dependencies"]) - {"all"}, "an extra is left out"


def test_conda_states_no_version_but_python_s() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [Requirement(entry) for entry in environment["dependencies"] if isinstance(entry, str)]
    assert {r.name for r in conda} == {"python", "pip"}
    assert [str(r.specifier) for r in conda if r.name == "pip"] == [""]
    (python,) = [r.specifier for r in conda if r.name == "python"]
    lowest = {s.version for s in python if s.operator == ">="}
    assert {f">={version}" for version in lowest} == {PROJECT["requires-python"]}
    setup = load_script()
    assert lowest == {".".join(map(str, setup.OLDEST))}
    assert environment["channels"] == ["conda-forge"]


def test_conda_and_make_install_the_same() -> None:
    """The words after `pip install` in setup_env.py are those of environment.yml, but that the constraints keep a torch."""
    words = [node.value for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)]
    for line in pip_part():
        option, value = line.split(maxsplit=1)
        assert option in words and value in words, f"{line} is not what setup_env.py does"


def test_the_tested_set_names_only_what_an_installation_pulls_in() -> None:
    assert set(pins()) - reachable() == set()


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    assert set(direct()) - set(pins()) == set()
    for name, requirement in direct().items():
        assert requirement.specifier, f"{name} has no range in pyproject.toml"
        assert requirement.specifier.contains(pins()[name]), f"{requirement} does not allow {pins()[name]}"


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
                assert pin is None or r.specifier.contains(pin), f"{name} {version} requires {r}, the tested set has {pin}"


def test_every_import_is_installed_by_pyproject() -> None:
    """The library imports what pyproject.toml names; tests also what comes along with that for certain."""
    package_of = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "bs4": "beautifulsoup4"}
    library = {*direct(), "ipython", "traitlets"}  # the last two are ipykernel's and ipywidgets' own interface
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / ".ci").glob("*.py")]
    own = sys.stdlib_module_names | {"diffusion_lib", *(path.stem for path in tests)}
    for path in [*(ROOT / "diffusion_lib").glob("*.py"), *tests]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - own:
                package = canonicalize_name(package_of.get(top, top))
                allowed = reachable() if path in tests else library
                assert package in allowed, f"{path.name} imports {top}, which pyproject.toml does not name"


# -- setup_env.py --------------------------------------------------------------------------------------------------------


def load_script():
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """setup_env.py as a module that works on a copy of this project under tmp_path."""
    module = load_script()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv/.installed")
    return module


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13)])
def test_python_too_old(setup, version: tuple, refuses) -> None:
    with refuses(setup.Problem, "3.11 or later", ".".join(map(str, version)), sys.executable, "make PYTHON="):
        setup.check_python(version)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 2), (4, 0, 0)])
def test_python_new_enough(setup, version: tuple) -> None:
    setup.check_python(version)


def test_an_old_python_reads_the_script_far_enough_to_say_so() -> None:
    """No syntax newer than 3.6 (f-strings), and no type that it would have to evaluate and does not know."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.NamedExpr, ast.Match))
        if isinstance(node, (ast.FunctionDef, ast.arg, ast.AnnAssign)):
            note = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            assert not isinstance(note, (ast.Subscript, ast.BinOp)), f"line {note.lineno}: put the type in quotes"


@pytest.mark.parametrize("name", ["python3.6", "python3.8", "python3.10"])
def test_with_an_old_python_where_there_is_one(name: str, tmp_path: Path) -> None:
    found = [shutil.which(name), *Path.home().glob(f".pyenv/versions/{name[6:]}.*/bin/python")]
    found = [str(path) for path in found if path and subprocess.run([str(path), "-V"], capture_output=True).returncode == 0]
    if not found:
        pytest.skip(f"no {name} on this machine")
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    done = subprocess.run([found[0], ".ci/setup_env.py", "install"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert "Python 3.11 or later is needed" in done.stderr and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("free, torch_there, fits", [(100e9, False, True), (3e9, True, True), (1.5e9, True, False), (3e9, False, False)])
def test_disk_full(setup, monkeypatch, free: float, torch_there: bool, fits: bool, refuses) -> None:
    monkeypatch.setattr(setup.sys, "platform", "linux")
    if fits:
        setup.check_disk(free, torch_there)
        return
    with refuses(setup.Problem, f"{free / 1e9:.1f} GB are free", str(setup.ROOT), "2 GB" if torch_there else "8 GB", "free some space"):
        setup.check_disk(free, torch_there)


@pytest.fixture
def taken():
    """The number of a port at which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_port_taken(setup, taken: int, refuses) -> None:
    with refuses(setup.Problem, f"port {taken} is taken", "make lab PORT="):
        setup.check_port(str(taken))
    try:
        setup.check_port(str(taken))
    except setup.Problem as problem:
        setup.check_port(re.search(r"PORT=(\d+)", str(problem))[1])  # the port it proposes is free


def test_port_free_again(setup, taken: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    setup.check_port(str(free))


@pytest.mark.parametrize("port", ["0", "65536", "-1", "1e4", "eight", "", "8888 ", "²", "٣٣٣٣", "123456"])
def test_wrong_port(setup, port: str, refuses) -> None:
    with refuses(setup.Problem, repr(port), "from 1 to 65535"):
        setup.check_port(port)


def test_last_port_and_forbidden_port_propose_one_that_exists(setup, monkeypatch, refuses) -> None:
    monkeypatch.setattr(setup, "can_listen", lambda port: None if 8888 <= port < 9000 else OSError(98, "Address already in use"))
    with refuses(setup.Problem, "port 65535 is taken", "PORT=8888"):
        setup.check_port("65535")
    monkeypatch.setattr(setup, "can_listen", lambda port: PermissionError(13, "Permission denied") if port < 1024 else None)
    with refuses(setup.Problem, "port 80 is not for everybody", "Permission denied", "PORT=1024"):
        setup.check_port("80")


def test_a_torch_that_is_there_is_kept(setup) -> None:
    text = "numpy==2.0\ntorch==2.11.0\ntorchmetrics==1.0\ntorchvision==0.26.0\ntqdm==4.0\n"
    assert setup.constraints(text, {}).splitlines() == text.splitlines()
    kept = setup.constraints(text, {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}).splitlines()
    assert kept == ["numpy==2.0", "torchmetrics==1.0", "tqdm==4.0", "torch==2.13.0+cpu", "torchvision==0.28.0+cpu"]
    alone = setup.constraints(text, {"torch": "2.13.0"}).splitlines()
    assert "torch==2.13.0" in alone and not any(line.startswith("torchvision") for line in alone)  # pip finds the one that fits it


def test_which_torch_is_found(setup, monkeypatch) -> None:
    assert setup.installed_torch(Path(sys.executable)) == {n: importlib.metadata.version(n) for n in ("torch", "torchvision")}
    assert setup.installed_torch(setup.ROOT / "no/python") == {}
    least = next(iter(direct()["torch"].specifier)).version
    for version, enough in ((least, True), (f"{least}.1+cu130", True), ("99.0.0a0+git123", True), ("1.13.1", False), ("2.0.0+cpu", False)):
        answer = SimpleNamespace(stdout=f"torch {version}\ntorchvision 0.99\n", returncode=0)
        monkeypatch.setattr(setup, "ask", lambda *_, answer=answer: answer)
        assert ("torch" in setup.installed_torch(Path("python"))) == enough  # one below pyproject's range is replaced


def test_fingerprint_changes_with_the_files_the_python_and_the_place(setup, monkeypatch) -> None:
    seen = {setup.fingerprint()}
    for name in ("pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"):
        path = setup.ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
        assert setup.fingerprint() not in seen, name
        assert setup.fingerprint() == setup.fingerprint()
        seen.add(setup.fingerprint())
    (setup.ROOT / "README.md").write_text("plays no part")
    assert setup.fingerprint() in seen
    shutil.copytree(setup.ROOT, setup.ROOT / "moved")
    monkeypatch.setattr(setup, "VENV", setup.ROOT / "moved/.venv")
    monkeypatch.setattr(setup, "ROOT", setup.ROOT / "moved")
    assert setup.fingerprint() not in seen


# -- the whole of install(), with a pip that is played ---------------------------------------------------------------------


class Played:
    """Stands in for subprocess.run: notes the commands, makes .venv appear, answers for pip with what a test wants."""

    def __init__(self, module, pip: list[tuple[int, str]], venv: tuple[int, str] = (0, ""), imports: tuple[int, str] = (0, "")) -> None:
        self.module, self.pip, self.venv, self.imports, self.commands, self.torch = module, list(pip), venv, imports, [], ""
        self.whole, self.constraints, self.environments = False, [], []

    def __call__(self, command: list[str], **settings: object) -> SimpleNamespace:
        self.commands.append(command[1:])
        answer = lambda code, out="", err="": SimpleNamespace(returncode=code, stdout=out, stderr=err)  # noqa: E731
        if command[1:3] == ["-m", "venv"]:
            if not self.venv[0]:
                python = self.module.python_of(self.module.VENV)
                python.parent.mkdir(parents=True)
                python.write_text("")
                (self.module.VENV / "pyvenv.cfg").write_text("version = 3.12")
                self.whole = True
            else:
                self.module.VENV.mkdir()  # half made, as Debian's does without python3-venv
            return answer(*self.venv)
        if command[1:4] == ["-m", "pip", "install"]:
            self.environments.append(settings.get("env"))
            self.constraints.append(Path(command[command.index("-c") + 1]).read_text())
            code, words = self.pip.pop(0)
            return answer(code, "", words)
        if command[1:4] == ["-m", "pip", "config"]:
            return answer(0, "global.constraint='/etc/constraints.txt'")
        if command[1] == "-c" and "version_info" in command[2]:
            return answer(0, "3 12\n") if self.whole else answer(1)
        if command[1] == "-c" and "import torch," in command[2]:
            return answer(*self.imports)
        if command[1] == "-c":
            return answer(0, self.torch)
        return answer(0 if self.whole else 1)


def play(setup, monkeypatch, pip=((0, ""),), free: float = 100e9, **settings: object) -> Played:
    played = Played(setup, list(pip), **settings)
    monkeypatch.setattr(setup, "subprocess", SimpleNamespace(
        run=played, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT, CompletedProcess=subprocess.CompletedProcess))
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    return played


def commands(played: Played, *start: str) -> int:
    return sum(command[: len(start)] == list(start) for command in played.commands)


def test_first_run_installs_second_run_does_nothing_a_change_installs_again(setup, monkeypatch, capsys) -> None:
    played = play(setup, monkeypatch, pip=[(0, "")] * 2)
    assert setup.main(["install"]) == 0
    said = capsys.readouterr().out
    assert "making .venv" in said and "installing" in said and "with PyTorch" in said and "done" in said
    assert commands(played, "-m", "venv") == commands(played, "-m", "pip", "install") == 1
    assert played.commands[-2][-2:] == ["-e", ".[all]"]
    before = len(played.commands)
    assert setup.main(["install"]) == 0 and capsys.readouterr().out == "" and len(played.commands) == before
    (setup.ROOT / "constraints.txt").write_text("numpy==2.4.6\n")
    played.torch = "torch 2.12.0+cu140\ntorchvision 0.27.0\n"
    assert setup.main(["install"]) == 0
    assert "keeping torch 2.12.0+cu140" in capsys.readouterr().out
    assert commands(played, "-m", "venv") == 1 and commands(played, "-m", "pip", "install") == 2
    assert played.constraints[1].split() == ["numpy==2.4.6", "torch==2.12.0+cu140", "torchvision==0.27.0"]


def one_line(capsys: pytest.CaptureFixture) -> str:
    """The last line of standard error, which must be the only one of the script's own."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("words, expected", [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
    ("ERROR: [Errno 122] Disk quota exceeded", "the disk is full"),
    ("NewConnectionError('<...>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')\n"
     "ERROR: No matching distribution found for setuptools>=77", "connect to a network"),
    ("ERROR: No matching distribution found for torch==2.11.0", "make PYTHON="),
    ("ERROR: something that nobody has seen before", "make clean"),
])
def test_what_pip_says_becomes_one_line(setup, monkeypatch, capsys, words: str, expected: str) -> None:
    played = play(setup, monkeypatch, pip=[(1, words), (0, "")])
    assert setup.main(["install"]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.splitlines()[-1].startswith("error: ") and expected in captured.err.splitlines()[-1]
    assert not setup.STAMP.exists()
    assert setup.main(["install"]) == 0 and setup.STAMP.exists()  # the same command again goes on
    assert commands(played, "-m", "venv") == 1


def test_constraints_of_the_machine_that_contradict_ours_are_left_out_at_the_second_try(setup, monkeypatch, capsys) -> None:
    played = play(setup, monkeypatch, pip=[(1, "ERROR: ResolutionImpossible: for help visit ..."), (0, "")])
    assert setup.main(["install"]) == 0
    assert "trying without them" in capsys.readouterr().out
    assert played.environments[0] is None and played.environments[1]["PIP_CONSTRAINT"] == os.devnull
    assert played.constraints[0] == played.constraints[1]


def test_a_half_made_environment_is_made_anew(setup, monkeypatch, capsys) -> None:
    (setup.VENV / "bin").mkdir(parents=True)
    (setup.VENV / "bin/leftover").write_text("of an interrupted set-up")
    played = play(setup, monkeypatch)
    monkeypatch.setattr(setup, "python_of", lambda venv: venv / "fresh/python")
    assert setup.main(["install"]) == 0
    assert "not whole" in capsys.readouterr().out
    assert [command for command in played.commands if command[:2] == ["-m", "venv"]][0][2] == "--clear"


@pytest.mark.parametrize("words, expected", [
    ("The virtual environment was not created successfully because ensurepip is not available.", "apt install python3-venv"),
    ("/usr/bin/python3: No module named venv", "apt install python3-venv"),
    ("Error: [Errno 13] Permission denied: '.venv'", "Permission denied"),
    ("", "exit code 1"),
])
def test_no_environment_can_be_made(setup, monkeypatch, capsys, words: str, expected: str) -> None:
    play(setup, monkeypatch, venv=(1, words))
    assert setup.main(["install"]) == 1
    assert expected in one_line(capsys)
    assert not setup.VENV.exists()  # a half one would be taken for a whole one


def test_an_environment_of_an_old_python(setup, monkeypatch, capsys) -> None:
    play(setup, monkeypatch)
    setup.VENV.mkdir()
    monkeypatch.setattr(setup, "ask", lambda *_: SimpleNamespace(returncode=0, stdout="3 9\n"))
    assert setup.main(["install"]) == 1
    assert "made by Python 3.9" in (line := one_line(capsys)) and "make clean" in line and setup.VENV.exists()


def test_full_disk_before_anything_is_made(setup, monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup.sys, "platform", "linux")
    played = play(setup, monkeypatch, free=5e9)
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    assert setup.main(["install"]) == 1
    assert "the disk is too full: 5.0 GB are free" in one_line(capsys)
    assert commands(played, "-m", "venv") == 0 and not setup.VENV.exists()


def test_what_was_installed_must_work(setup, monkeypatch, capsys) -> None:
    play(setup, monkeypatch, imports=(1, "Traceback ...\nImportError: libcudart.so.13: cannot open shared object file"))
    assert setup.main(["install"]) == 1
    assert "libcudart.so.13" in (line := one_line(capsys)) and "make clean" in line
    assert not setup.STAMP.exists()


def test_unknown_arguments_interruption_and_errors_of_the_system(setup, monkeypatch, capsys) -> None:
    for arguments in ([], ["instal"], ["port"], ["install", "now"]):
        assert setup.main(arguments) == 1 and "use 'install', 'browser' or 'port NUMBER'" in one_line(capsys)
    full = OSError(28, "No space left", "/x")
    for error, code, expected in ((KeyboardInterrupt(), 130, "run make again"), (full, 1, "No space left (/x)")):
        def fails(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(setup, "install", fails)
        assert setup.main(["install"]) == code and expected in one_line(capsys)


def test_the_script_itself_on_a_taken_port(taken: int) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "port", str(taken)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"port {taken} is taken" in done.stderr


def test_the_makefile_checks_before_it_starts() -> None:
    """`make lab` on a port that is taken ends with our line, not with a server's traceback; every target sets up first."""
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = {match[1]: match[2] for match in re.finditer(r"^([a-z-]+):(.*(?:\n\t.*)*)", make, re.MULTILINE)}
    assert rules["lab"].index("setup_env.py port") < rules["lab"].index("--port=$(PORT)")
    assert "setup_env.py install" in rules["setup"]
    for target in ("lab", "lint", "test-lib", "test-notebooks", "notebooks"):
        assert rules[target].split("\n")[0].split()[0] == "setup", target
    assert {"lint", "test-lib", "test-notebooks"} <= set(rules["test"].split())


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("found, fetched, said", [
    ("/usr/bin/chromium", 1, []), ("", 0, ["asking Playwright"]), ("", 1, ["asking Playwright", "the browser tests are skipped"]),
])
def test_a_browser_is_found_or_fetched_or_done_without(setup, monkeypatch, capsys, found: str, fetched: int, said: list) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    python = setup.python_of(setup.VENV)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo "{found}"; else echo "$@" >> {setup.ROOT}/asked; exit {fetched}; fi\n')
    python.chmod(0o755)
    assert setup.main(["browser"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(said) and all(words in line for words, line in zip(said, out.splitlines(), strict=True))
    assert err == "" and (setup.ROOT / "asked").exists() == (not found)
    if not found:
        assert (setup.ROOT / "asked").read_text() == "-m playwright install chromium\n"
        monkeypatch.setenv("CHROMIUM", "/no/such/browser")
        assert setup.main(["browser"]) == 1 and "/no/such/browser" in capsys.readouterr().err


# -- .ci/run -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt" or not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("case", ["with pictures", "without", "data is there", "first fails", "second fails", "browser fails"])
def test_ci_runs_make_test_without_and_with_data_and_then_the_browser(tmp_path: Path, case: str) -> None:
    """A `make` that only notes whether data/ was there, in a copy of the script's surroundings."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    for folder in (project / ".ci", project / ".venv/bin", tools, tmp_path / "shared/data"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", project / ".ci")
    (project / ".venv/bin/python").symlink_to(sys.executable)
    fails = {"first fails": "[ -e data ]", "second fails": "[ ! -e data ]", "browser fails": "[ $1 != test-browser ]"}.get(case, "true")
    (tools / "make").write_text(f'#!/bin/sh\n(echo "$@"; ls data 2>/dev/null) | tr "\\n" " " >> notes; echo >> notes\n{fails}\n')
    shutil.copy(tools / "make", tools / "chromium")                          # so that none is installed
    for tool in tools.iterdir():
        tool.chmod(0o755)
    if case != "without":
        (tmp_path / "cats").mkdir()
        shutil.make_archive(str(tmp_path / "shared/data/cats"), "zip", tmp_path, "cats")
    if case == "data is there":
        (project / "data").mkdir()
        (project / "data/mine").write_text("precious")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(project / ".ci/run")], cwd=tmp_path, capture_output=True, text=True, env=environment)
    notes = (project / "notes").read_text().splitlines() if (project / "notes").exists() else []
    if case == "data is there":
        assert done.returncode == 1 and notes == [] and done.stderr.count("\n") == 1 and "remove data/" in done.stderr
        assert (project / "data/mine").read_text() == "precious"
        return
    calls = {"first fails": ["test"], "second fails": ["test", "test-with-data cats"], "without": ["test", "test-browser"]}
    assert [note.strip() for note in notes] == calls.get(case, ["test", "test-with-data cats", "test-browser"])
    assert (done.returncode == 0) == (case in ("with pictures", "without")) and not (project / "data").exists()
