"""What surrounds a training run: one run a folder, clean stops, the log."""

import contextlib
import csv
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock

from ..saving.files import whole


class RunLock:
    """One training run a folder, which is made if it is not there. Use as a context manager.

    The operating system holds the lock on the file `.lock` and frees it when the process ends,
    however it ends. Raises RuntimeError if another run trains there, of this process or of another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.lock = filelock.FileLock(self.folder.resolve() / ".lock", timeout=0)

    def __enter__(self) -> "RunLock":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise RuntimeError(
                f"another run is training in {self.folder} (it holds {self.lock.lock_file}); "
                "wait for its end, or choose another --out"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Turn Ctrl-C (or JupyterLab's stop button) and SIGTERM into a polite request: the step in hand
    is finished first. What it hands out is a list, empty until a signal came.

    A second signal interrupts at once. Outside the main thread, where Python delivers no signals,
    nothing is changed.
    """
    came: list[int] = []  # no threading.Event: its lock is not for signal handlers
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handler(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class CsvLog:
    """A run's `log.csv`: one row every few steps. Rows after the step resumed from are dropped. A
    context manager.
    """

    # loss_q1 … loss_q4: the loss of the batch's quarters of t, from nearly clean to nearly noise
    COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "images_per_second", "seconds",
               *(f"loss_q{i}" for i in range(1, 5)))

    def __init__(self, path: Path, step: int) -> None:
        rows = (
            [row for row in self.read(path) if int(row["step"]) <= step]
            if path.exists() and step
            else []
        )
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        with whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.file = open(path, "a", newline="", encoding="utf-8")
        # last: the step of the last row written
        self.writer, self.last = csv.DictWriter(self.file, self.COLUMNS), -1

    def __enter__(self) -> "CsvLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # it can be read all the time

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """All whole rows of a log; half a last row, left by a crash or a full disk, is ignored."""
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = csv.DictReader(
            line for line in text.splitlines(keepends=True) if line.endswith("\n")
        )
        return [
            row
            for row in rows
            if all(row.get(column) for column in CsvLog.COLUMNS) and row["step"].isdecimal()
        ]

    def write(self, **row: float) -> None:
        """Add a row, one value a column, and hand it to the disk. Raises OSError when that is full.
        """
        self.writer.writerow(
            {
                key: f"{value:.6g}" if isinstance(value, float) else value
                for key, value in row.items()
            }
        )
        self.file.flush()
        self.last = int(row["step"])
