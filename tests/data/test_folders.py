"""A folder with all that lies about in it: what is read, as which class, on which side."""

import os
import runpy
import sys
import types
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import load_data
from diffusion_lib.data.folders import class_folders, held_out_beside

ODD = "with - dash" if os.name == "nt" else "with: colon"  # Windows knows no such folder
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "odd_folder.py"


def save(path: Path, pixels: np.ndarray | None = None, **settings: object) -> Path:
    """A picture on disk: those pixels, or noise of 20 × 24."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        noise = np.random.default_rng(len(str(path)))
        pixels = noise.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def one(path: Path, size: int = 16) -> torch.Tensor:
    """The only picture of a folder, (3, size, size)."""
    data = load_data(f"folder:{path}", size)
    assert len(data) == 1 and data.skipped == ()
    return data.images[0]


def plain(height: int, width: int, *colour: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, len(colour))).copy()


# -- everything odd at once ------------------------------------------------------------------------

# Of the things in tests/benchmarks/odd_folder.py; all others: "read 200 60 20".
RIGHT = {
    "read 255 255 255": {"1 bit", "palette, one colour transparent", "one RGB colour transparent"},
    "read 120 120 120": {"grey", "16-bit grey", "16-bit grey, other byte order", "16-bit PGM",
                         "32-bit whole numbers to 65535", "profile: RGB on grey"},
    "read 1 1 1": {"16-bit grey, nearly black"},
    "read 227 157 137": {"palette, half transparent"},
    "read [97, 255, 97, 255]": {"grey with transparency"},
    "read [200, 255, 200, 255]": {"colour with transparency"},
    "read 20 60 200": {"profile: red and blue swapped", "profile: swapped, palette"},
    "read [20, 255, 20, 255]": {"profile: swapped, clear"},
    "read 255 0 0": {"LAB", "profile: inks that are red"},
    "read [255, 255, 0, 0]": {f"EXIF orientation {turn}" for turn in (1, 2, 9)},
    "read [0, 0, 255, 255]": {"EXIF orientation 3"},
    "read [0, 255, 0, 255]": {"EXIF orientation 6"},
    "read [255, 0, 255, 0]": {"EXIF orientation 8"},
    "read 200 60 20, 200 60 20": {"name: é in two ways"},
    "left aside: unreadable": {
        "32-bit whole numbers above", "negative numbers", "floats", "900 million pixels",
        "0 pixels", "PNG, half of it", "PNG, zeros from the middle on", "JPEG, half of it", "empty",
        "zeros",
        "text named .png", "a web page named .jpg", "link to nothing", "link to itself",
        "file that must not be read"},
    "left aside: not a picture": {"text", "JSON", "zip", "array", "PDF"},
    "left aside: HEIF (iPhone)": {"HEIC", "HEIC named .jpg"},
    "left aside: not a file (a pipe, a socket or a device)": {
        "pipe", "socket", "link to endless zeros"},
    "left aside: a link to a folder that is read already": {"link to the folder above"},
    "left aside: a folder that cannot be opened": {"folder that must not be opened"},
    "not seen": {"folder, empty", "folder .git", "folder __MACOSX", "folder .ipynb_checkpoints",
                 *(f"system: {name}" for name in
                   (".hidden.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"))},
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot have all these names")
def test_what_the_library_makes_of_everything_odd() -> None:
    table, told = runpy.run_path(str(BENCHMARK))["outcomes"]()
    right = {what: outcome for outcome, things in RIGHT.items() for what in things}
    assert set(right) <= set(table) and len(table) >= 90
    for what, outcome in table.items():
        expected = right.get(what, "read 200 60 20").split()
        for word, wanted in zip(outcome.split(), expected, strict=True):
            assert word == wanted or abs(int(word) - int(wanted)) <= 12, (what, outcome)
    assert len(told) == 3 and "\n" not in "".join(told) and "left aside 27 of 9" in told[0]


# -- the walk --------------------------------------------------------------------------------------


def test_class_is_the_folder_that_holds_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a" / "cat" / "1.png", plain(20, 20, 200, 0, 0))
    save(tmp_path / "b" / "deep" / "dog" / "2.JPG", plain(20, 20, 0, 200, 0))
    save(tmp_path / "c" / "cat" / "3.webp", plain(20, 20, 0, 0, 200))
    save(tmp_path / "4.bmp", plain(20, 20, 90, 90, 90))
    save(tmp_path / ".hidden" / "5.png")
    save(tmp_path / "a" / "cat" / "._1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left aside: what is hidden is not seen at all
        data = load_data(f"folder:{tmp_path}", 16)
    assert data.images.shape == (4, 3, 16, 16) and data.images.dtype == torch.uint8
    assert data.classes == tuple(sorted({"cat", "dog", tmp_path.name})) and data.skipped == ()
    assert data.name == f"folder:{tmp_path}" and data.labels.dtype == torch.int64
    colours = [image[:, 8, 8].tolist() for image in data.images]
    found = {np.argmax(colour): data.classes[label]
             for colour, label in zip(colours, data.labels, strict=True) if max(colour) > 150}
    assert found == {0: "cat", 1: "dog", 2: "cat"}


def test_it_repeats_in_the_same_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "a/10", "c/1"):
        save(tmp_path / f"{name}.png")
    first, second = (load_data(f"folder:{tmp_path}", 16) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert [first.classes[label] for label in first.labels] == ["a", "a", "b", "c"]


def test_what_is_left_aside_is_counted_in_one_line_and_listed_with_reasons(tmp_path: Path) -> None:
    good = [save(tmp_path / ODD / f"{i}.png") for i in range(3)] + [save(tmp_path / "z" / "4.png")]
    png = good[0].read_bytes()
    bad = {"corrupt.png": png[:40] + bytes(len(png) - 40), "half.png": png[: len(png) // 2],
           "empty.jpg": b"", "zeros.webp": bytes(500), "notes.txt": b"cats",
           "x.heic": b"1234ftypheic"}
    for name, content in bad.items():
        (tmp_path / ODD / name).write_bytes(content)
    with pytest.warns(UserWarning) as caught:
        data = load_data(f"folder:{tmp_path}", 16)
    assert data.labels.tolist() == [0, 0, 0, 1] and data.classes == (ODD, "z")
    (told,) = [str(warning.message) for warning in caught]
    for piece in ("left aside 6 of 10 files", str(tmp_path), "4 unreadable (", ", …)",
                  "1 not a picture (notes.txt)", "1 HEIF (iPhone) (x.heic)"):
        assert piece in told and "\n" not in told
    listed = {name: entry for name in bad for entry in data.skipped if name in entry}
    assert len(data.skipped) == len(listed) == 6 and listed["notes.txt"].endswith(": not a picture")
    assert "pip install pillow-heif" in listed["x.heic"] and "truncated" in listed["half.png"]


def test_training_lists_what_it_left_aside_in_its_run_folder(tmp_path: Path) -> None:
    from diffusion_lib.__main__ import main

    coloured(tmp_path / "cats", [f"{i}.png" for i in range(6)])
    for name in ("README.txt", "broken.jpg", "caf\udce9.txt"):
        (tmp_path / "cats" / name).write_bytes(b"no picture")
    (tmp_path / "tiny.yaml").write_text(
        "model: {image_size: 8, channels: 8, channel_mults: [1, 1], attention: [false, false]}\n"
        "train: {steps: 2, batch_size: 2, warmup: 1, precision: float32}\n")
    words = ["--config", tmp_path / "tiny.yaml", "--data", f"folder:{tmp_path}/cats#train"]
    with pytest.warns(UserWarning, match="left aside 3 of"):
        assert main(["train", *map(str, words), "--out", str(tmp_path / "run")]) == 0
    listed = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line.rpartition("/")[2] for line in listed) == [
        "README.txt: not a picture", "broken.jpg: unreadable: no picture, whatever its name says",
        "caf\\udce9.txt: not a picture"]
    for path in (tmp_path / "cats").iterdir():
        if path.suffix != ".png":
            path.unlink()
    words = ["train", *map(str, words), "--resume", "--out", str(tmp_path / "run")]
    assert main([*words, "--train.steps", "3", "--allow-changes"]) == 0
    assert not (tmp_path / "run" / "skipped.txt").exists()  # nothing was left aside this time


def test_iphone_pictures_are_read_where_pillow_heif_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is a stand-in that teaches Pillow one more format, as the real one does."""
    from PIL import ImageFile

    class Heif(ImageFile.ImageFile):
        format = format_description = "HEIF"

        def _open(self) -> None:
            self._size, self._mode, self.tile = (20, 20), "RGB", []
            self.im = Image.new("RGB", self._size, (200, 60, 20)).im

        def load(self) -> None:
            pass

    def register() -> None:
        Image.register_open("TESTHEIF", Heif, lambda head: head[4:12] == b"ftypheic")

    module = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    try:
        assert one(tmp_path)[:, 8, 8].tolist() == [200, 60, 20]
    finally:
        Image.ID.remove("TESTHEIF")


