"""The way back from a picture to a ToyCat's attributes, by drawing: the labels whose drawing fits the picture best.

No weights, nothing trained.
1. Every combination of labels, drawn small and in the middle pose, is compared with the picture; for each kind of ear
   the best one stays.
2. Their poses are moved until they fit (Gauss-Newton on the jitters), and the best of them goes on.
3. Each attribute is tried anew in that pose; pose and attributes once more, small; then once more, full size.
4. What is found is a cat if all of this holds:
   - nowhere in the picture is much left over between it and the drawing (LEFT_OVER), least of all in colour (COLOUR);
   - the drawing's edges are in the picture, on the whole (DETAIL) and everywhere (DETAIL_WORST): a blur has lost them,
     a mean of cats has them at half strength, noise and photographs never had them;
   - no attribute lies halfway between two of its values (CLEAR), nor does one half of the picture speak for another
     value than the rest (CLEAR_HALF), as it would with two eyes of different colours.
"""

import functools
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.toycats import ATTRIBUTES, JITTERS, render

SIZE, SMALL = 32, 16  # larger pictures are brought to SIZE; the search starts at SMALL, where it goes less often astray
# What a cat needs. tests/benchmarks/toycats_reader.py prints how many of each kind of picture pass. The numbers lie between
# drawings with some noise and good samples of toycats32 on one side, and means of two cats, patched-up cats and blurs on the
# other. Eyes and pattern are small: a faint texture, as samples have, blurs what they say, so CLEAR asks for nothing there.
LEFT_OVER, COLOUR = 0.6, 0.18  # at most
DETAIL, DETAIL_WORST = 0.65, 0.3  # at least; 1 is what the drawing has
CLEAR = {"fur": 0.2, "pattern": 0.0, "eyes": 0.0, "ears": 0.35, "background": 0.12}  # at least; 1: just so, 0: halfway
CLEAR_HALF = -0.3
PART = 16  # pictures read at a time: enough to share the work of each step, few enough to stay in the cache
FLAT = 0.05  # variance that counts as little: keeps faint noise on a plain background from weighing much
FAINT = 0.002  # the same for detail: no edges are asked for where the drawing has none
LOW, HIGH = np.array(list(JITTERS.values())).T
SIDE = list(JITTERS).index("side")
POSE = [i for i in range(len(JITTERS)) if i != SIDE]  # the jitters that can be moved little by little
MIDDLE = (LOW + HIGH) / 2
NAMES = list(ATTRIBUTES)
EARS = NAMES.index("ears")


class Reading(NamedTuple):
    """What the reader saw in n pictures."""

    is_cat: Tensor  # bool (n,): a whole drawn cat
    attributes: Tensor  # int64 (n, 5), in the order of ATTRIBUTES; meaningless where is_cat is false
    distance: Tensor  # float32 (n,): left-over of the worst block, as a share of what is drawn there
    clear: Tensor  # float32 (n, 5): how clear each attribute is: 1 just this value, 0 halfway to another one


def read_attributes(images: Tensor) -> Reading:
    """Read the attributes of drawn cats.

    images: (n, 3, H, W), uint8 or floats in [-1, 1], square, 16 pixels or more. About 20 ms a picture on one core.
    Raises ValueError for another shape or type, and for NaN.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the reader takes pictures (n, 3, H, W), not {found}")
    if images.shape[2] != images.shape[3] or images.shape[2] < SMALL:
        raise ValueError(f"the reader takes square pictures of {SMALL} pixels or more, not {tuple(images.shape[2:])}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"the reader takes uint8 or float pictures, not {images.dtype}")
    images = images.detach().cpu()
    unit = images.float() / 255 if images.dtype == torch.uint8 else (images.float() / 2 + 0.5).clamp(0, 1)
    if not torch.isfinite(unit).all():
        raise ValueError("the pictures hold NaN; find and remove them (torch.isfinite tells where)")
    if len(unit) == 0:
        none = torch.zeros((0, len(NAMES)))
        return Reading(torch.zeros(0, dtype=torch.bool), none.long(), torch.zeros(0), none)
    parts = [_read(part) for part in _shrink(unit, SIZE).split(PART)]
    return Reading(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _shrink(images: Tensor, size: int) -> Tensor:
    """Means over areas, (n, 3, s, s) -> (n, 3, size, size): what the drawing at that size is. Smaller ones stay."""
    if images.shape[-1] <= size:
        return images
    edges, pixels = torch.arange(size + 1) * images.shape[-1] / size, torch.arange(images.shape[-1])
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    weights = overlap.clamp(min=0) * size / images.shape[-1]                             # (size, s)
    return weights @ images @ weights.T


@functools.cache
def _bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every combination of labels and side, small, in the middle pose: labels (M, 5), jitters (M, 9), pictures (M, 768)."""
    rows = np.array(list(product(*[range(len(v)) for v in ATTRIBUTES.values()], (-1, 1))))
    jitters = np.tile(MIDDLE, (len(rows), 1))
    jitters[:, SIDE] = rows[:, -1]
    return rows[:, :-1], jitters, _draw(rows[:, :-1], jitters, SMALL)


