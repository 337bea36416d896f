"""The reader: right on fresh drawings of any size, and a "no cat" for noise, blurs, mixtures, broken cats and photographs."""

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lib import ToyCats, ddim, last_step, load_pretrained, read_attributes, to_float
from diffusion_lib.data.toycats import ATTRIBUTES, JITTERS, make_cats, render

NOISE = torch.Generator().manual_seed(0)


def cats(n: int, seed: int = 900, size: int = 32) -> Tensor:
    """Drawings in [-1, 1]; their seeds are nobody's training set."""
    return to_float(ToyCats(size=size, n=n, seed=seed).images)


@pytest.fixture(scope="module")
def read() -> Callable[[Tensor], float]:
    """Share of pictures that the reader calls a cat."""
    return lambda images: float(read_attributes(images).is_cat.float().mean())


# --- right on whole cats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "n"), [(16, 80), (24, 16), (32, 110), (45, 12), (64, 30), (128, 24), (256, 4)])
def test_right_on_more_than_99_percent_of_fresh_drawings(size: int, n: int) -> None:
    fresh = ToyCats(size=size, n=n, seed=901)
    reading = read_attributes(fresh.images)
    right = (reading.attributes == fresh.attributes).all(dim=1)
    assert (right & reading.is_cat).float().mean() > 0.99                    # where n is small: all of them
    assert reading.distance.max() < 0.45


def test_every_value_is_read() -> None:
    """Two cats for each value of each attribute: a value that is never read right cannot hide in an average."""
    rows = []
    for column, values in enumerate(ATTRIBUTES.values()):
        for label in range(len(values)):
            row = ToyCats(n=2, seed=len(rows)).attributes
            row[:, column] = label
            rows.append(row)
    labels = torch.cat(rows)
    assert torch.equal(read_attributes(make_cats(labels, range(len(labels)), 32)).attributes, labels)


def test_the_most_extreme_poses_are_read() -> None:
    low, high = np.array(list(JITTERS.values())).T
    corners = np.random.default_rng(1).integers(0, 2, (30, len(JITTERS)))
    labels = ToyCats(n=30, seed=902).attributes
    images = torch.from_numpy(render(labels.numpy(), np.where(corners, high, low), 32)) * 2 - 1
    reading = read_attributes(images)
    assert torch.equal(reading.attributes, labels) and reading.is_cat.all()


def test_a_cat_whose_ears_are_easily_taken_for_others() -> None:
    """Moved and tilted, other ears nearly fit this one: each kind of ear has to be tried in its own best pose."""
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
    reading = read_attributes(torch.cat([(images + sigma * noise).clamp(-1, 1) for sigma in sigmas]))
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
    bytes_ = ToyCats(n=66, seed=904).images                                  # more than one part of 64
    whole = read_attributes(bytes_)
    as_float = read_attributes(to_float(bytes_[:8]).double())
    assert torch.equal(whole.attributes[:8], as_float.attributes)
    assert torch.allclose(whole.distance[:8], as_float.distance, atol=1e-4)
    alone = read_attributes(bytes_[65:66])
    assert torch.equal(alone.attributes[0], whole.attributes[65]) and abs(alone.distance[0] - whole.distance[65]) < 1e-4
    assert whole.is_cat.dtype == torch.bool and whole.attributes.dtype == torch.int64
    assert whole.distance.dtype == torch.float32
    empty = read_attributes(bytes_[:0])
    assert [tuple(field.shape) for field in empty] == [(0,), (0, 5), (0,)]


def test_samples_of_the_shipped_model_are_cats_and_one_step_guesses_are_not(read: Callable[[Tensor], float]) -> None:
    pretrained = load_pretrained("toycats32")

    def samples(n: int, steps: int) -> Tensor:
        return last_step(ddim(pretrained.diffusion, pretrained.model, (n, 3, 32, 32), steps=steps, seeds=range(n))).x_t

    assert read(samples(12, 1)) == 0
    assert read(samples(16, 20)) >= 0.8


# --- no cats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [
    torch.randn((12, 3, 32, 32), generator=NOISE).clamp(-1, 1),
    torch.rand((12, 3, 32, 32), generator=NOISE) * 2 - 1,
    torch.rand((8, 3, 64, 64), generator=NOISE) * 2 - 1,
    F.interpolate(torch.rand((12, 3, 4, 4), generator=NOISE) * 2 - 1, (32, 32), mode="bilinear"),
    (torch.rand((12, 3, 1, 1), generator=NOISE) * 2 - 1).expand(12, 3, 32, 32),
    torch.linspace(-1, 1, 9)[:, None, None, None].expand(9, 3, 32, 32),
    torch.linspace(-1, 1, 32).expand(1, 3, 32, 32),
], ids=["Gaussian", "uniform", "large", "coarse", "one colour", "grey", "ramp"])  # fmt: skip
def test_noise_and_plain_pictures_are_no_cats(read: Callable[[Tensor], float], images: Tensor) -> None:
    assert read(images) == 0


