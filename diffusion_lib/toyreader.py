"""The way back from a picture to a ToyCat's attributes, by drawing: the labels whose drawing fits the picture best.

No weights, nothing trained. 1. Every combination of labels, drawn in the middle pose, is compared with the picture. 2. The
best one's pose is moved until it fits (Gauss-Newton on the jitters). 3. Each attribute is tried anew in that pose.
4. Pose once more. What is then left over tells whether the picture is a drawn cat at all: noise, photographs and
half-broken cats leave much in at least one part of the picture.
"""

import functools
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .toycats import ATTRIBUTES, JITTERS, render

SIZE = 32  # pictures of other sizes are brought to this one
BLOCK = 8  # left-over is measured in blocks of so many pixels: one broken ear must not drown in a good background
FLAT = 0.05  # variance that counts as little: keeps faint noise on a plain background from weighing much
LIMIT = 0.68  # largest left-over of a cat; see tests/benchmarks/toycats_reader.py for what lies on either side
LOW, HIGH = np.array(list(JITTERS.values())).T
SIDE = list(JITTERS).index("side")
POSE = [i for i in range(len(JITTERS)) if i != SIDE]  # the jitters that can be moved little by little
MIDDLE = (LOW + HIGH) / 2
NAMES = list(ATTRIBUTES)


class Reading(NamedTuple):
    """What the reader saw in n pictures."""

    is_cat: Tensor  # bool (n,): a whole drawn cat
    attributes: Tensor  # int64 (n, 5), in the order of ATTRIBUTES; meaningless where is_cat is false
    distance: Tensor  # float32 (n,): left-over of the worst block, as a share of what is drawn there; a cat has < LIMIT


@functools.cache
def _bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every combination of labels and side in the middle pose: labels (M, 5), jitters (M, 9), pictures (M, 3072)."""
    rows = np.array(list(product(*[range(len(v)) for v in ATTRIBUTES.values()], (-1, 1))))
    jitters = np.tile(MIDDLE, (len(rows), 1))
    jitters[:, SIDE] = rows[:, -1]
    pictures = np.concatenate([render(rows[i : i + 256, :-1], jitters[i : i + 256], SIZE) for i in range(0, len(rows), 256)])
    return rows[:, :-1], jitters, pictures.reshape(len(rows), -1)


def _move(pictures: np.ndarray, labels: np.ndarray, jitters: np.ndarray, rounds: int) -> np.ndarray:
    """Gauss-Newton: jitters (B, 9) at which the drawings fit best, kept within a little more than their range."""
    steps, slack = 0.04 * (HIGH - LOW), 0.25 * (HIGH - LOW)
    for _ in range(rounds):
        now = render(labels, jitters, SIZE).reshape(len(labels), -1)
        slopes = []
        for i in POSE:
            moved = jitters.copy()
            moved[:, i] += steps[i]
            slopes.append((render(labels, moved, SIZE).reshape(len(labels), -1) - now) / steps[i] * (HIGH - LOW)[i])
        jacobian = np.stack(slopes, axis=1).astype(np.float64)                           # (B, 8, 3072)
        normal = jacobian @ jacobian.transpose(0, 2, 1) + 0.3 * np.eye(len(POSE))        # a prior holds what is unseen
        step = np.linalg.solve(normal, jacobian @ (pictures - now)[:, :, None])[:, :, 0]
        jitters = jitters.copy()
        jitters[:, POSE] += np.clip(step, -0.5, 0.5) * (HIGH - LOW)[POSE]
        jitters[:, POSE] = np.clip(jitters[:, POSE], (LOW - slack)[POSE], (HIGH + slack)[POSE])
    return jitters


def _reconsider(pictures: np.ndarray, labels: np.ndarray, jitters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Try every value of each attribute in turn (pattern with both sides), the pose staying as it is."""
    labels, jitters, rows = labels.copy(), jitters.copy(), np.arange(len(labels))
    for column, name in enumerate(NAMES):
        sides = (-1, 1) if name == "pattern" else (None,)
        tries, errors = list(product(range(len(ATTRIBUTES[name])), sides)), []
        for value, side in tries:
            candidate, pose = labels.copy(), jitters.copy()
            candidate[:, column] = value
            if side is not None:
                pose[:, SIDE] = side
            drawn = render(candidate, pose, SIZE).reshape(len(labels), -1)
            errors.append(np.square(drawn - pictures).sum(axis=1))
        best = np.argmin(errors, axis=0)[rows]
        labels[:, column] = np.array([value for value, _ in tries])[best]
        if sides[0] is not None:
            jitters[:, SIDE] = np.array([side for _, side in tries])[best]
    return labels, jitters


def read_attributes(images: Tensor) -> Reading:
    """Read the attributes of drawn cats.

    images: (n, 3, H, W), uint8 or floats in [-1, 1], of any size from 16 to 256 pixels. About 20 ms a picture on one core.
    Raises ValueError for another shape or type, and for NaN.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the reader takes pictures (n, 3, H, W), not {found}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"the reader takes uint8 or float pictures, not {images.dtype}")
    images = images.detach().cpu()
    unit = images.float() / 255 if images.dtype == torch.uint8 else (images.float() / 2 + 0.5).clamp(0, 1)
    if not torch.isfinite(unit).all():
        raise ValueError("the pictures hold NaN; find and remove them (torch.isfinite tells where)")
    if len(unit) == 0:
        return Reading(torch.zeros(0, dtype=torch.bool), torch.zeros((0, len(NAMES)), dtype=torch.int64), torch.zeros(0))
    if tuple(unit.shape[2:]) != (SIZE, SIZE):
        unit = F.interpolate(unit, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    parts = [_read(part.flatten(1).numpy()) for part in unit.split(64)]
    labels, distance = (torch.cat([torch.from_numpy(part[i]) for part in parts]) for i in range(2))
    return Reading(distance < LIMIT, labels, distance)


def _read(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, 5) and left-over (n,) of pictures (n, 3072) in [0, 1]."""
    bank_labels, bank_jitters, bank = _bank()
    error = np.square(bank).sum(axis=1) - 2 * pictures @ bank.T                          # (n, M), but for a constant
    best = error.argmin(axis=1)
    labels, jitters = bank_labels[best], bank_jitters[best]
    jitters = _move(pictures, labels, jitters, rounds=3)
    labels, jitters = _reconsider(pictures, labels, jitters)
    jitters = _move(pictures, labels, jitters, rounds=4)
    labels, jitters = _reconsider(pictures, labels, jitters)
    drawn = torch.from_numpy(render(labels, jitters, SIZE))                              # (n, 3, 32, 32)
    left = _blocks((drawn - torch.from_numpy(pictures).reshape(drawn.shape)).square())   # (n, 3, 7, 7)
    variance = _blocks(drawn.square()) - _blocks(drawn).square()
    share = left.mean(dim=1) / (variance.mean(dim=1) + FLAT)                             # (n, 7, 7)
    return labels.astype(np.int64), share.flatten(1).amax(dim=1).sqrt().numpy()


def _blocks(values: Tensor) -> Tensor:
    """Means of overlapping blocks: (n, 3, 32, 32) -> (n, 3, 7, 7)."""
    return F.avg_pool2d(values, BLOCK, stride=BLOCK // 2)
