"""Captions of your own pictures: a captions.csv (file,caption) in the folder, or a .txt for each.
"""

import csv
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NAME = "captions.csv"


class NoCaptionsError(ValueError):
    """The .txt beside pictures are no captions of all of them: a fault for who wants to read."""


def captions_among(files: Iterable[Path], path: Path, pictures: Iterable[Path]) -> set[Path]:
    """Which of the files that are no pictures are captions of the folder `path`."""
    beside = {picture.with_suffix("") for picture in pictures}
    return {file for file in files if file == path / NAME or (
        file.suffix.lower() == ".txt" and file.with_suffix("") in beside)}


def read_captions(path: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The caption of every picture file below `path`; empty where the folder has none.

    A few .txt, beside less than half of the pictures, are notes of somebody's and no captions.
    Raises ValueError for a picture without one, for a picture named twice or not there, for a file
    that is not UTF-8, and for a captions.csv whose first line is not file,caption;
    NoCaptionsError where it is .txt that are at fault (they may be meant for something else).
    """
    try:
        return _read(path, files)
    except ValueError as error:
        if (path / NAME).is_file():
            raise
        raise NoCaptionsError(str(error)) from None


def _read(path: Path, files: Sequence[Path]) -> dict[Path, str]:
    if table := (path / NAME).is_file():
        told = from_table(path / NAME, {f.relative_to(path).as_posix(): f for f in files})
    else:
        texts = {f: f.with_suffix(".txt") for f in files}
        pictures = set(files)  # a picture may be called a.txt
        told = {f: text_of(text) for f, text in texts.items()
                if text not in pictures and text.is_file()}
        if 2 * len(told) < len(files):
            return {}
    if (told or table) and (lacking := [f for f in files if f not in told]):
        where = f"in {path / NAME}" if table else f"beside it ({texts[lacking[0]].name})"
        more = f" ({len(lacking) - 1} more lack theirs)" if len(lacking) > 1 else ""
        raise ValueError(f"{lacking[0].relative_to(path)} has no caption {where}; write "
                         f"one for each picture{more}")
    for file, caption in told.items():
        if not caption:
            raise ValueError(f"the caption of {file.relative_to(path)} is empty; write one, or "
                             "take the picture away")
    return told


def from_table(table: Path, files: Mapping[str, Path]) -> dict[Path, str]:
    """Rows file,caption as file -> caption; files by their paths in the folder."""
    told: dict[Path, str] = {}
    # an accent is one letter in one system's file names and two in another's table
    files = {unicodedata.normalize("NFC", name): file for name, file in files.items()} | dict(files)
    rows = csv.reader(io.StringIO(text_of(table, lines=True)))
    if (head := [each.strip() for each in next(rows, [])]) != ["file", "caption"]:
        raise ValueError(f"the first line of {table} is {','.join(head)!r}; it must be "
                         "file,caption")
    for row in rows:
        if not row:
            continue
        if len(row) != 2:
            raise ValueError(f"line {rows.line_num} of {table} has {len(row)} columns, not 2; put "
                             "a caption with a comma in double quotes")
        name, caption = row[0].strip(), " ".join(row[1].split())
        if (file := files.get(name) or files.get(unicodedata.normalize("NFC", name))) is None:
            raise ValueError(f"line {rows.line_num} of {table} names {name!r}, and there is no "
                             "such picture; give its path in the folder")
        if file in told:
            raise ValueError(f"line {rows.line_num} of {table} names {name!r} a second time; keep "
                             "one")
        told[file] = caption
    return told


def text_of(file: Path, lines: bool = False) -> str:
    """A file's words. Raises ValueError for another encoding than UTF-8."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 (byte {error.start}); save it as UTF-8") from None
    return text if lines else " ".join(text.split())
