"""Grids and animations as files, each written whole or not at all."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.pictures import encode, image_grid
from .files import whole


def save_grid(images: Any, path: str | Path, columns: int | None = None, scale: int = 1) -> Path:
    """Write image_grid(images, columns, scale), .png (exact) or .webp (small), and return its path; whole or not at all.

    Missing folders are made. Raises ValueError for a name with another ending, OSError if it cannot be written.
    """
    if Path(path).suffix.lower() not in (".png", ".webp"):
        raise ValueError(f"a grid is saved as .png or .webp, so its name must end so, not {Path(path).name!r}")
    return _write(Path(path), encode(image_grid(images, columns, scale), Path(path).suffix[1:].lower()))


def animate(frames: Sequence[Any], path: str | Path, fps: float = 10, hold: float = 1.5, scale: int = 1) -> Path:
    """Write frames (each an image, or a batch: a grid) as an endless animation, .gif or .webp; returns its path.

    hold: seconds that the last frame stays.
    Raises ValueError for no frames, frames of several sizes or another ending, OSError if not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"an animation is saved as .gif or .webp, not {path.name!r}")
    pictures = [image_grid(frame, scale=scale) for frame in frames]
    if not pictures or fps <= 0:
        raise ValueError(f"an animation needs frames and fps above 0, not {len(pictures)} frames and fps {fps}")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"the frames of an animation must have one size, not {sorted(sizes)}")
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [round(1000 * hold)]
    buffer = io.BytesIO()
    options = {"quality": 80, "method": 4} if path.suffix.lower() == ".webp" else {"optimize": True}
    pictures[0].save(buffer, path.suffix[1:].upper(), save_all=True, append_images=pictures[1:], duration=durations,
                     loop=0, **options)
    return _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> Path:
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return path
