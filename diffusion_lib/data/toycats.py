"""ToyCats: an endless, seeded set of drawn cats whose every attribute is known. No download.

A cat is a row of five labels (ATTRIBUTES), which are its caption, and a seed, which moves all else
a little (JITTERS). Parts are painted from back to front with the shapes of shapes.py, whose edges
are smooth, so a cat can be drawn at any size. Only +, -, *, /, square roots and comparisons make
pixels, so it is the same bytes in any batch. measuring/toyreader.py goes the other way.

Seeds to numbers: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
"""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .shapes import Canvas

Array = np.ndarray

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "fur": ("white", "black", "ginger", "grey", "brown"),
    "pattern": ("plain", "stripes", "patches"),
    "eyes": ("green", "blue", "amber"),
    "ears": ("pointed", "round", "folded"),
    "background": ("pink", "blue", "green", "yellow", "purple"),
}
# What the seed decides, from ... to: lengths in half picture widths, the tilt in radians.
JITTERS: dict[str, tuple[float, float]] = {
    "x": (-0.05, 0.05), "y": (-0.04, 0.04), "scale": (0.95, 1.05), "tilt": (-0.12, 0.12),
    "open": (0.8, 1.05), "pupil": (0.45, 0.8),
    "fur_shade": (-0.04, 0.04), "background_shade": (-0.04, 0.04),
    "side": (-1.0, 1.0),  # its sign: from where the light comes, and which eye has the patch
}


def _colours(rows: str) -> Array:
    return np.array([[*bytes.fromhex(row)] for row in rows.split()], dtype=np.float32) / 255


# One row for each value of the attribute; the first four tables after FUR go with the fur.
FUR = _colours("fcf8f2 44424c f59e4e a0a5b1 986846")
STRIPE = _colours("b2a8a4 848290 c86220 5e6270 583624")
PATCH = _colours("e29458 f4f0ec fff0de f6f6f8 eed6ba")
LINE = _colours("706060 1c1a22 86441a 464854 462c1e")
WHISKER = _colours("8c7c7a eceaf0 fff6ec fafafc faf0e4")
EYE = _colours("7acc4e 4aa4f0 ffc82c")
BACKGROUND = _colours("fab0c4 96ccf4 a4e0ac fce282 c4aaee")
PINK, DARK, WHITE = _colours("f0848e 28222a ffffff")
OUTLINE = 0.04  # width of the line around the cat


def render(attributes: Array, jitters: Array, size: int) -> Array:
    """Cats of given labels (B, 5) and jitters (B, 9), in the order of ATTRIBUTES and JITTERS:
    float32 (B, 3, size, size) in [0, 1]."""
    fur, pattern, eyes, ears, background = np.asarray(attributes).T
    jitters = np.asarray(jitters, dtype=np.float64)
    x0, y0, scale, tilt, opened, pupil, fur_shade, background_shade, side = jitters.T

    def column(values: Array) -> Array:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    # 1. Each pixel's centre in the cat's own frame: undo the shift, then the tilt, then the scale.
    centres = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    u, v = centres[None, None, :] - column(x0), centres[None, :, None] - column(y0)
    cos, sin = column(np.cos(tilt) / scale), column(np.sin(tilt) / scale)
    x, y = cos * u + sin * v, cos * v - sin * u                              # (B, size, size)

    # 2. Background: a pastel, a little lighter at the top.
    image = np.empty((len(fur), 3, size, size), dtype=np.float32)
    shade = np.asarray(background_shade, np.float32)[:, None]
    image[:] = (BACKGROUND[background] + shade)[:, :, None, None]
    image -= np.float32(0.04) * centres[:, None]

    # 3. The cat, from back to front.
    canvas = Canvas(image, x, y, column(2 / size / scale))
    coat = np.clip(FUR[fur] + np.asarray(fur_shade, np.float32)[:, None], 0, 1)          # (B, 3)
    marks = np.where((pattern == 1)[:, None], STRIPE[fur], PATCH[fur])
    striped, patched = column(pattern == 1), column(pattern == 2)
    side, opened, pupil = column(np.where(side < 0, -1, 1)), column(opened), column(pupil)
    _paint_body(canvas, coat, LINE[fur], marks, striped)
    _paint_head(canvas, coat, LINE[fur], marks, striped, patched, ears, side)
    _paint_face(canvas, coat, EYE[eyes], LINE[fur], WHISKER[fur], opened, pupil, side)
    return np.clip(image, 0, 1, out=image)


