"""Train the small CIFAR-10 classifier that judges and describes pictures (measuring/classifier.py),
test it and save it with its card.

    python .ci/train_classifier.py --data folder:data/cifar10/train --test folder:data/cifar10/test
    --out runs/classifier
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import swa_utils
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib.data.sources import ImageData, in_batches, load_data, to_float
from diffusion_lib.measuring.classifier import ARCHITECTURES, CLASSES
from diffusion_lib.saving.files import sha256
from diffusion_lib.training.device import pick_device, probe_autocast
from diffusion_lib.training.optimizer import MuonAdamW

# -- training --------------------------------------------------------------------------------------

def augmentation() -> Callable[[Tensor], Tensor]:
    """Augmentation of one uint8 picture (3, 32, 32): shifted, mirrored, its colours changed a
    little, a part erased.
    """
    from torchvision.transforms import v2

    return v2.Compose([
        v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3)], p=0.3),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.15), value=0),
    ])


def balanced_accuracy(model: nn.Module, data: ImageData) -> tuple[float, list[float]]:
    """Mean over classes of the share that is recognised, and each class's share. The mirror image
    votes too.
    """
    scores = in_batches(lambda x: model(x).softmax(1) + model(x.flip(-1)).softmax(1), data.images)
    right = scores.argmax(1) == data.labels
    shares = [right[data.labels == k].float().mean().item() for k in range(len(data.classes))]
    return sum(shares) / len(shares), shares


def train_classifier(model: nn.Module, data: ImageData, *, minutes: float, batch_size: int = 128,
                     learning_rate: float = 1e-2,
                     seed: int = 0) -> tuple[nn.Module, dict]:
    """Train for a given time: Muon, one learning-rate cycle, classes drawn equally, averaged
    weights. Returns (model in eval mode, card).

    Pictures are augmented one by one, labels smoothed by 0.1. Raises ValueError if the data has no
    labels for CIFAR-10's classes.
    """
    if data.labels is None or tuple(data.classes) != CLASSES:
        found = ", ".join(data.classes) or "pictures without labels"
        raise ValueError(f"the classifier needs CIFAR-10's ten classes as folders, not {found}")
    torch.manual_seed(seed)
    device = pick_device()
    model = model.to(device).train()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer, augment = MuonAdamW(model, learning_rate, weight_decay=0.02), augmentation()
    rows = [torch.nonzero(data.labels == k).flatten() for k in range(len(CLASSES))]
    precision, start, step, seen = probe_autocast(device), time.perf_counter(), 0, 0
    with tqdm(total=round(minutes * 60), unit="s", desc="classifier", disable=None) as bar:
        while (progress := (time.perf_counter() - start) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:  # up for a tenth of the time, then down to nothing
                group["lr"] = learning_rate * min(progress * 10, (1 - progress) / 0.9) + 1e-6
            labels = torch.randint(len(CLASSES), (batch_size,))
            index = torch.stack([rows[k][torch.randint(len(rows[k]), ())] for k in labels.tolist()])
            pictures = to_float(torch.stack([augment(picture) for picture in data.images[index]]))
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
    card = {"data": data.name, "steps": step, "images_seen": seen,
            "seconds": round(time.perf_counter() - start), "seed": seed,
            "recipe": "Muon, one cycle, shifts, flips, colours, a part erased, "
                      "label smoothing 0.1, EMA 0.998"}
    return average.module.eval().requires_grad_(False).cpu(), card


def save_classifier(path: Path, model: nn.Module, card: dict) -> None:
    """float16 weights beside their card: PATH.safetensors and PATH.json."""
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(model, kind))
    weights = path.with_suffix(".safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, weights)
    full = {**card, "architecture": name, **model.config, "sha256": sha256(weights)}
    path.with_suffix(".json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train, test and save a classifier."""
    parser = argparse.ArgumentParser(description="Train a small CIFAR-10 classifier.")
    parser.add_argument("--data", default="folder:data/cifar10/train",
                        help="training pictures, class = folder (or cifar10)")
    parser.add_argument("--test", default="folder:data/cifar10/test",
                        help="pictures never trained on")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="residual")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/classifier", help="path without suffix")
    arguments = parser.parse_args()
    model, card = train_classifier(
        ARCHITECTURES[arguments.architecture](), load_data(arguments.data, 32),
        minutes=arguments.minutes, seed=arguments.seed)
    balanced, shares = balanced_accuracy(model, test := load_data(arguments.test, 32))
    card |= {"test": arguments.test, "balanced_accuracy": round(balanced, 4),
             "accuracy": {name: round(share, 4) for name,
                          share in zip(test.classes, shares, strict=True)}}
    save_classifier(Path(arguments.out), model, card)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
