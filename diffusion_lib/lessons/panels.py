"""Pictures put together with Pillow alone: grids, panels side by side, and small plots quick enough
for a slider.

Wherever images are asked for: float tensors (B, 3, H, W) in [-1, 1], uint8 tensors (B, 3, H, W),
single ones without the B, uint8 arrays (H, W, 3), PIL images, or lists of these.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.pictures import FAINT, INK, PAPER, image_grid, to_pictures

# Told apart by colour-blind eyes, and in grey by lightness and dashes (after Okabe & Ito 2008).
COLORS = ("#0b4f8a", "#d55e00", "#56b4e9", "#009e73", "#cc79a7", "#555555")


# -- panels: what a slider shows, drawn with Pillow in a few milliseconds --------------------------


@lru_cache
def font(size: int = 14) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has ᾱ and ε, from matplotlib's files if it is installed; else Pillow's own
    letters.
    """
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str
) -> None:
    # α + macron becomes one letter
    draw.text(at, unicodedata.normalize("NFC", text), INK, font(size), anchor)


def compose(
    panels: Sequence[Any], titles: Sequence[str] | None = None, scale: int | None = None,
    caption: str | None = None,
) -> Image.Image:
    """Panels side by side, a title above each and a caption above all, as one picture.

    panels: images; a batch becomes a grid. Tensors and arrays are enlarged by the whole number
    `scale` (None: to about 200 pixels high), PIL images (histogram_panel, curve_panel) are taken as
    they are. Raises ValueError if titles and panels differ in number.
    """
    if titles is not None and len(titles) != len(panels):
        raise ValueError(f"{len(panels)} panels need as many titles, not {len(titles)}")
    pictures = []
    for panel in panels:
        if not isinstance(panel, Image.Image):
            pieces = to_pictures(panel)
            grid = pieces[0] if len(pieces) == 1 else image_grid(pieces)
            factor = scale or max(1, round(200 / grid.height))
            panel = grid.resize(
                (grid.width * factor, grid.height * factor), Image.Resampling.NEAREST
            )
        pictures.append(panel.convert("RGB"))
    if not pictures:
        raise ValueError("there are no panels to show: give at least one")
    lines = [str(title).split("\n") for title in titles or []]
    widths = [
        max(
            [p.width, *(math.ceil(font(14).getlength(line)) for line in lines[i])]
            if lines
            else [p.width]
        )
        + 12
        for i, p in enumerate(pictures)
    ]
    top = 28 if caption else 6
    head = 19 * max(map(len, lines)) + 4 if lines else 0
    width = max(sum(widths), math.ceil(font(15).getlength(caption)) + 16 if caption else 0)
    sheet = Image.new("RGB", (width, top + head + max(p.height for p in pictures) + 6), PAPER)
    draw = ImageDraw.Draw(sheet)
    if caption:
        _write(draw, (8, 14), caption, 15, "lm")
    left = 0
    for i, picture in enumerate(pictures):
        for row, line in enumerate(lines[i] if lines else []):
            _write(draw, (left + widths[i] / 2, top + 9 + 19 * row), line, 14, "mm")
        sheet.paste(picture, (left + (widths[i] - picture.width) // 2, top + head))
        left += widths[i]
    return sheet


class _Axes:
    """A frame with ticks, drawn with Pillow: maps numbers to pixels."""

    def __init__(
        self, size: tuple[int, int], x: tuple[float, float], y: tuple[float, float],
        log: bool = False, xlabel: str = "", ylabel: str = "",
    ) -> None:
        self.image = Image.new("RGB", size, PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.box = (
            56 if ylabel or log else 42, 8 + 16 * bool(ylabel), size[0] - 12,
            size[1] - 24 - 16 * bool(xlabel),
        )
        self.x, self.log = (x[0], x[1] if x[1] > x[0] else x[0] + 1), log
        if log and y[0] <= 0:
            raise ValueError(f"a logarithmic axis needs limits above 0, not {y}")
        low, high = (math.log10(y[0]), math.log10(y[1])) if log else y
        self.y = (low, high if high > low else low + 1)
        left, top, right, bottom = self.box
        for tick in _ticks(*self.x):
            at = self.px(np.array([tick]), None)[0][0]
            self.draw.line((at, top, at, bottom), FAINT)
            _write(self.draw, (at, bottom + 4), f"{tick:.6g}", 12, "mt")
        for value in _log_ticks(*self.y) if log else _ticks(*self.y):
            at = bottom - ((math.log10(value) if log else value) - self.y[0]) / (
                self.y[1] - self.y[0]
            ) * (bottom - top)
            self.draw.line((left, at, right, at), FAINT)
            _write(self.draw, (left - 5, at), f"{value:.6g}", 12, "rm")
        self.draw.rectangle(self.box, outline=INK)
        _write(self.draw, ((left + right) / 2, size[1] - 3), xlabel, 13, "mb")
        _write(self.draw, (4, 3), ylabel, 13, "lt")

    def px(self, x: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers to pixels, kept inside the frame."""
        left, top, right, bottom = self.box
        across = left + (np.asarray(x, np.float64) - self.x[0]) / (self.x[1] - self.x[0]) * (
            right - left
        )
        if y is None:
            return across, across
        y = np.asarray(y, np.float64)
        y = np.log10(np.maximum(y, 1e-300)) if self.log else y
        up = bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)
        return across.clip(left, right), np.nan_to_num(up, nan=bottom).clip(top, bottom)

    def line(self, x: np.ndarray, y: np.ndarray, color: str, width: int = 2) -> None:
        across, up = self.px(x, y)
        self.draw.line(
            list(zip(across.tolist(), up.tolist(), strict=True)), color, width, joint="curve"
        )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between low and high."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 5), 10)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers between 10^low and 10^high: powers of ten, else 1, 2 and 5 times
    these, else as _ticks().
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    tens = range(first, last + 1, max(1, math.ceil((last - first) / 5)))
    fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
    fine = [value for value in fine if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return (
        [10.0**k for k in tens]
        if len(tens) > 1
        else fine
        if len(fine) > 1
        else _ticks(10**low, 10**high)
    )


def histogram_panel(
    values: Any, *, limits: tuple[float, float] = (-3, 3), bins: int = 60, gaussian: bool = False,
    xlabel: str = "value", size: tuple[int, int] = (260, 200),
) -> Image.Image:
    """Histogram of all numbers in `values` (share per unit, so that its area is 1) as a PIL image
    of `size` pixels.

    gaussian: draw the density of N(0, 1) over it. What lies outside `limits` is left out of the
    bars, not of the share.
    """
    numbers = _numbers(values).ravel()
    counts, edges = np.histogram(numbers, bins, limits)
    density = counts / max(numbers.size, 1) / (edges[1] - edges[0])
    # a round upper limit, so that the frame does not jump while a slider moves
    high = next((h for h in (0.6, 1.2, 2.5, 5, 10, 25) if density.max() <= h), float(density.max()))
    axes = _Axes(size, limits, (0, high), False, xlabel, "")
    left, up = axes.px(edges, np.append(density, 0))
    for i in range(bins):
        if counts[i]:
            axes.draw.rectangle(
                (left[i], up[i], max(left[i + 1] - 1, left[i]), axes.box[3]), COLORS[2]
            )
    if gaussian:
        x = np.linspace(*limits, 200)
        axes.line(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), COLORS[1])
    return axes.image


def curve_panel(
    curves: Mapping[str, Any], *, x: Any = None, marker: float | None = None, log: bool = False,
    xlabel: str = "t", ylabel: str = "", limits: tuple[float, float] | None = None,
    size: tuple[int, int] = (320, 200),
) -> Image.Image:
    """Lines {name: values (n,)} over x (n,) (None: 0 … n-1) as a PIL image, with a dot on each at x
    = `marker`.

    log: logarithmic values. limits: of the values, so that the frame keeps still while other things
    move. Raises ValueError for no curves, a curve without values, or log with limits that reach 0.
    """
    series = {name: _numbers(values) for name, values in curves.items()}
    if not series or min(map(len, series.values())) == 0:
        raise ValueError("curves must hold at least one name with at least one value")
    xs = {name: np.arange(len(v)) if x is None else _numbers(x) for name, v in series.items()}
    everything = np.concatenate(
        [v[np.isfinite(v) & ((v > 0) | (not log))] for v in series.values()]
    )
    if limits is None:
        limits = (
            (float(everything.min()), float(everything.max())) if everything.size else (0.1, 1.0)
        )
    ends = min(v[0] for v in xs.values()), max(v[-1] for v in xs.values())
    axes = _Axes(size, ends, limits, log, xlabel, ylabel)
    for i, (name, values) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        axes.line(xs[name], values, color)
        if marker is not None:
            (across,), (up,) = axes.px(np.array([marker]), np.interp([marker], xs[name], values))
            axes.draw.line((across, axes.box[1], across, axes.box[3]), INK)
            axes.draw.ellipse((across - 4, up - 4, across + 4, up + 4), color, INK)
    if len(series) > 1:
        widest = max(font(12).getlength(name) for name in series)
        corner = axes.box[2] - widest - 34, axes.box[1] + 5
        axes.draw.rectangle(
            (*corner, axes.box[2] - 5, corner[1] + 16 * len(series) + 2), PAPER, FAINT
        )
        for i, name in enumerate(series):
            row = corner[1] + 9 + 16 * i
            axes.draw.line((corner[0] + 4, row, corner[0] + 20, row), COLORS[i % len(COLORS)], 3)
            _write(axes.draw, (corner[0] + 24, row), name, 12, "lm")
    return axes.image


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
