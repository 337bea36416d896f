"""Guidance, a small thing around a model: ask for something, or away from a worse answer."""

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusion import GaussianDiffusion
from .losses import Model, ask
from .samplers import device_of
from .transformer import ReadingLayer, Text
from .unet import AttentionBlock

Condition: TypeAlias = Tensor | Text  # labels (B,) or (1,); captions, B rows or one


# Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, with s = 1 + w; with a worse
# network in place of "no class": Karras et al. 2024, "Guiding a diffusion model with a bad version
# of itself", equation 2; with several conditions: Liu et al. 2022, "Compositional Visual Generation
# with Composable Diffusion Models", equation 11
class Guided:
    """A model pushed away from a worse answer: bad + s (good - bad). `guided` and `autoguided` make
    it.

    model, worse: who says the good answer and the bad one; without a worse model the bad answer is
    model's own for `nothing`. labels: what is asked for, a condition or None; also: more of them,
    for bad + s Σ (good_i - bad). interval, rescale, apg: see `guided`.
    """

    def __init__(
        self, model: Model, labels: Condition | None, scale: float,
        nothing: Condition | None = None, worse: Model | None = None, *,
        also: Sequence[Condition] = (), interval: tuple[int, int] | None = None,
        rescale: float = 0.0, apg: GaussianDiffusion | None = None,
    ) -> None:
        check_options(interval, rescale)
        self.model, self.labels, self.scale, self.nothing = model, labels, scale, nothing
        self.options: dict[str, Any] = {"interval": interval, "rescale": rescale, "apg": apg}
        self.also, self.worse, self.device = list(also), worse, device_of(model)
        self.prediction, self.autoencoder, self.in_channels, self.image_size = (
            getattr(model, name, None)
            for name in ("prediction", "autoencoder", "in_channels", "image_size"))

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The guided answer to x_t (B, C, H, W) at t (B,). Raises ValueError for another number of
        labels or captions.
        """
        interval, rescale, apg = self.options.values()
        scale = self.scale if interval is None else scale_at(t, self.scale, interval)
        good, bad = self.answers(x_t, t, scale)
        if bad is None:
            return good
        if apg is not None:
            bad = good - across(good - bad, apg.predict_x0(good, x_t, t))
        # the same formula for ε, x_0 and v, which are linear in each other
        return rescaled(bad + scale * (good - bad), good, rescale)

    def answers(
        self, x_t: Tensor, t: Tensor, scale: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(good, bad), each (B, C, H, W); bad is None where one answer is all that is needed. With
        several conditions good is bad + Σ (good_i - bad).
        """
        plain = not self.options["rescale"] and self.options["apg"] is None
        wanted = [rows_of(each, x_t) for each in (self.labels, *self.also) if each is not None]
        one = isinstance(scale, (int, float)) and len(wanted) < 2  # condition, scale for all
        if one and scale == 1:
            return ask(self.model, x_t, t, wanted[0] if wanted else None), None
        if self.worse is not None:
            return ask(self.model, x_t, t, wanted[0] if wanted else None), self.worse(x_t, t)
        nothing = rows_of(self.nothing, x_t)
        if plain and isinstance(scale, (int, float)) and scale == 0:
            return self.model(x_t, t, nothing), None
        times = len(wanted) + 1
        *goods, bad = self.model(
            x_t.repeat(times, 1, 1, 1), t.repeat(times), joined([*wanted, nothing])).chunk(times)
        return sum(goods[1:], goods[0]) - (len(goods) - 1) * bad, bad

    def part(self, rows: slice) -> "Guided":
        """The same for these rows of the conditions, where there is one a picture: a batch of many
        pictures.
        """
        first, nothing, *also = (
            each if each is None else rows_in(each, rows)
            for each in (self.labels, self.nothing, *self.also))
        worse = self.worse.part(rows) if isinstance(self.worse, Guided) else self.worse
        return Guided(self.model, first, self.scale, nothing, worse, also=also, **self.options)


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


# Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4
def rescaled(answer: Tensor, good: Tensor, share: float) -> Tensor:
    """An answer (B, C, H, W) brought to the standard deviation of `good`, by a share from 0 to 1.
    """
    if not share:
        return answer
    std_good, std = (x.std(dim=(1, 2, 3), keepdim=True) for x in (good, answer))
    return share * answer * std_good / std + (1 - share) * answer


def guided(
    model: Model, wanted: Any, scale: float, null_label: int | None = None, *,
    also: Sequence[Any] = (), negative: Any = None, interval: tuple[int, int] | None = None,
    rescale: float = 0.0, apg: GaussianDiffusion | None = None,
) -> Guided:
    """A model that asks for what is wanted: s = 0 is unconditional, 1 conditional, more
    exaggerates.

    wanted: one class for all pictures, or int64 (B,); for a network that reads a text one caption
    for all, a list of one a picture, or a Text. also: more of these, asked for at once: û = u + s
    (c - u) + s (c' - u) …. negative: what to be guided away from, in place of "no class" or the
    empty caption u. null_label: the class that means "no class", K (the number of classes) when
    left out. interval: (first, end), guided only where first ≤ t < end; elsewhere what is wanted is
    asked for plainly, s = 1, which is one evaluation, not two (without `also`). rescale: 0 to 1,
    how far the answer is brought back to the standard deviation of the conditional one. apg: the
    model's diffusion; the part of the push that is parallel to x̂_0 is then left out.

    Raises ValueError for a negative scale, for a label or a word that the model does not have, for
    a caption where the network reads none, for a model whose labels were never dropped in training
    (one label, s = 1 only, or with `negative`), for an empty interval, a rescale outside 0 … 1 and,
    once called, for another number of labels or captions than pictures.
    """
    null = getattr(model, "num_classes", None) if null_label is None else null_label
    conditions = [condition(model, each, scale, null) for each in (wanted, *also)]
    if negative is None:
        check_dropped(model, scale, bool(also))
        negative, null = ("" if hasattr(model, "read") else null), (null or 0) + 1
    nothing = condition(model, negative, scale, null)
    return Guided(model, conditions[0], scale, nothing, also=conditions[1:], interval=interval,
                  rescale=rescale, apg=apg)


@torch.no_grad()
def condition(model: Any, wanted: Any, scale: float, classes: int | None) -> Condition:
    """A class or classes as labels int64 (B,) or (1,); captions as what the text encoder makes of
    them. Raises ValueError for what the model cannot be asked for.
    """
    check_scale(scale, 0)
    if hasattr(model, "read"):
        return model.encode(wanted if isinstance(wanted, Text) else model.read(wanted))
    check_no_text(wanted)
    check_labels(labels := torch.as_tensor(wanted), classes)
    return labels.to(torch.int64).reshape(-1)


def autoguided(
    model: Model, worse: Model, scale: float, *, interval: tuple[int, int] | None = None
) -> Guided:
    """A model pushed away from what a worse one would say: where the two differ, the worse is
    wrong, and the better not yet right. s = 1 is the model alone; 1.5 to 2 is usual.

    worse: a smaller network, or an early checkpoint, trained on the same task; it must predict the
    same (ε, x_0 or v) in the same diffusion. interval: see `guided`. Raises ValueError for networks
    of two sizes, a scale below 1 and an empty interval.
    """
    check_scale(scale, 1)
    for name in ("in_channels", "image_size"):
        a, b = getattr(model, name, None), getattr(worse, name, None)
        if None not in (a, b) and a != b:
            raise ValueError(f"the guide's {name} is {b}, the model's {a}; a guide must draw the "
                             "same kind of picture")
    labels, base = (model.labels, model.model) if isinstance(model, Guided) else (None, model)
    if isinstance(model, Guided) and (model.scale != 1 or model.worse is not None or model.also):
        raise ValueError(f"the model is guided already, with scale {model.scale}; use one kind of "
                         "guidance at a time")
    return Guided(base, labels, scale, worse=worse, interval=interval)


# Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance"
def perturbed_attention(model: nn.Module, share: float = 1.0) -> nn.Module:
    """A copy of a network whose pixels look at nobody but themselves: every map of its
    self-attention is the identity. What it reads in a text stays.

    A worse network for `autoguided`, without any training: it knows what an eye is, and nothing of
    the other eye. share: below 1, the answer is that much the copy's, and the rest model's own (two
    evaluations): a push away from both. Raises ValueError for a network without self-attention, and
    for a share that is not above 0 and at most 1.
    """
    blind = copy.deepcopy(model)
    looking = [m.attn1 if isinstance(m, ReadingLayer) else m for m in blind.modules()
               if isinstance(m, (AttentionBlock, ReadingLayer))]
    check_perturbed(looking, share)
    for attention in looking:  # its own value for each, in place of a mixture of all
        attention.mixed = lambda q, k, v, mask=None: v  # type: ignore[method-assign]
    if share < 1:
        blind.register_forward_hook(lambda _, asked, named, answer: torch.lerp(
            model(*asked, **named), answer, share), with_kwargs=True)
    return blind


def rows_of(each: Condition, x_t: Tensor) -> Condition:
    """Labels (B,) or a Text of B rows. Raises ValueError where there is not one for all, or one a
    picture.
    """
    if isinstance(each, Text):
        return each.expand(len(x_t))
    if each.numel() not in (1, len(x_t)):
        raise ValueError(f"{each.numel()} labels for {len(x_t)} pictures; "
                         "give one for all, or one a picture")
    return each.to(x_t.device).expand(len(x_t))


def rows_in(each: Condition, rows: slice) -> Condition:
    """These rows; one row for all pictures stays."""
    if isinstance(each, Text):
        return each if len(each.tokens) == 1 else Text(*(part[rows] for part in each))
    return each if len(each) == 1 else each[rows]


def joined(each: list[Condition]) -> Condition:
    """One below the other."""
    if isinstance(each[0], Text):
        return Text(*(torch.cat(parts) for parts in zip(*each, strict=True)))
    return torch.cat(each)


def check_scale(scale: float, least: int) -> None:
    """Raises ValueError for a scale that is too small (0, of autoguidance 1), or not finite."""
    if scale >= least and math.isfinite(scale):
        return
    if least:
        raise ValueError(f"the scale of autoguidance must be 1 or more, not {scale}; 1 is the "
                         "model alone, 2 is usual")
    raise ValueError(f"guidance scale must be 0 or more, not {scale}; "
                     "0 ignores the class, 1 asks for it, 2 to 5 insists")


def check_no_text(wanted: Any) -> None:
    """Raises ValueError for a caption, of a network that reads none."""
    first = wanted[0] if isinstance(wanted, list) and wanted else wanted
    if isinstance(first, (str, Text)):
        raise ValueError("this network reads no text, so it cannot be asked for a caption; give a "
                         "class, or train one that reads: --config toytext32")


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


def check_perturbed(looking: list[nn.Module], share: float) -> None:
    """Raises ValueError for a share outside 0 … 1, or 0, and for a network without self-attention.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of perturbed attention is {share}; it must lie above 0 and at "
                         "most at 1, where it is all of the answer")
    if not looking:
        raise ValueError("the network has no self-attention that could be perturbed; use one with "
                         "attention in some level, or guide by another network")


def check_dropped(model: Model, scale: float, several: bool) -> None:
    """Raises ValueError for a network that never learnt what "no class" is, asked to be guided."""
    if (scale != 1 or several) and getattr(model, "label_drop", None) == 0:
        raise ValueError(f"{'also=' if several else f'scale {scale}'} needs the network's answer "
                         "without a class, which it never learnt: it was trained with label_drop "
                         "0; ask for one thing at scale 1, or train it with "
                         "--train.label_drop 0.1")


def check_labels(labels: Tensor, classes: int | None) -> None:
    """Raises ValueError for labels that a model cannot be asked for."""
    if classes is None:
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
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"class labels must lie in 0 … {classes - 1}, not {labels.flatten().tolist()[:5]}"
        )
