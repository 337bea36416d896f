"""Guidance, a small thing around a model: ask for something, or away from a worse answer."""

import math

import torch
from torch import Tensor

from .losses import Model, ask
from .samplers import device_of


# Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, with s = 1 + w; with a worse
# network in place of "no class": Karras et al. 2024, "Guiding a diffusion model with a bad version
# of itself", equation 2
class Guided:
    """A model pushed away from a worse answer: bad + s (good - bad). `guided` and `autoguided` make
    it.

    model, worse: who says the good answer and the bad one; without a worse model the bad answer is
    model's own for null_label. labels: what is asked for, (B,) or (1,), or None.
    """

    def __init__(
        self, model: Model, labels: Tensor | None, scale: float, null_label: int | None = None,
        worse: Model | None = None,
    ) -> None:
        self.model, self.labels, self.scale, self.null_label = model, labels, scale, null_label
        self.worse, self.device = worse, device_of(model)
        self.prediction, self.autoencoder, self.in_channels, self.image_size = (
            getattr(model, name, None)
            for name in ("prediction", "autoencoder", "in_channels", "image_size"))

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided answer to x_t (B, C, H, W) at t (B,). Raises ValueError for another number of
        labels.
        """
        wanted = None if self.labels is None else rows_of(self.labels, x_t)
        if self.worse is not None:
            good = ask(self.model, x_t, t, wanted)
            return good if self.scale == 1 else mixed(good, self.worse(x_t, t), self.scale)
        nothing = torch.full_like(wanted, self.null_label)
        if self.scale in (0, 1):                                    # one of the two is enough
            return self.model(x_t, t, wanted if self.scale == 1 else nothing)
        both = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([wanted, nothing]))
        conditional, unconditional = both.chunk(2)
        return mixed(conditional, unconditional, self.scale)

    def part(self, rows: slice) -> "Guided":
        """The same for these rows of the labels, where there is one a picture: a batch of many
        pictures.
        """
        if self.labels is None or self.labels.numel() == 1:
            return self
        return Guided(self.model, self.labels[rows], self.scale, self.null_label, self.worse)


def mixed(good: Tensor, bad: Tensor, scale: float) -> Tensor:
    """bad + s (good - bad): the same formula for ε, x_0 and v, which are linear in each other."""
    return bad + scale * (good - bad)


def guided(
    model: Model, labels: Tensor | int, scale: float, null_label: int | None = None
) -> Guided:
    """A model that asks for `labels`: s = 0 is unconditional, 1 conditional, more exaggerates.

    labels: one class for all pictures, or int64 (B,). null_label: the class that means "no class",
    K (the number of classes) when left out. Raises ValueError for a negative scale, for a label
    that the model does not have and, once called, for another number of labels than pictures.
    """
    null = getattr(model, "num_classes", None) if null_label is None else null_label
    check_guidance(labels := torch.as_tensor(labels), scale, null)
    return Guided(model, labels, scale, null)


def autoguided(model: Model, worse: Model, scale: float) -> Guided:
    """A model pushed away from what a worse one would say: where the two differ, the worse is
    wrong, and the better not yet right. s = 1 is the model alone; 1.5 to 2 is usual.

    worse: a smaller network, or an early checkpoint, trained on the same task; it must predict the
    same (ε, x_0 or v) in the same diffusion. Raises ValueError for networks of two sizes and for a
    scale below 1.
    """
    check_scale(scale)
    for name in ("in_channels", "image_size"):
        a, b = getattr(model, name, None), getattr(worse, name, None)
        if None not in (a, b) and a != b:
            raise ValueError(f"the guide's {name} is {b}, the model's {a}; a guide must draw the "
                             "same kind of picture")
    labels, base = (model.labels, model.model) if isinstance(model, Guided) else (None, model)
    if isinstance(model, Guided) and (model.scale != 1 or model.worse is not None):
        raise ValueError(f"the model is guided already, with scale {model.scale}; use one kind of "
                         "guidance at a time")
    return Guided(base, labels, scale, worse=worse)


def rows_of(labels: Tensor, x_t: Tensor) -> Tensor:
    """Labels (B,). Raises ValueError where there is not one for all, or one a picture."""
    if labels.numel() not in (1, len(x_t)):
        raise ValueError(f"{labels.numel()} labels for {len(x_t)} pictures; "
                         "give one for all, or one a picture")
    return labels.to(x_t.device, torch.int64).expand(len(x_t))


def check_scale(scale: float) -> None:
    """Raises ValueError for a scale of autoguidance below 1, or not finite."""
    if not (scale >= 1 and math.isfinite(scale)):
        raise ValueError(f"the scale of autoguidance must be 1 or more, not {scale}; 1 is the "
                         "model alone, 2 is usual")


def check_guidance(labels: Tensor, scale: float, null_label: int | None) -> None:
    """Raises ValueError for a scale or for labels that a model cannot be asked for."""
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"guidance scale must be 0 or more, not {scale}; "
                         "0 ignores the class, 1 asks for it, 2 to 5 insists")
    if null_label is None:
        raise ValueError(
            "the model knows no classes (num_classes=None), so it cannot be guided; "
            "sample it as it is"
        )
    if (
        labels.ndim > 1
        or labels.numel() == 0
        or labels.is_floating_point()
        or labels.dtype == torch.bool
    ):
        raise ValueError(
            f"labels must be one class number, or one a picture, shape (B,), not {labels.tolist()}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= null_label:
        raise ValueError(
            f"class labels must lie in 0 … {null_label - 1}, not {labels.flatten().tolist()[:5]}"
        )
