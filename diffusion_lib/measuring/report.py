"""A model's report: the measures of metrics.py against a reference set, and the feature networks they can use.

    python -m diffusion_lib evaluate CHECKPOINT --data folder:data/cifar10/train/cat --n 1000

A `Reference` holds what must be known of the real pictures (features, spectra, a classifier's verdicts), not the pictures. Small
ones ship with the library, so that the notebooks measure without the photographs.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.folders import class_folders, held_out_beside
from ..data.sources import in_batches, load_data, to_uint8
from ..saving.pretrained import WEIGHTS
from .classifier import CLASSES, load_classifier
from .features import feature_network
from .metrics import (
    Measure,
    check_pictures,
    class_share,
    frechet_distance,
    kernel_distance,
    nearest,
    power_spectrum,
    precision_recall,
    spectral,
)

CAT = CLASSES.index("cat")
SHIPPED = WEIGHTS / "references"
LEAST = 4  # pictures that precision and recall need: one, and its three nearest neighbours


class Reference(NamedTuple):
    """What is known of the real pictures that samples are compared with.

    name: where they come from. features: the network that described them. size: in pixels. train, held_out: features (N, F) of the
    pictures trained on and of those never shown to the model. spectra (2, size // 2): power spectra of both, in decibels. verdicts: the
    classifier's [share called cat, mean probability, n] of the controls; judge: that classifier's sha256. pixels: both sets at 32 px
    (N, 3072), or None (not saved).
    """

    name: str
    features: str
    size: int
    train: Tensor
    held_out: Tensor
    spectra: Tensor
    verdicts: dict[str, list[float]]
    judge: str = ""
    pixels: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, train: Tensor, held_out: Tensor, others: Tensor | None = None, *, name: str, features: str = "classifier",
           judge: nn.Module | None = None, label: int = CAT) -> "Reference":
        """Describe uint8 pictures (N, 3, H, H): those trained on, those held out, and `others` that are no cats (a control)."""
        train, held_out, others = (in_colour(part) for part in (train, held_out, others))
        check_reference(train, held_out)
        network, judge = feature_network(features), judge or load_classifier()
        for what, pictures in (("the training pictures", train), ("the held-out pictures", held_out)):
            check_pictures(pictures[:2], 2, what)
        noise = to_uint8(torch.randn((500, *train.shape[1:]), generator=torch.Generator().manual_seed(0)).mul(0.5).clamp(-1, 1))
        controls = {"held-out pictures": held_out, "training pictures": train, "other classes": others, "noise": noise}
        verdicts = {what: _verdict(judge, pictures, label) for what, pictures in controls.items() if pictures is not None}
        rows = [in_batches(network, pictures) for pictures in (train, held_out)]
        spectra = torch.stack([power_spectrum(pictures) for pictures in (train, held_out)])
        return cls(name, features, train.shape[-1], *rows, spectra, verdicts, _mark(judge), (small(train), small(held_out)))

    def save(self, path: Path) -> None:
        """Two files: PATH.safetensors (features in float16) and PATH.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {"train": self.train.half(), "held_out": self.held_out.half(), "spectra": self.spectra.float()}
        save_file(rows, path.with_suffix(".safetensors"))
        told = {"name": self.name, "features": self.features, "size": self.size, "verdicts": self.verdicts, "judge": self.judge}
        path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, name: str | Path) -> "Reference":
        """A shipped reference by its name, or a saved one by its path without suffix. Raises FileNotFoundError, listing those there are."""
        path = SHIPPED / name if not Path(name).with_suffix(".json").exists() else Path(name)
        if not path.with_suffix(".json").exists():
            known = sorted(p.stem for p in SHIPPED.glob("*.json"))
            raise FileNotFoundError(f"there is no reference {name}; there are {', '.join(known) or 'none'}")
        told, rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), load_file(path.with_suffix(".safetensors"))
        return cls(**told, **{key: value.float() if key != "spectra" else value.double() for key, value in rows.items()})


