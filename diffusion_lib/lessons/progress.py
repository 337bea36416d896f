"""A training watched in a notebook: how long it will take, its loss and its samples."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ipywidgets import HTML
from PIL import Image as PILImage
from torch import Tensor

from ..data.pictures import encode, image_grid
from .panels import compose, curve_panel
from .plots import running_mean
from .sliders import Panel, Picture

LONG = 180.0  # seconds: a training cell of this series should be through by then
ADVICE = ("If that is too long, stop the cell (■) and ask for fewer steps. Where other programs "
          "keep the processor busy, torch.set_num_threads(1) before it may help.")


class TimeLeft(Panel):
    """One line below a cell that trains: how long it will take, if that is long, and what to do.

    Call it after each step, `steps` times in all; or hand it to Trainer as a callback. It says
    nothing where its first `measured` steps promise an end within three minutes.
    """

    def __init__(self, steps: int, measured: int = 5) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.steps, self.measured, self.done = steps, measured, 0
        self.long, self.line = False, HTML()
        super().__init__([self.line], "Time left, where it is long")

    def __call__(self, trainer: object = None) -> None:
        """After a step."""
        self.done += 1
        if self.done == 1:  # it also waited for what is loaded only once: count from here
            self._start = time.perf_counter()
            _display(self)
            return
        mean = (time.perf_counter() - self._start) / (self.done - 1)
        left = mean * (self.steps - self.done)
        if self.done == self.measured:
            self.long = left > LONG
        minutes = math.ceil(left / 60)
        words = f"About {minutes} minute{'s' if minutes > 1 else ''} left. {ADVICE}"
        self.line.value = words if self.long and self.done < self.steps else ""


class LiveProgress(Panel):
    """A callback of Trainer that shows the loss and, from time to time, samples, as it learns.

    sample: sample(model) -> images, called with the trainer's ema_model every `sample_every` steps
    and at the end. seconds: least time between two drawings of the curve. active: None draws in a
    notebook only; elsewhere it is silent.

    history: [(step, images)], say for a frame_slider afterwards. picture: what is shown, PIL.
    """

    def __init__(
        self, sample: Callable[[Any], Tensor] | None = None, sample_every: int = 100, *,
        seconds: float = 1.0, smooth: int = 50, active: bool | None = None,
    ) -> None:
        if sample_every < 1:
            raise ValueError(f"sample_every must be at least 1 step, not {sample_every}")
        self.sample, self.sample_every = sample, sample_every
        self.seconds, self.smooth = seconds, smooth
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
        due = trainer.step % self.sample_every == 0 or end
        if due and self.sample is not None:
            with torch.no_grad():
                self.history.append((trainer.step, self.sample(trainer.ema_model)))
        if due or time.perf_counter() >= self._next:
            self.update(trainer.step, trainer.losses, trainer.config.steps)

    def update(self, step: int, losses: Sequence[float], steps: int) -> None:
        """Draw now: the losses so far (mean of the last `smooth`) and the newest samples."""
        if len(losses) == 0:
            raise ValueError("there are no losses to draw: call update() after the first step")
        means = running_mean(losses, self.smooth)
        chosen = np.unique(np.linspace(0, len(means) - 1, 300).round().astype(int))
        panels = [curve_panel({"loss": means[chosen]}, x=step - len(means) + 1 + chosen, log=True,
                              xlabel="training step", size=(380, 230))]
        titles = [f"loss {means[-1]:.4f} (mean of {min(self.smooth, len(means))} steps)"]
        if self.history:
            at, images = self.history[-1]
            wide = math.ceil(math.sqrt(len(images))) * images.shape[-1]
            panels.append(image_grid(images, scale=max(1, 230 // wide)))
            titles.append(f"samples at step {at}")
        self.picture = compose(panels, titles, caption=f"step {step} of {steps}")
        self.image.value = encode(self.picture)
        if not self._shown:
            self._shown = _display(self)
        self._next = time.perf_counter() + self.seconds


def _display(panel: Panel) -> bool:
    """Show it below the cell; whether this is a notebook at all."""
    if _in_notebook():
        from IPython.display import display

        display(panel)
    return _in_notebook()


def _in_notebook() -> bool:
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
