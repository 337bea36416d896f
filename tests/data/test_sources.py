"""Where pictures come from: CIFAR-10, Oxford's cats, drawn cats; scaling. Folders:
test_folders.py."""

import pickle
import socket
import sys
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from diffusion_lib import ToyCats, example_photo, load_data, to_float, to_uint8
from diffusion_lib.data.sources import SOURCES

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def save(path: Path, pixels: np.ndarray | None = None, **settings: object) -> Path:
    """A picture on disk: those pixels, or noise of 20 × 24."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(str(path))).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def plain(height: int, width: int, *colour: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, len(colour))).copy()


# --- CIFAR-10 and Oxford's cats, in tiny copies ---------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to reach another machine fails as it does on one without a network; the list
    holds the attempts."""
    attempts = []

    def fail(host: str, *_: object, **__: object) -> None:
        attempts.append(str(host))
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return attempts


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch, no_network: list[str]) -> tuple[Path, np.ndarray, list[int]]:
    """Fifty pictures in CIFAR-10's own five files (without their checksums): root, pixels (50, 3,
    32, 32), labels."""
    pixels = np.random.default_rng(2).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    labels = [(7 * i) % 10 for i in range(50)]
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for number in range(5):
        part = slice(10 * number, 10 * number + 10)
        content = {"data": pixels[part].reshape(10, 3072), "labels": labels[part]}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(content))
    content = {"data": pixels[:10].reshape(10, 3072), "labels": labels[:10]}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
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
    assert torch.equal(cats.images, torch.from_numpy(pixels[chosen]))
    assert cats.classes == ("cat",) and not cats.labels.any()
    both = load_data("cifar10: dog, cat", 16, str(root))
    chosen = [i for i in range(50) if labels[i] in (3, 5)]
    assert both.classes == ("dog", "cat")
    assert both.labels.tolist() == [0 if labels[i] == 5 else 1 for i in chosen]
    assert both.images.shape == (10, 3, 16, 16) and both.images.dtype == torch.uint8
    means = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels[chosen]).float(), 2)
    errors = (both.images.float() - means).flatten(1).std(dim=1)
    assert errors.max() < 25  # the same pictures, made smaller: noise has 37 itself


def test_cifar10_unknown_class(tmp_path: Path, refuses, no_network: list[str]) -> None:
    with refuses(ValueError, "'kitten'", "cat, deer"):
        load_data("cifar10:cat,kitten", 32, tmp_path)
    assert no_network == []  # before anything is downloaded


@pytest.fixture
def oxford(tmp_path: Path, no_network: list[str]) -> Path:
    """Five pictures in the folders of Oxford-IIIT Pet, three of them cats; the last cat's file is
    damaged."""
    base = tmp_path / "oxford-iiit-pet"
    rows = [("Abyssinian_1", 1, 1, (200, 20, 20)), ("beagle_7", 5, 2, (20, 20, 200)),
            ("Bengal_12", 6, 1, (20, 200, 20)), ("pug_3", 26, 2, (90, 90, 90)),
            ("Sphynx_9", 34, 1, (5, 5, 5))]
    (base / "annotations").mkdir(parents=True)
    lines = [f"{name} {kind} {species} 1\n" for name, kind, species, _ in rows]
    (base / "annotations" / "trainval.txt").write_text("".join(lines))
    for name, _, _, colour in rows:
        save(base / "images" / f"{name}.jpg", plain(50, 70, *colour), quality=95)
    (base / "images" / "Sphynx_9.jpg").write_bytes(b"")
    return tmp_path


def test_oxford_cats(oxford: Path, no_network: list[str]) -> None:
    with pytest.warns(UserWarning, match="left aside 1 of 3.*Sphynx_9.jpg"):
        data = load_data("oxford_cats", 24, oxford)
    assert data.labels.tolist() == [0, 0] and data.classes == ("cat",)
    assert data.images.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1]  # red, green
    assert len(data.skipped) == 1 and no_network == []


