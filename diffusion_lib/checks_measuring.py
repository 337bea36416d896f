"""Checkers of the exercises in notebooks 06 and 07. checks.py, which a notebook imports, takes them in."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .answers import compare, exercise


# -- notebook 06 -------------------------------------------------------------------------------------------------------
@exercise
def power_above(function: Callable) -> str:
    """From a spectrum in decibels and a frequency to the share of the power above it: 10 ** (dB / 10), summed, divided."""
    def power(decibels: Tensor) -> Tensor:
        return 10 ** (decibels / 10)

    def share(decibels: Tensor, limit: int, start: int = 1, root: float = 10.0) -> Tensor:
        p = 10 ** (decibels / root)
        return p[limit + start :].sum() / p.sum()

    decibels = torch.tensor([30.0, 24.0, 17.0, 12.0, 5.0, 2.0, -3.0, -9.0], dtype=torch.float64)
    questions = {f"above {limit}": (decibels, limit) for limit in (0, 2, 5)}
    compare(function, questions, share, {
        "decibels are logarithms, and logarithms cannot be added up: first 10 ** (decibels / 10)": lambda d, f: d[f + 1 :].sum() / d.sum(),
        "above means without the limit itself: start at limit + 1": lambda d, f: share(d, f, start=0),
        "this is the share below and at the limit; asked for is the rest": lambda d, f: 1 - share(d, f),
        "a power is 10 ** (decibels / 10); / 20 is for amplitudes": lambda d, f: share(d, f, root=20.0),
        "this is the power above the limit; divide by the power of all": lambda d, f: power(d)[f + 1 :].sum(),
        "means instead of sums: this compares the average frequency above with the average of all":
            lambda d, f: power(d)[f + 1 :].mean() / power(d).mean(),
        "natural logarithms have no place here: decibels are powers of ten": lambda d, f: d.exp()[f + 1 :].sum() / d.exp().sum(),
    }, within=(0, 1))
    return "decibels back to power, then sums. A picture's power sits at the bottom; what looks sharp is a very small share of it."


@exercise
def at_least_one(function: Callable) -> str:
    """From the share of decent samples and a number of tries to the chance that at least one is decent: 1 - (1 - share) ** n."""
    questions = {f"share {share}, {n} tries": (share, n) for share, n in ((0.02, 50), (0.5, 1), (0.1, 10), (0.001, 64))}
    compare(function, questions, lambda share, n: 1 - (1 - share) ** n, {
        "this is how many decent ones to expect; it goes above 1, a chance cannot": lambda share, n: share * n,
        "this is how many decent ones to expect, capped: 50 tries at 2 % are not certain": lambda share, n: min(share * n, 1.0),
        "this is the chance that every one is decent": lambda share, n: share**n,
        "this is the chance that none is decent; asked for is the rest": lambda share, n: (1 - share) ** n,
        "this is 1 minus the chance that all are decent; ask for the chance that none is": lambda share, n: 1 - share**n,
        "near, for small shares: but e ** (-share n) is an approximation": lambda share, n: 1 - math.exp(-share * n),
    }, within=(0, 1))
    return "with 50 tries, two in a hundred are enough to show a decent one two times in three. So the best of 50 says little about the 49."


# -- notebook 07 -------------------------------------------------------------------------------------------------------
@exercise
def frechet_1d(function: Callable) -> str:
    """From two means and two standard deviations to the Fréchet distance of the two Gaussians."""
    def right(m: float, s: float, n: float, r: float) -> float:
        return (m - n) ** 2 + (s - r) ** 2

    questions = {f"means {a[0]} and {a[2]}, deviations {a[1]} and {a[3]}": a
                 for a in ((0.0, 1.0, 2.0, 1.0), (1.0, 3.0, 1.0, 0.5), (-0.5, 0.2, 1.5, 2.0))}
    compare(function, questions, right, {
        "this is its root; the Fréchet distance of the literature is left squared": lambda m, s, n, r: right(m, s, n, r) ** 0.5,
        "the deviations differ too: a narrow heap is not a wide one": lambda m, s, n, r: (m - n) ** 2,
        "the means differ too": lambda m, s, n, r: (s - r) ** 2,
        "it is the deviations that are subtracted, not the variances": lambda m, s, n, r: (m - n) ** 2 + (s**2 - r**2) ** 2,
        "σ² + r² - 2 σ r, where σ r is the root of the product of the variances: a 2 is missing":
            lambda m, s, n, r: (m - n) ** 2 + s**2 + r**2 - s * r,
        "these are absolute differences; both are squared": lambda m, s, n, r: abs(m - n) + abs(s - r),
        "in one number, the trace of σ² + r² alone is too much: take 2 σ r off": lambda m, s, n, r: (m - n) ** 2 + s**2 + r**2,
    })
    return "the squared distance of the means plus that of the deviations: two heaps are alike if they lie alike and spread alike."


@exercise
def precision(function: Callable) -> str:
    """From samples (N, F), real ones (M, F) and their radii (M,) to the share of samples inside at least one ball."""
    def right(x: Tensor, real: Tensor, radii: Tensor) -> float:
        return (torch.cdist(x, real) <= radii).any(dim=1).double().mean()

    questions = {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        real = torch.randn(20, 2, generator=generator, dtype=torch.float64)
        x = torch.randn(15, 2, generator=generator, dtype=torch.float64) * 1.5 + 0.5 * seed
        questions[f"question {seed + 1}"] = (x, real, torch.cdist(real, real).kthvalue(3, dim=1).values)
    compare(function, questions, right, {
        "one ball is enough: any, not all": lambda x, real, radii: (torch.cdist(x, real) <= radii).all(dim=1).double().mean(),
        "this counts pairs; count each sample once, if it lies in any ball":
            lambda x, real, radii: (torch.cdist(x, real) <= radii).double().mean(),
        "this is the share of the balls that hold a sample; asked for is the share of the samples":
            lambda x, real, radii: (torch.cdist(x, real) <= radii).any(dim=0).double().mean(),
        "this is the share outside": lambda x, real, radii: 1 - right(x, real, radii),
        "every real one has its own radius; this takes the mean of all": lambda x, real, radii: right(x, real, 0 * radii + radii.mean()),
        "every real one has its own radius; this takes the largest for all": lambda x, real, radii: right(x, real, 0 * radii + radii.max()),
        "only the ball of the nearest real one is looked at, but a wider one further off may hold the sample":
            lambda x, real, radii: (torch.cdist(x, real).min(1).values <= radii[torch.cdist(x, real).argmin(1)]).double().mean(),
    }, within=(0, 1))
    return "a sample counts if it lies as near to some real picture as that one's own neighbours do."


EXERCISES = (power_above, at_least_one, frechet_1d, precision)