def _paint_body(canvas: Canvas, coat: Array, line: Array, marks: Array, striped: Array) -> None:
    low = canvas.rows(0.4, 3)
    body = low.ellipse(low.x, 0, 1.1, 0.58, 0.56)
    low.paint(low.cover(body - OUTLINE), line)
    inside = low.cover(body)
    low.paint(inside, coat)
    bars = np.minimum(low.stroke(low.side_x, (0.65, 0.80), (0.36, 0.86), 0.05, 0.02),
                      low.stroke(low.side_x, (0.70, 0.97), (0.38, 1.00), 0.05, 0.02))
    low.paint(low.cover(bars) * inside * striped, marks)
    belly = low.cover(low.ellipse(low.x, 0, 0.82, 0.25, 0.26)) * inside
    low.paint(belly * np.float32(0.6), coat * 0.3 + 0.7)
    shadow = low.cover(low.ellipse(low.x, 0, 0.20, 0.62, 0.52)) * inside  # the head's
    low.paint(shadow * np.float32(0.4), line)


def _paint_head(canvas: Canvas, coat: Array, line: Array, marks: Array, striped: Array,
                patched: Array, ears: Array, side: Array) -> None:
    x = canvas.side_x
    head = canvas.ellipse(canvas.x, 0, 0.09, 0.72, 0.56)
    # 1. Ears stand behind the head; the two are filled as one shape.
    pointed = canvas.leaf(x, (0.10, -0.42), (0.57, -0.88), (0.72, -0.10), 1.2, 0.06)
    ball = canvas.circle(x, 0.47, -0.46, 0.24)
    short = canvas.leaf(x, (0.10, -0.42), (0.66, -0.56), (0.72, -0.10), 0.6, 0.10)
    ear = np.choose(ears[:, None, None], (pointed, ball, short))
    ear = np.maximum(ear, canvas.y)  # the arcs of a leaf cross again far below
    shape = np.minimum(head, ear)
    canvas.paint(canvas.cover(shape - OUTLINE), line)
    inside = canvas.cover(shape)
    canvas.paint(inside, coat)
    pink = canvas.cover(ear + 0.09) * canvas.cover(-head) * (ears < 2)[:, None, None]
    canvas.paint(pink, PINK * 0.7 + coat * 0.3)

    # 2. Pattern, only where there is fur.
    bars = (canvas.stroke(x, (0.0, -0.50), (0.0, -0.20), 0.055, 0.03),
            canvas.stroke(x, (0.19, -0.48), (0.13, -0.24), 0.055, 0.03),
            canvas.stroke(x, (0.74, 0.12), (0.50, 0.14), 0.055, 0.02),
            canvas.stroke(x, (0.72, 0.32), (0.50, 0.30), 0.055, 0.02))
    on_head = canvas.cover(head)
    canvas.paint(canvas.cover(np.minimum.reduce(bars)) * on_head * striped, marks)
    spots = np.minimum(canvas.ellipse(canvas.x * side, 0.38, -0.16, 0.30, 0.42),
                       canvas.ellipse(canvas.x * side, -0.52, 0.46, 0.28, 0.24))
    canvas.paint(canvas.cover(spots) * on_head * patched, marks)

    # 3. The flap of a folded ear hangs in front.
    flap = canvas.leaf(x, (0.72, -0.46), (0.56, -0.12), (0.16, -0.46), 0.6, 0.06)
    flap = np.maximum(flap, -0.54 - canvas.y)
    folded = np.asarray(ears == 2, np.float32)[:, None, None]
    canvas.paint(canvas.cover(flap - OUTLINE) * inside * folded, line)
    canvas.paint(canvas.cover(flap) * folded, coat * 0.85 + PINK * 0.15)


