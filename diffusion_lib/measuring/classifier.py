"""A small CIFAR-10 classifier: who says "that is a cat", and in whose features pictures are
compared.

    python .ci/train_classifier.py --data folder:data/cifar10/train --out runs/classifier

Distances between sets of pictures (metrics.py) need a description of a picture in a few numbers.
The field uses Inception, a network of 24 million weights trained on ImageNet at 299 px. Ours has
0.6 million, was trained here on 32 px pictures, and is shipped.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.diffusion import check_finite
from ..data.sources import CIFAR10_CLASSES as CLASSES
from ..saving.checkpoint import load_weights
from ..saving.files import sha256
from ..saving.pretrained import WEIGHTS


class ConvNorm(nn.Sequential):
    """Convolution, GroupNorm (Wu & He 2018), SiLU: the same in training and in use, unlike
    BatchNorm.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        super().__init__(conv, nn.GroupNorm(8, c_out), nn.SiLU())


class Residual(nn.Module):
    """x + two convolutions of x (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(ConvNorm(channels, channels), ConvNorm(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """`Classifier()(pictures)`: scores (B, 10) for pictures (B, 3, H, W), floats in [-1, 1].

    Pictures of another size than 32 are reduced to 32 px first (antialiased), so that 128 px
    samples are judged by what 32 px show. widths: channels at 32, 16 and 8 px.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), classes: int = len(CLASSES)):
        super().__init__()
        self.config = {"widths": list(widths), "classes": classes}
        a, b, c = widths
        self.body = nn.Sequential(
            ConvNorm(3, a), ConvNorm(a, b, stride=2), Residual(b), ConvNorm(b, c, stride=2),
            Residual(c), ConvNorm(c, c, stride=2))
        self.head = nn.Linear(c, classes)

    def features(self, pictures: Tensor) -> Tensor:
        """What the last layer looks at: (B, widths[2]). Raises ValueError for unusable pictures."""
        return self.body(at_32(pictures)).mean(dim=(2, 3))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """What three layers see of pictures (B, 3, H, W) of any size, halved once: for a loss."""
        x, seen = F.avg_pool2d(pictures, 2), []
        for layer in self.body[:4]:
            x = layer(x)
            seen.append(x)
        return seen[1:]

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


class PlainNet(nn.Module):
    """For an independent opinion: a plain stack with pooling (Simonyan & Zisserman 2015)."""

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 192), classes: int = len(CLASSES)):
        super().__init__()
        self.config = {"widths": list(widths), "classes": classes}
        a, b, c = widths
        self.body = nn.Sequential(
            ConvNorm(3, a), ConvNorm(a, a), nn.MaxPool2d(2), ConvNorm(a, b), ConvNorm(b, b),
            nn.MaxPool2d(2), ConvNorm(b, c), ConvNorm(c, c), nn.MaxPool2d(2), ConvNorm(c, c))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(c, classes))

    features, forward = Classifier.features, Classifier.forward


ARCHITECTURES = {"residual": Classifier, "plain": PlainNet}


def at_32(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), floats in [-1, 1], reduced to 32 px. Raises ValueError for others."""
    check_colour(pictures)
    if pictures.shape[-2:] == (32, 32):
        return pictures
    return F.interpolate(pictures.float(), (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)


def check_colour(pictures: Tensor) -> None:
    """Raises ValueError for another shape than (B, 3, H, W), uint8, and NaN."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError("pictures must be (B, 3, height, width) in colour, B at least 1, not "
                         f"{tuple(pictures.shape)}; repeat a grey picture's channel three times")
    if not pictures.is_floating_point():
        raise ValueError(f"pictures are {pictures.dtype}; the classifier takes floats in [-1, 1] "
                         "(diffusion_lib.to_float)")
    check_finite(pictures)


def load_classifier(path: Path | str = WEIGHTS / "classifier") -> nn.Module:
    """The shipped classifier, or another by its path (without suffix), in eval mode, with its
    `.card`.

    Raises FileNotFoundError where there is none, ValueError for a damaged file.
    """
    weights, card_file = (Path(path).with_suffix(ending) for ending in (".safetensors", ".json"))
    if not weights.exists():
        raise FileNotFoundError(f"there is no classifier {weights}; train one with "
                                f".ci/train_classifier.py --out {path}")
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
        model: Any = ARCHITECTURES[card["architecture"]](tuple(card["widths"]), card["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card_file} is missing or is no card of a classifier; "
                         "install or train it again") from error
    if sha256(weights) != card.get("sha256"):
        raise ValueError(f"{weights} differs from what its card says (sha256); "
                         "install or train it again")
    load_weights(model, {k: v.float() for k, v in load_file(weights).items()}, weights)
    model.card = card
    return model.eval().requires_grad_(False)
