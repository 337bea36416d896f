"""Whole or not at all: files and folders, on a full disk, after a kill, where a folder cannot be
flushed.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion_lib.saving.files import tidy, whole


def write(path: Path, *texts: str) -> None:
    """One text: a file. Several: a folder of files."""
    with whole(path) as temporary:
        if len(texts) == 1:
            temporary.write_text(texts[0])
            return
        temporary.mkdir()
        for i, text in enumerate(texts):
            (temporary / str(i)).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_files_and_folders_are_made_and_replaced(tmp_path: Path) -> None:
    write(tmp_path / "new/deep/log.csv", "one")
    write(tmp_path / "new/deep/log.csv", "two")
    write(tmp_path / "step", "a", "b", "c")
    write(tmp_path / "step", "d", "e")
    assert tree(tmp_path) == {"new/deep/log.csv": "two", "step/0": "d", "step/1": "e"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("enforce\nfail")])
@pytest.mark.parametrize("old", [("old",), ("old", "older")], ids=["file", "folder"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, old: tuple, error: Exception,
                                          refuses: Callable) -> None:
    write(tmp_path / "it", *old)
    before = tree(tmp_path)
    with refuses(OSError, "could not write", str(tmp_path / "it"),
                 "free some disk space"), whole(tmp_path / "it") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise error
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "it") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path) == before


def test_a_file_never_takes_a_folder_away(tmp_path: Path) -> None:
    write(tmp_path / "cats.png", "my", "photographs")
    with pytest.raises(OSError, match="could not write .*cats.png"):
        write(tmp_path / "cats.png", "a grid")
    assert tree(tmp_path) == {"cats.png/0": "my", "cats.png/1": "photographs"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (".step.77.old", f".step.{os.getpid()}.tmp", ".other.77.tmp", ".mine.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_text(name)
    tidy(tmp_path.iterdir())  # killed between the two renames: the old one is the whole one
    assert tree(tmp_path) == {"step/0": ".step.77.old", ".mine.tmp/0": ".mine.tmp"}
    (tmp_path / f".step.{os.getpid()}.tmp").mkdir()  # numbers of processes come again
    write(tmp_path / "step", "new", "er")
    assert tree(tmp_path) == {"step/0": "new", "step/1": "er", ".mine.tmp/0": ".mine.tmp"}


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_flushes_no_folders_is_no_full_disk(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, refuses: Callable
) -> None:
    real, broken = os.fsync, [stat.S_ISDIR]

    def fsync(descriptor: int) -> None:
        if any(kind(os.fstat(descriptor).st_mode) for kind in broken):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "step", "a", "b")
    assert tree(tmp_path) == {"step/0": "a", "step/1": "b"}
    broken.append(stat.S_ISREG)  # a file that cannot be flushed is another matter
    with refuses(OSError, "step", os.strerror(number)):
        write(tmp_path / "step", "c", "d")
    assert tree(tmp_path) == {"step/0": "a", "step/1": "b"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_mode_that_the_user_asks_for(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        with whole(tmp_path / "weights.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == mode


def test_where_modes_are_unknown_files_are_written_all_the_same(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("kept")
    assert (tmp_path / "a.txt").read_text() == "kept"
