"""How good is a set of samples? Distances between sets of pictures, each with an interval and a
floor.

A single number says little. Every measure says how many pictures it took (`n`), how far chance may
move it (`low`, `high`), and its floor: the same measure, at the same n, of real pictures that the
model was never trained on. A model at the floor cannot be told from reality by this measure; below
it, it copies.

Pictures are compared through features (N, F): rows of numbers from a network (classifier,
Inception, CLIP). Every measure takes the first n rows, and raises ValueError for too few, misshapen
or non-finite ones.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.diffusion import check_finite
from ..data.sources import in_batches, to_float

SURE = 0.7  # probability from which a classifier counts as sure
FOLDS = 5  # disjoint parts of the samples, whose scatter tells how far chance may move a measure


class Measure(NamedTuple):
    """One quantity of `n` pictures: its value, an interval that chance explains, real pictures'
    value.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    floor: float | None = None
    note: str = ""

    def __str__(self) -> str:
        floor = "" if self.floor is None else f"   real pictures {self.floor:.3g}"
        note = f"   {self.note}" if self.note else ""
        interval = f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.name:34s} {self.value:8.3g}   {interval}{floor}   n = {self.n}{note}"


# Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6
def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), from means and covariances of two sets of rows
    (N, F).

    The trace of the root is the sum of the roots of C_a C_b's eigenvalues, which are those of the
    symmetric S C_b S with S S = C_a.
    """
    cov_a, cov_b = (torch.atleast_2d(torch.cov(rows.T)) for rows in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b).trace() - 2 * overlap)


def frechet_distance(
    samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int
) -> Measure:
    """Fréchet distance between Gaussians fitted to the features of n samples and of all of the
    reference.

    Fewer samples read higher (Chong & Forsyth 2020: by about a constant over n), so each of the
    five disjoint folds does. What it grows from n to n / 5 tells that constant: `low` has it taken
    off as for endless samples, and both ends are two standard errors further out. Warns where n is
    below F, the covariance then being singular.
    """
    samples, reference = features(samples, n), features(reference, what="the reference pictures")
    check_folds(n)
    if (least := min(n, len(reference))) < samples.shape[1]:
        warnings.warn(f"{least} pictures for {samples.shape[1]} features: the Fréchet distance "
                      f"reads far too high; use at least {samples.shape[1]}", stacklevel=2)
    value = frechet(samples, reference)
    mean, error = over_folds(lambda rows, _: frechet(rows, reference), samples)
    floor = None if held_out is None else frechet(some(held_out, n), reference)
    note = f"{FOLDS} folds of {n // FOLDS} read {mean:.3g}" + _at(held_out, n)
    low = max(value - _bias(mean, value) - error, 0)
    return Measure("Fréchet distance", value, low, value + error, n, floor, note)


# Bińkowski et al. 2018, "Demystifying MMD GANs", section 4
def kernel(a: Tensor, b: Tensor, *, subsets: int, size: int, seed: int) -> float:
    """Unbiased squared MMD with the kernel (x·y / F + 1)³: mean over seeded subsets of `size` rows
    of each set.
    """
    def cubic(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:  # the mean over pairs of different rows
        values = cubic(x, x)
        return (values.sum() - values.diag().sum()) / (size * (size - 1))

    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(subsets):
        y, x = (rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in (b, a))
        found.append(among(x) + among(y) - 2 * cubic(x, y).mean())
    return float(torch.stack(found).mean())


def kernel_distance(
    samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, seed: int = 0
) -> Measure:
    """Kernel distance of features (N, F): the mean over 20 seeded subsets of half the pictures.

    It may be slightly negative, where two sets are as like as chance makes them. The interval is
    two standard errors of five disjoint folds, which are unbiased here.
    """
    samples, reference = features(samples, n), features(reference, what="the reference pictures")
    check_folds(n)
    half, fifth = min(n // 2, len(reference)), min(n // FOLDS, len(reference))
    value = kernel(samples, reference, subsets=20, size=half, seed=seed)
    _, error = over_folds(
        lambda rows, i: kernel(rows, reference, subsets=4, size=fifth, seed=seed + i), samples)
    floor = None
    if held_out is not None:
        real = some(held_out, n)
        floor = kernel(real, reference, subsets=20, size=min(half, len(real) // 2), seed=seed)
    note = f"20 subsets of {half}" + _at(held_out, n)
    return Measure("kernel distance", value, value - error, value + error, n, floor, note)


# Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", equations 1 and 2
def precision_recall(
    samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, k: int = 3
) -> tuple[Measure, Measure]:
    """Precision: the share of samples inside the real pictures' manifold. Recall: of real ones in
    the samples'.

    A manifold is the union of balls around its pictures, each reaching to its k-th nearest
    neighbour. Both sets have n pictures (the larger one is thinned), for the balls shrink as
    pictures are added. The interval is Wilson's for a share of so many.
    """
    if n <= k:
        raise ValueError(f"n is {n}; the {k}-th nearest neighbour needs at least {k + 1} pictures")
    samples, reference = features(samples, n), features(reference, what="the reference pictures")
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    reference = reference[order[:n]]
    m = min(n, len(reference))
    samples = samples[:m]

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).kthvalue(k + 1, dim=1).values  # the first is itself
        return float((torch.cdist(points, centres) <= radii).any(dim=1).float().mean())

    floors: tuple[float | None, float | None] = (None, None)
    if held_out is not None:
        real, fewer = some(held_out, n), reference[: len(held_out)]
        floors = covered(real, fewer), covered(fewer, real)
    shares = covered(samples, reference), covered(reference, samples)
    note = f"{k} neighbours" + _at(held_out, n)
    precision, recall = (
        Measure(name, share, *wilson(share, m), m, floor, note)
        for name, share, floor in zip(("precision", "recall"), shares, floors, strict=True))
    return precision, recall


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of a share counted in n independent cases (Wilson 1927): never outside 0
    … 1, and the share is in it.
    """
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)  # to rounding


