"""Cat faces, by two old and independent methods that no training here ever saw.

`found`: OpenCV's cascade for cat faces (Viola & Jones 2001; trained by Joseph Howse), many small
contrasts that must all be right. Of 1,663 photographs of cat heads it finds a face in 80 %, and in
2 % of them upside down.
`gradients`: histograms of oriented gradients (Dalal & Triggs 2005), which describe where edges run.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.needed import needed
from ..data.sources import to_uint8
from .metrics import Measure, wilson

OPENCV = "'opencv-python-headless<5'"  # as a shell takes it


@lru_cache(1)
def _cascade() -> Any:
    cv2 = _opencv()
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalcatface_extended.xml")


def _opencv() -> Any:
    cv2 = needed("cv2", "finding cat faces", OPENCV)
    if not hasattr(cv2, "CascadeClassifier"):
        raise ImportError(f"OpenCV {cv2.__version__} has no cascades any more; "
                          f"pip install {OPENCV}")
    return cv2


def grey(pictures: Tensor) -> list[np.ndarray]:
    """uint8 (H, W) of each picture (B, 3, H, W), uint8 or floats in [-1, 1]."""
    cv2 = _opencv()
    pictures = pictures if pictures.dtype == torch.uint8 else to_uint8(pictures)
    rows = pictures.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return [cv2.cvtColor(row, cv2.COLOR_RGB2GRAY) for row in rows]


def found(pictures: Tensor) -> Tensor:
    """Bool (B,): is there a cat's face at least half as wide as the picture (B, 3, H, W)?

    Pictures are looked at in 128 px, with a margin, since a face may fill them. Raises ImportError
    without OpenCV.
    """
    cv2, cascade = _opencv(), _cascade()
    answers = []
    for picture in grey(pictures):
        if picture.shape != (128, 128):
            picture = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_CUBIC)
        framed = cv2.copyMakeBorder(picture, 16, 16, 16, 16, cv2.BORDER_REPLICATE)
        faces = cascade.detectMultiScale(framed, 1.1, 3, minSize=(64, 64))
        answers.append(len(faces) > 0)
    return torch.tensor(answers)


def gradients(pictures: Tensor) -> Tensor:
    """Features (B, 144) of pictures (B, 3, H, W): 9 directions in each of 16 cells, at 64 px."""
    cv2 = _opencv()
    describe = cv2.HOGDescriptor((64, 64), (32, 32), (32, 32), (16, 16), 9)
    small = (cv2.resize(p, (64, 64), interpolation=cv2.INTER_AREA) for p in grey(pictures))
    return torch.from_numpy(np.stack([describe.compute(p).ravel() for p in small]))


def face_share(pictures: Tensor, *, n: int, floor: float | None = None, note: str = "") -> Measure:
    """The share of the first n pictures with a cat's face, its interval, the real ones' share."""
    share = found(pictures[:n]).double().mean().item()
    low, high = wilson(share, n)
    return Measure("share with a cat's face", share, low, high, n, floor, note)


def verdict(pictures: Tensor) -> list[float]:
    """[share with a cat's face, the same again, number of pictures], as reports keep it."""
    share = found(pictures).double().mean().item() if len(pictures) else math.nan
    return [round(share, 4), round(share, 4), len(pictures)]
