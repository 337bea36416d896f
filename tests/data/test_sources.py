"""Where pictures come from: folders with all that lies about in them, CIFAR-10, Oxford's cats and drawn cats."""

import os
import pickle
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, OxfordIIITPet

from diffusion_lib import ToyCats, example_photo, load_data, to_float, to_uint8
from diffusion_lib.data.sources import SOURCES

ODD = "with - dash" if os.name == "nt" else "with: colon"                     # Windows knows no such folder
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def save(path: Path, pixels: np.ndarray | None = None, **settings: object) -> Path:
    """A picture on disk: those pixels, or noise of 20 × 24."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(str(path))).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def one(path: Path, size: int = 16) -> torch.Tensor:
    """The only picture of a folder, (3, size, size)."""
    data = load_data(f"folder:{path}", size)
    assert len(data) == 1 and data.skipped == ()
    return data.images[0]


def plain(height: int, width: int, *colour: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, len(colour))).copy()


# --- a folder --------------------------------------------------------------------------------------------------------


def test_folder_class_is_the_folder_that_holds_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a" / "cat" / "1.png", plain(20, 20, 200, 0, 0))
    save(tmp_path / "b" / "deep" / "dog" / "2.JPG", plain(20, 20, 0, 200, 0))
    save(tmp_path / "c" / "cat" / "3.webp", plain(20, 20, 0, 0, 200))
    save(tmp_path / "4.bmp", plain(20, 20, 90, 90, 90))
    (tmp_path / "notes.txt").write_text("no picture")
    save(tmp_path / ".hidden" / "5.png")
    save(tmp_path / "a" / "cat" / "._1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")                                       # nothing is skipped: notes are no picture
        data = load_data(f"folder:{tmp_path}", 16)
    assert data.images.shape == (4, 3, 16, 16) and data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64
    assert set(data.classes) == {"cat", "dog", tmp_path.name} and data.classes == tuple(sorted(data.classes))
    assert data.name == f"folder:{tmp_path}" and len(data) == 4
    owners = {tuple(image[:, 8, 8].tolist()): data.classes[label] for image, label in zip(data.images, data.labels, strict=True)}
    assert owners[200, 0, 0] == "cat" and owners[90, 90, 90] == tmp_path.name
    near = {int(np.argmax(colour)): owner for colour, owner in owners.items() if max(colour) > 150}
    assert near == {0: "cat", 1: "dog", 2: "cat"}                            # JPEG and WebP keep colours only nearly


def test_folder_repeats_in_the_same_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "a/10", "c/1"):
        save(tmp_path / f"{name}.png")
    first, second = load_data(f"folder:{tmp_path}", 16), load_data(f"folder:{tmp_path}", 16)
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert [first.classes[label] for label in first.labels] == ["a", "a", "b", "c"]


def test_folder_names_counts_and_skips_what_cannot_be_read(tmp_path: Path) -> None:
    good = [save(tmp_path / ODD / f"{i}.png") for i in range(3)] + [save(tmp_path / "z" / "last.png")]
    jpeg = save(tmp_path / ODD / "whole.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    png = good[0].read_bytes()
    bad = {"corrupt.png": png[:40] + bytes(len(png) - 40), "truncated.png": png[: len(png) // 2],
           "truncated.jpg": jpeg.read_bytes()[:900], "empty.jpg": b"", "text.gif": b"this is no picture", "zeros.webp": bytes(500)}
    for name, content in bad.items():
        (tmp_path / ODD / name).write_bytes(content)
    with pytest.warns(UserWarning) as caught:
        data = load_data(f"folder:{tmp_path}", 16)
    assert len(data) == 5 and len(data.labels) == 5 and data.classes == (ODD, "z")
    assert data.labels.tolist() == [0, 0, 0, 0, 1]
    message = str(caught[0].message)
    assert len(caught) == 1 and "skipped 6 of 11" in message and "corrupt.png" in message and "\n" not in message
    assert len(data.skipped) == 6
    for name, entry in zip(sorted(bad), data.skipped, strict=True):
        assert name in entry and len(entry.rpartition(": ")[2]) > 3          # each with its reason
    (tmp_path / ODD / "corrupt.png").unlink()
    with pytest.warns(UserWarning, match="skipped 5 of 10"):
        again = load_data(f"folder:{tmp_path}", 16)
    assert torch.equal(data.images, again.images)                            # the unreadable ones moved nothing


def test_folder_without_a_readable_picture(tmp_path: Path, refuses) -> None:
    with refuses(ValueError, "no pictures", str(tmp_path), ".png"):
        load_data(f"folder:{tmp_path}", 16)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"x")
    with refuses(ValueError, "none of the 2", "a.png", "b.jpg", "reason"):
        load_data(f"folder:{tmp_path}", 16)


def test_folder_missing_or_a_file_or_unnamed(tmp_path: Path, refuses) -> None:
    with refuses(FileNotFoundError, str(tmp_path / "nowhere"), "pictures"):
        load_data(f"folder:{tmp_path / 'nowhere'}", 16)
    with refuses(ValueError, "x.png", "a file", "folder"):
        load_data(f"folder:{save(tmp_path / 'x.png')}", 16)
    with refuses(ValueError, "folder:", "folder:data/cats"):
        load_data("folder:", 16)


def test_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "cat" / "1.png")
    (tmp_path / "data").mkdir()
    try:
        (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere" / "cat")
        (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    except OSError as error:                                                 # Windows asks for a right
        pytest.skip(f"no links here: {error}")
    data = load_data(f"folder:{tmp_path / 'data'}", 16)
    assert len(data) == 1 and data.classes == ("linked",)


def test_grey_palette_transparent_and_16_bit(tmp_path: Path) -> None:
    """Every one of these is the same picture: left half 60, right half 200."""
    grey = np.repeat(np.uint8([60, 200]), 20)[None].repeat(40, axis=0)       # (40, 40)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    opaque = np.dstack([rgb, np.full_like(grey, 255)])
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    pictures = {
        "grey.png": Image.fromarray(grey), "colour.png": Image.fromarray(rgb), "alpha.png": Image.fromarray(opaque),
        "palette.png": palette, "gif.gif": palette, "grey alpha.png": Image.fromarray(opaque).convert("LA"),
        "16 bit.png": Image.fromarray(grey.astype(np.uint16) * 257), "32 bit.tif": Image.fromarray(grey.astype(np.int32) * 257),
        "one bit.png": None, "print.tif": Image.fromarray(rgb).convert("CMYK"),
    }  # fmt: skip
    for name, picture in pictures.items():
        folder = tmp_path / Path(name).stem
        folder.mkdir()
        low, high = (60, 200) if picture else (0, 255)
        (picture or Image.fromarray(grey > 100)).save(folder / name)
        image = one(folder).int()
        assert image.shape == (3, 16, 16), name
        assert (image[:, :, :6] - low).abs().max() <= 3 and (image[:, :, 10:] - high).abs().max() <= 3, name


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = plain(20, 20, 200, 30, 30, 255)
    pixels[:, :10, 3] = 0
    save(tmp_path / "rgba" / "1.png", pixels)
    image = one(tmp_path / "rgba")
    assert (image[:, :, :5] == 255).all()
    assert (image[:, :, 11:].int() - torch.tensor([200, 30, 30])[:, None, None]).abs().max() <= 2
    palette = Image.fromarray(plain(20, 20, 7, 7, 7)).convert("P", palette=Image.Palette.ADAPTIVE)
    (tmp_path / "palette").mkdir()
    palette.save(tmp_path / "palette" / "1.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (one(tmp_path / "palette") == 255).all()


def test_float_pictures_are_named_not_guessed_at(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    Image.fromarray(np.full((20, 20), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.warns(UserWarning, match="float.tif"):
        data = load_data(f"folder:{tmp_path}", 16)
    assert len(data) == 1 and "floats" in data.skipped[0]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0)), (2, (0, -1))])
def test_a_camera_held_sideways(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    """EXIF says how the camera was held; the bright corner of the stored picture has to go where it belongs."""
    pixels = plain(32, 32, 20, 20, 20)
    pixels[:16, :16] = 230
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "1.jpg", pixels, exif=exif, quality=95)
    image = one(tmp_path)
    bright = {(r, c) for r in (0, -1) for c in (0, -1) if image[0, r, c] > 128}
    assert bright == {corner}


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
def test_made_smaller_with_antialiasing(tmp_path: Path, name: str) -> None:
    """Lines one pixel wide become an even grey. Without antialiasing they would turn into broad false stripes."""
    lines = np.zeros((256, 256, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    save(tmp_path / name, lines, **({"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}))
    image = one(tmp_path, 31).float()                                        # 31 does not divide 256
    assert (image - 127.5).abs().max() < 12
    nearest = lines[:, ((np.arange(31) + 0.5) * 256 / 31).astype(int)]
    assert nearest.std() > 100                                               # the pattern does alias


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (8, 20)])
def test_the_middle_square_is_kept(tmp_path: Path, height: int, width: int) -> None:
    """Red to the left of (or above) the middle square, green in it, blue to the right: only green may be left, all of it."""
    pixels = plain(height, width, 200, 0, 0)
    short, long = min(height, width), max(height, width)
    start = (long - short) // 2
    along = pixels if height > width else pixels.transpose(1, 0, 2)
    along[start:] = (0, 200, 0)
    along[start : start + 2] = (90, 200, 0)                                  # its first and its last rows are marked
    along[start + short - 2 : start + short] = (0, 200, 90)
    along[start + short :] = (0, 0, 200)
    save(tmp_path / "1.png", pixels)
    image = one(tmp_path, 20 if short == 40 else short).float()
    image = image if height > width else image.transpose(1, 2)
    assert (image[1, 3:-3] > 190).all() and (image[0, 3:-3] < 30).all() and (image[2, 3:-3] < 30).all()
    assert (image[0, 0] > 60).all() and (image[2, -1] > 60).all()


def test_a_picture_of_the_right_size_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "1.png", pixels)
    assert torch.equal(one(tmp_path, 32), torch.from_numpy(pixels).permute(2, 0, 1))


# --- CIFAR-10 and Oxford's cats, in tiny copies ----------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to reach another machine fails as it does on one without a network; the list holds the attempts."""
    attempts = []

    def fail(host: str, *_: object, **__: object) -> None:
        attempts.append(str(host))
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return attempts


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]) -> tuple[Path, np.ndarray, list[int]]:
    """Fifty pictures in CIFAR-10's own five files (without their checksums): root, pixels (50, 3, 32, 32), labels."""
    pixels = np.random.default_rng(2).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    labels = [(7 * i) % 10 for i in range(50)]
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for number in range(5):
        part = slice(10 * number, 10 * number + 10)
        content = {"data": pixels[part].reshape(10, 3072), "labels": labels[part]}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(content))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels[:10].reshape(10, 3072), "labels": labels[:10]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, [[file, None] for file, _ in getattr(CIFAR10, name)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    return tmp_path, pixels, labels


def test_cifar10_whole(cifar: tuple, no_network: list[str]) -> None:
    root, pixels, labels = cifar
    data = load_data("cifar10", 32, root)
    assert torch.equal(data.images, torch.from_numpy(pixels)) and data.labels.tolist() == labels
    assert data.classes == CLASSES and data.name == "cifar10" and no_network == []


def test_cifar10_class_filter_and_size(cifar: tuple) -> None:
    root, pixels, labels = cifar
    cats = load_data("cifar10:cat", 32, root)
    chosen = [i for i in range(50) if labels[i] == 3]
    assert torch.equal(cats.images, torch.from_numpy(pixels[chosen])) and cats.classes == ("cat",) and not cats.labels.any()
    both = load_data("cifar10: dog, cat", 16, str(root))
    chosen = [i for i in range(50) if labels[i] in (3, 5)]
    assert both.classes == ("dog", "cat") and both.labels.tolist() == [0 if labels[i] == 5 else 1 for i in chosen]
    assert both.images.shape == (10, 3, 16, 16) and both.images.dtype == torch.uint8
    means = torch.from_numpy(pixels[chosen]).float().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean(dim=(3, 5))
    assert (both.images.float() - means).flatten(1).std(dim=1).max() < 25    # the same pictures, made smaller: noise has 37 itself


def test_cifar10_unknown_class(tmp_path: Path, refuses, no_network: list[str]) -> None:
    with refuses(ValueError, "'kitten'", "cat, deer"):
        load_data("cifar10:cat,kitten", 32, tmp_path)
    assert no_network == []                                                  # before anything is downloaded


@pytest.fixture
def oxford(tmp_path: Path, no_network: list[str]) -> Path:
    """Five pictures in the folders of Oxford-IIIT Pet, three of them cats; the last cat's file is damaged."""
    base = tmp_path / "oxford-iiit-pet"
    rows = [("Abyssinian_1", 1, 1, (200, 20, 20)), ("beagle_7", 5, 2, (20, 20, 200)), ("Bengal_12", 6, 1, (20, 200, 20)),
            ("pug_3", 26, 2, (90, 90, 90)), ("Sphynx_9", 34, 1, (5, 5, 5))]
    (base / "annotations").mkdir(parents=True)
    (base / "annotations" / "trainval.txt").write_text("".join(f"{name} {kind} {species} 1\n" for name, kind, species, _ in rows))
    for name, _, _, colour in rows:
        save(base / "images" / f"{name}.jpg", plain(50, 70, *colour), quality=95)
    (base / "images" / "Sphynx_9.jpg").write_bytes(b"")
    return tmp_path


def test_oxford_cats(oxford: Path, no_network: list[str]) -> None:
    with pytest.warns(UserWarning, match="skipped 1 of 3.*Sphynx_9.jpg"):
        data = load_data("oxford_cats", 24, oxford)
    assert data.images.shape == (2, 3, 24, 24) and data.labels.tolist() == [0, 0] and data.classes == ("cat",)
    assert data.images[0].float().mean(dim=(1, 2)).argmax() == 0 and data.images[1].float().mean(dim=(1, 2)).argmax() == 1
    assert len(data.skipped) == 1 and no_network == []


@pytest.mark.parametrize(("spec", "title", "host"), [
    ("cifar10:cat", "CIFAR-10", "toronto"), ("oxford_cats", "Oxford-IIIT Pet", "robots.ox.ac.uk"),
])  # fmt: skip
def test_no_network_is_one_line(tmp_path: Path, refuses, no_network: list[str], spec: str, title: str, host: str) -> None:
    before = socket.getdefaulttimeout()
    with refuses(RuntimeError, title, str(tmp_path), "name resolution", "folder:PATH", "toycats"):
        load_data(spec, 32, tmp_path)
    assert no_network and host in no_network[0]                              # it did try
    assert socket.getdefaulttimeout() == before


def test_a_download_that_breaks_off_is_one_line(tmp_path: Path, refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    from http.client import IncompleteRead

    def broken(self: OxfordIIITPet) -> None:
        raise IncompleteRead(b"some", 1000)

    monkeypatch.setattr(OxfordIIITPet, "_download", broken)
    with refuses(RuntimeError, "Oxford-IIIT Pet", "IncompleteRead", "folder:PATH"):
        load_data("oxford_cats", 32, tmp_path)


# --- drawn cats, other sources ---------------------------------------------------------------------------------------


def test_toycats(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("toycats:40", 20)
    assert torch.equal(data.images, ToyCats(size=20, n=40, seed=0).images) and data.name == "toycats:40"
    asked = []
    monkeypatch.setattr("diffusion_lib.data.toycats.ToyCats", lambda **arguments: asked.append(arguments) or ToyCats(size=16, n=1))
    load_data("toycats", 32)
    assert asked == [{"size": 32, "n": 10_000, "seed": 0}]


@pytest.mark.parametrize("count", ["0", "-5", "many", "2.5", "1e3", " "])
def test_toycats_refuses(refuses, count: str) -> None:
    with refuses(ValueError, f"toycats:{count}", "toycats:5000"):
        load_data(f"toycats:{count}", 32)


@pytest.mark.parametrize("spec", ["", "cats", "imagenet:cat", "oxford_cats:siamese", "Toycats"])
def test_unknown_source(refuses, spec: str) -> None:
    with refuses(ValueError, repr(spec), *SOURCES.split(", ")):
        load_data(spec, 32)


@pytest.mark.parametrize("size", [0, -1, 32.0, True, "32", None])
def test_impossible_size(refuses, size: object) -> None:
    with refuses(ValueError, repr(size), "whole number", "at least 1"):
        load_data("toycats:2", size)


def test_toycats_have_a_smallest_size(refuses) -> None:
    with refuses(ValueError, "8", "16 to 256"):
        load_data("toycats:2", 8)


def test_example_photo(refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = example_photo(64)
    assert photo.shape == (1, 3, 64, 64) and photo.dtype == torch.float32
    assert -1 <= photo.min() < -0.7 and 0.5 < photo.max() <= 1
    small = torch.nn.functional.avg_pool2d(example_photo(128), 4)
    assert (small - example_photo(32)).abs().mean() < 0.03                   # the same cat at any size
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with refuses(RuntimeError, "scikit-image", "pip install scikit-image"):
        example_photo(64)


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.dtype == torch.float32 and floats[0] == -1 and floats[255] == 1
    exact = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert (floats - exact).abs().max() < 1e-6
    assert torch.equal(to_uint8(floats), every) and torch.equal(to_uint8(floats.double()), every)
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 9.0, float("inf")])).tolist() == [0, 0, 255, 255, 255]
    assert to_uint8(torch.tensor([0.5 / 127.5 - 1 + 1e-4, 0.5 / 127.5 - 1 - 1e-4])).tolist() == [1, 0]  # to the nearest
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8))          # what was given is left alone


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32, torch.float64, torch.bool])
def test_to_float_refuses(refuses, dtype: torch.dtype) -> None:
    with refuses(ValueError, str(dtype), "uint8"):
        to_float(torch.zeros(1, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_to_uint8_refuses(refuses, dtype: torch.dtype) -> None:
    with refuses(ValueError, str(dtype), "to_float"):
        to_uint8(torch.zeros(1, 3, 8, 8, dtype=dtype))


def test_to_uint8_refuses_nan(refuses) -> None:
    with refuses(ValueError, "NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_a_fifth_of_a_folder_is_held_out_by_a_hash_of_the_name(tmp_path: Path) -> None:
    for i in range(60):
        Image.new("RGB", (8, 8), (4 * i, 0, 0)).save(tmp_path / f"cat{i:03d}.png")
    whole, train, held = (load_data(f"folder:{tmp_path}{part}", 8) for part in ("", "#train", "#held_out"))
    reds = [sorted(data.images[:, 0, 0, 0].tolist()) for data in (whole, train, held)]
    assert reds[0] == sorted(reds[1] + reds[2]) and not set(reds[1]) & set(reds[2])
    assert 5 <= len(held) <= 20 and held.name.endswith("#held_out")
    (tmp_path / "deeper").mkdir()
    for path in sorted(tmp_path.glob("*.png"))[:30]:
        path.rename(tmp_path / "deeper" / path.name)  # the name decides, not where it lies or what else is there
    assert sorted(load_data(f"folder:{tmp_path}#held_out", 8).images[:, 0, 0, 0].tolist()) == reds[2]


def test_a_folder_whose_name_has_a_number_sign(tmp_path: Path) -> None:
    (tmp_path / "cats#2").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cats#2/a.png")
    assert len(load_data(f"folder:{tmp_path}/cats#2", 8)) == 1
