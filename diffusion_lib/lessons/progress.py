"""A training watched in a notebook: how long it will take."""

import math
import time

from ipywidgets import HTML

from .sliders import Panel

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
        from IPython import get_ipython
        from IPython.display import display

        self.done += 1
        if self.done == 1:  # it also waited for what is loaded only once: count from here
            self._start = time.perf_counter()
            if hasattr(get_ipython(), "kernel"):  # in a notebook
                display(self)
            return
        mean = (time.perf_counter() - self._start) / (self.done - 1)
        left = mean * (self.steps - self.done)
        if self.done == self.measured:
            self.long = left > LONG
        minutes = math.ceil(left / 60)
        words = f"About {minutes} minute{'s' if minutes > 1 else ''} left. {ADVICE}"
        self.line.value = words if self.long and self.done < self.steps else ""
