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


EXERCISES = (power_above, at_least_one)
