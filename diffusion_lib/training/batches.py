"""What a step draws: a function of the seed and the step, and of nothing else.

Which pictures, which t, which noise, which flips are drawn for step 1,234 by a generator seeded
with (seed, 1234). So a resumed run continues as if it had never stopped, with nothing to save, and
any number of processes trains the same run.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.augment import draw_moves
from .config import TrainConfig


class Batch(NamedTuple):
    """What is drawn for one step, all on the CPU."""

    index: Tensor  # (B,) which pictures
    t: Tensor  # (B,) which timesteps
    noise: Tensor  # (B, C, H, W)
    flip: Tensor  # (B,) bool
    drop: Tensor  # (B,) bool, labels to forget
    moves: Tensor  # (B, 8), from which data/augment.py makes its changes
    words: Tensor  # (B, 7), from which captions.py says what a caption leaves out

    def slices(self, rank: int, count: int, accumulate: int) -> Iterator["Batch"]:
        """The rows of process `rank` of `count`, in `accumulate` parts."""
        rows = len(self.t) // (count * accumulate)
        for start in range(rank * accumulate * rows, (rank + 1) * accumulate * rows, rows):
            yield Batch(*(drawn[start : start + rows] for drawn in self))


class Batches:
    """`Batches(config, T, shape, n, labels).draw(step)`: everything random about a step (counted
    from 0).

    T: timesteps of the diffusion. shape: (C, H, W) of a picture. n: how many pictures there are.
    labels (n,): with config.balanced every class is drawn equally often, however many pictures it
    has.
    """

    def __init__(
        self, config: TrainConfig, T: int, shape: Sequence[int], n: int,
        labels: Tensor | None = None,
    ) -> None:
        self.config, self.T, self.shape, self.n = config, T, tuple(shape), n
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)
        self.rows: list[Tensor] = []  # of each class, where they are drawn equally often
        if config.balanced and labels is None:
            raise ValueError("train.balanced draws every class equally often, and these pictures "
                             "have no labels; leave it out")
        if config.balanced and labels is not None:
            classes = range(int(labels.max()) + 1)
            self.rows = [torch.nonzero(labels.cpu() == k).flatten() for k in classes]
            if empty := [k for k in classes if not len(self.rows[k])]:
                raise ValueError(f"train.balanced draws every class equally often, and class "
                                 f"{empty[0]} has no picture to train on; leave it out, or add "
                                 "pictures")

    def draw(self, step: int) -> Batch:
        """The batch of this step. Its t are spread evenly, so the loss jumps less (Kingma et al.
        2021).
        """
        b = self.config.batch_size
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, 0, step))
        spread = (torch.rand((), generator=generator) + torch.arange(b) / b) % 1
        t = (spread * self.T).long()  # 0 … T-1, both ends included
        noise = torch.randn((b, *self.shape), generator=generator)
        flip, drop = torch.rand((2, b), generator=generator)
        moves = draw_moves(b, generator)
        words = torch.rand((b, 7), generator=generator)
        index = self.balanced(step) if self.rows else self.shuffled(step)
        return Batch(index, t, noise, flip < 0.5, drop < self.config.label_drop, moves,
                     words)

    def shuffled(self, step: int) -> Tensor:
        """Rows (B,): every picture once an epoch, each epoch in a new order."""
        b, parts, position = self.config.batch_size, [], step * self.config.batch_size
        while position < (step + 1) * b:
            epoch, start = divmod(position, self.n)
            if epoch != self.epoch:
                generator = torch.Generator().manual_seed(seed_of(self.config.seed, 1, epoch))
                self.epoch, self.order = epoch, torch.randperm(self.n, generator=generator)
            parts.append(self.order[start : start + (step + 1) * b - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def balanced(self, step: int) -> Tensor:
        """Rows (B,): a class by chance, every one equally likely, then one of its pictures."""
        b, generator = (
            self.config.batch_size,
            torch.Generator().manual_seed(seed_of(self.config.seed, 2, step)),
        )
        kinds = torch.randint(len(self.rows), (b,), generator=generator).tolist()
        places = torch.rand(b, generator=generator, dtype=torch.float64).tolist()
        return torch.stack(
            [self.rows[k][int(u * len(self.rows[k]))] for k, u in zip(kinds, places, strict=True)]
        )


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers, without the collisions that adding them would give."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
