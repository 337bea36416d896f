"""The way back from a picture to a ToyCat's attributes: the labels whose drawing fits it best.

No weights, nothing trained.
1. Every combination of labels, drawn small and in the middle pose, is compared with the picture;
   for each kind of ear the best one stays.
2. Their poses are moved until they fit (Gauss-Newton on the jitters), and the best of them goes on.
3. Each attribute is tried anew in that pose; both once more, small; then once more, full size.
4. What is found is a cat if all of this holds:
   - nowhere is much left over between picture and drawing (LEFT_OVER), least in colour (COLOUR);
   - the drawing's edges are in the picture, on the whole (DETAIL) and everywhere (DETAIL_WORST): a
     blur has lost them, a mean of cats has them at half strength, noise and photographs never had
     them;
   - no attribute lies halfway between two values (CLEAR), nor does half of the picture speak for
     another value than the rest (CLEAR_HALF), as two eyes of different colours would.
"""

import functools
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.diffusion import check_finite
from ..data.toycats import ATTRIBUTES, JITTERS, render

SIZE, SMALL = 32, 16  # larger pictures become SIZE; at SMALL, the search goes less often astray
# What a cat needs: numbers between drawings with some noise and good samples on one side, and means
# of two cats, patched-up cats and blurs on the other (tests/benchmarks/toycats_reader.py). Eyes and
# pattern are small: a faint texture, as samples have, blurs them, so CLEAR asks for nothing there.
LEFT_OVER, COLOUR = 0.6, 0.18  # at most
DETAIL, DETAIL_WORST = 0.65, 0.3  # at least; 1 is what the drawing has
CLEAR = (0.2, 0.0, 0.0, 0.35, 0.12)  # at least, of each attribute; 1: just so, 0: halfway
CLEAR_HALF = -0.3
PART = 16  # pictures read at a time: enough to share work, few enough to stay in the cache
FLAT = 0.05  # variance that counts as little: faint noise on a plain background weighs little
FAINT = 0.002  # the same for detail: no edges are asked for where the drawing has none
LOW, HIGH = np.array(list(JITTERS.values())).T
SIDE = list(JITTERS).index("side")
POSE = [i for i in range(len(JITTERS)) if i != SIDE]  # what can be moved little by little
MIDDLE = (LOW + HIGH) / 2
NAMES = list(ATTRIBUTES)
EARS = NAMES.index("ears")
Array = np.ndarray


class Reading(NamedTuple):
    """What the reader saw in n pictures."""

    is_cat: Tensor  # bool (n,): a whole drawn cat
    attributes: Tensor  # int64 (n, 5), in the order of ATTRIBUTES; the best fit, also where no cat
    distance: Tensor  # float32 (n,): what the worst block leaves over of what is drawn there


def read_attributes(images: Tensor) -> Reading:
    """Read the attributes of drawn cats (n, 3, H, H), uint8 or floats in [-1, 1], H at least 16.

    About 20 ms each on one core. Raises ValueError for another shape or type, and for NaN.
    """
    check_readable(images)
    values = images.detach().cpu().float()
    unit = values / 255 if images.dtype == torch.uint8 else (values / 2 + 0.5).clamp(0, 1)
    if len(unit) == 0:
        none = torch.zeros((0, len(NAMES)), dtype=torch.int64)
        return Reading(torch.zeros(0, dtype=torch.bool), none, torch.zeros(0))
    parts = [_read(part) for part in _shrink(unit, SIZE).split(PART)]
    return Reading(*(torch.cat(column) for column in zip(*parts, strict=True)))


