"""Distances between sets of pictures, against independent formulas, exact answers, and unusable
input.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion_lib.measuring import metrics
from diffusion_lib.measuring.metrics import (
    class_share,
    clip_score,
    frechet_distance,
    kernel_distance,
    nearest,
    power_spectrum,
    precision_recall,
    spectral,
    wilson,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n=40, size=32, seed=0):
    return randn(n, 3, size, size, seed=seed).mul(0.3).clamp(-1, 1).float()


# -- Fréchet ---------------------------------------------------------------------------------------

def formula(a, b):
    """Heusel's formula, with a matrix square root instead of eigenvalues."""
    a, b = a.double().numpy(), b.double().numpy()
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    spread = np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + spread


@pytest.mark.parametrize("n, features", [(200, 8), (300, 64)])
def test_frechet_equals_the_formula(n, features):
    a, b = randn(n, features), randn(400, features, seed=1) * 1.3 + 0.2
    assert frechet_distance(a, b, n=n).value == pytest.approx(formula(a, b), rel=1e-4)


def test_frechet_of_two_known_gaussians():
    measure = frechet_distance(randn(200_000, 2), randn(200_000, 2, seed=1) * 2 + 3, n=200_000)
    assert measure.value == pytest.approx(2 * 9 + 2 * (1 - 2) ** 2,
                                          rel=0.01)  # |difference of means|² + (1 - 2)² a feature


def test_frechet_interval_holds_what_more_pictures_would_read():
    reference, held = 0, 0
    reference = randn(4000, 16, seed=99)
    truth = (0.3**2) * 16  # only the means differ
    for seed in range(20):
        measure = frechet_distance(randn(400, 16, seed=seed) + 0.3, reference, n=400)
        assert measure.low <= measure.value <= measure.high
        held += measure.low <= truth <= measure.high
    assert held >= 17


def test_frechet_floor_is_the_same_measure_of_real_pictures():
    a, b, c = randn(100, 6), randn(500, 6, seed=1), randn(300, 6, seed=2)
    measure = frechet_distance(a, b, c, n=100)
    assert measure.floor == pytest.approx(formula(c[:100], b), rel=1e-4) and "20" in measure.note
    assert "n = 60" in frechet_distance(a, b, c[:60], n=100).note  # fewer real ones: said


def test_frechet_uses_the_first_n_only():
    a = randn(100, 4)
    changed = a.clone()
    changed[60:] += 100
    assert frechet_distance(a, a, n=60).value == frechet_distance(changed, a, n=60).value


def test_fewer_pictures_than_features_warn():
    with pytest.warns(UserWarning, match="30 pictures for 64 features"):
        frechet_distance(randn(30, 64), randn(200, 64, seed=1), n=30)


# -- kernel ----------------------------------------------------------------------------------------

