"""Make .venv and install this project into it, saying what is happening. Called by the Makefile; standard library only.

    python3 .ci/setup_env.py install        create .venv if needed, install or update, keep a torch that is already there
    python3 .ci/setup_env.py port 8888      fail with one line if the port is taken
    python3 .ci/setup_env.py browser        find a Chromium for the browser tests, or let Playwright fetch one into its own folder

A Python of any age must get as far as the line that says it is too old: hence no newer syntax, and types in quotes.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
OLDEST = (3, 11)
GIGABYTE = 1e9


class Problem(Exception):
    """Ends the set-up with one clear line."""


def check_python(version: "tuple[int, ...]" = sys.version_info[:3]) -> None:
    """Raise Problem if this Python is too old."""
    if tuple(version[:2]) < OLDEST:
        raise Problem(f"Python {'.'.join(map(str, OLDEST))} or later is needed, this is {'.'.join(map(str, version))} "
                      f"({sys.executable}); install a newer one and run: make PYTHON=python3.12")


def check_disk(free: float, torch_there: bool) -> None:
    """Raise Problem if fewer bytes are free than the installation takes."""
    needed = 2 if torch_there else 8 if sys.platform == "linux" else 4  # Linux's torch brings CUDA's libraries
    if free < needed * GIGABYTE:
        small = "" if torch_there else ", or install PyTorch's small CPU build into .venv first (README.md says how)"
        raise Problem(f"the disk is too full: {free / GIGABYTE:.1f} GB are free in {ROOT}, the installation needs {needed} GB; "
                      f"free some space{small} and run make again")


def can_listen(port: int) -> "OSError | None":
    """None if a server can listen at this port of this machine, else the reason why not."""
    with socket.socket() as probe:
        if os.name != "nt":  # on Windows this option would share a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def check_port(port: str) -> None:
    """Raise Problem if nothing can listen there."""
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise Problem(f"PORT must be a number from 1 to 65535, not {port!r}")
    error = can_listen(int(port))
    if error is None:
        return
    near = range(max(int(port) + 1, 1024), 65536)
    free = next((other for other in [*near[:100], 8888, 8889] if can_listen(other) is None), 8890)
    if isinstance(error, PermissionError):
        raise Problem(f"port {port} is not for everybody ({error.strerror}); run: make lab PORT={free}")
    raise Problem(f"port {port} is taken ({error.strerror}); another JupyterLab may be running: use that one, or run: make lab PORT={free}")


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ask(python: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run an interpreter and keep what it says; return code 127 if it cannot be run at all."""
    try:
        return subprocess.run([str(python), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return subprocess.CompletedProcess([str(python)], 127, str(error))


def installed_torch(python: Path) -> "dict[str, str]":
    """{"torch": version, "torchvision": version} as far as they are installed for that interpreter and recent enough."""
    code = ("import importlib.metadata as m\nfor n in ('torch', 'torchvision'):\n"
            "    try: print(n, m.version(n))\n    except m.PackageNotFoundError: pass")
    found = dict(line.split() for line in ask(python, "-c", code).stdout.splitlines() if len(line.split()) == 2)
    return {name: version for name, version in found.items() if recent_enough(name, version)}


def recent_enough(name: str, version: str) -> bool:
    """Whether a version is within the range that pyproject.toml gives ("torch>=2.6", say)."""
    least = re.search(rf'"{name}>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return not least or numbers(version) >= numbers(least.group(1))


def numbers(version: str) -> "tuple[int, ...]":
    """(2, 11, 0) for "2.11.0+cu130"."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))


def constraints(text: str, torch: "dict[str, str]") -> str:
    """The tested set, but with the torch that is already there in place of the tested one."""
    lines = [line for line in text.splitlines() if re.split("[=<>]", line)[0] not in ("torch", "torchvision") or not torch]
    return "\n".join([*lines, *(f"{name}=={version}" for name, version in torch.items())]) + "\n"


def fingerprint() -> str:
    """What the installation depends on (packages, Python, and where it lies): change it, and make installs again."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", VENV / "pyvenv.cfg"):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def usable(python: Path) -> bool:
    """Whether .venv can be installed into; one without pip (some tools make them so, or were interrupted) is given pip."""
    version = ask(python, "-c", "import sys; print(*sys.version_info[:2])")
    if version.returncode:
        return False
    if tuple(map(int, version.stdout.split()[-2:])) < OLDEST:
        raise Problem(f".venv was made by Python {'.'.join(version.stdout.split()[-2:])}, {'.'.join(map(str, OLDEST))} or later is needed; "
                      "remove it (make clean) and run make again")
    return any(ask(python, "-m", *what).returncode == 0 for what in (["pip", "--version"], ["ensurepip", "--default-pip"]))


def make_venv() -> None:
    """Create .venv, over whatever was there. Raises Problem, leaving nothing half made."""
    # a torch that this Python already has (a GPU build, say) is used, not downloaded again
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
    shared = sys.prefix == sys.base_prefix and has_torch and len(installed_torch(Path(sys.executable))) == 2
    print(f"set-up: making .venv with {sys.executable}{', which has torch already' if shared else ''}", flush=True)
    check_disk(shutil.disk_usage(str(ROOT)).free, shared)
    done = ask(Path(sys.executable), "-m", "venv", "--clear", *(["--system-site-packages"] if shared else []), str(VENV))
    if done.returncode:
        shutil.rmtree(str(VENV), ignore_errors=True)
        words = done.stdout.strip().splitlines()
        if "No module named" in done.stdout or "ensurepip" in done.stdout:
            raise Problem("this Python cannot make virtual environments; on Debian or Ubuntu first run: apt install python3-venv")
        raise Problem(f"could not make .venv ({words[-1] if words else f'exit code {done.returncode}'}); "
                      "check the disk and the folder's permissions and run make again")


def explain(words: str) -> str:
    """One line for what went wrong, from pip's own words."""
    if "No space left" in words or "Disk quota exceeded" in words:
        return "the disk is full: free some space and run make again"
    if re.search("NewConnectionError|NameResolutionError|Temporary failure in name resolution|Network is unreachable|ProxyError"
                 "|Connection refused|ConnectTimeout|Read timed out|ReadTimeoutError", words):
        return "pip could not reach the package index (its own words are above): connect to a network and run make again"
    if "No matching distribution" in words:
        return (f"a package of the tested set does not exist for Python {sys.version.split()[0]} or this system (pip's own words are "
                "above); try another Python, say: make clean, then make PYTHON=python3.12")
    return "pip could not install the packages (its own words are above); run make again, and if that does not help: make clean first"


def pip_install(python: Path, torch: "dict[str, str]") -> None:
    """Install the project with all its extras, in the tested versions. Raises Problem."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"), torch), encoding="utf-8")
        command = [str(python), "-m", "pip", "install", *([] if sys.stdout.isatty() else ["--quiet"]), "--disable-pip-version-check",
                   "-c", str(path), "-e", ".[all]"]
        done = subprocess.run(command, cwd=str(ROOT), stderr=subprocess.PIPE, text=True)
        if "ResolutionImpossible" in done.stderr and "constraint" in ask(python, "-m", "pip", "config", "list").stdout:
            print("set-up: constraints in this machine's pip configuration contradict the tested set; trying without them", flush=True)
            done = subprocess.run(command, cwd=str(ROOT), stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, "PIP_CONSTRAINT": os.devnull})
    if done.returncode:
        print(done.stderr.rstrip(), file=sys.stderr)
        raise Problem(explain(done.stderr))


def install() -> None:
    """Create .venv if it is not there, and bring it up to date."""
    python = python_of(VENV)
    if STAMP.exists() and STAMP.read_text() == fingerprint() and python.exists():
        return
    check_python()
    if not usable(python):
        if VENV.exists():
            print("set-up: .venv is not whole (an interrupted set-up, or its Python is gone)", flush=True)
        make_venv()
    torch = installed_torch(python)
    check_disk(shutil.disk_usage(str(ROOT)).free, bool(torch))
    what = f"keeping torch {torch['torch']}" if "torch" in torch else "with PyTorch: some gigabytes, a few minutes"
    print(f"set-up: installing into .venv ({what})", flush=True)
    pip_install(python, torch)
    done = ask(python, "-c", "import torch, torchvision, diffusion_lib, jupyterlab, pytest")
    if done.returncode:
        raise Problem(f"what was installed does not work ({(done.stdout.strip().splitlines() or ['no message'])[-1]}); "
                      "run: make clean, then make again")
    STAMP.write_text(fingerprint())
    print("set-up: done", flush=True)


def browser(seconds: float = 300) -> None:
    """Find a Chromium, or fetch Playwright's; say in one line where there is none: then the browser tests are skipped."""
    python, find = python_of(VENV), "import sys; sys.path.insert(0, 'tests/browser'); from lab import find_chromium as f; print(f() or '')"
    found = subprocess.run([str(python), "-c", find], cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
    if found.returncode == 0 and found.stdout.strip():
        return
    if "CHROMIUM" in os.environ:
        raise Problem(f"the environment variable CHROMIUM names {os.environ['CHROMIUM']!r}, which is no program; correct or unset it")
    print("set-up: no Chromium on this machine; asking Playwright for one", flush=True)
    try:
        fetched = subprocess.run([str(python), "-m", "playwright", "install", "chromium"], timeout=seconds, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        fetched = False
    if not fetched:
        print("set-up: Playwright could not fetch it; the browser tests are skipped. Install chromium or Google Chrome to run them",
              flush=True)


def main(arguments: "list[str]") -> int:
    try:
        if arguments[:1] == ["port"] and len(arguments) == 2:
            check_port(arguments[1])
        elif arguments == ["install"]:
            install()
        elif arguments == ["browser"]:
            browser()
        else:
            raise Problem(f"unknown arguments {arguments}; use 'install', 'browser' or 'port NUMBER'")
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.strerror or error} ({error.filename}); free some disk space or check the permissions, and run make again",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run make again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