def _paint_face(canvas: Canvas, coat: Array, eye: Array, line: Array, whisker: Array,
                opened: Array, pupil: Array, side: Array) -> None:
    face = canvas.rows(-0.2, 0.55)
    x, y = face.side_x, face.y
    # 1. Muzzle and blush.
    muzzle = face.cover(face.ellipse(x, 0.09, 0.36, 0.17, 0.14))
    face.paint(muzzle * np.float32(0.6), coat * 0.3 + 0.7)
    blush = np.clip(1 - ((x - 0.47) / 0.16) ** 2 - ((y - 0.30) / 0.10) ** 2, 0, 1)
    face.paint(blush * np.float32(0.8), PINK)

    # 2. Eyes: dark rim, iris that lightens downwards, pupil, two highlights.
    cx, cy = 0.30, 0.06
    rx, ry = np.asarray(0.165, np.float32), np.float32(0.185) * opened
    face.paint(face.cover(face.ellipse(x, cx, cy, rx + 0.035, ry + 0.035)), DARK)
    iris = face.cover(face.ellipse(x, cx, cy, rx, ry))
    face.paint(iris, eye)
    face.paint(iris * np.clip((y - cy) / ry, 0, 1) * np.float32(0.5), WHITE)
    face.paint(face.cover(face.ellipse(x, cx, cy, rx * pupil, ry * np.float32(0.85))), DARK)
    for centre in (-cx, cx):
        for towards_light, down, radius in ((0.06, -0.07, 0.05), (-0.06, 0.08, 0.025)):
            u, v = face.x - centre - towards_light * side, y - cy - down
            face.paint(face.cover(np.sqrt(u**2 + v**2) - radius), WHITE)

    # 3. Nose, mouth, whiskers.
    mouth = np.sqrt((x - 0.07) ** 2 + (y - 0.34) ** 2) - 0.07
    face.paint(face.thin(abs(mouth), 0.016) * face.cover(0.34 - y), line)
    nose = face.leaf(x, (0.075, 0.22), (0, 0.32), (-0.075, 0.22), 0.2, 0.02)
    face.paint(face.cover(np.maximum(nose, 0.235 - y)), PINK)
    for ay, by in ((0.27, 0.20), (0.35, 0.36)):
        face.paint(face.thin(face.stroke(x, (0.56, ay), (0.94, by), 0, 0), 0.013), whisker)


def _uniform(seeds: Array, count: int) -> Array:
    """Numbers in [0, 1), float64 (n, count), from integer seeds (n,), the same on every machine."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        steps = np.arange(1, count + 1, dtype=np.uint64) * golden
        z = (seeds.astype(np.uint64) * np.uint64(0xD1342543DE82EF95))[:, None] + steps
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


def make_cats(attributes: Tensor | Array, seeds: Iterable[int], size: int = 32) -> Tensor:
    """One cat for each row of labels and each seed: uint8 (n, 3, size, size).

    attributes: integers (n, 5) in the order of ATTRIBUTES; seeds: n integers, for everything else.
    Raises ValueError for a size outside 16 ... 256, unknown labels, or another number of seeds.
    """
    size, labels = check_whole("size", size, 16, 256), np.atleast_2d(np.asarray(attributes))
    keys = np.array([int(s) % 2**64 for s in seeds], dtype=np.uint64)
    check_labels(labels, len(keys))
    low, high = np.array(list(JITTERS.values())).T
    pictures = np.empty((len(labels), 3, size, size), dtype=np.uint8)
    for start in range(0, len(labels), 256):  # bounded memory, and it stays in the cache
        part = slice(start, start + 256)
        jitters = low + (high - low) * _uniform(keys[part], len(JITTERS))
        pictures[part] = np.uint8(render(labels[part], jitters, size) * 255 + 0.5)
    return torch.from_numpy(pictures)


def check_labels(labels: Array, seeds: int) -> None:
    """Raises ValueError for labels that name no drawing."""
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"attributes are integer labels, not {labels.dtype}")
    if seeds != len(labels) or labels.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"attributes must be (n, {len(ATTRIBUTES)}) with one seed a row, "
                         f"not {labels.shape} with {seeds} seeds")
    for column, (name, values) in zip(labels.T, ATTRIBUTES.items(), strict=True):
        if len(column) and not 0 <= column.min() <= column.max() < len(values):
            raise ValueError(f"{name} is a label in 0 ... {len(values) - 1} ({', '.join(values)}), "
                             f"not {column.tolist()[:5]}")


def check_whole(name: str, value: int, low: float = -inf, high: float = inf) -> int:
    """value as an int; ValueError unless it is a whole number from low to high."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        limits = f" from {low} to {high}" if high < inf else ", at least 1" if low == 1 else ""
        raise ValueError(f"{name} must be a whole number{limits}, not {value!r}")
    return int(value)


