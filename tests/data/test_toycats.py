"""ToyCats: the same bytes in any batch, the same cat at any size, endless, with every attribute and
none that is withheld."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffusion_lib import ToyCats
from diffusion_lib.data.toycats import (
    ATTRIBUTES,
    BACKGROUND,
    JITTERS,
    LINE,
    caption,
    make_cats,
    render,
)  # fmt: skip

SIZES = {name: len(values) for name, values in ATTRIBUTES.items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("size", [16, 33])
def test_the_same_bytes_in_any_batch(size: int) -> None:
    cats = ToyCats(size=size, n=300, seed=5)  # more than one of the blocks of 256
    for order in (np.random.default_rng(0).permutation(300)[:41], [0], [255], [256], [299]):
        again = make_cats(cats.attributes[order], cats.seeds[order], size)
        assert torch.equal(again, cats.images[order])


def test_a_set_repeats_and_is_a_beginning_of_longer_ones() -> None:
    short, long = ToyCats(size=16, n=20, seed=3), ToyCats(size=16, n=200, seed=3)
    assert torch.equal(short.images, ToyCats(size=16, n=20, seed=3).images)
    assert torch.equal(short.images, long.images[:20])
    assert torch.equal(short.attributes, long.attributes[:20])
    short, long = (ToyCats(size=16, n=n, exclude={"fur": "white"}).images for n in (20, 90))
    assert torch.equal(short, long[:20])


def test_no_cat_comes_twice_within_a_set_or_across_sets() -> None:
    seeds = (0, 1, -1, 2**40, 10**30)
    pictures = torch.cat([ToyCats(size=16, n=300, seed=s).images for s in seeds]).flatten(1)
    assert len(torch.unique(pictures, dim=0)) == len(pictures)


# What a larger drawing shows, brought down by averaging, is what the smaller one shows, but for how
# soft its edges are.
@pytest.mark.parametrize(("large", "small"), [(256, 64), (256, 16), (64, 32), (32, 16)])
def test_the_same_cat_at_any_size(large: int, small: int) -> None:
    one, other = ToyCats(size=large, n=40, seed=8), ToyCats(size=small, n=40, seed=8)
    assert torch.equal(one.attributes, other.attributes)
    reduced = F.avg_pool2d(one.images.float(), large // small)
    error = (reduced - other.images).abs()
    assert error.mean() < 4  # of 255; another cat differs by about 50
    assert (reduced - other.images.roll(1, dims=0)).abs().mean() > 20
    assert (error.amax(dim=1) > 60).float().mean() < 0.01  # and no part is missing or elsewhere


@pytest.mark.parametrize("size", [16, 17, 256])
def test_smallest_odd_and_largest_size(size: int) -> None:
    images = ToyCats(size=size, n=3).images
    assert images.shape == (3, 3, size, size) and images.dtype == torch.uint8
    assert (images.flatten(1).float().std(dim=1) > 20).all()


def test_edges_are_smooth() -> None:
    """Between a plain background and the dark line around the ears lie pixels of every shade in
    between."""
    labels = np.array([[1, 0, 0, 1, 3]])  # black, plain, round ears, yellow
    low, high = np.array(list(JITTERS.values())).T
    # red; the top, where ears meet background
    picture = render(labels, ((low + high) / 2)[None], 128)[0, 0, :30]
    share = (picture - LINE[1, 0]) / (BACKGROUND[3, 0] - LINE[1, 0])
    edge = share[(share > 0.05) & (share < 0.9)]
    assert len(edge) > 40 and np.histogram(edge, bins=5, range=(0.05, 0.9))[0].min() > 0


def test_every_value_of_every_attribute_comes_equally_often() -> None:
    attributes = ToyCats(n=6000, seed=2).attributes
    assert attributes.dtype == torch.int64
    for column, count in enumerate(SIZES.values()):
        share = torch.bincount(attributes[:, column], minlength=count) / 6000
        assert len(share) == count
        assert (share - 1 / count).abs().max() < 0.03  # four standard deviations
        for apart in (1, 2, 3):  # neighbours do not take after each other
            alike = (attributes[apart:, column] == attributes[:-apart, column]).float().mean()
            assert abs(alike - 1 / count) < 0.03
    for a, b in itertools.combinations(range(5), 2):  # and every pair of values: no two are tied
        pairs = attributes[:, a] * 10 + attributes[:, b]
        assert len(pairs.unique()) == list(SIZES.values())[a] * list(SIZES.values())[b]


def test_every_value_shows_in_the_picture() -> None:
    """Two cats with one seed that differ in one label are drawn differently, visibly so, also at 16
    pixels."""
    for column, count in enumerate(SIZES.values()):
        labels = torch.tensor([[2, 0, 0, 0, 0]]).repeat(count, 1)
        labels[:, column] = torch.arange(count)
        for size in (16, 32):
            images = make_cats(labels, [9] * count, size)
            for i, j in itertools.combinations(range(count), 2):
                assert difference(images[i], images[j]) > 30


def test_the_seed_moves_everything_that_is_no_attribute() -> None:
    images = make_cats([[3, 1, 1, 0, 2]] * 50, range(50), 32)
    assert len(torch.unique(images.flatten(1), dim=0)) == 50
    assert (images.float().std(dim=0) > 2).float().mean() > 0.9  # every part changes


def test_captions_name_every_attribute() -> None:
    assert caption([0, 1, 0, 1, 1]) == "a white cat with stripes, green eyes and round ears on blue"
    plain = caption(torch.tensor([2, 0, 2, 2, 4]))
    assert plain == "a ginger cat with amber eyes and folded ears on purple"
    cats = ToyCats(n=400, seed=1)
    texts = cats.captions
    assert len(texts) == 400
    rows = {tuple(row) for row in cats.attributes.tolist()}
    assert len(set(texts)) == len(rows)  # different labels, different words
    for text, row in zip(texts, cats.attributes.tolist(), strict=True):
        for (name, values), label in zip(ATTRIBUTES.items(), row, strict=True):
            assert values[label] in text or (name, values[label]) == ("pattern", "plain")


def test_exclude_withholds_the_combination_and_nothing_else() -> None:
    exclude = {"fur": "white", "pattern": "stripes"}
    every, rest = ToyCats(n=3000, seed=4), ToyCats(n=2500, seed=4, exclude=exclude)
    withheld = (every.attributes[:, 0] == 0) & (every.attributes[:, 1] == 1)
    assert 100 < withheld.sum() < 300
    assert not ((rest.attributes[:, 0] == 0) & (rest.attributes[:, 1] == 1)).any()
    # the others are the same cats, in the same order
    assert torch.equal(rest.attributes, every.attributes[~withheld][:2500])
    assert (rest.seeds == every.seeds[~withheld.numpy()][:2500]).all()
    assert ((rest.attributes[:, 0] == 0) & (rest.attributes[:, 1] == 2)).any()
    assert (rest.attributes[:, 1] == 1).any()


def test_exclude_of_several_combinations() -> None:
    both = [{"fur": "white", "ears": "folded"}, {"fur": "black", "pattern": "stripes"}]
    every, rest = ToyCats(n=3000, seed=4), ToyCats(n=2500, seed=4, exclude=both)
    fur, pattern, _, ears, _ = every.attributes.T
    kept = ~((fur == 0) & (ears == 2)) & ~((fur == 1) & (pattern == 1))
    assert 0.8 < kept.double().mean() < 0.95
    assert torch.equal(rest.attributes, every.attributes[kept][:2500])
    assert torch.equal(ToyCats(n=9, exclude=[]).attributes, ToyCats(n=9).attributes)


def test_exclude_of_a_single_value() -> None:
    assert set(ToyCats(n=500, exclude={"ears": "folded"}).attributes[:, 3].tolist()) == {0, 1}


def test_reads_like_a_set() -> None:
    cats = ToyCats(size=24, n=7, seed=2)
    assert len(cats) == 7
    assert cats.images is cats.images  # drawn once


@pytest.mark.parametrize(("arguments", "pieces"), [
    ({"size": 15}, ("15", "16 to 256")),
    ({"size": 257}, ("257", "16 to 256")),
    ({"size": 32.0}, ("32.0", "whole")),
    ({"size": True}, ("True", "whole")),
    ({"n": 0}, ("0", "at least 1")),
    ({"n": -3}, ("-3", "at least 1")),
    ({"n": 2.5}, ("2.5", "whole")),
    ({"seed": "a"}, ("'a'", "whole")),
    ({"seed": 0.5}, ("0.5", "whole")),
    ({"exclude": {"tail": "long"}}, ("tail", "'long'", "fur", "background")),
    ({"exclude": {"fur": "red"}}, ("'red'", "white", "ginger")),
    ({"exclude": {"fur": 0}}, ("0", "white", "ginger")),
    ({"exclude": "white"}, ("'white'", "dictionary")),
    ({"exclude": [{"fur": "red"}]}, ("'red'", "white", "ginger")),
    ({"exclude": [{"eyes": each} for each in ("green", "blue", "amber")]}, ("no cat", "take one")),
])  # fmt: skip
def test_refuses(refuses, arguments: dict, pieces: tuple[str, ...]) -> None:
    with refuses(ValueError, *pieces):
        ToyCats(**arguments)


@pytest.mark.parametrize(("attributes", "seeds", "size", "pieces"), [
    ([[0, 0, 0, 0, 0]], [1], 300, ("300", "16 to 256")),
    ([[0, 0, 0, 0]], [1], 32, ("(1, 4)", "(n, 5)")),
    ([[0, 0, 0, 0, 0]], [1, 2], 32, ("2 seeds", "one seed a row")),
    ([[5, 0, 0, 0, 0]], [1], 32, ("fur", "0 ... 4", "5")),
    ([[0, -1, 0, 0, 0]], [1], 32, ("pattern", "0 ... 2", "-1")),
    ([[0.5, 0, 0, 0, 0]], [1], 32, ("float64", "integer")),
])  # fmt: skip
def test_make_cats_refuses(
    refuses, attributes: list, seeds: list[int], size: int, pieces: tuple[str, ...]
) -> None:
    with refuses(ValueError, *pieces):
        make_cats(np.array(attributes), seeds, size)


def test_no_cats() -> None:
    assert make_cats(torch.zeros((0, 5), dtype=torch.int64), [], 20).shape == (0, 3, 20, 20)
