"""Grids and animations on disk: the right pixels, order and timing, nothing beside them, and clear
refusals.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffusion_lib import animate, image_grid, save_grid


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_grid_and_nothing_beside_it(tmp_path: Path, toy_images: Tensor) -> None:
    path = save_grid(toy_images, tmp_path / "new/folder/cats.PNG", columns=5)
    assert path == tmp_path / "new/folder/cats.PNG" and os.listdir(path.parent) == ["cats.PNG"]
    assert np.array_equal(opened(path), np.asarray(image_grid(toy_images, columns=5)))
    save_grid(toy_images[:1], path, scale=3)  # over the old one
    assert opened(path).shape == (28, 28, 3) and os.listdir(path.parent) == ["cats.PNG"]
    umask = os.umask(0)
    os.umask(umask)
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it


def test_a_grey_grid_holds_the_greys(tmp_path: Path) -> None:
    greys = torch.arange(2 * 8 * 8, dtype=torch.uint8).reshape(2, 1, 8, 8)
    sheet = opened(save_grid(greys, tmp_path / "grey.png", columns=2))
    sheet = sheet if sheet.ndim == 3 else sheet[:, :, None]
    assert all(np.array_equal(sheet[2:10, 2:10, k], greys[0, 0].numpy())
               for k in range(sheet.shape[2]))


def test_a_grid_refuses(tmp_path: Path, toy_images: Tensor, refuses: Callable) -> None:
    with refuses(ValueError, "cats.jpg", ".png"):
        save_grid(toy_images, tmp_path / "cats.jpg")
    with refuses(ValueError, "no images"):
        save_grid([], tmp_path / "cats.png")
    (tmp_path / "file").write_text("not a folder")
    with refuses(OSError, "cats.png", "choose another place"):
        save_grid(toy_images, tmp_path / "file/cats.png")
    (tmp_path / "cats.webp").mkdir()
    with refuses(ValueError, "cats.webp is a folder"):
        save_grid(toy_images, tmp_path / "cats.webp")
    assert sorted(os.listdir(tmp_path)) == ["cats.webp", "file"]


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_an_animation_keeps_order_timing_and_endlessness(tmp_path: Path, ending: str) -> None:
    frames = [torch.full((2, 3, 8, 8), shade) for shade in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    path = animate(frames, tmp_path / f"a{ending}", fps=20, hold=0.7, scale=2)
    with Image.open(path) as movie:
        assert movie.n_frames == len(frames) and movie.info["loop"] == 0
        assert movie.size == (2 * 16 + 6, 16 + 4)  # each frame a grid of two, enlarged
        middles, durations = [], []
        for frame in ImageSequence.Iterator(movie):
            middles.append(frame.convert("RGB").getpixel((10, 10))[0])
            durations.append(frame.info["duration"])
    assert middles == pytest.approx([0, 64, 128, 191, 255], abs=8)  # lossy, yet in order
    if ending == ".gif":  # Pillow's reader of WebP tells the time after a frame
        assert durations == [50, 50, 50, 50, 700]


def test_an_animation_refuses(tmp_path: Path, toy_images: Tensor, refuses: Callable) -> None:
    for frames, name, options, words in (
        ([toy_images], "a.mp4", {}, ("a.mp4", ".gif")), ([], "a.gif", {}, ("0 frames",)),
        ([toy_images], "a.gif", {"fps": 0}, ("fps 0",)),
        ([toy_images[:1], toy_images], "a.gif", {}, ("one size",)),
    ):
        with refuses(ValueError, *words):
            animate(frames, tmp_path / name, **options)
    assert os.listdir(tmp_path) == []