def check_readable(images: Tensor) -> None:
    """Raises ValueError for pictures that cannot be read."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the reader takes pictures (n, 3, H, W), not {found}")
    if images.shape[2] != images.shape[3] or images.shape[2] < SMALL:
        raise ValueError(f"the reader takes square pictures of {SMALL} pixels or more, "
                         f"not {tuple(images.shape[2:])}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"the reader takes uint8 or float pictures, not {images.dtype}")
    check_finite(images)


def _shrink(images: Tensor, size: int) -> Tensor:
    """Means over areas, (n, 3, s, s) -> (n, 3, size, size), as drawn there; smaller ones stay."""
    if images.shape[-1] <= size:
        return images
    edges, pixels = torch.arange(size + 1) * images.shape[-1] / size, torch.arange(images.shape[-1])
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    weights = overlap.clamp(min=0) * size / images.shape[-1]                             # (size, s)
    return weights @ images @ weights.T


@functools.cache
def _bank() -> tuple[Array, Array, Array]:
    """All labels and sides, small, in the middle pose: (M, 5), jitters (M, 9), pixels (M, 768)."""
    rows = np.array(list(product(*[range(len(v)) for v in ATTRIBUTES.values()], (-1, 1))))
    jitters = np.tile(MIDDLE, (len(rows), 1))
    jitters[:, SIDE] = rows[:, -1]
    return rows[:, :-1], jitters, _render(rows[:, :-1], jitters, SMALL)


def _render(labels: Array, jitters: Array, size: int) -> Array:
    """(…, 5), (…, 9) -> (…, 3 size²): all in one go, which is quicker."""
    drawn = render(labels.reshape(-1, len(NAMES)), jitters.reshape(-1, len(JITTERS)), size)
    return drawn.reshape(*labels.shape[:-1], -1)


def _search(images: Tensor) -> tuple[Array, Array, Array]:
    """What fits pictures (n, 3, s, s) best: labels (n, 5), jitters (n, 9), clearness (n, 5, 3)."""
    n, size = len(images), images.shape[-1]
    large, small = images.flatten(1).numpy(), _shrink(images, SMALL).flatten(1).numpy()
    bank_labels, bank_jitters, bank = _bank()
    error = np.square(bank).sum(axis=1) - 2 * small @ bank.T  # (n, M), but for a constant
    ears = range(len(ATTRIBUTES["ears"]))
    kinds = [np.where(bank_labels[:, EARS] == ear, error, np.inf) for ear in ears]
    starts = np.concatenate([kind.argmin(axis=1) for kind in kinds])
    tripled = np.tile(small, (len(ears), 1))
    labels, jitters = bank_labels[starts], bank_jitters[starts]
    jitters = _move(tripled, labels, jitters, SMALL)
    error = np.square(_render(labels, jitters, SMALL) - tripled).sum(axis=1)
    best = error.reshape(len(ears), n).argmin(axis=0) * n + np.arange(n)
    labels, jitters, _ = _reconsider(small, labels[best], jitters[best], SMALL)
    labels, jitters, _ = _reconsider(small, labels, _move(small, labels, jitters, SMALL), SMALL)
    return _reconsider(large, labels, _move(large, labels, jitters, size), size)


def _move(pictures: Array, labels: Array, jitters: Array, size: int) -> Array:
    """Two rounds of Gauss-Newton: jitters (n, 9) that fit better, little outside their range."""
    steps, slack = 0.04 * (HIGH - LOW), 0.25 * (HIGH - LOW)
    for _ in range(2):
        poses = np.repeat(jitters[None], 1 + len(POSE), axis=0)  # as it is; then each jitter moved
        poses[range(1, 1 + len(POSE)), :, POSE] += steps[POSE, None]
        now, *moved = _render(np.repeat(labels[None], len(poses), axis=0), poses, size)
        pairs = zip(POSE, moved, strict=True)
        slopes = [(drawn - now) / steps[i] * (HIGH - LOW)[i] for i, drawn in pairs]
        jacobian = np.stack(slopes, axis=1).astype(np.float64)  # (n, 8, 3 size²)
        prior = 0.3 * (size / SIZE) ** 2 * np.eye(len(POSE))  # holds what is unseen
        normal = jacobian @ jacobian.transpose(0, 2, 1) + prior
        step = np.linalg.solve(normal, jacobian @ (pictures - now)[:, :, None])[:, :, 0]
        jitters = jitters.copy()
        jitters[:, POSE] += np.clip(step, -0.5, 0.5) * (HIGH - LOW)[POSE]
        jitters[:, POSE] = np.clip(jitters[:, POSE], (LOW - slack)[POSE], (HIGH + slack)[POSE])
    return jitters


def _reconsider(
    pictures: Array, labels: Array, jitters: Array, size: int
) -> tuple[Array, Array, Array]:
    """Try every value of each attribute in turn (pattern with both sides), in the same pose.

    Returns labels, jitters and how clear each attribute is in the picture, its left half and its
    right half, (n, 5, 3). On the line from the best drawing to one with another value, a picture at
    the start has clearness 1, halfway 0, at the end -1; the nearest other value counts. Noise
    leaves the mean as it is.
    """
    labels, jitters, rows, clear = labels.copy(), jitters.copy(), np.arange(len(labels)), []
    for column, name in enumerate(NAMES):
        tries = list(product(range(len(ATTRIBUTES[name])), (-1, 1) if name == "pattern" else (0,)))
        values, sides = np.array(tries).T
        candidates = np.repeat(labels[None], len(tries), axis=0)
        poses = np.repeat(jitters[None], len(tries), axis=0)
        candidates[:, :, column] = values[:, None]
        poses[:, :, SIDE] = np.where(sides[:, None] == 0, poses[:, :, SIDE], sides[:, None])
        drawn = _render(candidates, poses, size)  # (tries, n, 3 size²)
        errors = _halves(np.square(drawn - pictures), size)  # (tries, n, 3)
        best = errors[:, :, 0].argmin(axis=0)
        apart = _halves(np.square(drawn - drawn[best, rows]), size)
        ahead = (errors - errors[best, rows]) / (apart + 1e-6)
        same = values[:, None] == values[best]  # (tries, n)
        clear.append(np.where(same[:, :, None], np.inf, ahead).min(axis=0))
        labels[:, column] = values[best]
        jitters[:, SIDE] = np.where(sides[best] == 0, jitters[:, SIDE], sides[best])
    return labels, jitters, np.stack(clear, axis=1)


def _halves(squares: Array, size: int) -> Array:
    """Sums over all, the left half and the right half: (tries, n, 3 size²) -> (tries, n, 3)."""
    columns = squares.reshape(*squares.shape[:2], 3 * size, size).sum(axis=2)
    left, right = columns[..., : size // 2].sum(axis=2), columns[..., size // 2 :].sum(axis=2)
    return np.stack((left + right, left, right), axis=2)


def _read(images: Tensor) -> Reading:
    """A Reading of pictures (n, 3, s, s) in [0, 1]; "worst" goes over 7 × 7 overlapping blocks."""
    size = images.shape[-1]

    def blocks(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, size // 4, stride=size // 8)

    def edges(values: Tensor) -> Tensor:
        reach = size // 13
        wider = F.pad(values, [reach] * 4, mode="replicate")
        return values - F.avg_pool2d(wider, 2 * reach + 1, stride=1)

    def worst(values: Tensor) -> Tensor:
        return values.flatten(1).amax(dim=1)

    labels, jitters, clear = _search(images)
    drawn = torch.from_numpy(render(labels, jitters, size))  # (n, 3, s, s)
    variance = blocks(drawn.square()) - blocks(drawn).square()
    rest = blocks((images - drawn).square()).mean(dim=1)
    left = worst(rest / (variance.mean(dim=1) + FLAT)).sqrt()
    colour = worst(blocks(images - drawn).square().sum(dim=1)).sqrt()
    shared, full = edges(images) * edges(drawn), edges(drawn).square()
    detail = shared.sum(dim=(1, 2, 3)) / full.sum(dim=(1, 2, 3))  # the edges' gain, least squares
    gains = (blocks(shared).mean(dim=1) + FAINT) / (blocks(full).mean(dim=1) + FAINT)
    sharp = (detail > DETAIL) & (worst(-gains) < -DETAIL_WORST)
    fits = (left < LEFT_OVER) & (colour < COLOUR) & sharp
    whole = (clear[:, :, 0] > CLEAR).all(axis=1)
    halves = (clear[:, :, 1:] > CLEAR_HALF).all(axis=(1, 2))
    is_cat = fits & torch.from_numpy(whole & halves)
    return Reading(is_cat, torch.from_numpy(labels.astype(np.int64)), left)
