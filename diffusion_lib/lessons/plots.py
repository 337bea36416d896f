"""Pictures for notebooks and files: shown with alternative text, saved as PNG, animated; curves
drawn with matplotlib.

matplotlib and IPython are imported where they are used; saving needs Pillow only. What counts as
images: see panels.py.
"""

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.pictures import FAINT, INK, image_grid, to_pictures
from .panels import COLORS, compose

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))  # lines stay apart in grey


# -- in a notebook ---------------------------------------------------------------------------------


def show(picture: "Image.Image | Figure | bytes", alt: str, caption: str | None = None) -> None:
    """Show a picture below the cell, with alternative text for who cannot see it and a caption
    under it.

    picture: a PIL image, a matplotlib figure or the bytes of a PNG. The plain form of the output is
    `alt`, the same on every machine, so that a notebook's test can compare it. Outside a notebook
    `alt` is printed. Raises ValueError if alt is empty.
    """
    if not alt.strip():
        raise ValueError(
            "alt must say in words what the picture shows; it is read aloud in its place"
        )
    if hasattr(picture, "savefig"):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=100)
        picture = buffer.getvalue()
    if isinstance(picture, Image.Image):
        # It is written into the notebook: small before quick. Noise does not compress, so a large
        # sheet gets the 256 colours that fit it best, a third of the bytes; pictures enlarged pixel
        # by pixel would be larger still as JPEG.
        if picture.width * picture.height > 60_000:
            picture = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        picture = buffer.getvalue()
    png = picture
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(f"[picture: {alt}]")
        return
    display({"image/png": png, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    if caption:
        # JupyterLab itself drops the alternative text of outputs; the label of this block is what
        # it reads aloud
        label, words = html.escape(alt), html.escape(caption)
        block = f'<div role="figure" aria-label="{label}"><em>{words}</em></div>'
        display({"text/html": block, "text/plain": caption}, raw=True)


def show_images(
    images: Any, titles: Sequence[str] | None = None, columns: int | None = None,
    caption: str | None = None, alt: str | None = None, scale: int | None = None,
) -> None:
    """Show images as a grid, or, with titles, side by side with a title above each (columns: how
    many a row).

    alt: alternative text, the caption or the titles if None. scale: screen pixels per picture
    pixel; None chooses.
    """
    pictures = to_pictures(images) if titles is None else list(images)
    words = alt or caption or (", ".join(titles) if titles else f"grid of {len(pictures)} pictures")
    if titles is None:
        columns = columns or min(8, int(np.ceil(np.sqrt(len(pictures)))))
        scale = scale or max(
            1, min(200 // pictures[0].height, 720 // (columns * pictures[0].width))
        )
        show(image_grid(pictures, columns, scale), words, caption)
        return
    columns = columns or len(pictures)
    if len(titles) != len(pictures):
        raise ValueError(f"{len(pictures)} images need as many titles, not {len(titles)}")
    starts = range(0, len(pictures), columns)
    rows = [compose(pictures[i : i + columns], titles[i : i + columns], scale) for i in starts]
    sheet = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white"
    )
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:i])))
    show(sheet, words, caption)


# -- curves ----------------------------------------------------------------------------------------


def use_style() -> None:
    """Set matplotlib to the one style of this series: legible at full size, apart for colour-blind
    eyes and in grey.
    """
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12,
            "legend.fontsize": 10, "axes.prop_cycle": mpl.cycler(color=COLORS, linestyle=DASHES),
            "lines.linewidth": 2, "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6,
            "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
            "figure.dpi": 100, "figure.facecolor": "white", "image.cmap": "cividis",
            "figure.constrained_layout.use": True,
        }
    )


def figure(
    columns: int = 1, rows: int = 1, *, width: float = 6.0, height: float = 3.6
) -> "tuple[Figure, Any]":
    """A figure in the style of this series and its axes: one, or an array as plt.subplots gives.
    Sizes in inches.

    It is not pyplot's, so nothing shows it twice and nothing has to close it: hand it to show().
    """
    from matplotlib.figure import Figure

    use_style()
    fig = Figure(figsize=(width, height))
    return fig, fig.subplots(rows, columns)


def plot_curves(
    curves: Mapping[str, Any], *, xlabel: str, ylabel: str, title: str = "", logx: bool = False,
    logy: bool = False, ax: "Axes | None" = None, width: float = 6.0, height: float = 3.6,
) -> "Figure":
    """Lines with a legend and labelled axes. curves: {name: values (n,)} or {name: (x (n,), values
    (n,))}.

    ax: axes to draw into (see figure()); None makes a new figure. Returns the figure, for
    show(figure, alt=...).
    """
    ax = figure(width=width, height=height)[1] if ax is None else ax
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


def plot_loss(
    losses: Sequence[float] | Mapping[str, Sequence[float]], *, smooth: int = 50, logy: bool = True,
) -> "Figure":
    """Loss over training steps, each point the mean of the last `smooth` steps. losses: one run, or
    {name: run}.
    """
    runs = losses if isinstance(losses, Mapping) else {"loss": losses}
    curves = {name: running_mean(values, smooth) for name, values in runs.items()}
    return plot_curves(
        curves, xlabel="training step", ylabel=f"loss (mean of {smooth} steps)", logy=logy
    )


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and the up to window - 1 before it, float64 (n,)."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    end = np.arange(1, len(total))
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