def test_means_and_blurs_are_no_cats(read: Callable[[Tensor], float]) -> None:
    a, b = ToyCats(n=32, seed=905), ToyCats(n=32, seed=906)
    one, other = to_float(a.images), to_float(b.images)
    assert read(((one + other) / 2)[(a.attributes != b.attributes).any(dim=1)]) <= 0.15  # the two are sometimes nearly one cat
    means = torch.stack([cats(n, seed=907).mean(dim=0) for n in (8, 50, 400)])
    softened = F.avg_pool2d(F.pad(one, [2] * 4, mode="replicate"), 5, stride=1)
    coarse = F.interpolate(F.avg_pool2d(one[:12], 4), (32, 32), mode="bilinear")
    assert read(torch.cat((means, softened, coarse))) == 0


def test_wrong_way_up_wrong_size_and_wrong_colours_are_no_cats(read: Callable[[Tensor], float]) -> None:
    one = cats(12)
    half_as_large = F.pad(F.avg_pool2d(one, 2), [8] * 4, mode="replicate")
    grey = one.mean(dim=1, keepdim=True).expand_as(one)
    assert read(torch.cat((one.flip(-2), one.transpose(-1, -2), -one, half_as_large, grey))) == 0


def halves(one: Tensor, other: Tensor, dim: int) -> Tensor:
    return torch.cat((one.chunk(2, dim)[0], other.chunk(2, dim)[1]), dim)


@pytest.mark.parametrize("dim", [2, 3], ids=["one above the other", "side by side"])
def test_halves_of_two_cats_are_no_cat(read: Callable[[Tensor], float], dim: int) -> None:
    a, b = ToyCats(n=24, seed=908), ToyCats(n=24, seed=909)
    seen = [0, 1, 2, 4] if dim == 2 else [0, 1, 2, 3, 4]                     # the lower half shows no ears
    joined = halves(to_float(a.images), to_float(b.images), dim)
    assert read(joined[(a.attributes != b.attributes)[:, seen].sum(dim=1) > 1]) == 0


def test_two_eyes_or_two_backgrounds_of_different_colours_are_no_cat() -> None:
    a, joined = ToyCats(n=12, seed=910), []
    # side by side: fur, eyes, ears, background; one above the other: fur, background
    for column, count, dim in ((0, 5, 3), (2, 3, 3), (3, 3, 3), (4, 5, 3), (0, 5, 2), (4, 5, 2)):
        changed = a.attributes.clone()
        changed[:, column] = (changed[:, column] + 1) % count
        joined.append(halves(to_float(a.images), to_float(make_cats(changed, a.seeds)), dim))
    is_cat = read_attributes(torch.cat(joined)).is_cat.reshape(6, 12)
    assert is_cat.sum(dim=1).tolist() == [0] * 6


@pytest.mark.parametrize(("rows", "columns", "source"), [
    (slice(13, 21), slice(7, 15), (21, 8)),                                  # an eye, under cheek
    (slice(0, 12), slice(3, 13), (1, 1)),                                    # an ear, under background
], ids=["eye", "ear"])  # fmt: skip
def test_without_an_eye_or_an_ear_it_is_no_cat(read: Callable[[Tensor], float], rows: slice, columns: slice, source: tuple) -> None:
    labels = ToyCats(n=16, seed=911).attributes.numpy()
    low, high = np.array(list(JITTERS.values())).T
    pose = np.tile((low + high) / 2, (16, 1))
    pose[:, -1] = 1
    broken = torch.from_numpy(render(labels, pose, 32)) * 2 - 1
    assert read(broken) == 1
    broken[:, :, rows, columns] = broken[:, :, source[0], source[1], None, None]
    assert read(broken) == 0


def test_a_part_covered_is_no_cat(read: Callable[[Tensor], float]) -> None:
    covered = cats(24)
    for i, (row, column) in enumerate(torch.randint(6, 17, (24, 2), generator=NOISE).tolist()):
        covered[i, :, row : row + 10, column : column + 10] = 0
    assert read(covered) <= 0.05


# scikit-image's photographs are in the public domain (CC0), and these come with the package, without a download.
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee", "rocket", "camera"])
def test_photographs_are_no_cats(read: Callable[[Tensor], float], name: str) -> None:
    try:
        photo = getattr(skimage.data, name)()
    except (OSError, ConnectionError) as error:                              # not in this version's package, and no network
        pytest.skip(f"scikit-image does not hold {name}: {error}")
    photo = np.repeat(photo[:, :, None], 3, axis=2) if photo.ndim == 2 else photo[:, :, :3]
    picture = to_float(torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None])
    side = min(picture.shape[2:])
    crops = [picture[:, :, y : y + s, x : x + s] for s in (side, side // 2, side // 4)
             for y in range(0, picture.shape[2] - s + 1, max(1, s // 2)) for x in range(0, picture.shape[3] - s + 1, max(1, s // 2))]
    crops = torch.cat([F.interpolate(crop, (32, 32), mode="bilinear", antialias=True) for crop in crops[:12]])
    assert len(crops) >= 8 and read(crops) == 0
    if name == "chelsea":
        assert read(picture[:, :, :side, :side]) == 0                        # and at its full size


# --- bad input -------------------------------------------------------------------------------------------------------


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
