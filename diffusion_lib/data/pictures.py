"""Pictures put together with Pillow alone: images of any kind to PIL, a grid, files' bytes.

Wherever images are asked for: float tensors (B, C, H, W) in [-1, 1] or uint8 ones, with C = 3 for
colour or 1 for grey, single ones without the B, uint8 arrays (H, W, 3), PIL images, lists of these.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .sources import to_uint8

INK, FAINT, PAPER = "#222222", "#c8c8c8", "#ffffff"


def to_pictures(images: Any) -> list[Image.Image]:
    """Images as a list of PIL images, "RGB" or, for grey ones, "L". Raises ValueError for anything
    else, and for NaN."""
    if isinstance(images, Image.Image):
        return [images if images.mode == "L" else images.convert("RGB")]
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in to_pictures(item)]
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[2:] == (3,):
        return [Image.fromarray(images)]
    if not isinstance(images, Tensor):
        raise ValueError("images must be a tensor (B, C, H, W), a uint8 array (H, W, 3) or PIL "
                         f"images, not {type(images).__name__}")
    batch = images.detach().cpu()
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(f"images must be (B, 3, H, W) or (B, 1, H, W), not {tuple(images.shape)}")
    batch = batch if batch.dtype == torch.uint8 else to_uint8(batch)
    pixels = batch.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()  # (B, H, W, 3) or (B, H, W)
    return [Image.fromarray(picture) for picture in pixels]


def image_grid(images: Any, columns: int | None = None, scale: int = 1, padding: int = 2
               ) -> Image.Image:
    """All images in rows, in their order, `padding` white pixels around each; grey if all are grey.

    columns: ⌈√n⌉ if None. scale: whole number of screen pixels per picture pixel. Raises ValueError
    for no images, or unequal sizes.
    """
    pictures = to_pictures(images)
    check_grid(pictures, columns, scale)
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    width, height = (side * scale for side in pictures[0].size)
    across, down = width + padding, height + padding
    size = (columns * across + padding, math.ceil(len(pictures) / columns) * down + padding)
    grid = Image.new("L" if {picture.mode for picture in pictures} == {"L"} else "RGB", size, PAPER)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(picture, (padding + column * across, padding + row * down))
    return grid


def check_grid(pictures: Sequence[Image.Image], columns: int | None, scale: int) -> None:
    """Raises ValueError for no pictures, unequal ones, or an impossible grid."""
    if not pictures:
        raise ValueError("there are no images to show: give at least one")
    if columns is not None and columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, not {columns} and {scale}")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"the images of a grid must have one size, not {sorted(sizes)}; "
                         "compose() takes unequal ones")


def encode(picture: Image.Image, format: str = "png", quality: int = 85) -> bytes:
    """The bytes of a "png", "webp" or "jpeg" file; png quick rather than small: a slider waits."""
    buffer = io.BytesIO()
    options = {"png": {"compress_level": 1}, "webp": {"quality": quality, "method": 4},
               "jpeg": {"quality": quality}}
    picture.save(buffer, format.upper(), **options[format])
    return buffer.getvalue()


def encode_animation(
    frames: Sequence[Image.Image], format: str = "gif", fps: float = 10, hold: float = 1.5
) -> bytes:
    """The bytes of an endless "gif" or "webp" of pictures of one size; the last stays `hold` s.

    Raises ValueError for no frames, and for frames of several sizes.
    """
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1 or not fps > 0:
        raise ValueError("an animation needs fps above 0 and frames, all of one size, "
                         f"not fps {fps} and {len(frames)} frames of sizes {sorted(sizes)}")
    durations = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 * hold)]
    every: dict[str, dict[str, Any]] = {
        "gif": {"optimize": True}, "webp": {"quality": 70, "method": 6}}
    buffer = io.BytesIO()
    frames[0].save(buffer, format.upper(), save_all=True, append_images=frames[1:],
                   duration=durations, loop=0, **every[format])
    return buffer.getvalue()
