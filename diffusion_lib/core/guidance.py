"""Asking for something: classifier-free guidance, a small thing around a model."""

import math

import torch
from torch import Tensor

from .samplers import Model, device_of


# Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, with s = 1 + w
def guided(model: Model, labels: Tensor | int, scale: float, null_label: int | None = None) -> Model:
    """A model that asks for `labels`: ε_u + s (ε_c - ε_u). s = 0 is unconditional, 1 conditional, more exaggerates.

    labels: one class for all pictures, or int64 (B,). null_label: the class that means "no class", K (the number of
    classes) when left out. The formula is the same for ε, x_0 and v, which are linear in each other.
    Raises ValueError for a negative scale, for a label that the model does not have and, once called, for another number
    of labels than pictures.
    """
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"guidance scale must be 0 or more, not {scale}; "
                         "0 ignores the class, 1 asks for it, 2 to 5 insists")
    classes = getattr(model, "num_classes", None)
    null = classes if null_label is None else null_label
    if null is None:
        raise ValueError("the model knows no classes (num_classes=None), so it cannot be guided; sample it as it is")
    labels = torch.as_tensor(labels)
    if labels.ndim > 1 or labels.numel() == 0 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be one class number, or one a picture, shape (B,), not {labels.tolist()}")
    if int(labels.min()) < 0 or int(labels.max()) >= null:
        raise ValueError(f"class labels must lie in 0 … {null - 1}, not {labels.flatten().tolist()[:5]}")

    def guided_model(x_t: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        if labels.numel() not in (1, len(x_t)):
            raise ValueError(f"{labels.numel()} labels for {len(x_t)} pictures; give one for all, or one a picture")
        wanted = labels.to(x_t.device, torch.int64).expand(len(x_t))
        nothing = torch.full_like(wanted, null)
        if scale in (0, 1):
            return model(x_t, t, wanted if scale == 1 else nothing)
        both = model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([wanted, nothing]))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    guided_model.device = device_of(model)
    return guided_model
