"""Asking for something: classifier-free guidance, a small thing around a model."""

import math

import torch
from torch import Tensor

from .losses import Model
from .samplers import device_of


# Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, with s = 1 + w
class Guided:
    """A model that asks for `labels`: ε_u + s (ε_c - ε_u). See `guided`, which makes it."""

    def __init__(self, model: Model, labels: Tensor, scale: float, null_label: int) -> None:
        self.model, self.labels, self.scale, self.null_label = model, labels, scale, null_label
        self.device, self.prediction = device_of(model), getattr(model, "prediction", None)
        self.in_channels, self.image_size = (
            getattr(model, name, None) for name in ("in_channels", "image_size")
        )

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided answer to x_t (B, C, H, W) at t (B,). Raises ValueError for another number of
        labels.
        """
        if self.labels.numel() not in (1, len(x_t)):
            raise ValueError(
                f"{self.labels.numel()} labels for {len(x_t)} pictures; "
                "give one for all, or one a picture"
            )
        wanted = self.labels.to(x_t.device, torch.int64).expand(len(x_t))
        nothing = torch.full_like(wanted, self.null_label)
        if self.scale in (0, 1):                                    # one of the two is enough
            return self.model(x_t, t, wanted if self.scale == 1 else nothing)
        both = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([wanted, nothing]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def part(self, rows: slice) -> "Guided":
        """The same for these rows of the labels, where there is one a picture: a batch of many
        pictures.
        """
        labels = self.labels if self.labels.numel() == 1 else self.labels[rows]
        return Guided(self.model, labels, self.scale, self.null_label)


def guided(
    model: Model, labels: Tensor | int, scale: float, null_label: int | None = None
) -> Guided:
    """A model that asks for `labels`: s = 0 is unconditional, 1 conditional, more exaggerates.

    labels: one class for all pictures, or int64 (B,). null_label: the class that means "no class",
    K (the number of classes) when left out. The formula is the same for ε, x_0 and v, which are
    linear in each other. Raises ValueError for a negative scale, for a label that the model does
    not have and, once called, for another number of labels than pictures.
    """
    null = getattr(model, "num_classes", None) if null_label is None else null_label
    check_guidance(labels := torch.as_tensor(labels), scale, null)
    return Guided(model, labels, scale, null)


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
