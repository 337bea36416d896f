"""Where pictures come from: CIFAR-10, Oxford's cats, a folder of your own, or drawn cats; one uint8 tensor in memory.

Five thousand 32-pixel pictures are 15 MB, so a data set simply stays in memory (or on the GPU): no loader, no worker
processes; a batch is an index. Flips and the scaling to [-1, 1] happen in the training loop.
"""

import os
import socket
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SOURCES = "toycats, toycats:5000, cifar10, cifar10:cat, cifar10:cat,dog, oxford_cats, folder:PATH"
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


def load_data(spec: str, size: int, root: str | Path = "data") -> ImageData:
    """Load the pictures that `spec` names, each `size` × `size` pixels, as uint8 in memory.

    spec:  "toycats" or "toycats:5000"    drawn cats (10,000 unless a number is given)
           "cifar10", "cifar10:cat,dog"   the 50,000 training pictures, or those of some classes (downloaded into root)
           "oxford_cats"                  the cats of Oxford-IIIT Pet, its trainval half (downloaded into root, 800 MB)
           "folder:PATH"                  every picture below PATH; class = name of the folder that holds the file

    Pictures of another size are reduced with antialiasing so that the short side fits, then cropped to the centre.
    Files that cannot be read are skipped, counted in a warning and listed in `skipped`.

    Raises ValueError for an unknown source, class or size and for a folder without a readable picture,
    FileNotFoundError for a missing folder, RuntimeError if a download fails.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, not {size!r}")
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
        return _folder(Path(rest).expanduser(), size, spec)
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
    images, skipped = _read(cats, size)
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
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(f"{title} is not in {root} and could not be downloaded ({reason}); connect to a network, or "
                           "use folder:PATH for your own pictures, or toycats, which needs no download") from error
    finally:
        socket.setdefaulttimeout(patience)


def _folder(path: Path, size: int, spec: str) -> ImageData:
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}; give one that holds pictures, as folder:data/cats does")
    if not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder; give the folder that holds the pictures")
    files = _pictures_below(path)
    if not files:
        raise ValueError(f"no pictures below {path}; it looks for files that end in {', '.join(sorted(SUFFIXES))}")
    images, skipped = _read(files, size)
    bad = {entry.partition(": ")[0] for entry in skipped}
    owners = [file.absolute().parent.name for file in files if str(file) not in bad]
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


def _read(files: Sequence[Path], size: int) -> tuple[Tensor, tuple[str, ...]]:
    """Decode files in a few threads: readable ones as uint8 (N, 3, size, size), "file: reason" for the others."""

    def read(file: Path) -> Tensor | str:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (2 * size, 2 * size))                             # large JPEGs decode at a fraction
                return _fit(image, size)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
            return f"{file}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(read, files))
    skipped = tuple(result for result in results if isinstance(result, str))
    good = [result for result in results if not isinstance(result, str)]
    names = [Path(entry.partition(": ")[0]).name for entry in skipped]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    if not good:
        raise ValueError(f"none of the {len(files)} picture files could be read ({shown}); first reason: {skipped[0]}")
    if skipped:
        message = f"skipped {len(skipped)} of {len(files)} files that cannot be read as pictures: {shown}"
        warnings.warn(message, stacklevel=4)
    return torch.stack(good), skipped


def _fit(image: Image.Image, size: int) -> Tensor:
    """Upright, RGB (transparency over white), short side reduced to size, centre crop: uint8 (3, size, size)."""
    image = ImageOps.exif_transpose(image)
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


def check_images(images: Tensor, *, channels: int | None = 3, bounded: bool = False, what: str = "images") -> Tensor:
    """Return `images` if they are float32 (B, channels, H, W) without NaN or infinity; else raise ValueError, one line.

    channels: None allows any number. bounded: they must also lie in [-1, 1], as clean pictures do, noisy ones not.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{what} must be a torch tensor (B, C, H, W), not {type(images).__name__}")
    if images.dtype == torch.uint8:
        raise ValueError(f"{what} are uint8 (0 … 255), but float32 in [-1, 1] is needed: use to_float(images)")
    if images.dtype != torch.float32:
        raise ValueError(f"{what} are {images.dtype}, but float32 in [-1, 1] is needed: use images.float()"
                         + ("" if images.is_floating_point() else " after scaling to [-1, 1]"))
    if images.ndim != 4:
        raise ValueError(f"{what} have shape {tuple(images.shape)}, but (B, C, H, W) is needed"
                         + (": use images[None] for a single picture" if images.ndim == 3 else ""))
    if channels is not None and images.shape[1] != channels:
        hint = ": use images.permute(0, 3, 1, 2)" if images.shape[3] == channels else ""
        shape = tuple(images.shape)
        raise ValueError(f"{what} have {images.shape[1]} channels (shape {shape}), but {channels} are needed{hint}")
    bad = ~images.isfinite()
    if bad.any():
        first = int(bad.flatten(1).any(1).nonzero()[0])
        value = images[first][bad[first]][0].item()
        raise ValueError(f"{what}[{first}] contains {value}: leave that picture out, or look for the step that made it")
    if bounded and images.numel():
        low, high = float(images.min()), float(images.max())
        if low < -1.001 or high > 1.001:
            raise ValueError(f"{what} range from {low:.3g} to {high:.3g}, but pictures lie in [-1, 1]: "
                             "to_float(pictures as uint8) scales them")
    return images