def test_a_folder_without_a_readable_picture(tmp_path: Path, refuses) -> None:
    with refuses(ValueError, "no pictures", str(tmp_path), ".png", "no files"):
        load_data(f"folder:{tmp_path}", 16)
    (tmp_path / "notes.txt").write_text("cats")
    with refuses(ValueError, "no pictures", "1 not a picture (notes.txt)"):
        load_data(f"folder:{tmp_path}", 16)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"x")
    with refuses(ValueError, "none of the 2", "a.png", "b.jpg", "reason"):
        load_data(f"folder:{tmp_path}", 16)


def test_a_folder_missing_or_a_file_or_unnamed(tmp_path: Path, refuses) -> None:
    with refuses(FileNotFoundError, str(tmp_path / "nowhere"), "pictures"):
        load_data(f"folder:{tmp_path / 'nowhere'}", 16)
    with refuses(ValueError, "x.png", "a file", "folder"):
        load_data(f"folder:{save(tmp_path / 'x.png')}", 16)
    for nothing in ("folder:", "folder:#train"):
        with refuses(ValueError, "folder:", "folder:data/cats"):
            load_data(nothing, 16)


def test_a_folder_whose_name_has_a_number_sign(tmp_path: Path) -> None:
    save(tmp_path / "cats#2" / "a.png")
    assert len(load_data(f"folder:{tmp_path}/cats#2", 8)) == 1