@pytest.mark.parametrize(("spec", "title", "host"), [
    ("cifar10:cat", "CIFAR-10", "toronto"), ("oxford_cats", "Oxford-IIIT Pet", "robots.ox.ac.uk"),
])  # fmt: skip
def test_no_network_is_one_line(
    tmp_path: Path, refuses, no_network: list[str], capsys, spec: str, title: str, host: str
) -> None:
    with refuses(RuntimeError, title, str(tmp_path), "name resolution", "folder:PATH", "toycats"):
        load_data(spec, 32, tmp_path)
    assert no_network and host in no_network[0]  # it did try
    assert title in capsys.readouterr().err


def test_a_download_that_breaks_off_is_one_line(tmp_path: Path, refuses, monkeypatch) -> None:
    def broken(*_: object, download: bool) -> None:
        raise IncompleteRead(b"some", 1000) if download else RuntimeError("not there")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", broken)
    with refuses(RuntimeError, "Oxford-IIIT Pet", "IncompleteRead", "folder:PATH"):
        load_data("oxford_cats", 32, tmp_path)


# --- drawn cats, other sources --------------------------------------------------------------------


def test_toycats(monkeypatch: pytest.MonkeyPatch) -> None:
    data, cats = load_data("toycats:40", 20), ToyCats(size=20, n=40, seed=0)
    assert torch.equal(data.images, cats.images) and data.name == "toycats:40"
    asked = []
    monkeypatch.setattr("diffusion_lib.data.sources.ToyCats",
                        lambda **settings: asked.append(settings) or ToyCats(size=16, n=1))
    load_data("toycats", 32)
    assert asked == [{"size": 32, "n": 10_000, "seed": 0, "exclude": ()}]


@pytest.mark.parametrize("count", ["9" * 20, "0", "-5", "many", "2.5", "1e3", " "])
def test_toycats_refuses(refuses, count: str) -> None:
    with refuses(ValueError, f"toycats:{count}", "toycats:5000"):
        load_data(f"toycats:{count}", 32)


@pytest.mark.parametrize("spec", ["", "cats", "imagenet:cat", "oxford_cats:siamese", "Toycats"])
def test_unknown_source(refuses, spec: str) -> None:
    with refuses(ValueError, repr(spec), *SOURCES.split(", ")):
        load_data(spec, 32)


@pytest.mark.parametrize("channels", [0, 2, 4, True, "1"])
def test_impossible_channels(refuses, channels: object) -> None:
    with refuses(ValueError, repr(channels), "3 (colour)", "1 (grey)"):
        load_data("toycats:2", 32, channels=channels)


def test_grey_toycats_are_the_luminance_of_the_coloured_ones() -> None:
    grey, colour = (load_data("toycats:3", 20, channels=channels).images for channels in (1, 3))
    assert grey.shape == (3, 1, 20, 20) and grey.dtype == torch.uint8
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((colour * weights).sum(dim=1) - grey[:, 0]).abs().max() <= 0.51


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
    assert (small - example_photo(32)).abs().mean() < 0.03  # the same cat at any size
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with refuses(ImportError, "the photo needs skimage", "pip install scikit-image"):
        example_photo(64)


# --- scaling --------------------------------------------------------------------------------------


def test_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.dtype == torch.float32 and floats[0] == -1 and floats[255] == 1
    exact = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert (floats - exact).abs().max() < 1e-6
    assert torch.equal(to_uint8(floats), every) and torch.equal(to_uint8(floats.double()), every)
    outside = torch.tensor([-7.0, -1.001, 1.001, 9.0, float("inf")])
    assert to_uint8(outside).tolist() == [0, 0, 255, 255, 255]
    between = torch.tensor([0.5 / 127.5 - 1 + 1e-4, 0.5 / 127.5 - 1 - 1e-4])
    assert to_uint8(between).tolist() == [1, 0]  # to the nearest
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8))  # what was given is left alone


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32, torch.bool])
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
