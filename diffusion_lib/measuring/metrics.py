"""How good is a set of samples? Distances between sets of pictures, each with an interval and with what real pictures would get.

A single number says little. Every measure here says how many pictures it took (`n`), how far chance may move it (`low`, `high`), and
its floor: the same measure, at the same n, of real pictures that the model was never trained on. A model at the floor
cannot be told from reality by this measure; below it, it copies.

Pictures are compared through features: rows of numbers from a network (classifier.py's, Inception's, CLIP's), (N, F) for N pictures.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.sources import in_batches, to_float


class Measure(NamedTuple):
    """One measured quantity of `n` pictures: its value, an interval that chance explains, and real pictures' value at the same n."""

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
        return f"{self.name:34s} {self.value:8.3g}   {self.low:.3g} to {self.high:.3g}{floor}   n = {self.n}{note}"


def check_pictures(pictures: Tensor, n: int, what: str = "the samples", least: int = 2) -> Tensor:
    """The first n pictures as floats in [-1, 1]. Raises ValueError for fewer than n or `least`, for grey, misshapen, NaN."""
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
        shape = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"{what} must be colour pictures (N, 3, height, width), not {shape}; repeat a grey picture's channel three times")
    check_count(pictures, n, what, least)
    pictures = to_float(pictures[:n]) if pictures.dtype == torch.uint8 else pictures[:n]
    if not torch.isfinite(pictures).all():
        raise ValueError(f"{what} hold NaN or infinite pixels; look for the step that made them (torch.isfinite tells where)")
    return pictures


def check_count(rows: Tensor, n: int, what: str, least: int = 2) -> None:
    """Raises ValueError where n is below `least` or above the number of rows."""
    if n < least:
        raise ValueError(f"n is {n}; one picture has no spread: compare at least {least}, better 1,000")
    if n > len(rows):
        raise ValueError(f"n is {n}, but {what} are only {len(rows)}; draw more or choose a smaller n")


def _features(rows: Tensor, n: int, what: str) -> Tensor:
    if rows.ndim != 2:
        raise ValueError(f"{what} must be features (N, F), not {tuple(rows.shape)}; in_batches(network.features, pictures) makes them")
    check_count(rows, n, what)
    if not torch.isfinite(rows[:n]).all():
        raise ValueError(f"{what} hold NaN or infinite features; look at the pictures they came from")
    return rows[:n].double()


# Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6
def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), from the means and covariances of two sets of rows (N, F), float64.

    The trace of the root is the sum of the roots of C_a C_b's eigenvalues, which are those of the symmetric S C_b S with S S = C_a.
    """
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(torch.atleast_2d(cov_a))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ torch.atleast_2d(cov_b) @ root).clamp(min=0).sqrt().sum()
    spread = torch.atleast_2d(cov_a).trace() + torch.atleast_2d(cov_b).trace() - 2 * overlap
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def frechet_distance(samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, folds: int = 5) -> Measure:
    """Fréchet distance between Gaussians fitted to the features of n samples and of the reference (all of it).

    samples, reference, held_out: (N, F). Fewer samples read higher (Chong & Forsyth 2020: by about a constant over n), so each of the
    disjoint folds, n / folds pictures, does. What it grows from n to n / folds tells that constant: `low` has it taken
    off as for endless samples, and both ends are two standard errors further out. Warns when n is below F: the covariance
    is then singular. Raises ValueError for too few or unusable features.
    """
    samples, reference = _features(samples, n, "the samples"), _features(reference, len(reference), "the reference pictures")
    if min(n, len(reference)) < samples.shape[1]:
        warnings.warn(f"{min(n, len(reference))} pictures for {samples.shape[1]} features: the Fréchet distance reads far too high; "
                      f"use at least {samples.shape[1]}", stacklevel=2)
    value = frechet(samples, reference)
    if n < 4 * folds:
        raise ValueError(f"n is {n}; {folds} folds for the interval need at least {4 * folds} pictures")
    size = n // folds
    parts = torch.tensor([frechet(samples[i * size : (i + 1) * size], reference) for i in range(folds)])
    bias = max(float(parts.mean()) - value, 0) / (folds - 1)
    error = 2 * float(parts.std()) / math.sqrt(folds)
    floor = None if held_out is None else frechet(_features(held_out, min(n, len(held_out)), "the held-out pictures"), reference)
    note = f"{folds} folds of {size} read {parts.mean():.3g}" + _at(held_out, n)
    return Measure("Fréchet distance", value, max(value - bias - error, 0), value + error, n, floor, note)


def _at(held_out: Tensor | None, n: int) -> str:
    return "" if held_out is None or len(held_out) >= n else f"; real pictures at n = {len(held_out)}"


# Bińkowski et al. 2018, "Demystifying MMD GANs", section 4
def kernel(a: Tensor, b: Tensor, *, subsets: int, size: int, seed: int) -> float:
    """Unbiased squared MMD with the kernel (x·y / F + 1)³: the mean over seeded subsets of `size` rows of each set (N, F)."""
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
    samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, folds: int = 5, seed: int = 0
) -> Measure:
    """Kernel distance: unbiased squared MMD with the cubic kernel (x·y / F + 1)³, mean over 20 seeded subsets of half the pictures.

    samples, reference, held_out: features (N, F). It may be slightly negative, where two sets are as like as chance makes them. The
    interval is two standard errors of disjoint folds, which are unbiased here. Raises ValueError for too few or unusable features.
    """
    samples, reference = _features(samples, n, "the samples"), _features(reference, len(reference), "the reference pictures")
    size = n // folds
    if size < 4:
        raise ValueError(f"n is {n}; {folds} folds for the interval need at least {4 * folds} pictures")
    half = min(n // 2, len(reference))
    value = kernel(samples, reference, subsets=20, size=half, seed=seed)
    parts = torch.tensor([
        kernel(samples[i * size : (i + 1) * size], reference, subsets=4, size=min(size, len(reference)), seed=seed + i)
        for i in range(folds)])
    error = 2 * float(parts.std()) / math.sqrt(folds)
    floor = None
    if held_out is not None:
        real = _features(held_out, min(n, len(held_out)), "the held-out pictures")
        floor = kernel(real, reference, subsets=20, size=min(half, len(real) // 2), seed=seed)
    return Measure("kernel distance", value, value - error, value + error, n, floor, f"20 subsets of {half}" + _at(held_out, n))


def _radii(rows: Tensor, k: int) -> Tensor:
    """Distance (N,) of every row to its k-th nearest other row."""
    return torch.cdist(rows, rows).kthvalue(k + 1, dim=1).values        # the nearest of all is the row itself


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points that lie in at least one ball."""
    return float((torch.cdist(points, centres) <= radii).any(dim=1).float().mean())


# Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", equations 1 and 2
def precision_recall(samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, k: int = 3) -> tuple[Measure, Measure]:
    """Precision: the share of samples inside the real pictures' manifold. Recall: the share of real ones inside the samples' manifold.

    A manifold is the union of balls around its pictures, each reaching to its k-th nearest neighbour. Both sets have n pictures
    (the reference is thinned to n), for the balls shrink as pictures are added. The interval is Wilson's for a share of n.
    """
    if n <= k:
        raise ValueError(f"n is {n}; the {k}-th nearest neighbour needs at least {k + 1} pictures")
    samples, reference = _features(samples, n, "the samples"), _features(reference, len(reference), "the reference pictures")
    reference = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))[:n]]

    def both(these: Tensor, real: Tensor) -> tuple[float, float]:
        return _covered(these, real, _radii(real, k)), _covered(real, these, _radii(these, k))

    shares, floors = both(samples, reference), (None, None)
    if held_out is not None:
        floors = both(_features(held_out, min(n, len(held_out)), "the held-out pictures"), reference[: len(held_out)])
    precision, recall = (Measure(name, share, *wilson(share, n), n, floor, f"{k} neighbours" + _at(held_out, n))
                         for name, share, floor in zip(("precision", "recall"), shares, floors, strict=True))
    return precision, recall


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of a share counted in n independent cases (Wilson 1927): never outside 0 … 1, unlike share ± 2 errors."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def nearest(samples: Tensor, reference: Tensor, held_out: Tensor, *, n: int, what: str = "features") -> Measure:
    """Copied or invented? The samples' median distance to the nearest training picture, over the held-out real pictures' one.

    samples, reference, held_out: rows (N, F), features or flattened pixels. About 1: no closer to the training set than new photographs
    are; far below 1: copies. The interval is two standard errors of five disjoint folds, its floor 1 by definition.
    """
    samples, reference = _features(samples, n, "the samples"), _features(reference, len(reference), "the reference pictures")
    held_out = _features(held_out, len(held_out), "the held-out pictures")
    if n < 20:
        raise ValueError(f"n is {n}; 5 folds for the interval need at least 20 pictures")
    distance = torch.cdist(samples, reference).min(dim=1).values
    usual = torch.cdist(held_out, reference).min(dim=1).values.median()
    parts = torch.stack([part.median() for part in distance[: n // 5 * 5].reshape(5, -1)]) / usual
    value, error = float(distance.median() / usual), 2 * float(parts.std()) / math.sqrt(5)
    return Measure(f"nearest training picture ({what})", value, value - error, value + error, n, 1.0, "over that of held-out pictures")


# Ruderman 1994; Dhariwal & Nichol's samples and many others are compared so
def power_spectrum(pictures: Tensor) -> Tensor:
    """Mean power by spatial frequency: (H // 2,) in decibels, entry f for waves that fit f times across the picture (f = 0: flat).

    pictures (N, 3, H, W) with H = W, uint8 or floats in [-1, 1]. Brightness only, through a Hann window, so that the picture's border
    is no edge. Raises ValueError for pictures that are not square or not finite.
    """
    if pictures.shape[-1] != pictures.shape[-2]:
        raise ValueError(f"pictures of {tuple(pictures.shape[-2:])} pixels are not square; crop them first")
    return 10 * torch.log10(in_batches(_power, check_pictures(pictures, len(pictures), "the pictures", 1)).mean(dim=0) + 1e-12)


def _power(pictures: Tensor) -> Tensor:
    size = pictures.shape[-1]
    grey = torch.einsum("nchw,c->nhw", pictures.double(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))
    window = torch.hann_window(size, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean(dim=(1, 2), keepdim=True)) * window[:, None] * window).abs().square() / size**2
    waves = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    ring = (waves[:, None] ** 2 + waves**2).sqrt().round().long().flatten()           # how often a wave fits across
    rings = torch.zeros(len(pictures), int(ring.max()) + 1, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    return (rings / torch.bincount(ring))[:, : size // 2]


def spectral(samples: Tensor, reference: Tensor, held_out: Tensor | None = None, *, n: int, folds: int = 5) -> Measure:
    """Distance of power spectra: root mean square difference over the frequencies from 1 up, in decibels.

    samples: pictures (N, 3, H, H). reference, held_out: spectra from `power_spectrum`, of pictures of that size.
    """
    samples = check_pictures(samples, n)
    if len(reference) != samples.shape[-1] // 2:
        raise ValueError(f"the samples are {samples.shape[-1]} px, the reference spectrum belongs to {2 * len(reference)} px; "
                         "load the reference at the samples' size")

    def apart(spectrum: Tensor) -> float:
        return float((spectrum - reference)[1:].square().mean().sqrt())

    size = n // folds
    if size < 2:
        raise ValueError(f"n is {n}; {folds} folds for the interval need at least {2 * folds} pictures")
    value = apart(power_spectrum(samples))
    parts = torch.tensor([apart(power_spectrum(samples[i * size : (i + 1) * size])) for i in range(folds)])
    bias, error = max(float(parts.mean()) - value, 0) / (folds - 1), 2 * float(parts.std()) / math.sqrt(folds)
    floor = None if held_out is None else apart(held_out)
    return Measure("power spectrum (dB)", value, max(value - bias - error, 0), value + error, n, floor, f"{folds} folds of {size}")


def class_share(probabilities: Tensor, label: int, name: str, *, n: int) -> tuple[Measure, Measure]:
    """What a classifier says: the share of n pictures for which `label` is its first choice, and its mean probability for it.

    probabilities (N, K). Intervals: Wilson's, and two standard errors.
    """
    rows = _features(probabilities, n, "the probabilities")
    if not 0 <= label < rows.shape[1]:
        raise ValueError(f"label {label} is not one of the classifier's {rows.shape[1]} classes; use 0 … {rows.shape[1] - 1}")
    share, mean = float((rows.argmax(dim=1) == label).double().mean()), float(rows[:, label].mean())
    error = 2 * float(rows[:, label].std()) / math.sqrt(n)
    return Measure(f"called {name}", share, *wilson(share, n), n), Measure(f"probability of {name}", mean, mean - error, mean + error, n)


# Hessel et al. 2021, "CLIPScore", equation 1, without its factor and with the control that it lacks
def clip_score(pictures: Tensor, texts: Tensor, *, n: int, seed: int = 0) -> tuple[Measure, Measure]:
    """Mean cosine between n pictures and their texts, and between the same pictures and shuffled texts: only the difference counts.

    pictures, texts: features (N, F) of one network, row i of both belonging together. Both intervals are two standard errors; a
    shuffled text is never a picture's own, though it may say the same. Raises ValueError for rows that do not pair.
    """
    rows, words = _features(pictures, n, "the pictures"), _features(texts, n, "the texts")
    if rows.shape != words.shape:
        raise ValueError(f"pictures have {rows.shape[1]} features, texts {words.shape[1]}; take both from one network")
    rows, words = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (rows, words))
    shift = 1 + int(torch.randint(n - 1, (), generator=torch.Generator().manual_seed(seed)))
    found = []
    for name, against in (("likeness to its text", words), ("likeness to a shuffled text", words.roll(shift, dims=0))):
        cosines = (rows * against).sum(dim=1)
        value, error = float(cosines.mean()), 2 * float(cosines.std()) / math.sqrt(n)
        found.append(Measure(name, value, value - error, value + error, n))
    return found[0]._replace(floor=found[1].value, note="beside it, not real pictures but shuffled texts"), found[1]
