"""Where pictures come from: CIFAR-10, Oxford's cats, a folder of your own, or drawn cats; one uint8 tensor in memory.

Five thousand 32-pixel pictures are 15 MB, so a data set simply stays in memory (or on the GPU): no loader, no worker
processes; a batch is an index. Flips and the scaling to [-1, 1] happen in the training loop.
"""

import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

SOURCES = "toycats, toycats:5000, cifar10, cifar10:cat, cifar10:cat,dog, oxford_cats, folder:PATH, folder:PATH#train"
PARTS = ("train", "held_out")  # of a folder
SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .avif".split())


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    images: uint8 (N, 3, H, W). labels: int64 (N,), indices into `classes`, or None. name: the source it came from.
    skipped: files that could not be read, with the reason.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def load_data(spec: str, size: int, root: str | Path = "data", channels: int = 3) -> ImageData:
    """Load the pictures that `spec` names, each `size` × `size` pixels, as uint8 in memory.

    spec:  "toycats" or "toycats:5000"    drawn cats (10,000 unless a number is given)
           "cifar10", "cifar10:cat,dog"   the 50,000 training pictures, or those of some classes (downloaded into root)
           "oxford_cats"                  the cats of Oxford-IIIT Pet, its trainval half (downloaded into root, 800 MB)
           "folder:PATH"                  every picture below PATH; class = name of the folder that holds the file
           "folder:PATH#train"            four fifths of them, and "folder:PATH#held_out" the others, by a hash of the file's name

    channels: 3 for colour, 1 for grey (luminance).
    Pictures of another size are reduced with antialiasing so that the short side fits, then cropped to the centre.
    Files that cannot be read are skipped, counted in a warning and listed in `skipped`.

    Raises ValueError for an unknown source, class or size and for a folder without a readable picture,
    FileNotFoundError for a missing folder, RuntimeError if a download fails.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, not {size!r}")
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels must be 3 (colour) or 1 (grey), not {channels!r}")
    data = _load(spec, size, root)
    return data if channels == 3 else replace(data, images=_grey(data.images))


def _grey(images: Tensor) -> Tensor:
    """Luminance of uint8 colours, (N, 3, H, W) -> (N, 1, H, W), with the weights of ITU-R 601, as Pillow has it."""
    red, green, blue = images.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)


def _load(spec: str, size: int, root: str | Path) -> ImageData:
    kind, _, rest = str(spec).partition(":")
    if kind == "toycats":
        return _toycats(rest, size, spec)
    if kind == "cifar10":
        return _cifar10(rest, size, Path(root), spec)
    if kind == "oxford_cats" and not rest:
        return _oxford_cats(size, Path(root), spec)
    if kind == "folder":
        if not rest:
            raise ValueError("folder: needs the path of a folder of pictures, for example folder:data/cats")
        path, mark, part = rest.rpartition("#")
        path, part = (path, part) if mark and part in PARTS else (rest, "")
        return _folder(Path(path).expanduser(), size, spec, part)
    raise ValueError(f"unknown data source {spec!r}; choose one of {SOURCES}")


def _toycats(count: str, size: int, spec: str) -> ImageData:
    from .toycats import ToyCats

    if count and not (count.isdecimal() and int(count) >= 1):
        raise ValueError(f"toycats:{count} must give a whole number of pictures, for example toycats:5000")
    return ImageData(ToyCats(size=size, n=int(count or 10_000), seed=0).images, name=spec)


def _cifar10(wanted: str, size: int, root: Path, spec: str) -> ImageData:
    # the names are checked before a download of 170 MB starts
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    chosen = tuple(name.strip() for name in wanted.split(",")) if wanted else names
    for name in chosen:
        if name not in names:
            raise ValueError(f"CIFAR-10 has no class {name!r}; its classes are {', '.join(names)}")
    from torchvision.datasets import CIFAR10

    data = _download("CIFAR-10", root, lambda download: CIFAR10(root, train=True, download=download))
    targets = np.asarray(data.targets)
    keep = np.isin(targets, [names.index(name) for name in chosen])
    images = torch.from_numpy(data.data[keep]).permute(0, 3, 1, 2).contiguous()      # (N, 3, 32, 32)
    if size != 32:
        images = torch.stack([_fit(Image.fromarray(picture), size) for picture in data.data[keep]])
    labels = torch.tensor([chosen.index(names[target]) for target in targets[keep]])
    return ImageData(images, labels, chosen, spec)


def _oxford_cats(size: int, root: Path, spec: str) -> ImageData:
    from torchvision.datasets import OxfordIIITPet

    def make(download: bool) -> OxfordIIITPet:
        return OxfordIIITPet(root, split="trainval", target_types="binary-category", download=download)

    data = _download("Oxford-IIIT Pet", root, make)
    files = [Path(file) for file in data._images]
    cats = [file for file, dog in zip(files, data._bin_labels, strict=True) if not dog]
    images, _, skipped = _read(cats, size)
    return ImageData(images, torch.zeros(len(images), dtype=torch.int64), ("cat",), spec, skipped)


def _download(title: str, root: Path, make: Callable[[bool], Any]) -> Any:
    """make(False), the data set on disk, else make(True), the downloaded one; one line if neither can be had."""
    try:
        return make(False)
    except (RuntimeError, OSError):
        pass                                                                         # not there, or not whole: fetch it
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)                                                     # a silent network ends, too
    try:
        return make(True)
    except (RuntimeError, OSError, HTTPException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(f"{title} is not in {root} and could not be downloaded ({reason}); connect to a network, or "
                           "use folder:PATH for your own pictures, or toycats, which needs no download") from error
    finally:
        socket.setdefaulttimeout(patience)


def held_out(name: str) -> bool:
    """Whether the picture of this file name is kept out of training: every fifth, by a hash, the same on every machine."""
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


def _folder(path: Path, size: int, spec: str, part: str = "") -> ImageData:
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}; give one that holds pictures, as folder:data/cats does")
    if not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder; give the folder that holds the pictures")
    files = _pictures_below(path)
    if part:
        files = [file for file in files if held_out(file.name) == (part == "held_out")]
    if not files:
        raise ValueError(f"no pictures below {path}; it looks for files that end in {', '.join(sorted(SUFFIXES))}")
    images, good, skipped = _read(files, size)
    owners = [file.absolute().parent.name for file in good]
    classes = tuple(sorted(set(owners)))
    labels = torch.tensor([classes.index(owner) for owner in owners])
    return ImageData(images, labels, classes, spec, skipped)


def _pictures_below(path: Path) -> list[Path]:
    """All picture files below path, sorted, without hidden ones (macOS's ._ doubles). Links are followed, loops not."""
    found, seen = [], set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        found += [Path(folder, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    return sorted(found)


def _read(files: Sequence[Path], size: int) -> tuple[Tensor, list[Path], tuple[str, ...]]:
    """Decode files in a few threads: pictures uint8 (N, 3, size, size), their files, "file: reason" for the unreadable."""

    def read(file: Path) -> Tensor | str:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (2 * size, 2 * size))                             # large JPEGs decode at a fraction
                return _fit(image, size)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
            return f"{file}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = dict(zip(files, pool.map(read, files), strict=True))
    good = {file: result for file, result in results.items() if isinstance(result, Tensor)}
    skipped = tuple(result for result in results.values() if isinstance(result, str))
    names = [file.name for file in results if file not in good]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    if not good:
        raise ValueError(f"none of the {len(files)} picture files could be read ({shown}); first reason: {skipped[0]}")
    if skipped:
        message = f"skipped {len(skipped)} of {len(files)} files that cannot be read as pictures: {shown}"
        warnings.warn(message, stacklevel=4)
    return torch.stack(list(good.values())), list(good), skipped


def _fit(image: Image.Image, size: int) -> Tensor:
    """Upright, RGB (transparency over white), short side reduced to size, centre crop: uint8 (3, size, size)."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):                                                 # 16-bit grey: convert() would clip
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey // 257 if grey.max() > 255 else grey).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def example_photo(size: int = 128) -> Tensor:
    """The face of Chelsea the cat, a photograph by Stéfan van der Walt (CC0) that comes with scikit-image; no download.

    Returns float32 (1, 3, size, size) in [-1, 1]. Raises RuntimeError if scikit-image is missing.
    """
    try:
        from skimage.data import chelsea
    except ImportError as error:
        raise RuntimeError("the photograph comes with scikit-image; install it: pip install scikit-image") from error
    face = Image.fromarray(chelsea()).crop((78, 0, 378, 300))
    return to_float(_fit(face, size)[None])


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in [-1, 1], any shape. Raises ValueError for other input."""
    if images.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 pictures (0 … 255), not {images.dtype}; to_uint8 makes such")
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 in 0 … 255, any shape, clipped. Raises ValueError for other input and for NaN."""
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes float pictures in [-1, 1], not {images.dtype}; to_float makes such")
    if images.isnan().any():
        raise ValueError("the pictures contain NaN (not a number): look for the step that made it")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def check_fit(images: Tensor, labels: Tensor | None, model: nn.Module) -> None:
    """Raises ValueError, one line with the remedy, where pictures or labels are not what `model` trains on."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
        found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"training pictures must be a uint8 tensor (N, C, H, W) with N of at least 1, not {found}; "
                         "diffusion_lib.to_uint8 makes one of floats in [-1, 1]")
    wanted = (getattr(model, "in_channels", images.shape[1]), *[getattr(model, "image_size", images.shape[2])] * 2)
    if tuple(images.shape[1:]) != wanted:
        raise ValueError(f"the pictures are {tuple(images.shape[1:])} (channels, height, width), the network expects {wanted}; "
                         "load the data at the network's size")
    classes = getattr(model, "num_classes", None)
    if classes and (labels is None or labels.shape != (len(images),) or labels.dtype != torch.int64
                    or not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise ValueError(f"the network has {classes} classes, but the data has no labels in 0 … {classes - 1}, int64, one a picture")


@torch.no_grad()
def in_batches(network: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """network(pictures) for many pictures, uint8 or floats in [-1, 1], a batch at a time; the rows one below the other."""
    parts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    return torch.cat([network(to_float(part) if part.dtype == torch.uint8 else part) for part in parts])
