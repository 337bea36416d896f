"""Make .venv and install this project into it. Called by the Makefile; standard library only.

    python3 .ci/setup_env.py install     make or update .venv; a torch that is there is kept
    python3 .ci/setup_env.py port 8888   fail with one line if somebody listens there
    python3 .ci/setup_env.py browser     find a Chromium for the browser tests, or fetch one

An old Python must get as far as the line that says it is too old: so no newer syntax here.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".installed"
OLDEST = (3, 11)
OFFLINE = "ConnectionError|NameResolution|ConnectTimeout|ReadTimeout|ProxyError"  # in pip's words


def run(*command: object, **how: object) -> subprocess.CompletedProcess:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **how}
    return subprocess.run([str(part) for part in command], cwd=str(ROOT), **how)


def fingerprint() -> str:
    """Of all that an installation depends on: when it changes, make installs again."""
    paths = (ROOT / "pyproject.toml", ROOT / "constraints.txt", VENV / "pyvenv.cfg")
    content = b"".join(path.read_bytes() for path in paths if path.exists())
    return hashlib.sha256(str(ROOT).encode() + content).hexdigest()


def install() -> None:
    """Bring .venv up to date, and make it first if there is none that works."""
    if STAMP.exists() and PYTHON.exists() and STAMP.read_text() == fingerprint():
        return
    if sys.version_info[:2] < OLDEST:
        sys.exit(f"error: Python 3.11 or later is needed, this is {sys.version.split()[0]}; "
                 "install a newer one and run: make PYTHON=python3.12")
    # a torch that the Python itself has (built for its GPU, say) is used, not fetched again
    shared = sys.prefix == sys.base_prefix and all(map(find_spec, ("torch", "torchvision")))
    options = ["--clear", "--system-site-packages"] if shared else ["--clear"]
    works = PYTHON.exists() and any(  # some tools make it without pip
        run(PYTHON, "-m", *words).returncode == 0 for words in (["pip", "-V"], ["ensurepip"]))
    torch = run(PYTHON, "-c", "import torch, torchvision").returncode == 0 if works else shared
    needed, free = 2 if torch else 8, shutil.disk_usage(str(ROOT)).free / 1e9
    if free < needed:
        sys.exit(f"error: the disk is too full: {free:.1f} GB are free in {ROOT}, {needed} GB are "
                 "needed; free some space and run make again")
    if not works:
        done = run(sys.executable, "-m", "venv", *options, VENV)
        if done.returncode:
            sys.exit(f"error: could not make .venv: {' '.join(done.stdout.split())[-300:]}")
    print("set-up: installing" + ("" if torch else " with PyTorch: some minutes"), flush=True)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    kept = "^torch(vision)?==.*\n" if torch else "^$"  # pip leaves alone what no pin names
    (VENV / "constraints.txt").write_text(re.sub(kept, "", pins, flags=re.M), encoding="utf-8")
    for environment in (None, {**os.environ, "PIP_CONSTRAINT": os.devnull}):
        done = run(PYTHON, "-m", "pip", "install", "-c", VENV / "constraints.txt", "-e", ".[all]",
                   env=environment, stderr=subprocess.PIPE,
                   stdout=None if sys.stdout.isatty() else subprocess.DEVNULL)
        if "ResolutionImpossible" not in done.stderr:
            break  # else once more, without constraints of this machine, which may contradict ours
    if done.returncode == 0:
        done = run(PYTHON, "-c", "import torch, torchvision, diffusion_lib, jupyterlab, pytest")
    if done.returncode:
        print((done.stderr or done.stdout).rstrip(), file=sys.stderr)
        sys.exit("error: no package index in reach: connect to a network and run make again"
                 if re.search(OFFLINE, done.stderr or "") else
                 "error: the installation failed, see above; run make again, or make clean first")
    STAMP.write_text(fingerprint())
    print("set-up: done", flush=True)


def check_port(port: str = "") -> None:
    """End with one line if somebody listens at this port; it names one that is free."""
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        sys.exit(f"error: PORT must be a number from 1 to 65535, not {port!r}")
    with socket.socket() as probe, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if probe.connect_ex(("127.0.0.1", int(port))) == 0:
            sys.exit(f"error: port {port} is taken; if JupyterLab runs there, use that, or "
                     f"run: make lab PORT={other.getsockname()[1]}")


def browser() -> None:
    """Where no Chromium is, nor can be fetched, the browser tests are skipped."""
    find = "import sys, lab; sys.exit(lab.find_chromium() is None)"
    if run(PYTHON, "-c", find, env={**os.environ, "PYTHONPATH": "tests/browser"}).returncode == 0:
        return
    if "CHROMIUM" in os.environ:
        sys.exit(f"error: CHROMIUM names {os.environ['CHROMIUM']!r}, no program; correct it")
    print("set-up: no Chromium on this machine; asking Playwright for one", flush=True)
    with suppress(subprocess.TimeoutExpired):
        if run(PYTHON, "-m", "playwright", "install", "chromium", timeout=300).returncode == 0:
            return
    print("set-up: it could not be fetched; the browser tests are skipped", flush=True)


def main(arguments: list) -> None:
    commands = {"install": install, "browser": browser, "port": check_port}
    if arguments[:1] not in ([name] for name in commands):
        sys.exit("error: use 'install', 'browser' or 'port NUMBER'")
    try:
        commands[arguments[0]](*arguments[1:])
    except (OSError, KeyboardInterrupt) as error:
        sys.exit(f"error: {str(error) or 'interrupted'}; run make again to go on")


if __name__ == "__main__":
    main(sys.argv[1:])
