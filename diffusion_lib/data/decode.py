"""From picture files to squares of pixels: whatever Pillow opens, upright, sRGB, 8 bits."""

import functools
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

# Files with these endings are taken for pictures without a look; of all others Pillow is asked.
SUFFIXES = frozenset(
    ".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .tga .jp2 .ppm .pgm .avif".split())
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # how iPhones' files begin


def decode(files: Sequence[Path], size: int) -> tuple[list[Tensor], dict[Path, str]]:
    """uint8 (3, size, size) for each file that can be read, and why the others cannot."""

    def read(file: Path) -> Tensor | str:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (2 * size, 2 * size))  # large JPEGs decode at a fraction
                return fit(image, size)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, …
            return reason(file, error)

    with quiet(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = dict(zip(files, pool.map(read, files), strict=True))
    left = {file: result for file, result in results.items() if isinstance(result, str)}
    return [result for result in results.values() if isinstance(result, Tensor)], left


def fit(image: Image.Image, size: int) -> Tensor:
    """The middle square, antialiased, white where it is transparent: uint8 (3, size, size)."""
    profile, image = image.info.get("icc_profile"), _eight_bits(_upright(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB") and not (image.mode == "CMYK" and profile):
        image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    image = _to_srgb(image, profile).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be read says nothing; the picture is whole
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 0 … 65535, brought to 8; convert() would clip it. Others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image)
    if image.mode == "F" or not 0 <= grey.min() <= grey.max() <= 65535:
        kind = "floats" if image.mode == "F" else f"{grey.min()} to {grey.max()}"
        raise ValueError(f"its pixels are {kind}, a range that is not known; save 8 or 16 bits")
    return Image.fromarray(((grey.astype(np.int64) + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    mode, transform = _transform(profile) if profile else ("", None)
    if transform and (image.mode == mode or (image.mode, mode) == ("L", "RGB")):
        return ImageCms.applyTransform(image.convert(mode), transform) or image
    return image


@functools.lru_cache(maxsize=64)  # a camera writes the same profile into all its pictures
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a colour profile is for, and the way to sRGB; None if it is sRGB, or broken."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        if "sRGB" in (source.profile.profile_description or ""):
            return mode, None
        return mode, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, KeyError, TypeError, ValueError):
        return "", None


def reason(file: Path, error: Exception) -> str:
    """Why a file is left aside, one line; what stands before a colon is its kind."""
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp" and head[8:] in HEIF:
        return "HEIF (iPhone): pip install pillow-heif, and they are read"
    if isinstance(error, UnidentifiedImageError):
        known = file.suffix.lower() in SUFFIXES
        return "unreadable: no picture, whatever its name says" if known else "not a picture"
    words = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return f"unreadable: {' '.join(words.split())}"


def quiet() -> warnings.catch_warnings:
    """Without Pillow's own warnings: of odd EXIF, of more than 89 million pixels."""
    return warnings.catch_warnings(action="ignore")


def all_formats() -> None:
    """Let Pillow know all its formats, and those of iPhones where pillow-heif is installed."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()
