"""Pictures put together with Pillow alone: grids, panels side by side, and small plots quick enough for a slider.

Wherever images are asked for: float tensors (B, 3, H, W) in [-1, 1], uint8 tensors (B, 3, H, W), single ones without
the B, uint8 arrays (H, W, 3), PIL images, or lists of these.
"""

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .sources import to_uint8

INK, FAINT, PAPER = "#222222", "#c8c8c8", "#ffffff"


# -- pictures to pixels ------------------------------------------------------------------------------------------------


def to_pictures(images: Any) -> list[Image.Image]:
    """Images of any accepted kind as a list of RGB PIL images. Raises ValueError for anything else, and for NaN."""
    if isinstance(images, Image.Image):
        return [images.convert("RGB")]
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in to_pictures(item)]
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 3 and images.shape[2] == 3:
        return [Image.fromarray(images)]
    if not isinstance(images, Tensor):
        raise ValueError("images must be a tensor (B, 3, H, W), a uint8 array (H, W, 3) or PIL images, "
                         f"not {type(images).__name__}")
    batch = images.detach().cpu()
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (B, 3, H, W) or (B, 1, H, W), not {tuple(images.shape)}")
    batch = batch if batch.dtype == torch.uint8 else to_uint8(batch)
    pixels = batch.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()       # (B, H, W, 3)
    return [Image.fromarray(picture) for picture in pixels]


def image_grid(images: Any, columns: int | None = None, scale: int = 1, padding: int = 2) -> Image.Image:
    """All images in rows, in their order, `padding` white pixels around each. columns: ⌈√n⌉ if None.

    scale: whole number of screen pixels per picture pixel. Raises ValueError for no images, or unequal sizes.
    """
    pictures = to_pictures(images)
    if not pictures:
        raise ValueError("there are no images to show: give at least one")
    if columns is not None and columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, not {columns} and {scale}")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"the images of a grid must have one size, not {sorted(sizes)}; compose() takes unequal ones")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    width, height = (side * scale for side in pictures[0].size)
    rows = math.ceil(len(pictures) / columns)
    grid = Image.new("RGB", (columns * (width + padding) + padding, rows * (height + padding) + padding), PAPER)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(picture, (padding + column * (width + padding), padding + row * (height + padding)))
    return grid


def encode(picture: Image.Image, format: str = "png", quality: int = 85) -> bytes:
    """The bytes of a "png", "webp" or "jpeg" file; png is quick rather than small (a slider waits for it)."""
    buffer = io.BytesIO()
    options = {"png": {"compress_level": 1}, "webp": {"quality": quality, "method": 4}, "jpeg": {"quality": quality}}
    picture.save(buffer, format.upper(), **options[format])
    return buffer.getvalue()