def caption(attributes: Tensor | Sequence[int]) -> str:
    """A row of labels in words: "a white cat with stripes, green eyes and round ears on blue".

    A label of -1 is not spoken of: "a white cat with round ears". Nor is a plain coat.
    """
    fur, pattern, eyes, ears, background = (
        values[int(i)] if i >= 0 else "" for values, i in
        zip(ATTRIBUTES.values(), attributes, strict=True))
    told = [pattern if pattern != "plain" else "", f"{eyes} eyes" if eyes else "",
            f"{ears} ears" if ears else ""]
    *first, last = [each for each in told if each] or [""]
    having = f" with {', '.join(first)}{' and ' if first else ''}{last}" if last else ""
    return f"a{' ' if fur else ''}{fur} cat{having}{' on ' if background else ''}{background}"


class ToyCats:
    """`n` drawn cats out of an endless, seeded supply.

    size: 16 to 256 pixels. n: how many. seed: which; cat i of a seed is the same at any n and size.
    exclude: {"fur": "white", "pattern": "stripes"}, say: no cat then has all of these at once; or a
    list of such, none of which any cat then has.
    `images` uint8 (n, 3, size, size) is drawn when first used; `attributes` int64 (n, 5);
    `captions` n texts. Raises ValueError for n < 1, an impossible size, or an unknown exclude.
    """

    name = "toycats"

    def __init__(self, size: int = 32, n: int = 10_000, seed: int = 0,
                 exclude: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None) -> None:
        self.size, n = check_whole("size", size, 16, 256), check_whole("n", n, 1)
        self.seed = seed = check_whole("seed", seed)
        given: Any = exclude or [] if isinstance(exclude, (list, tuple)) else [exclude or {}]
        self.exclude = check_exclude([each for each in given if each])
        labels: list[Array] = []
        seeds: list[Array] = []
        start = 0
        while sum(len(each) for each in seeds) < n:
            first = np.uint64(seed * 1_000_003_000_001 % 2**64)
            number = np.arange(start, start + n, dtype=np.uint64) + first
            counts = [len(values) for values in ATTRIBUTES.values()]
            rows = (_uniform(~number, len(counts)) * counts).astype(np.int64)
            hit = np.zeros(n, dtype=bool)
            for wanted in self.exclude:
                hit |= np.all([rows[:, list(ATTRIBUTES).index(key)] == ATTRIBUTES[key].index(value)
                               for key, value in wanted.items()], axis=0)
            labels, seeds, start = [*labels, rows[~hit]], [*seeds, number[~hit]], start + n
        self.attributes = torch.from_numpy(np.concatenate(labels)[:n])
        self.seeds = np.concatenate(seeds)[:n]

    def __len__(self) -> int:
        return len(self.seeds)

    @cached_property
    def images(self) -> Tensor:
        """uint8 (n, 3, size, size)."""
        return make_cats(self.attributes, self.seeds, self.size)

    @property
    def captions(self) -> list[str]:
        return [caption(row) for row in self.attributes.tolist()]


def check_exclude(exclude: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The exclusions as dictionaries. Raises ValueError where one names no drawing, and where
    together they leave none.
    """
    for each in exclude:
        if not isinstance(each, Mapping):
            raise ValueError("exclude is a dictionary such as {'fur': 'white', 'pattern': "
                             f"'stripes'}}, or a list of them, not {exclude!r}")
        for key, value in each.items():
            if value not in ATTRIBUTES.get(key, ()):
                known = ", ".join(ATTRIBUTES.get(key, ATTRIBUTES))
                raise ValueError(f"cannot exclude {key}={value!r}: known are {known}")
    for row in product(*ATTRIBUTES.values()):
        cat = dict(zip(ATTRIBUTES, row, strict=True))
        if not any(each.items() <= cat.items() for each in exclude):
            return [dict(each) for each in exclude]
    raise ValueError("these exclusions leave no cat to draw; take one away")
