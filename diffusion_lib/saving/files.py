"""Files and folders that exist whole or not at all: flushed to the disk, then renamed into place.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor


@contextlib.contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """`with whole(path) as temporary:` what the block writes to `temporary` replaces `path`, if the
    block ends well.

    The block makes `temporary` itself, a file or a folder; missing folders above it are made. If
    the block raises, or the process is killed, what was at `path` stays as it was. Raises OSError,
    in one line, where the disk is full or cannot be written to.
    """
    path = Path(path)
    name = f".{path.name}.{os.getpid()}."
    temporary, old = path.with_name(name + "tmp"), path.with_name(name + "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # left by a dead process of the same number, 1 in a container
        yield temporary
        os.umask(mask := os.umask(0o077))  # there is no way to ask without setting
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file():  # safetensors makes files that only their owner can read
                with contextlib.suppress(OSError):  # some shares know no modes
                    written.chmod(0o666 & ~mask)
            fsync(written)
        if temporary.is_dir() and path.is_dir():  # a full folder cannot be renamed onto
            os.replace(path, old)
        os.replace(temporary, path)
        fsync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many words
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OSError(f"could not write {path} ({reason}); free some disk space or choose another "
                      "place; what was there before is whole") from error
    finally:
        tidy((temporary, old))


def tidy(leftovers: Iterable[Path]) -> None:
    """Clear away what `whole` left behind when it failed or was killed, of those paths that have
    its kind of name.
    """
    for path in leftovers:
        if match := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            goal = path.with_name(match[1])
            if match[2] == "old" and path.exists() and not goal.exists():
                os.replace(path, goal)  # killed between the two renames
            else:
                remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; nothing happens where there is none, or
    where it cannot be.
    """
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def fsync(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk now."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders, and needs none flushed for a rename to last
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network shares flush files, but know no flushing of folders
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensor: Tensor) -> str:
    """sha256 of all numbers of a tensor: whether pictures are still those they were."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