def test_what_lies_about_beside_classes_is_no_class(tmp_path: Path) -> None:
    for name in ("test/cat/1.png", "test/dog/1.png", "test/.ipynb_checkpoints/1.png",
                 "test/__MACOSX/cat/1.png"):
        save(tmp_path / name)
    for name in (".DS_Store", "README.txt", "Thumbs.db"):
        (tmp_path / "test" / name).write_bytes(b"")
    (tmp_path / "test" / "empty").mkdir()
    assert [folder.name for folder in class_folders(tmp_path / "test")] == ["cat", "dog"]


def test_the_test_pictures_beside_training_ones_are_found_by_a_whole_part_of_the_path(
    tmp_path: Path,
) -> None:
    beside = tmp_path / "train" / "cifar" / "test" / "cat"
    for folder in ("train/cifar/test/cat", "train/cifar/train/cat", "train/cifar/retrain/cat"):
        (tmp_path / folder).mkdir(parents=True)
    assert held_out_beside(tmp_path / "train" / "cifar" / "train" / "cat") == beside
    assert held_out_beside(tmp_path / "train" / "cifar" / "train") == beside.parent
    assert held_out_beside(tmp_path / "train" / "cifar" / "retrain" / "cat") is None


# -- the split -------------------------------------------------------------------------------------


def reds(path: Path, part: str) -> set[int]:
    """Which pictures of `coloured` are in a part."""
    return set(load_data(f"folder:{path}#{part}", 8).images[:, 0, 0, 0].tolist())


def coloured(path: Path, names: list[str]) -> Path:
    """A folder with a picture of each name, its red telling which; picture 0 is 100."""
    for i, name in enumerate(names):
        save(path / name, plain(8, 8, 100 + i, 0, 0))
    return path


def test_a_fifth_is_held_out_by_a_hash_of_the_name(tmp_path: Path) -> None:
    """The names' sides are those that the shipped models were trained with."""
    coloured(tmp_path, [f"cat{i:03d}.png" for i in range(60)])
    train, held = reds(tmp_path, "train"), reds(tmp_path, "held_out")
    assert not train & held and train | held == set(range(100, 160))
    assert held == {106, 113, 118, 129, 130, 136, 137, 138, 139, 141, 154, 156}
    for path in sorted(tmp_path.glob("*.png"))[:30]:  # the name decides, not where the file lies
        path.rename(save(tmp_path / "deeper" / path.name))
    assert reds(tmp_path, "held_out") == held