def real_pictures(
    data: str, held_out: str | None, size: int, channels: int = 3
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(training pictures, held-out ones, pictures of other classes or None), uint8, as `evaluate --data` and `--held-out` say.

    held_out None: `folder:PATH#held_out` belongs to `folder:PATH#train`, and a folder .../test/... to .../train/.... Raises
    ValueError where there is neither: a floor measured on the training pictures would be none.
    """
    if held_out is None:
        beside = held_out_beside(Path(data.removeprefix("folder:")).expanduser()) if data.startswith("folder:") else None
        if data.startswith("folder:") and data.endswith("#train"):
            held_out = data.removesuffix("train") + "held_out"
        elif beside:
            held_out = f"folder:{beside}"
        else:
            raise ValueError(f"there are no held-out pictures beside {data}; name some with --held-out (or use folder:PATH#train)")
    folder, others = Path(held_out.removeprefix("folder:")), []
    if held_out.startswith("folder:") and folder.parent.name == "test":            # CIFAR-10's other classes lie beside
        others = [load_data(f"folder:{sibling}", size, channels=channels).images
                  for sibling in class_folders(folder.parent) if sibling != folder]
    train, held = (load_data(which, size, channels=channels).images for which in (data, held_out))
    return train, held, torch.cat(others) if others else None


def in_colour(pictures: Tensor | None) -> Tensor | None:
    """Grey pictures (N, 1, H, W) as (N, 3, H, W), which is what the networks that describe pictures take; others as they are."""
    grey = isinstance(pictures, Tensor) and pictures.ndim == 4 and pictures.shape[1] == 1
    return pictures.expand(-1, 3, -1, -1) if grey else pictures


def check_reference(train: Tensor, held_out: Tensor) -> None:
    """Raises ValueError for pictures of two sizes, or too few for the measures (which look at the third neighbour)."""
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(f"training pictures are {tuple(train.shape[1:])}, held-out ones {tuple(held_out.shape[1:])}; "
                         "load both at one size")
    for what, pictures, remedy in (("training", train, "give a larger folder"),
                                   ("held-out", held_out, "name more with --held-out, or give a larger folder")):
        if len(pictures) < LEAST:
            raise ValueError(f"there are only {len(pictures)} {what} pictures; the measures need at least {LEAST}, "
                             f"and say something from about 200 on: {remedy}")


def small(pictures: Tensor) -> Tensor:
    """Pictures as rows of pixels at 32 px, (N, 3072), where nearest neighbours are looked for."""
    def rows(part: Tensor) -> Tensor:
        return (part if part.shape[-1] == 32 else F.interpolate(part, (32, 32), mode="bicubic", antialias=True)).flatten(1)
    return in_batches(rows, pictures)


def _mark(judge: nn.Module) -> str:
    return getattr(judge, "card", {}).get("sha256", "")


def _verdict(judge: nn.Module, pictures: Tensor, label: int) -> list[float]:
    share, mean = class_share(in_batches(lambda x: judge(x).softmax(1), pictures), label, "", n=len(pictures))
    return [round(share.value, 4), round(mean.value, 4), len(pictures)]


def evaluate(samples: Tensor, reference: Reference, *, n: int, judge: nn.Module | None = None, label: int = CAT,
             control: Tensor | None = None) -> list[Measure]:
    """Every measure of n samples (N, 3, H, H), uint8 or floats in [-1, 1], against a reference of that size.

    judge: who says what is a cat; the shipped classifier if left out. control: samples drawn without asking for the label, whose share
    is told beside. Raises ValueError for unusable samples.
    """
    samples, control = in_colour(samples), in_colour(control)
    samples, judge = check_pictures(samples, n), judge or load_classifier()
    if samples.shape[-1] != reference.size:
        raise ValueError(f"the samples are {samples.shape[-1]} px, the reference {reference.name} is {reference.size} px; "
                         "use one of the samples' size")
    rows, real = in_batches(feature_network(reference.features), samples), (reference.train, reference.held_out)
    measures = [frechet_distance(rows, *real, n=n), kernel_distance(rows, *real, n=n), *precision_recall(rows, *real, n=n)]
    measures.append(nearest(rows, *real, n=n))
    if reference.pixels:
        measures.append(nearest(small(samples), *reference.pixels, n=n, what="pixels"))
    measures.append(spectral(samples, *reference.spectra, n=n))
    share, mean = class_share(in_batches(lambda x: judge(x).softmax(1), samples), label, CLASSES[label], n=n)
    told, real = {}, (None, None)
    if _mark(judge) == reference.judge:  # what another classifier says of real cats is no floor for this one
        told = {what: verdict for what, verdict in reference.verdicts.items() if what != "held-out pictures"}
        real = reference.verdicts["held-out pictures"]
    if control is not None:
        told["unconditional samples"] = _verdict(judge, check_pictures(control, len(control), "the control"), label)
    for measure, place in ((share, 0), (mean, 1)):
        note = ", ".join(f"{what} {verdict[place]:.2f}" for what, verdict in told.items())
        measures.append(measure._replace(floor=real[place], note=note or "controls: measure with --data folder:… to have this judge's"))
    return measures