def _draw(labels: np.ndarray, jitters: np.ndarray, size: int) -> np.ndarray:
    return render(labels, jitters, size).reshape(len(labels), -1)


def _draw_all(labels: np.ndarray, jitters: np.ndarray, size: int) -> np.ndarray:
    """Several drawings of each picture in one go, which is quicker: (k, n, 5), (k, n, 9) -> (k, n, 3 size²)."""
    drawn = _draw(labels.reshape(-1, labels.shape[-1]), jitters.reshape(-1, jitters.shape[-1]), size)
    return drawn.reshape(*labels.shape[:2], -1)


def _search(images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What fits pictures (n, 3, s, s) in [0, 1] best: labels (n, 5), jitters (n, 9), clearness (n, 5, 3)."""
    n, size = len(images), images.shape[-1]
    large, small = images.flatten(1).numpy(), _shrink(images, SMALL).flatten(1).numpy()
    bank_labels, bank_jitters, bank = _bank()
    error = np.square(bank).sum(axis=1) - 2 * small @ bank.T                             # (n, M), but for a constant
    ears = range(len(ATTRIBUTES["ears"]))
    starts = np.concatenate([np.where(bank_labels[:, EARS] == ear, error, np.inf).argmin(axis=1) for ear in ears])
    tripled = np.tile(small, (len(ears), 1))
    labels, jitters = bank_labels[starts], bank_jitters[starts]
    jitters = _move(tripled, labels, jitters, SMALL)
    error = np.square(_draw(labels, jitters, SMALL) - tripled).sum(axis=1)
    best = error.reshape(len(ears), n).argmin(axis=0) * n + np.arange(n)
    labels, jitters, _ = _reconsider(small, labels[best], jitters[best], SMALL)
    labels, jitters, _ = _reconsider(small, labels, _move(small, labels, jitters, SMALL), SMALL)
    return _reconsider(large, labels, _move(large, labels, jitters, size), size)


def _move(pictures: np.ndarray, labels: np.ndarray, jitters: np.ndarray, size: int) -> np.ndarray:
    """Two rounds of Gauss-Newton: jitters (n, 9) at which the drawings fit better, within a little more than their range."""
    steps, slack = 0.04 * (HIGH - LOW), 0.25 * (HIGH - LOW)
    for _ in range(2):
        poses = np.repeat(jitters[None], 1 + len(POSE), axis=0)                          # as it is; then each jitter moved
        poses[range(1, 1 + len(POSE)), :, POSE] += steps[POSE, None]
        now, *moved = _draw_all(np.repeat(labels[None], len(poses), axis=0), poses, size)
        slopes = [(drawn - now) / steps[i] * (HIGH - LOW)[i] for i, drawn in zip(POSE, moved, strict=True)]
        jacobian = np.stack(slopes, axis=1).astype(np.float64)                           # (n, 8, 3 size²)
        prior = 0.3 * (size / SIZE) ** 2 * np.eye(len(POSE))                             # holds what is unseen
        normal = jacobian @ jacobian.transpose(0, 2, 1) + prior
        step = np.linalg.solve(normal, jacobian @ (pictures - now)[:, :, None])[:, :, 0]
        jitters = jitters.copy()
        jitters[:, POSE] += np.clip(step, -0.5, 0.5) * (HIGH - LOW)[POSE]
        jitters[:, POSE] = np.clip(jitters[:, POSE], (LOW - slack)[POSE], (HIGH + slack)[POSE])
    return jitters


def _reconsider(pictures: np.ndarray, labels: np.ndarray, jitters: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Try every value of each attribute in turn (pattern with both sides), the pose staying as it is.

    Returns labels, jitters and how clear each attribute is in the picture, its left half and its right half, (n, 5, 3). On
    the line from the best drawing to one with another value, a picture at the start has clearness 1, halfway 0, at the end
    -1; the nearest other value counts. Noise leaves the mean as it is.
    """
    labels, jitters, rows, clear = labels.copy(), jitters.copy(), np.arange(len(labels)), []
    for column, name in enumerate(NAMES):
        tries = list(product(range(len(ATTRIBUTES[name])), (-1, 1) if name == "pattern" else (0,)))
        values, sides = np.array(tries).T
        candidates, poses = np.repeat(labels[None], len(tries), axis=0), np.repeat(jitters[None], len(tries), axis=0)
        candidates[:, :, column] = values[:, None]
        poses[:, :, SIDE] = np.where(sides[:, None] == 0, poses[:, :, SIDE], sides[:, None])
        drawn = _draw_all(candidates, poses, size)                                       # (tries, n, 3 size²)
        errors = _halves(np.square(drawn - pictures), size)                              # (tries, n, 3)
        best = errors[:, :, 0].argmin(axis=0)
        apart = _halves(np.square(drawn - drawn[best, rows]), size)
        ahead = (errors - errors[best, rows]) / (apart + 1e-6)
        same = values[:, None] == values[best]                                           # (tries, n)
        clear.append(np.where(same[:, :, None], np.inf, ahead).min(axis=0))
        labels[:, column] = values[best]
        jitters[:, SIDE] = np.where(sides[best] == 0, jitters[:, SIDE], sides[best])
    return labels, jitters, np.stack(clear, axis=1)


def _halves(squares: np.ndarray, size: int) -> np.ndarray:
    """Sums over the picture, its left half and its right half: (tries, n, 3 size²) -> (tries, n, 3)."""
    columns = squares.reshape(*squares.shape[:2], 3 * size, size).sum(axis=2)
    left, right = columns[..., : size // 2].sum(axis=2), columns[..., size // 2 :].sum(axis=2)
    return np.stack((left + right, left, right), axis=2)


def _read(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of Reading for pictures (n, 3, s, s) in [0, 1]; "worst" goes over 7 × 7 overlapping blocks."""
    size = images.shape[-1]

    def blocks(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, size // 4, stride=size // 8)

    def edges(values: Tensor) -> Tensor:
        reach = size // 13
        return values - F.avg_pool2d(F.pad(values, [reach] * 4, mode="replicate"), 2 * reach + 1, stride=1)

    def worst(values: Tensor) -> Tensor:
        return values.flatten(1).amax(dim=1)

    labels, jitters, clear = _search(images)
    drawn = torch.from_numpy(render(labels, jitters, size))                              # (n, 3, s, s)
    variance = blocks(drawn.square()) - blocks(drawn).square()
    left = worst(blocks((images - drawn).square()).mean(dim=1) / (variance.mean(dim=1) + FLAT)).sqrt()
    colour = worst(blocks(images - drawn).square().sum(dim=1)).sqrt()
    shared, full = edges(images) * edges(drawn), edges(drawn).square()                   # least squares: a gain on the edges
    detail = shared.sum(dim=(1, 2, 3)) / full.sum(dim=(1, 2, 3))
    detail_worst = -worst(-(blocks(shared).mean(dim=1) + FAINT) / (blocks(full).mean(dim=1) + FAINT))
    enough = (clear[:, :, 0] > list(CLEAR.values())).all(axis=1) & (clear[:, :, 1:] > CLEAR_HALF).all(axis=(1, 2))
    is_cat = (left < LEFT_OVER) & (colour < COLOUR) & (detail > DETAIL) & (detail_worst > DETAIL_WORST)
    return is_cat & torch.from_numpy(enough), torch.from_numpy(labels.astype(np.int64)), left, torch.from_numpy(clear[:, :, 0]).float()