def nearest(
    samples: Tensor, reference: Tensor, held_out: Tensor, *, n: int, what: str = "features"
) -> Measure:
    """Copied or invented? The samples' median distance to the nearest training picture, over real
    pictures' one.

    samples, reference, held_out: rows (N, F), features or flattened pixels. About 1: no closer to
    the training set than new photographs are; far below 1: copies. The interval is two standard
    errors of five folds. Smooth samples are nearer to every picture, so the note tells how far they
    are from held-out pictures, too, against as many training ones: about 1 unless they are copies.
    """
    samples, reference = features(samples, n), features(reference, what="the reference pictures")
    held_out = features(held_out, what="the held-out pictures")
    check_folds(n)
    usual = torch.cdist(held_out, reference).min(dim=1).values.median()
    distances, fewer = torch.cdist(samples, reference), min(len(reference), len(held_out))
    ratios = distances.min(dim=1).values / usual

    def near(rows: Tensor) -> float:
        """Median distance to the nearest of `fewer` pictures, chosen by chance."""
        chosen = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))[:fewer]
        return float(rows[:, chosen].min(dim=1).values.median())

    seen, unseen = near(distances), near(torch.cdist(samples, held_out))
    value = float(ratios.median())
    _, error = over_folds(lambda part, _: float(part.median()), ratios)
    far = f"{unseen / seen:.2f}" if seen else "endlessly many"
    note = (f"over that of held-out pictures; to these it is {far} times as far as to equally many "
            "training ones")
    return Measure(f"nearest training picture ({what})", value, value - error, value + error, n,
                   1.0, note)


def in_colour(pictures: Tensor) -> Tensor:
    """Grey pictures (N, 1, H, W) as (N, 3, H, W), which feature networks take; others as they are.
    """
    grey = isinstance(pictures, Tensor) and pictures.ndim == 4 and pictures.shape[1] == 1
    return pictures.expand(-1, 3, -1, -1) if grey else pictures


