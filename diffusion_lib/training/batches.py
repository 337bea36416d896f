"""What a step draws: a function of the seed and the step, and of nothing else."""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Batch(NamedTuple):
    """What is drawn for one step, all on the CPU."""

    index: Tensor  # (B,) which pictures
    t: Tensor  # (B,) which timesteps
    noise: Tensor  # (B, C, H, W)
    flip: Tensor  # (B,) bool
    drop: Tensor  # (B,) bool, labels to forget
    moves: Tensor  # (B, 8), from which augment.py makes its changes


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers, without the collisions that adding them would give."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
