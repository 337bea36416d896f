"""A model's report: the measures of metrics.py against a reference set.

    python -m diffusion_lib evaluate CHECKPOINT --data folder:data/cifar10/train/cat --n 1000

A `Reference` holds what must be known of the real pictures (features, spectra, a classifier's
verdicts), not the pictures. Small ones ship with the library, so that the notebooks measure without
the photographs.
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
from ..saving.files import whole
from ..saving.pretrained import WEIGHTS
from . import catface, metrics
from .classifier import CLASSES, load_classifier
from .features import feature_network
from .metrics import Measure, check_pictures, class_share, in_colour

CAT = CLASSES.index("cat")
SHIPPED = WEIGHTS / "references"
LEAST = 4  # pictures that precision and recall need: one, and its three nearest neighbours


class Reference(NamedTuple):
    """What is known of the real pictures that samples are compared with."""

    name: str  # where they come from
    features: str  # the network that described them
    size: int  # in pixels
    train: Tensor  # features (N, F) of the pictures trained on
    held_out: Tensor  # and of those never shown to the model
    spectra: Tensor  # (2, size // 2): power spectra of both, in decibels
    verdicts: dict[str, list[float]]  # control -> what `verdict` says of it
    judge: str = ""  # sha256 of the classifier that said so
    pixels: tuple[Tensor, Tensor] | None = None  # both sets at 32 px (N, 3072); not saved
    label: int = CAT  # the class that the verdicts are about

    @classmethod
    def of(
        cls, train: Tensor, held_out: Tensor, others: Tensor | None = None, *, name: str,
        features: str = "classifier", judge: nn.Module | None = None, label: int = CAT,
    ) -> "Reference":
        """Describe uint8 pictures (N, C, H, H): trained on, held out, and `others` of no such
        class.

        Raises ValueError for sets of two sizes, and for fewer pictures than the measures need.
        """
        train, held_out = in_colour(train), in_colour(held_out)
        others = None if others is None else in_colour(others)
        check_reference(train, held_out)
        network, judge = feature_network(features), judge or load_classifier()
        faces = features == "catface"
        noise = torch.randn((500, *train.shape[1:]), generator=torch.Generator().manual_seed(0))
        controls = {"held-out pictures": held_out, "training pictures": train,
                    "other classes": others, "noise": to_uint8(noise.mul(0.5).clamp(-1, 1)),
                    "held-out pictures upside down": held_out.flip(-2) if faces else None}
        return cls(
            name=name, features=features, size=train.shape[-1], train=in_batches(network, train),
            held_out=in_batches(network, held_out), spectra=torch.stack(
                [metrics.power_spectrum(part) for part in (train, held_out)]),
            verdicts={what: catface.verdict(part) if faces else verdict(judge, part, label)
                      for what, part in controls.items() if part is not None},
            judge="catface" if faces else _mark(judge), pixels=(small(train), small(held_out)),
            label=label)

    def save(self, path: Path) -> None:
        """Two files: PATH.safetensors (features in float16) and PATH.json."""
        rows = {"train": self.train.half(), "held_out": self.held_out.half(),
                "spectra": self.spectra.float()}
        told = {"name": self.name, "features": self.features, "size": self.size,
                "verdicts": self.verdicts, "judge": self.judge, "label": self.label}
        with whole(path.with_suffix(".safetensors")) as temporary:
            save_file(rows, temporary)
        with whole(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, name: str | Path) -> "Reference":
        """A shipped reference by its name, or a saved one by its path without suffix.

        Raises FileNotFoundError, listing those there are.
        """
        path = Path(name) if Path(name).with_suffix(".json").exists() else SHIPPED / name
        if not path.with_suffix(".json").exists():
            known = sorted(p.stem for p in SHIPPED.glob("*.json"))
            raise FileNotFoundError(f"there is no reference {name}; "
                                    f"there are {', '.join(known) or 'none'}")
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows = load_file(path.with_suffix(".safetensors"))
        spectra = rows.pop("spectra").double()
        return cls(**told, spectra=spectra, **{key: value.float() for key, value in rows.items()})


def evaluate(
    samples: Tensor, reference: Reference, *, n: int, judge: nn.Module | None = None,
    label: int = CAT, control: Tensor | None = None,
) -> list[Measure]:
    """Every measure of n samples (N, C, H, H), uint8 or floats in [-1, 1], of the reference's size.

    judge: who says what is a cat; the shipped classifier if left out. control: samples drawn
    without asking for the label, whose share is told beside. Raises ValueError for unusable
    samples.
    """
    samples, judge = check_pictures(in_colour(samples), n), judge or load_classifier()
    if samples.shape[-1] != reference.size:
        raise ValueError(f"the samples are {samples.shape[-1]} px, the reference {reference.name} "
                         f"is {reference.size} px; use one of the samples' size")
    rows = in_batches(feature_network(reference.features), samples)
    real = reference.train, reference.held_out
    measures = [
        metrics.frechet_distance(rows, *real, n=n), metrics.kernel_distance(rows, *real, n=n),
        *metrics.precision_recall(rows, *real, n=n), metrics.nearest(rows, *real, n=n)]
    if reference.pixels:
        measures.append(metrics.nearest(small(samples), *reference.pixels, n=n, what="pixels"))
    measures.append(metrics.spectral(samples, *reference.spectra, n=n))
    if reference.features == "catface":
        told = dict(reference.verdicts)
        floor = told.pop("held-out pictures")[0]
        note = ", ".join(f"{what} {numbers[0]:.2f}" for what, numbers in told.items())
        return [*measures, catface.face_share(samples, n=n, floor=floor, note=note)]
    same = _mark(judge) == reference.judge and label == reference.label
    told = dict(reference.verdicts) if same else {}  # no other judge's, of no other class
    floors = told.pop("held-out pictures", [])
    if control is not None:
        control = check_pictures(in_colour(control), len(control), "the control")
        told["unconditional samples"] = verdict(judge, control, label)
    shares = class_share(said(judge, samples), label, CLASSES[label], n=n)
    for place, measure in zip((0, 1, 3), shares, strict=True):  # old references have 0 and 1
        note = ", ".join(f"{what} {numbers[place]:.2f}" for what, numbers in told.items()
                         if place < len(numbers))
        note = note or "controls: measure with --data folder:… to have this judge's"
        known = floors[place] if place < len(floors) else None
        measures.append(measure._replace(floor=known, note=note))
    return measures


# -- pictures --------------------------------------------------------------------------------------


def real_pictures(
    data: str, held_out: str | None, size: int, channels: int = 3
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(training pictures, held-out ones, those of other classes or None), uint8 (N, C, size, size).

    data, held_out: as `evaluate --data` and `--held-out` say. held_out None: `folder:PATH#held_out`
    belongs to `folder:PATH#train`, and a folder .../test/... to .../train/.... The held-out ones
    come shuffled, always alike: the first of a folder of classes would all be of one. Raises
    ValueError where there are none: a floor measured on the training pictures would be none.
    """
    held_out = held_out_of(data, held_out)

    def load(spec: str) -> Tensor:
        return load_data(spec, size, channels=channels).images

    own, others = Path(held_out.removeprefix("folder:")).expanduser(), []
    if held_out.startswith("folder:") and own.parent.name == "test":  # CIFAR-10's other classes
        others = [load(f"folder:{each}") for each in class_folders(own.parent) if each != own]
    return load(data), shuffled(load(held_out)), torch.cat(others) if others else None


