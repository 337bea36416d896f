"""Where pictures come from: CIFAR-10, Oxford's cats, a folder of your own, or drawn cats.

Five thousand 32-pixel pictures are 15 MB, so a data set simply stays in memory (or on the GPU) as
one uint8 tensor: no loader, no worker processes; a batch is an index. Flips and the scaling to
[-1, 1] happen in the training loop.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .decode import decode, fit
from .folders import PARTS, listed, load_folder, summary
from .needed import needed
from .toycats import ToyCats

SOURCES = ("toycats, toycats:5000, cifar10, cifar10:cat, cifar10:cat,dog, oxford_cats, "
           "folder:PATH, folder:PATH#train")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                   "truck")


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    images: uint8 (N, C, H, W). labels: int64 (N,), indices into `classes`, or None.
    name: the source. skipped: every file that was left aside, "file: reason".
    captions: N texts, or none. attributes: int64 (N, 5), of drawn cats. no_captions: what is wrong
    with the .txt beside the pictures, where they are no captions.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"
    skipped: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    attributes: Tensor | None = None
    no_captions: str = ""

    def __len__(self) -> int:
        return len(self.images)


def load_data(
    spec: str, size: int, root: str | Path = "data", channels: int = 3, *,
    exclude: Sequence[Mapping[str, str]] = (),
) -> ImageData:
    """Load the pictures that `spec` names, each `size` × `size` pixels, as uint8 in memory.

    spec:  "toycats", "toycats:5000"      drawn cats (10,000 unless a number is given)
           "cifar10", "cifar10:cat,dog"   its 50,000 training pictures, or some classes of them
           "oxford_cats"                  the cats of Oxford-IIIT Pet's trainval half (800 MB)
           "folder:PATH"                  every picture below PATH; its folder's name is its class
           "folder:PATH#train"            four fifths of them, "folder:PATH#held_out" the others, by
                                          a hash of the file's name, or of its path below PATH where
                                          the name repeats; with captions, see captions.py
    root: where the two public sets lie, or are downloaded to. channels: 3 for colour, 1 for grey.
    exclude: see ToyCats.

    Pictures are reduced with antialiasing so that the short side fits, then cropped to the centre.
    Colours become sRGB, 16-bit grey 0 … 65535 becomes 0 … 255, what is transparent becomes white.
    Files that are no pictures are left aside, counted in a warning and listed in `skipped`.

    Raises ValueError for an unknown source, class, size or number of channels and for a folder
    without a readable picture, FileNotFoundError for a missing folder, RuntimeError if a download
    fails.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, not {size!r}")
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels must be 3 (colour) or 1 (grey), not {channels!r}")
    if exclude and not str(spec).startswith("toycats"):
        raise ValueError(f"exclude leaves drawn cats out, and {spec} are none; take it away")
    data = _load(str(spec), size, Path(root), exclude)
    return data if channels == 3 else replace(data, images=_grey(data.images))


def _load(
    spec: str, size: int, root: Path, exclude: Sequence[Mapping[str, str]] = ()
) -> ImageData:
    kind, _, rest = spec.partition(":")
    if kind == "toycats":
        if rest and not (rest.isdecimal() and 1 <= int(rest) <= 10**7):
            raise ValueError(f"{spec} must give a whole number of pictures, as toycats:5000 does, "
                             "at most ten million")
        cats = ToyCats(size=size, n=int(rest or 10_000), seed=0, exclude=exclude)
        return ImageData(cats.images, name=spec, captions=tuple(cats.captions),
                         attributes=cats.attributes)
    if kind == "cifar10":
        return _cifar10(rest, size, root, spec)
    if kind == "oxford_cats" and not rest:
        return _oxford_cats(size, root, spec)
    if kind == "folder":
        path, mark, part = rest.rpartition("#")
        path, part = (path, part) if mark and part in PARTS else (rest, "")
        if not path:
            raise ValueError("folder: needs the path of a folder of pictures, as folder:data/cats")
        loaded = load_folder(Path(os.path.expanduser(path)), size, part)
        images, labels, classes, skipped, captions, fault = loaded
        return ImageData(images, labels, classes, spec, skipped, captions, no_captions=fault)
    raise ValueError(f"unknown data source {spec!r}; choose one of {SOURCES}")


def _cifar10(wanted: str, size: int, root: Path, spec: str) -> ImageData:
    names = CIFAR10_CLASSES
    chosen = tuple(dict.fromkeys(name.strip() for name in wanted.split(","))) if wanted else names
    for name in chosen:  # before a download of 170 MB starts
        if name not in names:
            raise ValueError(f"CIFAR-10 has no class {name!r}; its classes are {', '.join(names)}")
    from torchvision import datasets  # slow to import, and needed for the public sets only

    data = _on_disk("CIFAR-10", root, lambda fetch: datasets.CIFAR10(root, download=fetch))
    targets = np.asarray(data.targets)
    keep = np.isin(targets, [names.index(name) for name in chosen])
    images = torch.from_numpy(data.data[keep]).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    if size != 32:
        images = torch.stack([fit(Image.fromarray(picture), size) for picture in data.data[keep]])
    labels = torch.tensor([chosen.index(names[target]) for target in targets[keep]])
    return ImageData(images, labels, chosen, spec)


