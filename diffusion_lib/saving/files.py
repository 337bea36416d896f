"""Files that exist whole or not at all: flushed to the disk, renamed into place, known by their sha256."""

import hashlib
import os
import re
import shutil
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk now."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and needs none flushed for a rename to last
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(parent: Path) -> None:
    """Clear away what a save left in `parent` when it failed or was killed: half a checkpoint, or one being replaced.

    Only one run writes to a folder (runs.RunLock), so nothing here is in use by another process.
    """
    for path in sorted(parent.glob(".*.*")):
        if match := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            if match[2] == "old" and not (parent / match[1]).exists():
                os.replace(path, parent / match[1])  # killed between the two renames below
            else:
                shutil.rmtree(path, ignore_errors=True)
