"""From a picture file to a square of pixels: whatever Pillow opens, upright, 8 bits, sRGB, transparency over white."""

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
SUFFIXES = frozenset(".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .tga .jp2 .ppm .pgm .avif".split())
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # what iPhones save, by its own mark


def decode(files: Sequence[Path], size: int) -> tuple[list[Tensor], dict[Path, str]]:
    """Read files in a few threads: uint8 (3, size, size) for each that can be read; why the others cannot."""

    def read(file: Path) -> Tensor | str:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (2 * size, 2 * size))             # large JPEGs decode at a fraction
                return fit(image, size)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, …
            return reason(file, error)

    with quiet(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = dict(zip(files, pool.map(read, files), strict=True))
    left = {file: result for file, result in results.items() if isinstance(result, str)}
    return [result for result in results.values() if isinstance(result, Tensor)], left


def fit(image: Image.Image, size: int) -> Tensor:
    """The middle square, its side reduced to size with antialiasing: uint8 (3, size, size)."""
    image, profile = _eight_bits(_upright(image)), image.info.get("icc_profile")
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
    except Exception:  # a broken EXIF part says nothing of how the camera was held; the picture is whole
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 0 … 65535, with 8; convert() would clip it."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    if not 0 <= grey.min() <= grey.max() <= 65535:
        raise ValueError(f"its pixels go from {grey.min()} to {grey.max()}, of a range that is not known; "
                         "save it with 8 or 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as a screen shows them. Done when the picture is small: it then costs next to nothing."""
    mode, transform = _transform(profile) if profile else ("", None)
    if transform and (image.mode == mode or (image.mode, mode) == ("L", "RGB")):
        return ImageCms.applyTransform(image.convert(mode), transform)
    return image


@functools.lru_cache(maxsize=64)  # a camera writes the same profile into all its pictures
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a colour profile is for, and the way from there to sRGB; None: nothing to do, or nothing known."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        if "sRGB" in (source.profile.profile_description or ""):
            return mode, None
        return mode, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, KeyError, TypeError, ValueError):
        return "", None  # a broken profile, or a Pillow without LittleCMS


def reason(file: Path, error: Exception) -> str:
    """Why a file is left aside, one line; what stands before a colon is its kind."""
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp" and head[8:] in HEIF:
        return "HEIF (iPhone), which needs a package: pip install pillow-heif"
    if not isinstance(error, UnidentifiedImageError):
        return f"unreadable: {' '.join(str(getattr(error, 'strerror', None) or error).split()) or type(error).__name__}"
    return "unreadable: not a picture, whatever its name says" if file.suffix.lower() in SUFFIXES else "not a picture"


def quiet() -> warnings.catch_warnings:
    """Without Pillow's own warnings: of odd EXIF parts, and of pictures of more than 89 million pixels."""
    return warnings.catch_warnings(action="ignore")


def all_formats() -> None:
    """Let Pillow know all its formats, and those of iPhones where pillow-heif is installed."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()
