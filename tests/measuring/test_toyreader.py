"""The reader: right on fresh drawings of any size, and a "no cat" for all that is not quite one."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lib import ToyCats, ddim, last_step, load_pretrained, read_attributes, to_float
from diffusion_lib.data.toycats import ATTRIBUTES, JITTERS, make_cats, render

NOISE = torch.Generator().manual_seed(0)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "toycats_reader.py"


def cats(n: int, seed: int = 900, size: int = 32) -> Tensor:
    """Drawings in [-1, 1]; their seeds are nobody's training set."""
    return to_float(ToyCats(size=size, n=n, seed=seed).images)


@pytest.fixture(scope="module")
def read() -> Callable[[Tensor], float]:
    """Share of pictures that the reader calls a cat."""
    return lambda images: float(read_attributes(images).is_cat.float().mean())


# --- right on whole cats --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "n"), [(16, 80), (24, 16), (32, 110), (45, 12), (64, 30), (128, 24), (256, 4)])
def test_right_on_more_than_99_percent_of_fresh_drawings(size: int, n: int) -> None:
    fresh = ToyCats(size=size, n=n, seed=901)
    reading = read_attributes(fresh.images)
    right = (reading.attributes == fresh.attributes).all(dim=1)
    assert (right & reading.is_cat).float().mean() > 0.99  # where n is small: all of them
    assert reading.distance.max() < 0.45


def test_every_value_is_read() -> None:
    """Two cats for each value: one that is never read right cannot hide in an average."""
    rows = []
    for column, values in enumerate(ATTRIBUTES.values()):
        for label in range(len(values)):
            row = ToyCats(n=2, seed=len(rows)).attributes
            row[:, column] = label
            rows.append(row)
    labels = torch.cat(rows)
    images = make_cats(labels, range(len(labels)), 32)
    assert torch.equal(read_attributes(images).attributes, labels)


def test_the_most_extreme_poses_are_read() -> None:
    low, high = np.array(list(JITTERS.values())).T
    corners = np.random.default_rng(1).integers(0, 2, (30, len(JITTERS)))
    labels = ToyCats(n=30, seed=902).attributes
    images = torch.from_numpy(render(labels.numpy(), np.where(corners, high, low), 32)) * 2 - 1
    reading = read_attributes(images)
    assert torch.equal(reading.attributes, labels) and reading.is_cat.all()


def test_a_cat_whose_ears_are_easily_taken_for_others() -> None:
    """Moved and tilted, other ears nearly fit this one: each kind of ear has to be tried in its own
    best pose."""
    supply = ToyCats(size=16, n=2215, seed=920)
    reading = read_attributes(make_cats(supply.attributes[-1], supply.seeds[-1:], 16))
    assert torch.equal(reading.attributes[0], supply.attributes[-1]) and reading.is_cat[0]


def test_noise_mirrors_and_rounding_do_not_disturb() -> None:
    fresh = ToyCats(n=16, seed=903)
    images = to_float(fresh.images)
    noisy = (images + 0.2 * torch.randn(images.shape, generator=NOISE)).clamp(-1, 1)
    reading = read_attributes(torch.cat((images.flip(-1), noisy, (images * 16).round() / 16)))
    assert torch.equal(reading.attributes, fresh.attributes.repeat(3, 1)) and reading.is_cat.all()


def test_noise_adds_to_the_distance() -> None:
    images, sigmas = cats(8), (0, 0.1, 0.2, 0.4)
    noise = torch.randn(images.shape, generator=NOISE)
    noisy = [(images + sigma * noise).clamp(-1, 1) for sigma in sigmas]
    reading = read_attributes(torch.cat(noisy))
    distances, is_cat = reading.distance.reshape(4, 8), reading.is_cat.reshape(4, 8)
    assert (distances.diff(dim=0) > 0.05).all()
    assert is_cat[:3].all() and not is_cat[3].any()


def test_halfway_between_two_values_is_no_cat() -> None:
    """In the ears or in the background; a quarter of another value is still the one cat."""
    labels, seeds, shares = torch.tensor([[2, 0, 0, 0, 3]] * 4), range(10, 14), (0, 0.25, 0.5, 0.75)
    plain = to_float(make_cats(labels, seeds, 32))
    for column, value in ((3, 1), (4, 2)):
        changed = labels.clone()
        changed[:, column] = value
        other = to_float(make_cats(changed, seeds, 32))
        mixed = [(1 - share) * plain + share * other for share in shares]
        reading = read_attributes(torch.cat(mixed))
        assert torch.equal(reading.attributes[:8], labels.repeat(2, 1))
        assert torch.equal(reading.attributes[12:], changed)
        assert reading.is_cat[:4].all() and not reading.is_cat[8:12].any()