def _oxford_cats(size: int, root: Path, spec: str) -> ImageData:
    from torchvision import datasets

    base = root / "oxford-iiit-pet"

    def cats(fetch: bool) -> list[Path]:
        """As the data set's own list has it: name, breed, 1 for a cat, number in the breed."""
        datasets.OxfordIIITPet(root, download=fetch)
        rows = map(str.split, (base / "annotations" / "trainval.txt").read_text().splitlines())
        return [base / "images" / f"{name}.jpg" for name, _, species, _ in rows if species == "1"]

    files = _on_disk("Oxford-IIIT Pet", root, cats)
    images, left = decode(files, size)
    if not images:
        raise ValueError(f"none of the {len(files)} cats in {base} could be read: {summary(left)}")
    if left:
        warnings.warn(f"left aside {len(left)} of {len(files)} cats: {summary(left)}", stacklevel=4)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return ImageData(torch.stack(images), labels, ("cat",), spec, listed(left))


def _on_disk(title: str, root: Path, make: Callable[[bool], Any]) -> Any:
    """make(False), the data set on disk, else make(True), downloaded; one line if neither works."""
    try:
        return make(False)
    except (RuntimeError, OSError, ValueError):
        print(f"downloading {title} into {root}; if it stands still, stop it with Ctrl-C and "
              "begin again", file=sys.stderr)
    try:
        return make(True)
    except (RuntimeError, OSError, ValueError, HTTPException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "connect to a network, or use folder:PATH for your own pictures, or toycats"
        raise RuntimeError(f"{title} is not in {root} and could not be downloaded ({reason}); "
                           f"{remedy}, which needs no download") from error


def example_photo(size: int = 128) -> Tensor:
    """The face of Chelsea the cat, a photograph by Stéfan van der Walt (CC0) that scikit-image has.

    Returns float32 (1, 3, size, size) in [-1, 1]. Raises ImportError without scikit-image.
    """
    photo = needed("skimage.data", "the photo", "scikit-image").chelsea()
    return to_float(fit(Image.fromarray(photo).crop((78, 0, 378, 300)), size)[None])


def _grey(images: Tensor) -> Tensor:
    """Luminance of uint8 colours, (N, 3, H, W) -> (N, 1, H, W): with ITU-R 601's weights."""
    red, green, blue = images.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in [-1, 1], any shape. Raises ValueError for other input."""
    if images.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 (0 … 255), not {images.dtype}; to_uint8 makes such")
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 in 0 … 255, any shape, clipped. Raises ValueError for others."""
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floats in [-1, 1], not {images.dtype}; see to_float")
    if images.isnan().any():
        raise ValueError("the pictures contain NaN (not a number): look for the step that made it")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def in_batches(network: Callable[..., Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """network(pictures), uint8 or floats in [-1, 1], a batch at a time; the rows in one tensor."""
    parts = images.split(batch_size)
    return torch.cat([network(to_float(p) if p.dtype == torch.uint8 else p) for p in parts])


def check_fit(images: Tensor, labels: Tensor | None, model: nn.Module) -> None:
    """Raises ValueError where pictures or labels are not what `model` trains on."""
    tensor = isinstance(images, Tensor)
    kinds = (torch.uint8, torch.float16)  # pictures, latents
    if not tensor or images.ndim != 4 or images.dtype not in kinds or len(images) == 0:
        found = f"{tuple(images.shape)} {images.dtype}" if tensor else type(images).__name__
        raise ValueError("training pictures must be a uint8 tensor (N, C, H, W) with N of at least "
                         f"1, not {found}; diffusion_lib.to_uint8 makes one of floats in [-1, 1]")
    shape = tuple(images.shape)
    size = getattr(model, "image_size", shape[2])
    wanted = (getattr(model, "in_channels", shape[1]), size, size)
    if shape[1:] != wanted:
        raise ValueError(f"the pictures are {shape[1:]} (channels, height, width), the network "
                         f"expects {wanted}; load the data at the network's size and channels")
    classes = getattr(model, "num_classes", None)
    if classes and (labels is None or labels.shape != shape[:1] or labels.dtype != torch.int64
                    or not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise ValueError(f"the network has {classes} classes, but the data has no labels in "
                         f"0 … {classes - 1}, int64, one a picture")
