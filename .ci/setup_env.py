"""Make .venv and install this project into it, saying what is happening. Called by the Makefile; standard library only.

    python3 .ci/setup_env.py install        create .venv if needed, install or update, keep a torch that is already there
    python3 .ci/setup_env.py port 8888      fail with one line if the port is taken
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


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> None:
    """Raise Problem if this Python is too old."""
    if tuple(version[:2]) < OLDEST:
        raise Problem(f"Python {'.'.join(map(str, OLDEST))} or later is needed, this is {'.'.join(map(str, version))} "
                      f"({sys.executable}); install a newer one and run: make PYTHON=python3.12")


def check_disk(free: float, torch_there: bool) -> None:
    """Raise Problem if fewer bytes are free than the installation takes."""
    needed = 2 if torch_there else 8 if sys.platform == "linux" else 4  # Linux's torch brings CUDA's libraries
    if free < needed * GIGABYTE:
        raise Problem(f"the disk is too full: {free / GIGABYTE:.1f} GB are free in {ROOT}, the installation needs {needed} GB; "
                      "free some space and run make again")


def check_port(port: str) -> None:
    """Raise Problem if nothing can listen there."""
    if not port.isdigit() or not 1 <= int(port) <= 65535:
        raise Problem(f"PORT must be a number from 1 to 65535, not {port!r}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            raise Problem(f"port {port} is taken ({error.strerror}); another JupyterLab may be running: "
                          f"use that one, or run: make lab PORT={int(port) + 1}") from None


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def installed_torch(python: Path) -> dict[str, str]:
    """{"torch": version, "torchvision": version} as far as they are installed for that interpreter."""
    code = ("import importlib.metadata as m\nfor n in ('torch', 'torchvision'):\n"
            "    try: print(n, m.version(n))\n    except m.PackageNotFoundError: pass")
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


def constraints(text: str, torch: dict[str, str]) -> str:
    """The tested set, but with the torch that is already there in place of the tested one."""
    lines = [line for line in text.splitlines() if re.split("[=<>]", line)[0] not in ("torch", "torchvision") or not torch]
    return "\n".join([*lines, *(f"{name}=={version}" for name, version in torch.items())]) + "\n"


def fingerprint() -> str:
    """What the installation depends on: change it, and make installs again."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def install() -> None:
    """Create .venv if it is not there, and bring it up to date."""
    check_python()
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and python_of(VENV).exists():
        return
    if not python_of(VENV).exists():
        # a torch that this Python already has (a GPU build, say) is used, not downloaded again
        shared = sys.prefix == sys.base_prefix and all(importlib.util.find_spec(n) for n in ("torch", "torchvision"))
        print(f"set-up: making .venv with {sys.executable}{', which has torch already' if shared else ''}", flush=True)
        check_disk(shutil.disk_usage(ROOT).free, shared)
        done = subprocess.run([sys.executable, "-m", "venv", *(["--system-site-packages"] if shared else []), str(VENV)])
        if done.returncode:
            raise Problem("could not make .venv; on Debian or Ubuntu first run: apt install python3-venv")
    python = python_of(VENV)
    torch = installed_torch(python)
    check_disk(shutil.disk_usage(ROOT).free, bool(torch))
    what = f"keeping torch {torch['torch']}" if "torch" in torch else "with PyTorch: some gigabytes, a few minutes"
    print(f"set-up: installing into .venv ({what})", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(constraints((ROOT / "constraints.txt").read_text(), torch))
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                               "-c", str(path), "-e", ".[all]"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        full = "No space left" in done.stderr
        raise Problem("the disk is full: free some space and run make again" if full else
                      "pip could not install the packages (its own words are above); check the network and run make again")
    STAMP.write_text(wanted)
    print("set-up: done", flush=True)


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["port"] and len(arguments) == 2:
            check_port(arguments[1])
        elif arguments == ["install"]:
            install()
        else:
            raise Problem(f"unknown arguments {arguments}; use 'install' or 'port NUMBER'")
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.strerror or error} ({error.filename}); free some disk space or check the permissions, and run make again",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
