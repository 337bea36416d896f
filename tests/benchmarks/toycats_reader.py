"""What the ToyCats reader calls a cat, what it reads there, where it breaks, and how long it takes.

    python tests/benchmarks/toycats_reader.py [--n 200] [--photos FOLDER] [--model toycats32]

Prints one line for each kind of picture: the share called a cat, and for real drawings the share of right labels among
all pictures. FOLDER holds photographs, in any tree; each of its folders becomes a line. Fresh cats: their seeds are no
training set's.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lib import ToyCats, ddim, last_step, load_data, load_pretrained, read_attributes, to_float
from diffusion_lib.data.sources import SUFFIXES
from diffusion_lib.data.toycats import ATTRIBUTES, JITTERS, make_cats, render

FRESH = 777                                                                  # seed of drawings no model has seen
Kind = tuple[str, Tensor, Tensor | None]                                     # what it is, pictures, labels of whole cats


def with_noise(images: Tensor, sigma: float) -> Tensor:
    """Gaussian noise on pictures in [-1, 1]; sigma is given for pictures in [0, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + 2 * sigma * noise).clamp(-1, 1)


def blurred(images: Tensor, box: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, [box // 2] * 4, mode="replicate"), box, stride=1)


def erased(n: int, part: str) -> Tensor:
    """Whole cats but for one eye or ear (at the left of the picture), which is painted over with what surrounds it."""
    cats = ToyCats(size=32, n=2 * n, seed=FRESH + 1)
    low, high = np.array(list(JITTERS.values())).T
    pose = np.tile((low + high) / 2, (len(cats), 1))
    pose[:, -1] = 1
    pictures = to_float(torch.from_numpy(np.uint8(render(cats.attributes.numpy(), pose, 32) * 255 + 0.5)))
    rows, columns = (slice(13, 21), slice(7, 15)) if part == "eye" else (slice(0, 12), slice(3, 13))
    source = pictures[:, :, 21:22, 8:9] if part == "eye" else pictures[:, :, 1:2, 1:2]   # cheek or background
    pictures[:, :, rows, columns] = source
    return pictures[:n]


def joined(one: Tensor, other: Tensor, upright: bool) -> Tensor:
    """The upper (or left) half of one and the lower (or right) half of the other."""
    half = one.clone()
    size = one.shape[-1] // 2
    if upright:
        half[:, :, size:] = other[:, :, size:]
    else:
        half[:, :, :, size:] = other[:, :, :, size:]
    return half


def drawings(n: int) -> Iterator[Kind]:
    """Whole cats, clean and a little worse."""
    for size in (16, 24, 32, 64, 128, 256):
        cats = ToyCats(size=size, n=n, seed=FRESH)
        yield f"drawings, {size} px", to_float(cats.images), cats.attributes
    cats = ToyCats(size=32, n=n, seed=FRESH)
    images = to_float(cats.images)
    for sigma in (0.05, 0.1, 0.15, 0.2):
        yield f"drawings, noise {sigma}", with_noise(images, sigma), cats.attributes
    yield "drawings, mirrored", images.flip(-1), cats.attributes
    yield "drawings, one pixel aside", images.roll(1, dims=-1), cats.attributes
    yield "drawings, 3x3 blur", blurred(images, 3), cats.attributes


def fakes(n: int) -> Iterator[Kind]:
    """What is no whole cat."""
    a, b = ToyCats(size=32, n=n, seed=FRESH), ToyCats(size=32, n=n, seed=FRESH + 2)
    one, other = to_float(a.images), to_float(b.images)
    differ = a.attributes != b.attributes
    noise = torch.Generator().manual_seed(0)
    yield "noise, Gaussian", torch.randn(one.shape, generator=noise).clamp(-1, 1), None
    yield "noise, uniform", torch.rand(one.shape, generator=noise) * 2 - 1, None
    yield "noise, coarse", F.interpolate(torch.rand(n, 3, 4, 4, generator=noise) * 2 - 1, (32, 32), mode="bilinear"), None
    yield "one flat colour", (torch.rand(n, 3, 1, 1, generator=noise) * 2 - 1).expand(one.shape), None
    yield "grey", torch.linspace(-1, 1, 21)[:, None, None, None].expand(21, 3, 32, 32), None
    yield "mean of 16 to 1000 cats", torch.stack([to_float(ToyCats(n=k, seed=9).images).mean(0) for k in (16, 64, 400, 1000)]), None
    yield "mean of two cats", ((one + other) / 2)[differ.any(1)], None
    yield "mean of two of one fur", ((one + other) / 2)[differ.any(1) & ~differ[:, 0] & ~differ[:, 4]], None
    yield "drawings, 5x5 blur", blurred(one, 5), None
    yield "drawings at 8 px", F.interpolate(F.avg_pool2d(one, 4), (32, 32), mode="bilinear"), None
    yield "drawings in grey", one.mean(1, keepdim=True).expand(one.shape), None
    yield "negatives", -one, None
    yield "upside down", one.flip(-2), None
    yield "on their side", one.transpose(-1, -2), None
    yield "half as large", F.pad(F.avg_pool2d(one, 2), [8] * 4, mode="replicate"), None
    yield "halves joined, above/below", joined(one, other, True)[differ[:, [0, 1, 2, 4]].any(1)], None
    yield "halves joined, left/right", joined(one, other, False)[differ.any(1)], None
    yield "halves that differ once, above", *_close_halves(n, True)
    yield "halves that differ once, left", *_close_halves(n, False)
    yield "an eye erased", erased(n, "eye"), None
    yield "an ear erased", erased(n, "ear"), None
    yield "a grey square on it", torch.where(_square(n), torch.tensor(0.0), one), None


def _close_halves(n: int, upright: bool) -> tuple[Tensor, None]:
    """Halves of two cats with one seed that differ in one attribute (fur or background when one above the other)."""
    cats = ToyCats(size=32, n=n, seed=FRESH + 3)
    changed, choice = cats.attributes.clone(), (0, 4) if upright else (0, 2, 3, 4)
    for i in range(n):
        column = choice[i % len(choice)]
        count = len(list(ATTRIBUTES.values())[column])
        changed[i, column] = (changed[i, column] + 1 + i // len(choice) % (count - 1)) % count
    return joined(to_float(cats.images), to_float(make_cats(changed, cats.seeds, 32)), upright), None


def _square(n: int) -> Tensor:
    """bool (n, 1, 32, 32): 10 pixels square, anywhere over the head."""
    corner = torch.randint(6, 17, (2, n, 1, 1), generator=torch.Generator().manual_seed(4))
    place = torch.arange(32)
    row, column = place[None, :, None] - corner[0], place[None, None, :] - corner[1]
    return ((row >= 0) & (row < 10) & (column >= 0) & (column < 10))[:, None]


def samples(n: int, name: str) -> Iterator[Kind]:
    """What the shipped model draws, consecutive seeds."""
    pretrained = load_pretrained(name)
    shape = (n, 3, *[pretrained.model.config["image_size"]] * 2)
    for steps in (1, 2, 3, 4, 5, 10, 25, 50):
        with torch.no_grad():
            step = last_step(ddim(pretrained.diffusion, pretrained.model, shape, steps=steps, seeds=range(n)))
        yield f"DDIM samples, {steps} steps", step.x_t, None


def photographs(folder: Path, n: int) -> Iterator[Kind]:
    """At most n pictures of each folder below, brought to 32 pixels."""
    for place in sorted({file.parent for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES}):
        images = load_data(f"folder:{place}", 32).images
        yield f"photographs, {place.relative_to(folder)}", to_float(images[:: max(1, len(images) // n)][:n]), None


def line(kind: str, images: Tensor, truth: Tensor | None, milliseconds: list[float]) -> None:
    start = time.process_time()
    reading = read_attributes(images)
    milliseconds.append((time.process_time() - start) / len(images) * 1000)
    text = f"{kind:32}{len(images):6}{reading.is_cat.float().mean():9.1%}"
    if truth is not None:
        right = reading.attributes == truth
        text += "".join(f"{share:11.1%}" for share in right.float().mean(0)) + f"{(right.all(1) & reading.is_cat).float().mean():9.1%}"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="pictures of each kind")
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it none are read")
    parser.add_argument("--model", default="toycats32", help="a shipped model whose samples are read")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    ToyCats(size=32, n=10_000).images  # noqa: B018
    print(f"10,000 drawings at 32 px: {time.process_time() - start:.1f} s of processor time")
    read_attributes(ToyCats(n=1).images)                                     # what is made once is not timed
    print(f"{'':32}{'n':>6}{'cat':>9}" + "".join(f"{name:>11}" for name in ATTRIBUTES) + f"{'all, cat':>9}")
    milliseconds: list[float] = []
    makers: list[Callable[[], Iterator[Kind]]] = [lambda: drawings(arguments.n), lambda: fakes(arguments.n),
                                                  lambda: samples(64, arguments.model)]
    if arguments.photos:
        makers.append(lambda: photographs(arguments.photos, arguments.n))
    for maker in makers:
        for kind in maker():
            line(*kind, milliseconds)
    print(f"{np.median(milliseconds):.1f} ms of processor time a picture, 1 thread")


if __name__ == "__main__":
    main()