def test_uint8_floats_batches_and_types_agree() -> None:
    bytes_ = ToyCats(n=66, seed=904).images  # more than one part of 64
    whole = read_attributes(bytes_)
    as_float = read_attributes(to_float(bytes_[:8]).double())
    assert torch.equal(whole.attributes[:8], as_float.attributes)
    assert torch.allclose(whole.distance[:8], as_float.distance, atol=1e-4)
    alone = read_attributes(bytes_[65:66])
    assert torch.equal(alone.attributes[0], whole.attributes[65])
    assert abs(alone.distance[0] - whole.distance[65]) < 1e-4
    assert whole.is_cat.dtype == torch.bool and whole.attributes.dtype == torch.int64
    assert whole.distance.dtype == torch.float32
    empty = read_attributes(bytes_[:0])
    assert [tuple(field.shape) for field in empty] == [(0,), (0, 5), (0,)]


def test_samples_of_the_shipped_model_are_cats_and_one_step_guesses_are_not(
    read: Callable[[Tensor], float],
) -> None:
    model, diffusion = load_pretrained("toycats32")[:2]

    def samples(n: int, steps: int) -> Tensor:
        return last_step(ddim(diffusion, model, (n, 3, 32, 32), steps=steps, seeds=range(n))).x_t

    assert read(samples(12, 1)) == 0
    assert read(samples(16, 20)) >= 0.8


# --- no cats --------------------------------------------------------------------------------------


def test_what_is_no_whole_cat_is_none(read: Callable[[Tensor], float]) -> None:
    """Noise, plain pictures, means, blurs, halves of two cats, a cat without an eye, and more."""
    benchmark = runpy.run_path(str(BENCHMARK))
    assert read(benchmark["erased"](16, "nothing")) == 1
    shares = {kind: read(images) for kind, images, _ in benchmark["fakes"](24)}
    assert len(shares) > 25
    for kind, share in shares.items():  # means of two are sometimes nearly one cat
        assert share <= (0.15 if "mean of two" in kind else 0.05), kind


# scikit-image's photographs are in the public domain (CC0); these come with the package.
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee", "rocket", "camera"])
def test_photographs_are_no_cats(read: Callable[[Tensor], float], name: str) -> None:
    try:
        photo = getattr(skimage.data, name)()
    except (OSError, ConnectionError) as error:  # not in this version's package, and no network
        pytest.skip(f"scikit-image does not hold {name}: {error}")
    photo = np.repeat(photo[:, :, None], 3, axis=2) if photo.ndim == 2 else photo[:, :, :3]
    picture = to_float(torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None])
    side = min(picture.shape[2:])
    crops = [picture[:, :, y : y + s, x : x + s] for s in (side, side // 2, side // 4)
             for y in range(0, picture.shape[2] - s + 1, s // 2)
             for x in range(0, picture.shape[3] - s + 1, s // 2)][:12]
    assert len(crops) >= 8
    assert read(torch.cat([F.interpolate(c, (32, 32), mode="area") for c in crops])) == 0
    if name == "chelsea":
        assert read(picture[:, :, :side, :side]) == 0  # and at its full size


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "pieces"), [
    (np.zeros((1, 3, 32, 32)), ("ndarray", "(n, 3, H, W)")),
    (torch.zeros(3, 32, 32), ("(3, 32, 32)", "(n, 3, H, W)")),
    (torch.zeros(1, 1, 32, 32), ("(1, 1, 32, 32)", "(n, 3, H, W)")),
    (torch.zeros(1, 32, 32, 3), ("(1, 32, 32, 3)", "(n, 3, H, W)")),
    (torch.zeros(1, 3, 32, 48), ("(32, 48)", "square")),
    (torch.zeros(1, 3, 8, 8), ("(8, 8)", "16 pixels")),
    (torch.zeros(1, 3, 32, 32, dtype=torch.int64), ("int64", "uint8 or float")),
    (torch.full((1, 3, 32, 32), float("nan")), ("NaN", "isfinite")),
])  # fmt: skip
def test_refuses(refuses, images: object, pieces: tuple[str, ...]) -> None:
    with refuses(ValueError, *pieces):
        read_attributes(images)