@pytest.mark.parametrize("names", [
    [f"img{i:03d}.png" for i in range(8)], ["1.png", "2.png"],
    [f"{i:03d}/photo.png" for i in range(40)], [f"{i:03d}/rgb.png" for i in range(40)],
], ids=["eight", "two", "one name", "another"])  # fmt: skip
def test_any_folder_of_two_or_more_is_split(tmp_path: Path, names: list[str]) -> None:
    coloured(tmp_path, names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train, held = reds(tmp_path, "train"), reds(tmp_path, "held_out")
    assert train | held == set(range(100, 100 + len(names))) and not train & held
    assert 1 <= len(held) <= max(1, len(names) // 2)
    assert len(names) > 9 or all("held out" in str(warning.message) for warning in caught)


def test_both_parts_have_the_same_classes(tmp_path: Path) -> None:
    """Also where a class has no picture on one side: class 2 is the same in both."""
    coloured(tmp_path, ["a/1.png", "b/cat006.png", *(f"c/cat{i:03d}.png" for i in range(10, 20))])
    train, held = (load_data(f"folder:{tmp_path}#{part}", 8) for part in ("train", "held_out"))
    assert train.classes == held.classes == ("a", "b", "c")
    assert set(train.labels.tolist()) == {0, 2} and set(held.labels.tolist()) == {1, 2}


def test_one_picture_cannot_be_split(tmp_path: Path, refuses) -> None:
    save(tmp_path / "1.png")
    with refuses(ValueError, "only one picture", "two or more"):
        load_data(f"folder:{tmp_path}#train", 8)


def test_composed_and_decomposed_names_fall_on_one_side(tmp_path: Path) -> None:
    composed = [unicodedata.normalize("NFC", f"Café {i}.png") for i in range(30)]
    coloured(tmp_path / "a", composed)
    coloured(tmp_path / "b", [unicodedata.normalize("NFD", name) for name in composed])
    assert reds(tmp_path / "a", "held_out") == reds(tmp_path / "b", "held_out")


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "told"), [(4095, True), (65535, False)])
def test_a_folder_of_16_bits_that_stays_far_below_is_named(
    tmp_path: Path, top: int, told: bool
) -> None:
    """16-bit grey is 0 … 65535, whatever a picture's brightest pixel is."""
    for i, value in enumerate((top // 2, top)):
        save(tmp_path / f"{i}.png", np.full((20, 20), value, dtype=np.uint16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(f"folder:{tmp_path}", 16)
    assert data.images.amax(dim=(1, 2, 3)).tolist() == ([8, 16] if told else [127, 255])
    assert [str(tmp_path) in str(warning.message) for warning in caught] == [True] * told


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
def test_made_smaller_with_antialiasing(tmp_path: Path, name: str) -> None:
    """Lines one pixel wide become an even grey; without antialiasing, broad false stripes."""
    lines = np.zeros((256, 256, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    save(tmp_path / name, lines, **({"quality": 100, "subsampling": 0} if "jpg" in name else {}))
    assert (one(tmp_path, 31).float() - 127.5).abs().max() < 12  # 31 does not divide 256
    nearest = lines[:, ((np.arange(31) + 0.5) * 256 / 31).astype(int)]
    assert nearest.std() > 100  # the pattern does alias


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (8, 20)])
def test_the_middle_square_is_kept(tmp_path: Path, height: int, width: int) -> None:
    """Red before the middle square, green in it, blue after it: only green is left, all of it."""
    pixels = plain(height, width, 200, 0, 0)
    short, long = min(height, width), max(height, width)
    start = (long - short) // 2
    along = pixels if height > width else pixels.transpose(1, 0, 2)
    along[start:] = (0, 200, 0)
    along[start : start + 2] = (90, 200, 0)  # its first and its last rows are marked
    along[start + short - 2 : start + short] = (0, 200, 90)
    along[start + short :] = (0, 0, 200)
    save(tmp_path / "1.png", pixels)
    image = one(tmp_path, 20 if short == 40 else short).float()
    image = image if height > width else image.transpose(1, 2)
    assert (image[1, 3:-3] > 190).all()
    assert (image[0, 3:-3] < 30).all() and (image[2, 3:-3] < 30).all()
    assert (image[0, 0] > 60).all() and (image[2, -1] > 60).all()


def test_a_picture_of_the_right_size_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "1.png", pixels)
    assert torch.equal(one(tmp_path, 32), torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_pictures(tmp_path: Path) -> None:
    """One channel, and what was grey in the file stays exactly that."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    save(tmp_path / "1.png", pixels)
    save(tmp_path / "2.png", plain(32, 32, 200, 60, 20))
    images = load_data(f"folder:{tmp_path}", 32, channels=1).images
    assert images.shape == (2, 1, 32, 32) and torch.equal(images[0, 0], torch.from_numpy(pixels))
    assert (images[1] == 97).all()  # 0.299 · 200 + 0.587 · 60 + 0.114 · 20
