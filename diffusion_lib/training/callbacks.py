"""What may be done after every step: a callback is called as `callback(trainer)`."""

from typing import TYPE_CHECKING, Any

import torch

from ..core.guidance import guided
from ..core.samplers import sample
from ..data.sources import in_batches, to_float
from ..saving.picture_files import save_grid

if TYPE_CHECKING:
    from .trainer import Trainer


class SampleGrid:
    """A grid of the same `count` seeds in the run folder every `every` steps, drawn from the
    averaged weights.

    steps: of DDIM; at most T.
    """

    def __init__(self, every: int, count: int = 64, steps: int = 20) -> None:
        self.every, self.count, self.steps = every, count, steps

    def __call__(self, trainer: "Trainer") -> None:
        if trainer.step % self.every and trainer.step != trainer.config.steps:
            return
        model: Any = trainer.ema_model
        diffusion, shape = trainer.diffusion, trainer.images.shape[1:]
        assert diffusion is not None
        if getattr(model, "num_classes", None):
            model = guided(model, torch.arange(self.count) % model.num_classes, 1.0)
        elif trainer.reads:  # the captions of as many pictures
            texts = trainer.captions
            model = guided(model, [texts[i % len(texts)] for i in range(self.count)], 1.0)
        steps = min(self.steps, diffusion.T)
        pictures = sample(model, diffusion, self.count, steps=steps, shape=shape,
                          autoencoder=trainer.autoencoder)
        save_grid(pictures, trainer.folder() / "samples" / f"step_{trainer.step:08d}.png")


class ReconstructionGrid:
    """For an autoencoder: `count` pictures, each above what encoding and decoding leaves of it."""

    def __init__(self, every: int, count: int = 32, columns: int = 8) -> None:
        self.every, self.count, self.columns = every, count, columns

    @torch.no_grad()
    def __call__(self, trainer: "Trainer") -> None:
        if trainer.step % self.every and trainer.step != trainer.config.steps:
            return
        pictures = to_float(trainer.images[: self.count]).cpu()
        decoded = in_batches(trainer.ema_model, trainer.images[: self.count], 16).cpu()
        rows = zip(pictures.split(self.columns), decoded.split(self.columns), strict=True)
        both = torch.cat([part for pair in rows for part in pair])
        path = trainer.folder() / "samples" / f"step_{trainer.step:08d}.png"
        save_grid(both, path, columns=self.columns)
