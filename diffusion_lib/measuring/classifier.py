"""A small CIFAR-10 classifier: who says "that is a cat", and the feature space in which pictures are compared.

    python .ci/train_classifier.py --data folder:data/cifar10/train --test folder:data/cifar10/test --out runs/classifier

Distances between sets of pictures (metrics.py) need a description of a picture in a few numbers. The field uses Inception, a network
of 24 million weights trained on ImageNet at 299 px. Ours has 0.6 million, was trained here on 32 px pictures, and is shipped.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.sources import CIFAR10_CLASSES as CLASSES
from ..saving.checkpoint import load_weights
from ..saving.files import sha256
from ..saving.pretrained import WEIGHTS


class ConvNorm(nn.Sequential):
    """Convolution, GroupNorm (Wu & He 2018), SiLU: the same in training and in use, unlike BatchNorm."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.GroupNorm(8, c_out), nn.SiLU())


class Residual(nn.Module):
    """x + two convolutions of x (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(ConvNorm(channels, channels), ConvNorm(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """`Classifier()(pictures)`: scores (B, 10) of the CIFAR-10 classes for pictures (B, 3, H, W), floats in [-1, 1].

    Pictures of another size than 32 are reduced to 32 px first (antialiased), so that 128 px samples are judged by what 32 px show.
    `features(pictures)`: (B, num_features), what the last layer looks at. widths: channels at 32, 16 and 8 px.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), classes: int = len(CLASSES)):
        super().__init__()
        self.config = {"widths": list(widths), "classes": classes}
        a, b, c = widths
        self.body = nn.Sequential(
            ConvNorm(3, a), ConvNorm(a, b, stride=2), Residual(b), ConvNorm(b, c, stride=2), Residual(c), ConvNorm(c, c, stride=2),
        )
        self.num_features = c
        self.head = nn.Linear(c, classes)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [-1, 1] -> (B, num_features). Raises ValueError for other input."""
        return self.body(at_32(pictures)).mean(dim=(2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


class PlainNet(nn.Module):
    """Another architecture for an independent opinion: a plain stack of convolutions with pooling (Simonyan & Zisserman 2015)."""

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 192), classes: int = len(CLASSES)):
        super().__init__()
        self.config = {"widths": list(widths), "classes": classes}
        a, b, c = widths
        self.body = nn.Sequential(
            ConvNorm(3, a), ConvNorm(a, a), nn.MaxPool2d(2), ConvNorm(a, b), ConvNorm(b, b), nn.MaxPool2d(2),
            ConvNorm(b, c), ConvNorm(c, c), nn.MaxPool2d(2), ConvNorm(c, c),
        )
        self.num_features = c
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(c, classes))

    features, forward = Classifier.features, Classifier.forward
ARCHITECTURES = {"residual": Classifier, "plain": PlainNet}


def at_32(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), floats in [-1, 1], reduced to 32 px. Raises ValueError for another shape, uint8, or NaN."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(f"pictures must be (B, 3, height, width) in colour with B of at least 1, not {tuple(pictures.shape)}; "
                         "repeat a grey picture's channel three times")
    if not pictures.is_floating_point():
        raise ValueError(f"pictures are {pictures.dtype}; the classifier takes floats in [-1, 1] (diffusion_lib.to_float)")
    if not torch.isfinite(pictures).all():
        raise ValueError("the pictures hold NaN or infinite pixels; find and remove them (torch.isfinite tells where)")
    if pictures.shape[-2:] == (32, 32):
        return pictures
    return F.interpolate(pictures.float(), (32, 32), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def load_classifier(path: Path | str = WEIGHTS / "classifier") -> nn.Module:
    """The shipped classifier, or another one by its path (without suffix), in eval mode; `.card` tells how it was made.

    Raises FileNotFoundError where there is none, ValueError for a damaged file.
    """
    path = Path(path)
    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        raise FileNotFoundError(f"there is no classifier {weights}; train one with .ci/train_classifier.py --out {path}")
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        model = ARCHITECTURES[card["architecture"]](tuple(card["widths"]), card["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.with_suffix('.json')} is missing or is no card of a classifier; install or train it again") from error
    if sha256(weights) != card.get("sha256"):
        raise ValueError(f"{weights} differs from what its card says (sha256); install or train it again")
    load_weights(model, {k: v.float() for k, v in load_file(weights).items()}, weights)
    model.card = card
    return model.eval().requires_grad_(False)