# Ruderman 1994
def power_spectrum(pictures: Tensor) -> Tensor:
    """Mean power by spatial frequency: (H // 2,) in decibels, entry f for waves that fit f times
    across.

    pictures (N, 3, H, W) with H = W, uint8 or floats in [-1, 1]. Brightness only, through a Hann
    window, so that the picture's border is no edge.
    """
    if pictures.shape[-1] != pictures.shape[-2]:
        raise ValueError(f"pictures of {tuple(pictures.shape[-2:])} pixels are not square; "
                         "crop them first")
    pictures = check_pictures(pictures, len(pictures), "the pictures", least=1)
    return 10 * torch.log10(in_batches(_power, pictures).mean(dim=0) + 1e-12)


def _power(pictures: Tensor) -> Tensor:
    """Power (N, H // 2) of each picture in rings of equal frequency."""
    size, double = pictures.shape[-1], torch.float64
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=double)
    grey = torch.einsum("nchw,c->nhw", pictures.double(), weights)
    window = torch.hann_window(size, periodic=False, dtype=double)
    waves = (grey - grey.mean(dim=(1, 2), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(waves).abs().square() / size**2
    across = torch.fft.fftfreq(size, 1 / size, dtype=double)
    ring = (across[:, None] ** 2 + across**2).sqrt().round().long().flatten()
    sums = torch.zeros(len(pictures), int(ring.max()) + 1, dtype=double)
    return (sums.index_add_(1, ring, power.flatten(1)) / torch.bincount(ring))[:, : size // 2]


def spectral(
    samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int
) -> Measure:
    """Root mean square difference of power spectra over the frequencies from 1 up, in decibels.

    samples: pictures (N, 3, H, H). reference, held_out: `power_spectrum` of pictures of that size.
    """
    samples = check_pictures(samples, n)
    if len(reference) != samples.shape[-1] // 2:
        raise ValueError(f"the samples are {samples.shape[-1]} px, the reference spectrum belongs "
                         f"to {2 * len(reference)} px; load the reference at the samples' size")
    check_folds(n, least=2)

    def apart(spectrum: Tensor) -> float:
        return float((spectrum - reference)[1:].square().mean().sqrt())

    value = apart(power_spectrum(samples))
    mean, error = over_folds(lambda part, _: apart(power_spectrum(part)), samples)
    low, note = max(value - _bias(mean, value) - error, 0), f"{FOLDS} folds of {n // FOLDS}"
    floor = None if held_out is None else apart(held_out)
    return Measure("power spectrum (dB)", value, low, value + error, n, floor, note)


def class_share(
    probabilities: Tensor, label: int, name: str, *, n: int
) -> tuple[Measure, Measure, Measure]:
    """What a classifier says: the share of pictures that it calls `label` first, its mean
    probability for it, and the share to which it gives more than `SURE`.

    A classifier has to choose, so a smudge is called something too; being sure of it is harder.
    probabilities (N, K). Intervals of shares: Wilson's; of the mean: two standard errors.
    """
    rows = features(probabilities, n, "the probabilities")
    if not 0 <= label < rows.shape[1]:
        raise ValueError(f"label {label} is not one of the classifier's {rows.shape[1]} classes; "
                         f"use 0 … {rows.shape[1] - 1}")
    share = float((rows.argmax(dim=1) == label).double().mean())
    sure = float((rows[:, label] > SURE).double().mean())
    return (Measure(f"called {name}", share, *wilson(share, n), n),
            _mean(f"probability of {name}", rows[:, label]),
            Measure(f"surely {name} (p > {SURE})", sure, *wilson(sure, n), n))


# Hessel et al. 2021, "CLIPScore", equation 1, without its factor and with the control that it lacks
def clip_score(
    pictures: Tensor, texts: Tensor, *, n: int, seed: int = 0
) -> tuple[Measure, Measure]:
    """Mean cosine of pictures and their texts, and of pictures and shuffled texts: only the
    difference counts.

    pictures, texts: features (N, F) of one network, row i of both belonging together. Both
    intervals are two standard errors; a shuffled text is never a picture's own, though it may say
    the same.
    """
    rows, words = features(pictures, n, "the pictures"), features(texts, n, "the texts")
    if rows.shape != words.shape:
        raise ValueError(f"pictures have {rows.shape[1]} features, texts {words.shape[1]}; "
                         "take both from one network")
    rows, words = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (rows, words))
    shift = 1 + int(torch.randint(n - 1, (), generator=torch.Generator().manual_seed(seed)))
    own = _mean("likeness to its text", (rows * words).sum(dim=1))
    shuffled = _mean("likeness to a shuffled text", (rows * words.roll(shift, dims=0)).sum(dim=1))
    note = "beside it, not real pictures but shuffled texts"
    return own._replace(floor=shuffled.value, note=note), shuffled


# -- intervals -------------------------------------------------------------------------------------


def over_folds(measure: Callable[[Tensor, int], float], rows: Tensor) -> tuple[float, float]:
    """Mean of measure(part, i) over five disjoint parts of the rows, and twice its standard error.
    """
    size = len(rows) // FOLDS
    found = torch.tensor([measure(rows[i * size : (i + 1) * size], i) for i in range(FOLDS)])
    return float(found.mean()), 2 * float(found.std()) / math.sqrt(FOLDS)


def _bias(folds: float, value: float) -> float:
    """What endless pictures would read lower, if it falls as one over their number."""
    return max(folds - value, 0) / (FOLDS - 1)


def _mean(name: str, values: Tensor) -> Measure:
    mean, error = float(values.mean()), 2 * float(values.std()) / math.sqrt(len(values))
    return Measure(name, mean, mean - error, mean + error, len(values))


def _at(held_out: Tensor | None, n: int) -> str:
    if held_out is None or len(held_out) >= n:
        return ""
    return f"; real pictures at n = {len(held_out)}"


# -- what is refused -------------------------------------------------------------------------------


def check_pictures(pictures: Tensor, n: int, what: str = "the samples", least: int = 2) -> Tensor:
    """The first n pictures as floats in [-1, 1]. Raises ValueError for fewer than n or `least`, for
    grey or NaN.
    """
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
        shape = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"{what} must be colour pictures (N, 3, height, width), not {shape}; "
                         "repeat a grey picture's channel three times")
    check_count(pictures, n, what, least)
    pictures = to_float(pictures[:n]) if pictures.dtype == torch.uint8 else pictures[:n]
    check_finite(pictures, what)
    return pictures


def features(rows: Tensor, n: int | None = None, what: str = "the samples") -> Tensor:
    """The first n rows (all where None) in float64. Raises ValueError for too few, misshapen, or
    non-finite ones.
    """
    if rows.ndim != 2:
        raise ValueError(f"{what} must be features (N, F), not {tuple(rows.shape)}; "
                         "in_batches(network.features, pictures) makes them")
    check_count(rows, n := len(rows) if n is None else n, what)
    check_finite(rows[:n], what, "features")
    return rows[:n].double()


def some(held_out: Tensor, n: int) -> Tensor:
    """n held-out rows, or all there are where they are fewer."""
    return features(held_out, min(n, len(held_out)), "the held-out pictures")


def check_count(rows: Tensor, n: int, what: str, least: int = 2) -> None:
    """Raises ValueError where n is below `least` or above the number of rows."""
    if n < least:
        raise ValueError(f"n is {n}; one picture has no spread: compare at least {least}, "
                         "better 1,000")
    if n > len(rows):
        raise ValueError(f"n is {n}, but {what} are only {len(rows)}; draw more or choose a "
                         "smaller n")


def check_folds(n: int, least: int = 4) -> None:
    """Raises ValueError where five folds of n pictures have fewer than `least` each."""
    if n < FOLDS * least:
        raise ValueError(f"n is {n}; {FOLDS} folds for the interval need at least "
                         f"{FOLDS * least} pictures")
