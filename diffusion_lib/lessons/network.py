"""The network of notebook 03, drawn: its plan as a U, and the channels that a stage makes.

The plan is that of the shipped `toycats32`: 32 pixels folded to 16, three levels, 24 and 48
channels.
"""

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..core.unet import UNet
from ..data.pictures import INK, PAPER, image_grid
from .panels import COLORS, font

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name -> (column, row, channels, height and width); columns: 0 left, 1 middle, 2 right
PLAN = {
    "folded": (0, 0, 12, 16), "conv_in": (0, 1, 24, 16), "down 1": (0, 2, 24, 16),
    "halve 1": (0, 4, 24, 8), "down 2": (0, 5, 48, 8), "halve 2": (0, 7, 48, 4),
    "down 3": (0, 8, 48, 4), "middle": (1, 9, 48, 4), "up 3a": (2, 8, 48, 4),
    "up 3b": (2, 7, 48, 4), "double 2": (2, 6, 48, 8), "up 2a": (2, 5, 48, 8),
    "up 2b": (2, 4, 48, 8), "double 1": (2, 3, 48, 16), "up 1a": (2, 2, 24, 16),
    "up 1b": (2, 1, 24, 16), "conv_out": (2, 0, 12, 16),
}
SKIPS = {
    "conv_in": "up 1b", "down 1": "up 1a", "halve 1": "up 2b", "down 2": "up 2a",
    "halve 2": "up 3b", "down 3": "up 3a",
}
WITH_ATTENTION = ("down 2", "down 3", "middle", "up 3a", "up 3b", "up 2a", "up 2b")
GREY = "#555555"


def unet_plan(here: str | None = None, zoom: float = 1.0) -> Image.Image:
    """The network as a U, with channels × height × width of every stage.

    here: the stage drawn dark (None: none). Dashed: skips. Double frame: attention behind the
    block. Arrows marked t: stages that are told the time. Raises ValueError for an unknown stage.
    """
    if here is not None and here not in PLAN:
        raise ValueError(f"there is no stage {here!r}; there are {', '.join(PLAN)}")
    middle = {name: (zoom * (94 + 96 * column), zoom * (18 + 35 * row))
              for name, (column, row, _, _) in PLAN.items()}
    sheet = Image.new("RGB", (round(380 * zoom), round(372 * zoom)), PAPER)
    pen, names = ImageDraw.Draw(sheet), list(PLAN)
    for before, after in zip(names, names[1:], strict=False):
        pen.line((middle[before], middle[after]), GREY, round(2 * zoom))
    for kept, joined in SKIPS.items():
        (left, y), (right, _) = middle[kept], middle[joined]
        for dash in range(round(left), round(right), round(10 * zoom)):
            pen.line((dash, y, dash + 5 * zoom, y), GREY, round(zoom))
    for name, (column, _, channels, side) in PLAN.items():
        (x, y), half = middle[name], zoom * {16: 70, 8: 62, 4: 56}[side]
        box = (x - half, y - 13 * zoom, x + half, y + 13 * zoom)
        pen.rectangle(box, INK if name == here else PAPER, INK)
        if name in WITH_ATTENTION:
            pen.rectangle((box[0] + 3, box[1] + 3, box[2] - 3, box[3] - 3), None, "#777777")
        words = f"{name}  {channels}×{side}×{side}"
        pen.text((x, y), words, PAPER if name == here else INK, font(round(11 * zoom)), "mm")
        if name.startswith(("down", "up", "middle")):
            edge = {0: (box[0], y, -1, 0), 1: (x, box[3], 0, 1), 2: (box[2], y, 1, 0)}[column]
            _arrow(pen, *edge, zoom)
    return sheet


def _arrow(pen: ImageDraw.ImageDraw, x: float, y: float, dx: int, dy: int, zoom: float) -> None:
    """An arrow with a t at its tail, that ends at (x, y) and comes from the direction (dx, dy)."""
    ink, long, head = COLORS[1], 11 * zoom, 4 * zoom
    pen.line((x + dx * long, y + dy * long, x, y), ink, round(2 * zoom))
    pen.polygon([(x, y), (x + dx * head + dy * head, y + dy * head + dx * head),
                 (x + dx * head - dy * head, y + dy * head - dx * head)], ink)
    pen.text((x + dx * (long + 5 * zoom), y + dy * (long + 5 * zoom)), "t", ink,
             font(round(11 * zoom)), "mm")


def unet_stages(model: UNet) -> dict[str, nn.Module]:
    """The plan's stages of a network like `toycats32`, in order: name -> the module whose output
    it is. ("folded" is no module and not among them.)
    """
    down, up = model.down_blocks, model.up_blocks
    return {
        "conv_in": model.conv_in,
        "down 1": down[0].attentions[0], "halve 1": down[0].downsamplers[0],
        "down 2": down[1].attentions[0], "halve 2": down[1].downsamplers[0],
        "down 3": down[2].attentions[0], "middle": model.mid_block.resnets[1],
        "up 3a": up[0].attentions[0], "up 3b": up[0].attentions[1],
        "double 2": up[0].upsamplers[0],
        "up 2a": up[1].attentions[0], "up 2b": up[1].attentions[1],
        "double 1": up[1].upsamplers[0],
        "up 1a": up[2].attentions[0], "up 1b": up[2].attentions[1], "conv_out": model.conv_out,
    }


def channel_grid(features: Tensor) -> tuple[Image.Image, str]:
    """All channels (c, H, W) as small grey pictures on one scale: black -m, mid-grey 0, white m.

    Returns their grid and a title that says m, which 1 % of the numbers exceed. c: 12, 24 or 48.
    """
    c, height, width = features.shape
    shapes = {12: (4, 6), 24: (6, 4), 48: (8, 3)}
    if c not in shapes:
        raise ValueError(f"features have {c} channels; the plan knows only 12, 24, 48")
    m = features.abs().flatten().quantile(0.99)
    columns, scale = shapes[c]
    grey = (features / m).clamp(-1, 1)[:, None]
    title = f"{c} channels of {height} × {width}, white = {m:.2g}, black = -{m:.2g}"
    return image_grid(grey, columns, scale * 16 // height), title


def few_colours(picture: "Image.Image | Figure", colours: int = 64, format: str = "png") -> bytes:
    """A picture or matplotlib figure as a small file: PNG or lossless WebP of so many colours."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=100)
        picture, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
    # kmeans: without it small things lose their colour, green eyes for example
    picture.quantize(colours, kmeans=3).save(buffer, format, optimize=True, lossless=True)
    return buffer.getvalue()
