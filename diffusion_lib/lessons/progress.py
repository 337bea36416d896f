"""A training run watched in a notebook: loss and samples, redrawn while the network learns."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from ..data.pictures import encode, image_grid
from .panels import compose, curve_panel
from .plots import running_mean
from .sliders import Panel, Picture


class LiveProgress(Panel):
    """A callback of Trainer that shows the loss and, from time to time, samples, while the network
    learns.

    sample: sample(model) -> images, called with the trainer's ema_model every `sample_every` steps
    and at the end. seconds: least time between two drawings of the curve. active: None draws in a
    notebook only; elsewhere it is silent.

    history: [(step, images)], say for a frame_slider afterwards. picture: what is shown, as a PIL
    image.
    """

    def __init__(
        self, sample: Callable[[Any], Tensor] | None = None, sample_every: int = 100, *,
        seconds: float = 1.0, smooth: int = 50, active: bool | None = None,
    ) -> None:
        if sample_every < 1:
            raise ValueError(f"sample_every must be at least 1 step, not {sample_every}")
        self.sample, self.sample_every, self.seconds, self.smooth = (
            sample, sample_every, seconds, smooth,
        )
        self.active = _in_notebook() if active is None else active
        self.history: list[tuple[int, Tensor]] = []
        self.picture: PILImage.Image | None = None
        self._next, self._shown = 0.0, False
        self.image = Picture(format="png", tooltip="loss and samples while training")
        super().__init__([self.image], "Training, live: loss and samples")

    def __call__(self, trainer: Any) -> None:
        """After a step of `trainer`, which has step, losses, ema_model and config.steps."""
        if not self.active:
            return
        end = trainer.step >= trainer.config.steps
        new_sample = self.sample is not None and (trainer.step % self.sample_every == 0 or end)
        if new_sample:
            with torch.no_grad():
                self.history.append((trainer.step, self.sample(trainer.ema_model)))
        if new_sample or end or time.perf_counter() >= self._next:
            self.update(trainer.step, trainer.losses, trainer.config.steps)

    def update(self, step: int, losses: Sequence[float], steps: int) -> None:
        """Draw now: the losses so far (mean of the last `smooth`) and the newest samples.
        ValueError for no losses.
        """
        if len(losses) == 0:
            raise ValueError("there are no losses to draw: call update() after the first step")
        means = running_mean(losses, self.smooth)
        chosen = np.unique(np.linspace(0, len(means) - 1, 300).round().astype(int))
        first = step - len(means) + 1
        panels = [
            curve_panel(
                {"loss": means[chosen]}, x=first + chosen, log=True, xlabel="training step",
                size=(380, 230),
            )
        ]
        titles = [f"loss {means[-1]:.4f} (mean of {min(self.smooth, len(means))} steps)"]
        if self.history:
            at, images = self.history[-1]
            panels.append(
                image_grid(images, scale=max(1, 230 // (_side(images) * images.shape[-1])))
            )
            titles.append(f"samples at step {at}")
        self.picture = compose(panels, titles, caption=f"step {step} of {steps}")
        self.image.value = encode(self.picture)
        if not self._shown and _in_notebook():
            from IPython.display import display

            display(self)
            self._shown = True
        self._next = time.perf_counter() + self.seconds


def _side(images: Tensor) -> int:
    return int(np.ceil(np.sqrt(len(images))))


def _in_notebook() -> bool:
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
