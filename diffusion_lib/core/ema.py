"""An exponential moving average of the weights: what one samples from, because the last raw step is
noisy.
"""

import copy

import torch
from torch import nn


class EMA:
    """A slowly following copy of a model, whose memory is a share of the run so far (Karras et al.
    2024, section 3.1).

    model: the network that trains. half_life: the share of the steps so far after which a weight's
    influence has halved; 0.05 after 1,000 steps is a half-life of 50 steps. A fixed decay such as
    0.9999 would remember the random start for tens of thousands of steps; growing with the run, the
    average is warmed up by construction.

    `ema.model` is the copy, in eval mode and without gradients. Raises ValueError unless 0 <
    half_life < 1.
    """

    def __init__(self, model: nn.Module, half_life: float = 0.05) -> None:
        if not 0 < half_life < 1:
            raise ValueError(
                f"half_life is a share of the run so far, between 0 and 1, not {half_life}; "
                "0.05 is usual"
            )
        self.half_life = half_life
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay(self, step: int) -> float:
        """How much of the average is kept at step 1, 2, 3 …: a number in [0, 1)."""
        return 0.5 ** (1 / (self.half_life * max(step, 1)))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights; step counts from 1."""
        share = 1 - self.decay(step)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), share)
        for mine, its in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
