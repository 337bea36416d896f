"""Grids and animations as files, each whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.pictures import encode, encode_animation, image_grid
from .files import whole

GRIDS, ANIMATIONS = (".png", ".webp"), (".gif", ".webp")


def save_grid(images: Any, path: str | Path, columns: int | None = None, scale: int = 1) -> Path:
    """Write image_grid(images, columns, scale), .png (exact) or .webp (small), and return its path.

    Missing folders are made. Raises ValueError for a name with another ending, OSError if it cannot
    be written.
    """
    path = check_name(path, GRIDS)
    return _write(path, encode(image_grid(images, columns, scale), path.suffix[1:].lower()))


def animate(
    frames: Sequence[Any], path: str | Path, fps: float = 10, hold: float = 1.5, scale: int = 1
) -> Path:
    """Write frames (each an image, or a batch: a grid) as an endless .gif or .webp; returns its
    path.

    hold: seconds that the last frame stays. Raises ValueError for no frames, frames of several
    sizes or another ending, OSError if it cannot be written.
    """
    path = check_name(path, ANIMATIONS)
    pictures = [image_grid(frame, scale=scale) for frame in frames]
    return _write(path, encode_animation(pictures, path.suffix[1:].lower(), fps, hold))


def check_name(path: str | Path, endings: tuple[str, ...]) -> Path:
    """The path, if its name ends in one of `endings` (GRIDS, ANIMATIONS); else ValueError."""
    if Path(path).suffix.lower() not in endings:
        raise ValueError(f"the name must end in {' or '.join(endings)}, not {Path(path).name!r}")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; choose another name for the picture")
    return Path(path)


def _write(path: Path, content: bytes) -> Path:
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return path
