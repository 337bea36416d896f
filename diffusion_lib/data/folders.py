"""A folder of pictures of your own: one walk over it, a class for each folder, and a split by the files' names.

What systems leave lying about (hidden files, Thumbs.db, desktop.ini, __MACOSX) is not seen at all. Everything else that
is no picture is left aside, counted in a warning and listed with its reason: nothing is passed over in silence.
"""

import hashlib
import os
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .decode import SUFFIXES, all_formats, decode, quiet, reason

PARTS = ("train", "held_out")


def load_folder(path: Path, size: int, part: str = "") -> tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
    """Images uint8 (N, 3, size, size), labels int64 (N,), class names, and what was left aside, "file: reason".

    part: "train", "held_out", or "" for all. Warns, in one line each, of what was left aside and of a folder that is
    nearly black. Raises FileNotFoundError, or ValueError for no folder and for none with a readable picture.
    """
    check_folder(path)
    files, left = pictures_below(path)
    if not files:
        raise ValueError(f"no pictures below {shown(path)}: it holds {summary(left) or 'no files'}; "
                         "give a folder with .png, .jpg or any other files that Pillow opens")
    files = split(files, path)[part] if part else files
    images, unreadable = decode(files, size)
    left |= unreadable
    if not images:
        raise ValueError(f"none of the {len(files)} picture files below {shown(path)} could be read; it holds "
                         f"{summary(left)}; first reason: {next(iter(unreadable.values()))}")
    if left:
        warnings.warn(f"left aside {len(left)} of {len(images) + len(left)} files below {shown(path)}: {summary(left)}",
                      stacklevel=4)
    pictures = torch.stack(images)
    if (brightest := int(pictures.max())) <= 64:
        warnings.warn(f"no pixel below {shown(path)} is brighter than {brightest} of 255: pictures of 10 to 14 bits "
                      "saved as 16 bits look so; stretch them to the full range first", stacklevel=4)
    owners = [shown(Path(os.path.abspath(file)).parent.name) for file in files if file not in unreadable]
    classes = sorted(set(owners))
    labels = torch.tensor([classes.index(owner) for owner in owners])
    return pictures, labels, tuple(classes), tuple(f"{shown(file)}: {why}" for file, why in left.items())


def check_folder(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {shown(path)}; give one that holds pictures, as folder:data/cats does")
    if not path.is_dir():
        raise ValueError(f"{shown(path)} is a file, not a folder; give the folder that holds the pictures")


# -- the walk ----------------------------------------------------------------------------------------------------------


def pictures_below(path: Path) -> tuple[list[Path], dict[Path, str]]:
    """All picture files below path, sorted, and why the others are none. Links are followed, each folder once."""
    files, left, seen = [], {}, set()

    def closed(error: OSError) -> None:
        left[Path(error.filename)] = f"a folder that cannot be opened: {error.strerror}"

    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=closed):
        if (real := os.path.realpath(folder)) in seen:
            left[Path(folder)] = "a link to a folder that is read already"
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _unseen(name))
        files += [Path(folder, name) for name in names if not _unseen(name)]
    all_formats()
    with quiet():
        left |= {file: why for file in sorted(files) if (why := _no_picture(file))}
    return sorted(file for file in files if file not in left), left


def _unseen(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name.lower() in ("thumbs.db", "ehthumbs.db", "desktop.ini")


def _no_picture(file: Path) -> str | None:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return "not a file (a pipe, a socket or a device)"       # reading one might never end
        if file.suffix.lower() not in SUFFIXES:
            Image.open(file).close()
    except Exception as error:  # whatever Pillow's formats raise
        return reason(file, error)
    return None


def class_folders(path: str | Path) -> list[Path]:
    """The folders right below `path` that hold pictures, sorted; whatever else lies there is no class."""
    folders = sorted(folder for folder in Path(path).iterdir() if folder.is_dir() and not _unseen(folder.name))
    return [folder for folder in folders if pictures_below(folder)[0]]


def held_out_beside(path: str | Path) -> Path | None:
    """The folder of test pictures that belongs to one of training pictures: its last part "train" being "test"."""
    parts = Path(path).parts
    for place in reversed([i for i, part in enumerate(parts) if part == "train"]):
        if (other := Path(*parts[:place], "test", *parts[place + 1 :])).is_dir():
            return other
    return None


# -- the split ---------------------------------------------------------------------------------------------------------


def split(files: list[Path], path: Path) -> dict[str, list[Path]]:
    """Files below path in two parts, "train" and "held_out", by a hash of their names: the same on every machine.

    Where a name repeats below path (001/photo.jpg, 002/photo.jpg), the path from there on counts. If so few files
    would all fall on one side, the fifth of them with the lowest hashes is held out, with a warning.
    Raises ValueError for a single file.
    """
    names = Counter(_composed(file.name) for file in files)
    keys = {file: _composed(file.name) for file in files}
    keys |= {file: _composed(file.relative_to(path).as_posix()) for file in files if names[keys[file]] > 1}
    held = {file for file in files if held_out(keys[file])}
    if len(files) < 2:
        raise ValueError(f"there is only one picture below {shown(path)}: #train and #held_out need two or more")
    if not held or len(held) == len(files):
        count = max(1, round(len(files) / 5))
        warnings.warn(f"by their names {'none' if not held else 'all'} of the {len(files)} pictures below {shown(path)} "
                      f"would be held out; so that there are both, {count} of them {'is' if count == 1 else 'are'}; "
                      "this may change when pictures are added", stacklevel=5)
        held = set(sorted(files, key=lambda file: _digest(keys[file]))[:count])
    return {"train": [f for f in files if f not in held], "held_out": [f for f in files if f in held]}


def held_out(name: str) -> bool:
    """Whether the picture of this name is kept out of training: every fifth is, by a hash."""
    return _digest(name)[0] % 5 == 0


def _digest(name: str) -> bytes:
    # "surrogatepass": Python holds the bytes of a name that is not UTF-8 as lone surrogates
    return hashlib.sha256(_composed(name).encode("utf-8", "surrogatepass")).digest()


def _composed(name: str) -> str:
    """é as one letter, not as e and an accent: macOS writes names in the one way, others in the other."""
    return unicodedata.normalize("NFC", name)


# -- words -------------------------------------------------------------------------------------------------------------


def summary(left: Mapping[Path, str]) -> str:
    """The reasons, how often each, and some of the files: "2 unreadable (a.png, b.jpg), 1 not a picture (notes.txt)"."""
    kinds: dict[str, list[str]] = {}
    for file, why in left.items():
        kinds.setdefault(why.partition(":")[0], []).append(shown(file.name))
    return ", ".join(f"{len(names)} {kind} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
                     for kind, names in kinds.items())


def shown(name: str | Path) -> str:
    """A name as one line that can be printed and written anywhere: line breaks and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in _composed(str(name)))
