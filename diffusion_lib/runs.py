"""What surrounds a training run: which device and number format, one run a folder, clean stops, the log."""

import contextlib
import csv
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F


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


class RunLock:
    """One training run a folder: a `.lock` file that holds the process number. Use as a context manager.

    Raises RuntimeError if another living process trains there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / ".lock"

    def _owner_lives(self) -> bool:
        try:
            pid = int(self.path.read_text())
        except (OSError, ValueError):
            return False
        if pid == os.getpid():
            return False
        if os.name == "nt":
            return True  # no harmless way to ask: a stale lock is named in the message and can be deleted
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False  # killed before it could clean up
        except PermissionError:
            return True
        return True

    def __enter__(self) -> "RunLock":
        for attempt in range(2):
            try:
                with open(self.path, "x") as file:
                    file.write(str(os.getpid()))
                return self
            except FileExistsError:
                if attempt or self._owner_lives():
                    raise RuntimeError(f"another run (process {self.path.read_text()}) is training in {self.path.parent}; "
                                       f"choose another --out, or delete {self.path} if that process is gone") from None
                self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
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

    COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "images_per_second", "seconds")

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in self.read(path) if int(row["step"]) <= step] if path.exists() and step else []
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        self.file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.writer = csv.DictWriter(self.file, self.COLUMNS)
        self.writer.writeheader()
        self.writer.writerows(rows)
        self.file.flush()

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """All whole rows of a log."""
        with open(path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["seconds"]]

    def write(self, **row: float) -> None:
        self.writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        self.file.flush()

    def close(self) -> None:
        self.file.close()
