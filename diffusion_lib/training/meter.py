"""What a step's losses come to: their mean, and that of each quarter of t, over all slices and
processes.
"""

import math

import torch
from torch import Tensor

from .distributed import Ranks


class Meter:
    """`add` the losses of each slice of a batch, then `read` what the whole batch's are.

    T: timesteps of the diffusion. quarters: the last step's mean loss for t in each quarter of 0 …
    T-1, from nearly clean to nearly noise; NaN for a quarter that was not drawn. gradient_norm,
    in_a_row: the last step's, and how many steps in a row had a loss or gradient that was not a
    finite number.
    """

    def __init__(self, T: int, ranks: Ranks) -> None:
        self.T, self.ranks, self.sums = T, ranks, torch.zeros(2, 4, device=ranks.device)
        self.quarters, self.gradient_norm, self.in_a_row = [math.nan] * 4, math.nan, 0

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Losses (B,) at the timesteps t (B,)."""
        losses = losses.detach().float()
        quarter = (t * 4 // self.T).to(losses.device)
        self.sums.index_add_(1, quarter, torch.stack([losses, torch.ones_like(losses)]))

    def read(self, gradient_norm: Tensor) -> float:
        """The mean loss of what was added since the last reading."""
        sums, counts = self.ranks.mean(self.sums).tolist()
        self.sums.zero_()
        self.quarters = [
            total / count if count else math.nan for total, count in zip(sums, counts, strict=True)
        ]
        self.gradient_norm, loss = float(gradient_norm), sum(sums) / sum(counts)
        self.in_a_row = (
            0 if math.isfinite(loss) and math.isfinite(self.gradient_norm) else self.in_a_row + 1
        )
        return loss
