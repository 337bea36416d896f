"""What the ToyCats reader calls a cat, what it reads there, where it breaks, and how long it takes.

    python tests/benchmarks/toycats_reader.py [--n 200] [--photos FOLDER] [--model toycats32]

Prints one line for each kind of picture: the share called a cat, and for real drawings the share of
right labels among all pictures. FOLDER holds photographs, in any tree; each of its folders becomes
a line. Fresh cats: their seeds are no training set's. tests/measuring/test_toyreader.py asks of the
fakes that none passes.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lib import (
    ToyCats,
    ddim,
    last_step,
    load_data,
    load_pretrained,
    read_attributes,
    to_float,
)  # fmt: skip
from diffusion_lib.data.toycats import ATTRIBUTES, JITTERS, make_cats, render

FRESH = 777  # seed of drawings no model has seen
Kind = tuple[str, Tensor, Tensor | None]  # what it is, pictures, labels of whole cats


def with_noise(images: Tensor, sigma: float) -> Tensor:
    """Gaussian noise on pictures in [-1, 1]; sigma is given for pictures in [0, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + 2 * sigma * noise).clamp(-1, 1)


def blurred(images: Tensor, box: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, [box // 2] * 4, mode="replicate"), box, stride=1)


def erased(n: int, part: str) -> Tensor:
    """Whole cats but for the eye or ear at the left, painted over with the cheek or background."""
    low, high = np.array(list(JITTERS.values())).T
    pose = np.tile((low + high) / 2, (n, 1))
    pose[:, -1] = 1
    labels = ToyCats(size=32, n=n, seed=FRESH + 1).attributes.numpy()
    cats = torch.from_numpy(render(labels, pose, 32)) * 2 - 1
    if part == "eye":
        cats[:, :, 13:21, 7:15] = cats[:, :, 21, 8, None, None]
    elif part == "ear":
        cats[:, :, :12, 3:13] = cats[:, :, 1, 1, None, None]
    return cats


def halves(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """The upper (dim 2) or left (dim 3) half of one and the other half of the other."""
    return torch.cat((one.chunk(2, dim)[0], other.chunk(2, dim)[1]), dim)


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
    differ, noise = a.attributes != b.attributes, torch.Generator().manual_seed(0)
    mean, flat = (one + other) / 2, one[:, :, :1, :1]

    def random(*shape: int) -> Tensor:
        return torch.rand(n, 3, *shape, generator=noise) * 2 - 1

    means = [to_float(ToyCats(n=k, seed=9).images).mean(0) for k in (8, 64, 400, 1000)]
    kinds = {
        "noise, Gaussian": torch.randn(one.shape, generator=noise).clamp(-1, 1),
        "noise, uniform": random(32, 32), "noise, uniform, 64 px": random(64, 64),
        "noise, coarse": F.interpolate(random(4, 4), (32, 32), mode="bilinear"),
        "one flat colour": random(1, 1).expand(one.shape),
        "background only": flat.expand(one.shape),
        "grey": torch.linspace(-1, 1, 21)[:, None, None, None].expand(21, 3, 32, 32),
        "ramp": torch.linspace(-1, 1, 32).expand(1, 3, 32, 32),
        "mean of 8 to 1000 cats": torch.stack(means), "mean of two cats": mean[differ.any(1)],
        "mean of two of one fur": mean[differ.any(1) & ~differ[:, 0] & ~differ[:, 4]],
        "drawings, 5x5 blur": blurred(one, 5),
        "drawings at 8 px": F.interpolate(F.avg_pool2d(one, 4), (32, 32), mode="bilinear"),
        "drawings in grey": one.mean(1, keepdim=True).expand(one.shape), "negatives": -one,
        "upside down": one.flip(-2), "on their side": one.transpose(-1, -2),
        "half as large": F.pad(F.avg_pool2d(one, 2), [8] * 4, mode="replicate"),
        "halves, above/below": halves(one, other, 2)[differ[:, [0, 1, 2, 4]].sum(1) > 1],
        "halves, left/right": halves(one, other, 3)[differ.sum(1) > 1],
        "an eye erased": erased(n, "eye"), "an ear erased": erased(n, "ear"),
    }
    for what, column, dim in (("fur", 0, 3), ("eyes", 2, 3), ("ears", 3, 3), ("background", 4, 3),
                              ("fur above/below", 0, 2), ("background above/below", 4, 2)):
        changed = a.attributes.clone()
        changed[:, column] = (changed[:, column] + 1) % len(list(ATTRIBUTES.values())[column])
        kinds[f"two in one: {what}"] = halves(one, to_float(make_cats(changed, a.seeds)), dim)
    covered = one.clone()
    corners = torch.randint(6, 17, (n, 2), generator=noise)
    for picture, (row, column) in zip(covered, corners, strict=True):
        picture[:, row : row + 10, column : column + 10] = 0
    kinds["a grey square on it"] = covered
    yield from ((what, images, None) for what, images in kinds.items())


def samples(n: int, name: str) -> Iterator[Kind]:
    """What the shipped model draws, consecutive seeds."""
    model, diffusion = (loaded := load_pretrained(name)).model, loaded.diffusion
    shape = (n, 3, model.image_size, model.image_size)
    for steps in (1, 2, 3, 4, 5, 10, 25, 50):
        step = last_step(ddim(diffusion, model, shape, steps=steps, seeds=range(n)))
        yield f"DDIM samples, {steps} steps", step.x_t, None


def photographs(folder: Path, n: int) -> Iterator[Kind]:
    """At most n pictures of each folder below, brought to 32 pixels."""
    data = load_data(f"folder:{folder}", 32)
    for label, place in enumerate(data.classes):
        images = data.images[data.labels == label]
        yield f"photographs, {place}", to_float(images[:: max(1, len(images) // n)][:n]), None


def line(kind: str, images: Tensor, truth: Tensor | None) -> float:
    """Prints a line; returns the milliseconds of processor time that a picture took."""
    start = time.process_time()
    reading = read_attributes(images)
    milliseconds = (time.process_time() - start) / len(images) * 1000
    text = f"{kind:36}{len(images):6}{reading.is_cat.float().mean():9.1%}"
    if truth is not None:
        right = reading.attributes == truth
        shares = [*right.float().mean(0), (right.all(1) & reading.is_cat).float().mean()]
        text += "".join(f"{share:11.1%}" for share in shares)
    print(text, flush=True)
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="pictures of each kind")
    parser.add_argument("--photos", type=Path, help="photographs; without it none are read")
    parser.add_argument("--model", default="toycats32", help="a shipped model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    ToyCats(size=32, n=10_000).images  # noqa: B018
    print(f"10,000 drawings at 32 px: {time.process_time() - start:.1f} s of processor time")
    read_attributes(ToyCats(n=1).images)  # what is made once is not timed
    columns = "".join(f"{name:>11}" for name in (*ATTRIBUTES, "all, cat"))
    print(f"{'':36}{'n':>6}{'cat':>9}{columns}")
    n, photos = arguments.n, arguments.photos
    kinds = chain(drawings(n), fakes(n), samples(64, arguments.model))
    times = [line(*kind) for kind in chain(kinds, photographs(photos, n) if photos else ())]
    print(f"{np.median(times):.1f} ms of processor time a picture, 1 thread")


if __name__ == "__main__":
    main()
