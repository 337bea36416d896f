"""A folder of your own pictures: one walk, a class for each folder, a split by the files' names.

What systems leave lying about (hidden files, Thumbs.db, __MACOSX) is not seen at all. All else that
is no picture is left aside, counted in a warning and listed with its reason.
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

from .captions import NoCaptionsError, captions_among, read_captions
from .decode import SUFFIXES, all_formats, decode, quiet, reason

PARTS = ("train", "held_out")
SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini")
Loaded = tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...], tuple[str, ...], str]


def load_folder(path: Path, size: int, part: str = "") -> Loaded:
    """Images uint8 (N, 3, size, size), labels int64 (N,), class names, files left aside and why,
    N captions or none (captions.py), and why there are none where .txt lie beside the pictures.

    part: "train", "held_out", or "" for all. Raises FileNotFoundError, or ValueError for a file and
    for a folder without a readable picture.
    """
    check_folder(path := Path(os.path.abspath(path)))  # "." has a name, too
    files, left = pictures_below(path)
    captions, no_captions = {}, ""
    try:
        captions = read_captions(path, files)
    except NoCaptionsError as error:  # labels of something else? Who reads captions will refuse
        no_captions = str(error)
    if captions:
        among = captions_among(left, path, files)
        left = {file: why for file, why in left.items() if file not in among}
    where = f"below {shown(path)}"
    if not files:
        raise ValueError(f"no pictures {where}: it holds {summary(left) or 'no files'}; "
                         "give a folder with .png, .jpg or other files that Pillow opens")
    everything, files = files, split(files, path)[part] if part else files
    images, unreadable = decode(files, size)
    left |= unreadable
    if not images:
        raise ValueError(f"none of the {len(files)} picture files {where} could be read: "
                         f"{summary(left)}; first reason: {next(iter(unreadable.values()))}")
    if left:
        warnings.warn(f"left aside {len(left)} of {len(images) + len(left)} files {where}: "
                      f"{summary(left)}", stacklevel=4)
    pictures = torch.stack(images)
    if (brightest := int(pictures.max())) <= 64:
        warnings.warn(f"no pixel {where} is brighter than {brightest} of 255: 10 to 14 bits in "
                      "16 look so; stretch the pictures to the full range first", stacklevel=4)
    owners = {f: shown(f.parent.name) for f in everything if f not in unreadable}
    classes = tuple(sorted(set(owners.values())))  # the same ones in both parts
    labels = torch.tensor([classes.index(owners[f]) for f in files if f in owners])
    told = tuple(captions[f] for f in files if f in owners) if captions else ()
    return pictures, labels, classes, listed(left), told, no_captions


def check_folder(path: Path) -> None:
    """Raises FileNotFoundError where there is nothing, ValueError for a file."""
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {shown(path)}; give one that holds pictures, "
                                "as folder:data/cats does")
    if not path.is_dir():
        raise ValueError(f"{shown(path)} is a file, not a folder; give the folder that holds it")


def pictures_below(path: Path) -> tuple[list[Path], dict[Path, str]]:
    """All picture files below path, sorted, and why others are none. Each folder counts once."""
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
    return name.startswith((".", "__MACOSX")) or name.lower() in SYSTEM


def _no_picture(file: Path) -> str | None:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return "not a file (a pipe, a socket or a device)"  # reading one might never end
        if file.suffix.lower() not in SUFFIXES:
            Image.open(file).close()
    except Exception as error:  # whatever Pillow's formats raise
        return reason(file, error)
    return None


def class_folders(path: str | Path) -> list[Path]:
    """The folders right below `path` that hold pictures, sorted; all else there is no class."""
    folders = sorted(f for f in Path(path).iterdir() if f.is_dir() and not _unseen(f.name))
    return [folder for folder in folders if pictures_below(folder)[0]]


def held_out_beside(path: str | Path) -> Path | None:
    """The folder of test pictures beside one of training pictures: .../test/... to .../train/..."""
    parts = Path(path).parts
    for place in reversed([i for i, part in enumerate(parts) if part == "train"]):
        if (other := Path(*parts[:place], "test", *parts[place + 1 :])).is_dir():
            return other
    return None


def split(files: list[Path], path: Path) -> dict[str, list[Path]]:
    """Files below path in two parts, "train" and "held_out", by a hash of their names.

    Where a name repeats (001/photo.jpg, 002/photo.jpg), the path below `path` counts instead. If
    all fell on one side, the fifth with the lowest hashes is held out, with a warning. Raises
    ValueError for a single file.
    """
    if len(files) < 2:
        raise ValueError(f"there is only one picture below {shown(path)}; "
                         "#train and #held_out need two or more")
    keys = {file: _composed(file.name) for file in files}
    often = Counter(keys.values())
    keys |= {f: f.relative_to(path).as_posix() for f, name in keys.items() if often[name] > 1}
    held = {file for file in files if held_out(keys[file])}
    if len(held) in (0, len(files)):
        count = max(1, round(len(files) / 5))
        warnings.warn(f"their names would hold out {'all' if held else 'none'} of the {len(files)} "
                      f"pictures below {shown(path)}; {count} held out all the same (with more "
                      "pictures, maybe others)", stacklevel=5)
        held = set(sorted(files, key=lambda file: _digest(keys[file]))[:count])
    return {"train": [file for file in files if file not in held], "held_out": sorted(held)}


def held_out(name: str) -> bool:
    """Whether the picture of this name is kept out of training: every fifth, on every machine."""
    return _digest(name)[0] % 5 == 0


def _digest(name: str) -> bytes:
    # Python holds the bytes of a name that is not UTF-8 as lone surrogates
    return hashlib.sha256(_composed(name).encode("utf-8", "surrogatepass")).digest()


def _composed(name: str) -> str:
    """é as one letter; macOS writes names with e and an accent."""
    return unicodedata.normalize("NFC", name)


def summary(left: Mapping[Path, str]) -> str:
    """How often each reason, and some names: "2 unreadable (a.png, b.jpg), 1 not a picture (c)"."""
    kinds: dict[str, list[str]] = {}
    for file, why in left.items():
        kinds.setdefault(why.partition(":")[0], []).append(shown(file.name))
    return ", ".join(f"{len(names)} {kind} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
                     for kind, names in kinds.items())


def listed(left: Mapping[Path, str]) -> tuple[str, ...]:
    """"file: reason" for each."""
    return tuple(f"{shown(file)}: {why}" for file, why in left.items())


def shown(name: str | Path) -> str:
    """A name on one line, in letters that can be printed and written anywhere; others escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in _composed(str(name)))
