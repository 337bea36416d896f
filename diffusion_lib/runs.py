"""What surrounds a training run: which devices and number format, one run a folder, clean stops, the log."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on: cuda, then mps, then cpu; or the one named. Raises ValueError if it is not there."""
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there()))
    kind = name.split(":")[0]
    if kind not in available or not available[kind]():
        raise ValueError(f"device {name!r} is not available here; use 'auto', or one of "
                         f"{', '.join(k for k, there in available.items() if there())}")
    return torch.device(name)


@functools.cache
def probe_autocast(device: torch.device) -> str:
    """"bf16" or "float32", whichever trains faster here, found by trying (about 0.2 s on a CPU).

    A flag of the processor does not tell: with matrix units (AMX) bfloat16 was seen 5 to 8 times faster than float32, and
    17 times slower on a common laptop.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    # one level's convolution of a small UNet, forward and backward
    images = torch.randn(8, 64, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def seconds(dtype: torch.dtype, repeats: int) -> float:
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                F.conv2d(images, weight, padding=1).float().sum().backward()
            best = min(best, time.perf_counter() - start)
            if best > 0.2:  # already far slower than float32 ever is: no need to look again
                break
        return best

    full, half = seconds(torch.float32, 4), seconds(torch.bfloat16, 4)
    return "bf16" if half < 0.8 * full else "float32"  # a tie goes to the exact one


class Ranks:
    """The processes that train one run together, one a device. Several where `accelerate launch` started several; else this one.

    device: where this one computes. Raises ValueError for a device that is not there, ImportError without Accelerate.
    """

    def __init__(self, device: str = "auto") -> None:
        self.rank, self.count, self.accelerator = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise ImportError("several processes train together through Accelerate; pip install accelerate") from error
            self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
            self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self.accelerator else pick_device(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to call in training: its gradients are the means over all processes."""
        return self.accelerator.prepare_model(model) if self.accelerator else model

    def keep_gradients(self, network: nn.Module, keep: bool) -> contextlib.AbstractContextManager:
        """While `keep`, gradients are added up here and not exchanged yet."""
        return self.accelerator.no_sync(network) if self.accelerator and keep else contextlib.nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same on each of them."""
        return self.accelerator.reduce(values, "mean") if self.accelerator else values

    def any(self, wish: bool) -> bool:
        """Whether any process wishes so: all of them hear the same."""
        if not self.accelerator:
            return wish
        return bool(self.mean(torch.tensor(float(wish), device=self.device)) > 0)


class RunLock:
    """One training run a folder: a `.lock` file that holds the process number. Use as a context manager.

    Raises RuntimeError if another living process, or another run of this one, trains there.
    """

    _held: ClassVar[set[Path]] = set()  # by this process

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder).resolve() / ".lock"

    def _owner(self) -> int | None:
        """The process that holds the lock; None if nobody does, or if what is written there is no process number."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return None

    def _lives(self, pid: int | None) -> bool:
        if pid is None or pid <= 0:
            return False
        if pid == os.getpid():  # left by a dead process of the same number (in a container they begin at 1), or ours?
            return self.path in self._held
        if os.name == "nt":
            return True  # no harmless way to ask: a stale lock is named in the message and can be deleted
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False  # killed before it could clean up; or no number that a process can have
        except PermissionError:
            return True
        return True

    def __enter__(self) -> "RunLock":
        for attempt in range(2):
            try:
                with open(self.path, "x") as file:
                    file.write(str(os.getpid()))
                self._held.add(self.path)
                return self
            except FileExistsError:
                owner = self._owner()
                if attempt or self._lives(owner):
                    raise RuntimeError(f"another run (process {owner}) is training in {self.path.parent}; "
                                       f"choose another --out, or delete {self.path} if that process is gone") from None
                self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.discard(self.path)
        self.path.unlink(missing_ok=True)


class StopRequest:
    """Becomes true when the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C (or JupyterLab's stop button) and SIGTERM into a polite request: the step in hand is finished first.

    A second signal interrupts at once. Outside the main thread, where Python delivers no signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handler(number: int, frame: object) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class CsvLog:
    """A run's `log.csv`: one row every few steps. Rows after the step resumed from are dropped."""

    # loss_q1 … loss_q4: the loss of the batch's quarters of t, from nearly clean to nearly noise
    COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "images_per_second", "seconds", *(f"loss_q{i}" for i in range(1, 5)))

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in self.read(path) if int(row["step"]) <= step] if path.exists() and step else []
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        temporary = path.with_name(f".{path.name}.tmp")  # a full disk must not cost the rows that are there
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
        self.file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.writer = csv.DictWriter(self.file, self.COLUMNS)

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """All whole rows of a log; half a last row, left by a crash or a full disk, is ignored."""
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = csv.DictReader(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
        return [row for row in rows if all(row.get(column) for column in CsvLog.COLUMNS) and row["step"].isdecimal()]

    def write(self, **row: float) -> None:
        """Add a row, one value a column, and hand it to the disk. Raises OSError when that is full."""
        self.writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        self.file.flush()

    def close(self) -> None:
        """Close the file; the log can be read all the time."""
        self.file.close()


def fingerprint(images: Tensor) -> str:
    """sha256 of all pixels: tells whether a run goes on with the pictures it began with."""
    return hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()


def card(run: Path | str, state: dict, points: int = 60) -> dict:
    """What a shipped model tells about itself: data, settings, work, machine, its thinned log.

    run: the run folder. What lies in it as trials.json (the short trials that chose the settings), report.json (what `evaluate --json`
    wrote) and independent.json (the same with --judge) goes in too. state: its checkpoint's.
    """
    run = Path(run)
    log = list(CsvLog.read(run / "log.csv"))
    settings = {k: v for k, v in state["train"].items() if k not in ("device", "save_every", "keep", "log_every")}
    width = max(len(log) // points, 1)                                     # the loss jumps: each point is the mean of its rows
    parts = [log[i : i + width] for i in range(0, len(log), width)]
    thinned = {"step": [int(part[-1]["step"]) for part in parts], "seconds": [round(float(part[-1]["seconds"])) for part in parts]}
    for name in ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4"):
        values = [[float(row[name]) for row in part if row.get(name) not in (None, "", "nan")] for part in parts]
        thinned[name] = [round(sum(rows) / len(rows), 5) if rows else None for rows in values]
    told = {
        "data": state["data"], "init": (state.get("config") or {}).get("init", ""), "schedule": "see diffusion.betas",
        "train": settings, "precision": state["precision"],
        "steps": state["step"], "images_seen": state["step"] * settings["batch_size"], "seconds": round(float(log[-1]["seconds"])),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "weights": "ema_1 (the long average), stored in float16", "log": thinned,
    }
    for name in ("trials", "report", "independent"):
        if (run / f"{name}.json").exists():
            told[name] = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    return told
