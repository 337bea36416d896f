"""Guidance, a small thing around a model: ask for something, or away from a worse answer."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .diffusion import GaussianDiffusion
from .losses import Model, ask
from .samplers import device_of


# Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, with s = 1 + w; with a worse
# network in place of "no class": Karras et al. 2024, "Guiding a diffusion model with a bad version
# of itself", equation 2
class Guided:
    """A model pushed away from a worse answer: bad + s (good - bad). `guided` and `autoguided` make
    it.

    model, worse: who says the good answer and the bad one; without a worse model the bad answer is
    model's own for null_label. labels: what is asked for, (B,) or (1,), or None. interval, rescale,
    apg: see `guided`.
    """

    def __init__(
        self, model: Model, labels: Tensor | None, scale: float, null_label: int | None = None,
        worse: Model | None = None, *, interval: tuple[int, int] | None = None,
        rescale: float = 0.0, apg: GaussianDiffusion | None = None,
    ) -> None:
        check_options(interval, rescale)
        self.model, self.labels, self.scale, self.null_label = model, labels, scale, null_label
        self.options: dict[str, Any] = {"interval": interval, "rescale": rescale, "apg": apg}
        self.worse, self.device = worse, device_of(model)
        self.prediction, self.autoencoder, self.in_channels, self.image_size = (
            getattr(model, name, None)
            for name in ("prediction", "autoencoder", "in_channels", "image_size"))

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided answer to x_t (B, C, H, W) at t (B,). Raises ValueError for another number of
        labels.
        """
        interval, rescale, apg = self.options.values()
        wanted = None if self.labels is None else rows_of(self.labels, x_t)
        scale = self.scale if interval is None else scale_at(t, self.scale, interval)
        good, bad = self.answers(x_t, t, wanted, scale)
        if bad is None:
            return good
        if apg is not None:
            bad = good - across(good - bad, apg.predict_x0(good, x_t, t))
        return rescaled(mixed(good, bad, scale), good, rescale)

    def answers(
        self, x_t: Tensor, t: Tensor, wanted: Tensor | None, scale: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(good, bad), each (B, C, H, W); bad is None where one answer is all that is needed."""
        plain = not self.options["rescale"] and self.options["apg"] is None
        if isinstance(scale, (int, float)) and scale == 1:
            return ask(self.model, x_t, t, wanted), None
        if self.worse is not None:
            return ask(self.model, x_t, t, wanted), self.worse(x_t, t)
        nothing = torch.full_like(wanted, self.null_label)
        if plain and isinstance(scale, (int, float)) and scale == 0:
            return self.model(x_t, t, nothing), None
        both = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([wanted, nothing]))
        return both.chunk(2)

    def part(self, rows: slice) -> "Guided":
        """The same for these rows of the labels, where there is one a picture: a batch of many
        pictures.
        """
        if self.labels is None or self.labels.numel() == 1:
            return self
        return Guided(self.model, self.labels[rows], self.scale, self.null_label, self.worse,
                      **self.options)


def mixed(good: Tensor, bad: Tensor, scale: float | Tensor) -> Tensor:
    """bad + s (good - bad): the same formula for ε, x_0 and v, which are linear in each other."""
    return bad + scale * (good - bad)


# Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", here in t in place of σ
def scale_at(t: Tensor, scale: float, interval: tuple[int, int]) -> float | Tensor:
    """The scale at t (B,): s where first ≤ t < end, else 1. One number if it is the same for all,
    else (B, 1, 1, 1).
    """
    inside = (t >= interval[0]) & (t < interval[1])
    if inside.all() or not inside.any():
        return scale if inside.all() else 1.0
    return torch.where(inside, scale, 1.0)[:, None, None, None]


# Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales" (η = 0)
def across(difference: Tensor, x0_hat: Tensor) -> Tensor:
    """What is left of a difference (B, C, H, W) without its part parallel to x̂_0.

    A difference of x̂_0s is, at each t, a number times that of ε, or of v: one direction.
    """
    along = F.normalize(x0_hat.flatten(1), dim=1).view_as(x0_hat)
    length = (difference * along).sum(dim=(1, 2, 3), keepdim=True)
    return difference - length * along


# Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4
def rescaled(answer: Tensor, good: Tensor, share: float) -> Tensor:
    """An answer (B, C, H, W) brought to the standard deviation of `good`, by a share from 0 to 1.
    """
    if not share:
        return answer
    std_good, std = (x.std(dim=(1, 2, 3), keepdim=True) for x in (good, answer))
    return share * answer * std_good / std + (1 - share) * answer


def guided(
    model: Model, labels: Tensor | int, scale: float, null_label: int | None = None, *,
    interval: tuple[int, int] | None = None, rescale: float = 0.0,
    apg: GaussianDiffusion | None = None,
) -> Guided:
    """A model that asks for `labels`: s = 0 is unconditional, 1 conditional, more exaggerates.

    labels: one class for all pictures, or int64 (B,). null_label: the class that means "no class",
    K (the number of classes) when left out. interval: (first, end), guided only where first ≤ t <
    end; elsewhere the class is asked for plainly, s = 1, which is one evaluation, not two. rescale:
    0 to 1, how far the answer is brought back to the standard deviation of the conditional one.
    apg: the model's diffusion; the part of the push that is parallel to x̂_0 is then left out.

    Raises ValueError for a negative scale, for a label that the model does not have, for a model
    whose labels were never dropped in training (s = 1 only), for an empty interval, a rescale
    outside 0 … 1 and, once called, for another number of labels than pictures.
    """
    null = getattr(model, "num_classes", None) if null_label is None else null_label
    check_guidance(labels := torch.as_tensor(labels), scale, null)
    check_dropped(model, scale)
    return Guided(model, labels, scale, null, interval=interval, rescale=rescale, apg=apg)


def autoguided(
    model: Model, worse: Model, scale: float, *, interval: tuple[int, int] | None = None
) -> Guided:
    """A model pushed away from what a worse one would say: where the two differ, the worse is
    wrong, and the better not yet right. s = 1 is the model alone; 1.5 to 2 is usual.

    worse: a smaller network, or an early checkpoint, trained on the same task; it must predict the
    same (ε, x_0 or v) in the same diffusion. interval: see `guided`. Raises ValueError for networks
    of two sizes, a scale below 1 and an empty interval.
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
    return Guided(base, labels, scale, worse=worse, interval=interval)


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


def check_options(interval: tuple[int, int] | None, rescale: float) -> None:
    """Raises ValueError for an interval without a timestep, and for a share outside 0 … 1."""
    if interval is not None:
        first, end = interval
        if not (math.isfinite(first) and math.isfinite(end)) or first < 0:
            raise ValueError(f"the interval of guidance is {first} ≤ t < {end}; timesteps are "
                             "whole numbers from 0 to T-1")
        if not first < end:
            turned = f"turned round; use {end} {first}" if first > end else "empty"
            raise ValueError(f"the interval of guidance, {first} ≤ t < {end}, is {turned}; "
                             "200 800 guides in the middle")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie between 0 (not at all) and 1, not {rescale}; "
                         "0.7 is usual")


def check_dropped(model: Model, scale: float) -> None:
    """Raises ValueError for a network that never learnt what "no class" is, asked to be guided."""
    if scale != 1 and getattr(model, "label_drop", None) == 0:
        raise ValueError(f"scale {scale} needs the network's answer without a class, which it "
                         "never learnt: it was trained with label_drop 0; use scale 1, or train "
                         "it with --train.label_drop 0.1")


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
