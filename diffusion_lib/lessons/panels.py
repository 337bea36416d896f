"""Pictures put together with Pillow alone: panels side by side, and plots quick enough for sliders.

What counts as images: see data/pictures.py.
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


@lru_cache
def font(size: int = 14) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which has ᾱ and ε, from matplotlib's files if it is there; else Pillow's own."""
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _write(pen: ImageDraw.ImageDraw, at: tuple, text: str, size: int, anchor: str) -> None:
    text = unicodedata.normalize("NFC", text)  # α + macron becomes one letter
    pen.text(at, text, INK, font(size), anchor)


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
    if not panels:
        raise ValueError("there are no panels to show: give at least one")
    pictures = [_enlarged(panel, scale).convert("RGB") for panel in panels]
    lines = [str(title).split("\n") for title in titles or [""] * len(panels)]
    widths = [max(p.width, *(math.ceil(font(14).getlength(line)) for line in words)) + 12
              for p, words in zip(pictures, lines, strict=True)]
    top = 28 if caption else 6
    below = top + (19 * max(map(len, lines)) + 4 if titles else 0)
    wide = math.ceil(font(15).getlength(caption)) + 16 if caption else 0
    size = max(sum(widths), wide), below + max(p.height for p in pictures) + 6
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (8, 14), caption or "", 15, "lm")
    left = 0
    for picture, words, width in zip(pictures, lines, widths, strict=True):
        for row, line in enumerate(words):
            _write(pen, (left + width / 2, top + 9 + 19 * row), line, 14, "mm")
        sheet.paste(picture, (left + (width - picture.width) // 2, below))
        left += width
    return sheet


def stack_rows(rows: Sequence[Any], labels: Sequence[str], scale: int | None = None) -> Image.Image:
    """Panels below each other, what each is called to its left, as one picture.

    rows, scale: as `compose` takes panels. labels: a line, or several with line breaks. Raises
    ValueError if rows and labels differ in number, and for none.
    """
    if len(rows) != len(labels) or not rows:
        raise ValueError(f"{len(rows)} rows need as many labels (and one at least), "
                         f"not {len(labels)}")
    pictures = [_enlarged(row, scale).convert("RGB") for row in rows]
    lines = [label.split("\n") for label in labels]
    left = math.ceil(max(font(14).getlength(line) for words in lines for line in words)) + 20
    heights = [max(picture.height, 19 * len(words)) + 6
               for picture, words in zip(pictures, lines, strict=True)]
    size = left + max(picture.width for picture in pictures) + 6, sum(heights) + 6
    sheet, top = Image.new("RGB", size, PAPER), 6
    pen = ImageDraw.Draw(sheet)
    for picture, words, height in zip(pictures, lines, heights, strict=True):
        middle = top + (height - 6) / 2 - 9.5 * (len(words) - 1)
        for i, line in enumerate(words):
            _write(pen, (left - 10, middle + 19 * i), line, 14, "rm")
        sheet.paste(picture, (left, top))
        top += height
    return sheet


def _enlarged(panel: Any, scale: int | None) -> Image.Image:
    if isinstance(panel, Image.Image):
        return panel
    pieces = to_pictures(panel)
    grid = pieces[0] if len(pieces) == 1 else image_grid(pieces)
    factor = scale or max(1, round(200 / grid.height))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


# -- small plots -----------------------------------------------------------------------------------


def histogram_panel(
    values: Any, *, limits: tuple[float, float] = (-3, 3), bins: int = 60, gaussian: bool = False,
    xlabel: str = "value", size: tuple[int, int] = (260, 200),
) -> Image.Image:
    """Histogram of all numbers in `values` (share per unit, its area is 1), a picture of `size`.

    gaussian: draw the density of N(0, 1) over it. What lies outside `limits` is left out of the
    bars, not of the share.
    """
    numbers = _numbers(values).ravel()
    counts, edges = np.histogram(numbers, bins, limits)
    density = counts / max(numbers.size, 1) / (edges[1] - edges[0])
    # a round upper limit, so that the frame does not jump while a slider moves
    rounds = (0.6, 1.2, 2.5, 5, 10, 25, float(density.max()))
    axes = _Axes(size, limits, (0, next(h for h in rounds if density.max() <= h)), False, xlabel)
    left, up = axes.px(edges, np.append(density, 0))
    for i in np.flatnonzero(counts):
        axes.pen.rectangle((left[i], up[i], max(left[i + 1] - 1, left[i]), axes.box[3]), COLORS[2])
    if gaussian:
        x = np.linspace(*limits, 200)
        axes.line(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), COLORS[1])
    return axes.image


def curve_panel(
    curves: Mapping[str, Any], *, x: Any = None, marker: float | None = None, log: bool = False,
    xlabel: str = "t", ylabel: str = "", limits: tuple[float, float] | None = None,
    size: tuple[int, int] = (320, 200),
) -> Image.Image:
    """Lines {name: values (n,)} over x (n,) (None: 0 … n-1), with a dot on each at x = `marker`.

    log: logarithmic values. limits: of the values, so that the frame keeps still while other things
    move. Raises ValueError for no curves, a curve without values, or log with limits that reach 0.
    """
    series = {name: _numbers(values) for name, values in curves.items()}
    if not series or min(map(len, series.values())) == 0:
        raise ValueError("curves must hold at least one name with at least one value")
    xs = {name: np.arange(len(v)) if x is None else _numbers(x) for name, v in series.items()}
    shown = np.concatenate([v[np.isfinite(v) & ((v > 0) | (not log))] for v in series.values()])
    if limits is None:
        limits = (float(shown.min()), float(shown.max())) if shown.size else (0.1, 1.0)
    ends = min(v[0] for v in xs.values()), max(v[-1] for v in xs.values())
    axes = _Axes(size, ends, limits, log, xlabel, ylabel)
    for (name, values), color in zip(series.items(), COLORS * len(series), strict=False):
        axes.line(xs[name], values, color)
        if marker is not None:
            (across,), (up,) = axes.px([marker], np.interp([marker], xs[name], values))
            axes.pen.line((across, axes.box[1], across, axes.box[3]), INK)
            axes.pen.ellipse((across - 4, up - 4, across + 4, up + 4), color, INK)
    if 1 < len(series) <= len(COLORS):  # more lines than colours are a bundle, without names
        axes.legend(list(series))
    return axes.image


def plane_panel(
    points: Any = None, *, at: Any = None, arrows: Any = None, paths: Any = None,
    limits: tuple[float, float] = (-2, 2), longest: float = 0.3, size: tuple[int, int] = (270, 270),
) -> Image.Image:
    """Points, arrows and paths in a plane, both axes from limits[0] to limits[1]; of `size`.

    points: (N, 2), small dots. arrows: (M, 2), each drawn from its place in `at` (M, 2), in the
    plane's own units, but none longer than `longest`. paths: (steps, K, 2), K lines, each with a
    large dot where it has come to. What leaves the frame ends at its edge. Raises ValueError for
    other shapes, arrows without places, and nothing to draw.
    """
    if points is None and arrows is None and paths is None:
        raise ValueError("there is nothing to draw: give points, arrows or paths")
    axes = _Axes(size, limits, limits, False)
    for x, y in _plane("points", points, 2):
        across, up = axes.pixel(x, y)
        axes.pen.ellipse((across - 1, up - 1, across + 1, up + 1), COLORS[2])
    arrows, at = _plane("arrows", arrows, 2), _plane("at", at, 2)
    if len(arrows) != len(at):
        raise ValueError(f"{len(arrows)} arrows need as many places `at`, not {len(at)}")
    lengths = np.maximum(np.linalg.norm(arrows, axis=-1, keepdims=True), 1e-12)
    for start, arrow in zip(at, arrows * np.minimum(1, longest / lengths), strict=True):
        _arrow(axes, start, arrow)
    ways = _plane("paths", paths, 3)
    for way in ways.swapaxes(0, 1) if len(ways) else ():
        axes.pen.line([axes.pixel(x, y) for x, y in way], COLORS[0], 1)
        across, up = axes.pixel(*way[-1])
        axes.pen.ellipse((across - 3, up - 3, across + 3, up + 3), COLORS[1], INK)
    return axes.image


def _plane(name: str, values: Any, dimensions: int) -> np.ndarray:
    """Places in a plane as an array (…, 2), empty for None. Raises ValueError for another shape."""
    if values is None:
        return np.empty((0, 2))
    array = _numbers(values)
    if array.ndim != dimensions or array.shape[-1] != 2 or array.size == 0:
        wanted = "(N, 2)" if dimensions == 2 else "(steps, K, 2)"
        raise ValueError(f"{name} must be {wanted}, not {array.shape}")
    return array


def _arrow(axes: "_Axes", start: np.ndarray, arrow: np.ndarray) -> None:
    """A line with a head of two strokes; a dot where it is shorter than two pixels."""
    tail, tip = np.array(axes.pixel(*start)), np.array(axes.pixel(*(start + arrow)))
    along = tip - tail
    length = np.linalg.norm(along)
    if length < 2:
        axes.pen.point(tuple(tail), INK)
        return
    axes.pen.line([*tail, *tip], INK, 1)
    back, side = -along / length, np.array([along[1], -along[0]]) / length
    for stroke in (back + 0.6 * side, back - 0.6 * side):
        axes.pen.line([*tip, *(tip + min(4, length / 2) * stroke)], INK, 1)


class _Axes:
    """A frame with ticks that maps numbers to pixels. By hand, because matplotlib is too slow here:
    tests/benchmarks/slider_latency.py has the numbers.
    """

    def __init__(
        self, size: tuple[int, int], x: tuple[float, float], y: tuple[float, float], log: bool,
        xlabel: str = "", ylabel: str = "",
    ) -> None:
        if log and y[0] <= 0:
            raise ValueError(f"a logarithmic axis needs limits above 0, not {y}")
        self.image, self.log = Image.new("RGB", size, PAPER), log
        self.pen = ImageDraw.Draw(self.image)
        low, high = (math.log10(y[0]), math.log10(y[1])) if log else y
        self.x = x[0], x[1] if x[1] > x[0] else x[0] + 1
        self.y = low, high if high > low else low + 1
        self.box = left, top, right, bottom = (
            56 if ylabel or log else 42, 8 + 16 * bool(ylabel),
            size[0] - 18, size[1] - 24 - 16 * bool(xlabel),
        )
        for tick in _ticks(*self.x):
            at = self.px([tick], [1])[0][0]
            self.pen.line((at, top, at, bottom), FAINT)
            _write(self.pen, (at, bottom + 4), f"{tick:.6g}", 12, "mt")
        for tick in _log_ticks(*self.y) if log else _ticks(*self.y):
            at = self.px([0], [tick])[1][0]
            self.pen.line((left, at, right, at), FAINT)
            _write(self.pen, (left - 5, at), f"{tick:.6g}", 12, "rm")
        self.pen.rectangle(self.box, outline=INK)
        _write(self.pen, ((left + right) / 2, size[1] - 3), xlabel, 13, "mb")
        _write(self.pen, (4, 3), ylabel, 13, "lt")

    def px(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n,) to pixels, kept inside the frame."""
        left, top, right, bottom = self.box
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        y = np.log10(np.maximum(y, 1e-300)) if self.log else y
        across = left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)
        up = bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)
        return across.clip(left, right), np.nan_to_num(up, nan=bottom).clip(top, bottom)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """One place as a pixel."""
        (across,), (up,) = self.px([x], [y])
        return float(across), float(up)

    def line(self, x: np.ndarray, y: np.ndarray, color: str) -> None:
        across, up = self.px(x, y)
        points = list(zip(across.tolist(), up.tolist(), strict=True))
        self.pen.line(points, color, 2, joint="curve")

    def legend(self, names: Sequence[str]) -> None:
        left = self.box[2] - max(font(12).getlength(name) for name in names) - 34
        top = self.box[1] + 5
        frame = (left, top, self.box[2] - 5, top + 16 * len(names) + 2)
        self.pen.rectangle(frame, PAPER, FAINT)
        for i, name in enumerate(names):
            row, color = top + 9 + 16 * i, COLORS[i % len(COLORS)]
            self.pen.line((left + 4, row, left + 20, row), color, 3)
            _write(self.pen, (left + 24, row), name, 12, "lm")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between low and high."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 5), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers between 10^low and 10^high: powers of ten, else 1, 2 and 5 times
    these, else as _ticks().
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    tens = range(first, last + 1, max(1, math.ceil((last - first) / 5)))
    fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
    fine = [value for value in fine if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    if len(tens) > 1:
        return [10.0**k for k in tens]
    return fine if len(fine) > 1 else _ticks(10**low, 10**high)


def _numbers(values: Any) -> np.ndarray:
    values = values.detach().cpu() if isinstance(values, Tensor) else values
    return np.asarray(values, np.float64)
