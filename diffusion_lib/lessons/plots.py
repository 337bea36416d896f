"""Pictures in notebooks: shown with alternative text; curves drawn with matplotlib.

matplotlib and IPython are imported where they are used. What counts as images: data/pictures.py.
"""

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.pictures import FAINT, INK, image_grid, to_pictures
from .panels import COLORS, _numbers, compose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sliders import FrameSlider

DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))  # lines stay apart in grey


# -- in a notebook ---------------------------------------------------------------------------------


def show(picture: "Image.Image | Figure | bytes", alt: str, caption: str | None = None) -> None:
    """Show a picture below the cell, with alternative text and a caption under it.

    picture: a PIL image, a matplotlib figure or the bytes of a PNG. The plain form of the output is
    `alt`, the same on every machine, so that a notebook's test can compare it. Outside a notebook
    `alt` is printed. Raises ValueError if alt is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say in words what the picture shows; it is read aloud instead")
    png = picture if isinstance(picture, bytes) else _png(picture)
    if not _in_ipython():
        print(f"[picture: {alt}]")
        return
    from IPython.display import display

    metadata = {"image/png": {"alt": alt}}
    display({"image/png": png, "text/plain": alt}, raw=True, metadata=metadata)
    if caption:
        # JupyterLab drops the alternative text of outputs; this block's label is what it reads out
        label, words = html.escape(alt), html.escape(caption)
        block = f'<div role="figure" aria-label="{label}"><em>{words}</em></div>'
        display({"text/html": block, "text/plain": caption}, raw=True)


def _in_ipython() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None


def _png(picture: "Image.Image | Figure") -> bytes:
    """Small before quick, for it is written into the notebook."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=100)
        picture, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
    # Noise does not compress: a large sheet gets the 256 colours that fit it best, a third of the
    # bytes; pictures enlarged pixel by pixel would be larger still as JPEG.
    if picture.width * picture.height > 60_000:
        picture = picture.convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE)
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def show_images(
    images: Any, titles: Sequence[str] | None = None, columns: int | None = None,
    caption: str | None = None, alt: str | None = None, scale: int | None = None,
) -> None:
    """Show images as a grid, or, with titles, side by side with a title above each.

    columns: how many a row. alt: alternative text, the caption or the titles if None. scale: screen
    pixels per picture pixel; None chooses.
    """
    pictures = to_pictures(images) if titles is None else list(images)
    titled = ", ".join(titles) if titles else f"grid of {len(pictures)} pictures"
    words = alt or caption or titled
    if titles is None:
        columns = columns or min(8, math.ceil(math.sqrt(len(pictures))))
        width, height = pictures[0].size
        scale = scale or max(1, min(200 // height, 720 // (columns * width)))
        show(image_grid(pictures, columns, scale), words, caption)
        return
    columns = columns or len(pictures)
    if len(titles) != len(pictures):
        raise ValueError(f"{len(pictures)} images need as many titles, not {len(titles)}")
    starts = range(0, len(pictures), columns)
    rows = [compose(pictures[i : i + columns], titles[i : i + columns], scale) for i in starts]
    size = max(row.width for row in rows), sum(row.height for row in rows)
    sheet = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:i])))
    show(sheet, words, caption)


def show_strip(
    slider: "FrameSlider", values: Sequence[Any], *, columns: int = 1, width: int | None = None,
    caption: str | None = None, alt: str,
) -> None:
    """Some frames of a slider below each other, for paper and where widgets do not render.

    values: which, of the slider's own. columns: how many a row. width: of each frame in pixels
    (None: as in the slider). Raises ValueError for no values, or one that the slider does not have.
    """
    if not len(values) or any(value not in slider.values for value in values):
        raise ValueError(f"values must be some of the slider's own, {slider.values[0]!r} … "
                         f"{slider.values[-1]!r}, not {list(values)!r}")
    frames = [Image.open(io.BytesIO(slider.frames[slider.values.index(value)])).convert("RGB")
              for value in values]
    if width is not None:
        frames = [f.resize((width, round(f.height * width / f.width)), Image.Resampling.LANCZOS)
                  for f in frames]
    wide, high = max(f.width for f in frames), max(f.height for f in frames)
    sheet = Image.new("RGB", (wide * columns, high * math.ceil(len(frames) / columns)), "white")
    for i, frame in enumerate(frames):
        sheet.paste(frame, (wide * (i % columns), high * (i // columns)))
    show(sheet, alt, caption)


# -- curves ----------------------------------------------------------------------------------------


def figure(
    columns: int = 1, rows: int = 1, *, width: float = 6.0, height: float = 3.6,
) -> "tuple[Figure, Any]":
    """A figure in the series' style (legible, apart for colour-blind eyes and in grey) and its
    axes: one, or an array as plt.subplots. In inches.

    It is not pyplot's, so nothing shows it twice and nothing has to close it: hand it to show().
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "legend.fontsize": 10,
        "axes.prop_cycle": cycler(color=COLORS, linestyle=DASHES), "lines.linewidth": 2,
        "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.edgecolor": INK,
        "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100,
        "figure.facecolor": "white", "image.cmap": "cividis", "figure.constrained_layout.use": True,
    })
    fig = Figure(figsize=(width, height))
    return fig, fig.subplots(rows, columns)


def plot_curves(
    curves: Mapping[str, Any], *, xlabel: str, ylabel: str, title: str = "", logx: bool = False,
    logy: bool = False, ax: Any = None, width: float = 6.0, height: float = 3.6,
) -> "Figure":
    """Lines with a legend and labelled axes; returns the figure, for show(figure, alt=...).

    curves: {name: values (n,)} or {name: (x (n,), values (n,))}. ax: axes to draw into (see
    figure()); None makes a new figure.
    """
    ax = ax or figure(width=width, height=height)[1]
    for name, values in curves.items():
        x, y = values if isinstance(values, tuple) else (np.arange(len(values)), values)
        ax.plot(_numbers(x), _numbers(y), label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    if len(curves) > 1:
        ax.legend()
    return ax.figure


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and the up to window - 1 before it, float64 (n,)."""
    padded = np.concatenate([np.zeros(window), values])
    sums = np.convolve(padded, np.ones(window), "valid")[1:]
    return sums / np.minimum(np.arange(1, len(sums) + 1), window)
