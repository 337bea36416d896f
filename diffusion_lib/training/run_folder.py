"""What surrounds a training run: which devices and number format, one run a folder, clean stops, the log."""

import contextlib
import csv
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from torch import Tensor


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