def mmd(a, b):
    """The unbiased estimate, term by term."""
    def k(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3
    within = [(k(x, x).sum() - k(x, x).diag().sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(sum(within) - 2 * k(a, b).mean())


def test_kernel_equals_the_definition():
    a, b = randn(50, 8), randn(50, 8, seed=1) + 0.5
    assert metrics.kernel(a, b, subsets=1, size=50,
                          seed=0) == pytest.approx(mmd(a, b), rel=1e-4)  # one subset


class AsTheyAre(torch.nn.Module):
    """torchmetrics wants a network; the features are there already."""

    num_features = 8

    def forward(self, rows):
        return rows


@pytest.mark.parametrize("seed", [0, 1])
def test_both_distances_equal_torchmetrics(seed):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = randn(120, 8, seed=2 + seed), randn(150, 8, seed=7) * 1.2 + 0.3
    fid = FrechetInceptionDistance(AsTheyAre())
    kid = KernelInceptionDistance(AsTheyAre(), subsets=5, subset_size=40)
    for metric in (fid, kid):
        metric.set_dtype(torch.float64)
        metric.update(b, real=True)
        metric.update(a, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = float(kid.compute()[0])
    assert metrics.frechet(a, b) == pytest.approx(float(fid.compute()), rel=1e-9)
    assert metrics.kernel(a, b, subsets=5, size=40, seed=seed) == pytest.approx(expected, rel=1e-9)


def test_kernel_of_equal_distributions_is_about_zero_and_seeded():
    a, b = randn(1000, 16), randn(1000, 16, seed=1)
    one, again = kernel_distance(a, b, n=1000), kernel_distance(a, b, n=1000)
    assert one == again and one.low <= 0 <= one.high
    assert kernel_distance(a + 0.5, b, n=1000).low > 0


def test_kernel_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    kernel_distance(randn(40, 4), randn(40, 4, seed=1), n=40)
    assert torch.equal(before, torch.random.get_rng_state())


# -- precision and recall --------------------------------------------------------------------------

def naive_share(points, centres, k):
    inside = 0
    for point in points:
        for i, centre in enumerate(centres):
            radius = sorted(float((centre - other).norm()) for j,
                            other in enumerate(centres) if j != i)[k - 1]
            if float((point - centre).norm()) <= radius:
                inside += 1
                break
    return inside / len(points)


def test_precision_and_recall_equal_the_naive_ones():
    a, b = randn(30, 3), randn(30, 3, seed=1) * 1.5 + 0.5
    precision, recall = precision_recall(a, b, n=30)
    assert precision.value == pytest.approx(naive_share(a, b, 3))
    assert recall.value == pytest.approx(naive_share(b, a, 3))
    assert 0 < precision.value < 1 and 0 < recall.value < 1


def test_fewer_real_pictures_than_samples_are_counted_as_so_many():
    precision, recall = precision_recall(randn(300, 4), randn(40, 4, seed=1), n=300)
    assert precision.n == recall.n == 40
    assert (recall.low, recall.high) == wilson(recall.value, 40)
    fewer = precision_recall(randn(300, 4)[:40], randn(40, 4, seed=1), n=40)
    assert (precision.value, recall.value) == (fewer[0].value, fewer[1].value)


def test_precision_and_recall_tell_the_two_ways_to_fail():
    real = randn(400, 2) * 3
    timid = randn(400, 2, seed=1) * 0.3  # inside, but only a corner of it
    wild = randn(400, 2, seed=2) * 30  # everywhere, also where nothing is
    precise, covers = precision_recall(timid, real, n=400)
    assert precise.value > 0.95 and covers.value < 0.5
    precise, covers = precision_recall(wild, real, n=400)
    assert precise.value < 0.3 and covers.value > 0.8


def test_floor_of_precision_is_that_of_real_pictures():
    precision, recall = precision_recall(randn(300, 2) + 50, randn(300, 2, seed=1),
                                         randn(300, 2, seed=2), n=300)
    assert precision.value == recall.value == 0 and precision.floor > 0.9 and recall.floor > 0.9


@pytest.mark.parametrize("share, n", [(0.0, 10), (0.5, 10), (1.0, 1000), (0.03, 64), (0.0, 216)])
def test_wilson_solves_its_equation(share, n):
    low, high = wilson(share, n)
    assert low <= share <= high
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n),
                                                     abs=1e-9)


# -- nearest neighbours ----------------------------------------------------------------------------

def test_copies_are_found_and_new_pictures_are_not():
    train, held, new = randn(500, 6), randn(200, 6, seed=1), randn(200, 6, seed=2)
    assert nearest(new, train, held, n=200).value == pytest.approx(1, abs=0.15)
    assert nearest(train[:200], train, held, n=200).value == 0
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    half = torch.cat([train[:100], new[:100]])[order]
    assert nearest(half, train, held, n=200).value < 0.6


def test_smooth_samples_are_told_from_copies():
    """Near to everything, they are near to held-out pictures too."""
    train, held, new = randn(400, 6), randn(400, 6, seed=1), randn(200, 6, seed=2)

    def times_as_far(samples):
        return float(nearest(samples, train, held, n=200).note.split(" it is ")[1].split()[0])

    smooth = new / 2
    assert nearest(smooth, train, held, n=200).value < 0.8
    assert times_as_far(smooth) == pytest.approx(1, abs=0.15)
    assert times_as_far(train[:200] + 0.1 * new) > 1.5


# -- spectrum --------------------------------------------------------------------------------------

@pytest.mark.parametrize("waves", [2, 5, 12])
def test_a_wave_shows_at_its_frequency(waves):
    wave = torch.cos(2 * math.pi * waves * torch.arange(32) / 32).expand(1, 3, 32, 32)
    assert int(power_spectrum(wave.contiguous()).argmax()) == waves


def test_white_noise_is_flat_and_enlarging_empties_the_top():
    noise = pictures(200)
    spectrum = power_spectrum(noise)
    assert spectrum.shape == (16,) and float(spectrum[2:].std()) < 0.5
    large = torch.nn.functional.interpolate(noise, (128, 128), mode="bicubic").clamp(-1, 1)
    assert power_spectrum(large)[40:].max() < power_spectrum(large)[4:12].min() - 20


def test_spectral_distance_is_that_of_the_curves():
    noise, half = pictures(100), pictures(100, seed=1) / 2
    spectrum = power_spectrum(noise)
    measure = spectral(half, spectrum, power_spectrum(pictures(100, seed=2)), n=100)
    assert measure.value == pytest.approx(20 * math.log10(2), abs=0.3) and measure.floor < 0.5
    assert measure.low <= measure.value <= measure.high


# -- the classifier's word -------------------------------------------------------------------------

def test_called_counts_first_choices():
    rows = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    share, mean, sure = class_share(rows, 1, "cat", n=4)
    assert share.value == 0.5 and mean.value == pytest.approx(0.5) and share.low < 0.5 < share.high
    assert sure.value == 0.25 and sure.name == "surely cat (p > 0.7)"  # 0.7 itself is not above it


def test_matched_texts_beat_shuffled_ones_and_unrelated_ones_do_not():
    texts = randn(60, 8)
    own, shuffled = clip_score(texts + 0.3 * randn(60, 8, seed=1), texts, n=60)
    assert own.low > 0.8 and shuffled.low <= 0 <= shuffled.high and own.floor == shuffled.value
    own, shuffled = clip_score(randn(60, 8, seed=2), texts, n=60)
    assert own.low <= shuffled.value
    pictures = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    own, shuffled = clip_score(pictures, pictures, n=2)
    assert own.value == 1 and shuffled.value == 0
    with pytest.raises(ValueError, match="one network"):
        clip_score(randn(9, 8), randn(9, 4), n=9)


# -- unusable input --------------------------------------------------------------------------------

ROWS = {"empty": torch.zeros(0, 4), "one": torch.zeros(1, 4), "pictures": torch.zeros(50, 3, 4, 4),
        "nan": torch.full((50, 4), math.nan)}


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall,
                                     lambda a, b, n: nearest(a, b, b, n=n)],
                         ids=["frechet", "kernel", "precision", "nearest"])