def shuffled(pictures: Tensor) -> Tensor:
    """The same pictures in an order that nobody chose, but always the same one."""
    return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]


def held_out_of(data: str, held_out: str | None) -> str:
    """The source of the held-out pictures that belong to `data`. Raises as `real_pictures`."""
    folder = Path(data.removeprefix("folder:")).expanduser() if data.startswith("folder:") else None
    if held_out is None and folder and data.endswith("#train"):
        held_out = data.removesuffix("train") + "held_out"
    elif held_out is None and folder and (beside := held_out_beside(folder)):
        held_out = f"folder:{beside}"
    elif held_out is None:
        raise ValueError(f"there are no held-out pictures beside {data}; name some with --held-out "
                         "(or use folder:PATH#train)")
    return held_out


def small(pictures: Tensor) -> Tensor:
    """Pictures as rows of pixels at 32 px, (N, 3072), where nearest neighbours are looked for."""
    def rows(part: Tensor) -> Tensor:
        if part.shape[-1] != 32:
            part = F.interpolate(part, (32, 32), mode="bicubic", antialias=True)
        return part.flatten(1)
    return in_batches(rows, pictures)


def said(judge: nn.Module, pictures: Tensor) -> Tensor:
    """A classifier's probabilities (N, K)."""
    return in_batches(lambda x: judge(x).softmax(1), pictures)


def verdict(judge: nn.Module, pictures: Tensor, label: int) -> list[float]:
    """[share called `label`, mean probability of it, number of pictures, share surely `label`]."""
    share, mean, sure = class_share(said(judge, pictures), label, "", n=len(pictures))
    return [round(share.value, 4), round(mean.value, 4), len(pictures), round(sure.value, 4)]


def _mark(judge: nn.Module) -> str:
    return getattr(judge, "card", {}).get("sha256", "")


def check_reference(train: Tensor, held_out: Tensor) -> None:
    """Raises ValueError for pictures of two sizes, misshapen, or too few for the measures."""
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(f"training pictures are {tuple(train.shape[1:])}, held-out ones "
                         f"{tuple(held_out.shape[1:])}; load both at one size")
    for what, pictures, remedy in (
        ("training", train, "give a larger folder"),
        ("held-out", held_out, "name more with --held-out, or give a larger folder"),
    ):
        check_pictures(pictures[:1], min(len(pictures), 1), f"the {what} pictures", least=0)
        if len(pictures) < LEAST:
            raise ValueError(f"there are only {len(pictures)} {what} pictures; the measures need "
                             f"at least {LEAST}, and say something from about 200 on: {remedy}")
