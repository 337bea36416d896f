"""A small CIFAR-10 classifier: who says "that is a cat", and the feature space in which pictures are compared.

    python -m diffusion_lib.classifier --data folder:data/cifar10/train --test folder:data/cifar10/test --out classifier

Distances between sets of pictures (metrics.py) need a description of a picture in a few numbers. The field uses Inception, a network
of 24 million weights trained on ImageNet at 299 px. Ours has 0.6 million, was trained here on 32 px pictures, and is shipped.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .checkpoint import WEIGHTS, load_weights, sha256
from .data import ImageData, load_data
from .optimizer import MuonAdamW
from .runs import pick_device, probe_autocast

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


@torch.no_grad()
def in_batches(network: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """network(pictures) for many pictures, uint8 or floats in [-1, 1], a batch at a time; the rows one below the other."""
    from .data import to_float

    parts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    return torch.cat([network(to_float(part) if part.dtype == torch.uint8 else part) for part in parts])


# -- training --------------------------------------------------------------------------------------------------------

def augmentation() -> Callable[[Tensor], Tensor]:
    """Augmentation of one uint8 picture (3, 32, 32): shifted, mirrored, its colours changed a little, a part erased."""
    from torchvision.transforms import v2

    return v2.Compose([
        v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3)], p=0.3), v2.RandomErasing(p=0.5, scale=(0.02, 0.15), value=0),
    ])


def balanced_accuracy(model: nn.Module, data: ImageData) -> tuple[float, list[float]]:
    """Mean over classes of the share that is recognised, and each class's share. The mirror image votes too."""
    scores = in_batches(lambda x: model(x).softmax(1) + model(x.flip(-1)).softmax(1), data.images)
    right = scores.argmax(1) == data.labels
    shares = [right[data.labels == k].float().mean().item() for k in range(len(data.classes))]
    return sum(shares) / len(shares), shares


def train_classifier(model: nn.Module, data: ImageData, *, minutes: float, batch_size: int = 128, learning_rate: float = 1e-2,
                     seed: int = 0) -> tuple[nn.Module, dict]:
    """Train for a given time: Muon, one learning-rate cycle, classes drawn equally, averaged weights. Returns (model in eval mode, card).

    Pictures are augmented one by one, labels smoothed by 0.1. Raises ValueError if the data has no labels for CIFAR-10's classes.
    """
    if data.labels is None or tuple(data.classes) != CLASSES:
        found = ", ".join(data.classes) or "pictures without labels"
        raise ValueError(f"the classifier needs CIFAR-10's ten classes as folders, not {found}")
    torch.manual_seed(seed)
    device = pick_device()
    model = model.to(device).train()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer, augment = MuonAdamW(model, learning_rate, weight_decay=0.02), augmentation()
    rows = [torch.nonzero(data.labels == k).flatten() for k in range(len(CLASSES))]
    precision, start, step, seen = probe_autocast(device), time.perf_counter(), 0, 0
    with tqdm(total=round(minutes * 60), unit="s", desc="classifier", disable=None) as bar:
        while (progress := (time.perf_counter() - start) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:  # up for a tenth of the time, then down to nothing
                group["lr"] = learning_rate * min(progress * 10, (1 - progress) / 0.9) + 1e-6
            labels = torch.randint(len(CLASSES), (batch_size,))
            index = torch.stack([rows[k][torch.randint(len(rows[k]), ())] for k in labels.tolist()])
            pictures = torch.stack([augment(picture) for picture in data.images[index]]).float().div(127.5).sub(1)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                scores = model(pictures.to(device))
            loss = F.cross_entropy(scores.float(), labels.to(device), label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
            step, seen = step + 1, seen + batch_size
            bar.n = min(round(progress * minutes * 60), bar.total)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=step % 20 == 0)
    card = {"data": data.name, "steps": step, "images_seen": seen, "seconds": round(time.perf_counter() - start), "seed": seed,
            "recipe": "Muon, one cycle, shifts, flips, colours, a part erased, label smoothing 0.1, EMA 0.998"}
    return average.module.eval().requires_grad_(False).cpu(), card


def save_classifier(path: Path, model: nn.Module, card: dict) -> None:
    """float16 weights beside their card: PATH.safetensors and PATH.json."""
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(model, kind))
    weights = path.with_suffix(".safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, weights)
    full = {**card, "architecture": name, **model.config, "sha256": sha256(weights)}
    path.with_suffix(".json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")


def load_classifier(path: Path | str = WEIGHTS / "classifier") -> nn.Module:
    """The shipped classifier, or another one by its path (without suffix), in eval mode; `.card` tells how it was made.

    Raises FileNotFoundError where there is none, ValueError for a damaged file.
    """
    path = Path(path)
    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        raise FileNotFoundError(f"there is no classifier {weights}; train one with python -m diffusion_lib.classifier --out {path}")
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


def main() -> None:
    """Train, test and save a classifier."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lib.classifier", description="Train a small CIFAR-10 classifier.")
    parser.add_argument("--data", default="folder:data/cifar10/train", help="training pictures, class = folder (or cifar10)")
    parser.add_argument("--test", default="folder:data/cifar10/test", help="pictures never trained on")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="residual")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/classifier", help="path without suffix")
    arguments = parser.parse_args()
    model, card = train_classifier(
        ARCHITECTURES[arguments.architecture](), load_data(arguments.data, 32), minutes=arguments.minutes, seed=arguments.seed)
    balanced, shares = balanced_accuracy(model, test := load_data(arguments.test, 32))
    card |= {"test": arguments.test, "balanced_accuracy": round(balanced, 4),
             "accuracy": {name: round(share, 4) for name, share in zip(test.classes, shares, strict=True)}}
    save_classifier(Path(arguments.out), model, card)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