@pytest.mark.parametrize("rows, n, says", [("empty", 0, "n is 0"), ("empty", 20, "only 0"),
                                           ("one", 1, "n is 1"), ("one", 30, "only 1"),
                                           ("pictures", 40, "features"), ("nan", 40, "NaN")])
def test_unusable_features_end_in_one_line(measure, rows, n, says):
    with pytest.raises(ValueError, match=says) as caught:
        measure(ROWS[rows], randn(60, 4), n=n)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("samples, says", [
    (torch.zeros(40, 1, 32, 32), "grey"), (torch.zeros(0, 3, 32, 32), "only 0"),
    (torch.full((40, 3, 32, 32), math.nan), "NaN"),
    (torch.zeros(40, 3, 16, 16), "16 px"), (torch.zeros(40, 3, 32, 16), "square|px"),
    (torch.zeros(3, 32, 32), "colour"),
])
def test_unusable_pictures_end_in_one_line(samples, says):
    with pytest.raises(ValueError, match=says) as caught:
        spectral(samples, torch.zeros(16, dtype=torch.float64), n=40)
    assert "\n" not in str(caught.value)


def test_too_few_for_folds_and_foreign_labels():
    with pytest.raises(ValueError, match="at least 20"):
        frechet_distance(randn(10, 2), randn(50, 2, seed=1), n=10)
    with pytest.raises(ValueError, match="10"):
        class_share(torch.ones(4, 10), 10, "whale", n=4)
