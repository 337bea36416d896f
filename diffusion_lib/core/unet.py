"""The network of DDPM (Ho et al. 2020, appendix B): a U-Net that sees a noisy picture and the time.

A picture goes down through a few levels, each half as wide as the one before, and comes up again
through as many; what each block made on the way down is kept and handed to the block on the same
level on the way up. Every residual block is told the time. Names of modules follow
`diffusers.UNet2DModel`, so that both have the same `state_dict` (see saving/diffusers_format.py);
where pixels also look at a text, those of `diffusers.UNet2DConditionModel`.
Trailing comments give shapes: B pictures, C channels, H rows, W columns, E = 4 * channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import Text, TextAttentionBlock


class TimeEmbedding(nn.Module):
    """Time as a vector: sines and cosines of t (Vaswani et al. 2017, section 3.5), then two linear
    layers.
    """

    def __init__(self, channels: int, flip_sin_to_cos: bool = True, freq_shift: int = 0):
        super().__init__()
        self.channels, self.flip_sin_to_cos, self.freq_shift = channels, flip_sin_to_cos, freq_shift
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) integers -> (B, E)."""
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (
            half - self.freq_shift
        )
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * exponents)  # (B, channels / 2)
        waves = (
            [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        )
        waves = torch.cat(waves, dim=1).to(self.linear_1.weight.dtype)  # (B, channels)
        return self.linear_2(F.silu(self.linear_1(waves)))  # (B, E)


class ResBlock(nn.Module):
    """x + f(x, time): two convolutions, the time added between them. At first f = 0: the last
    convolution is zero.
    """

    def __init__(
        self, c_in: int, c_out: int, time_dim: int | None, groups: int, eps: float, dropout: float
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        if time_dim:  # an autoencoder's blocks know no time
            self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h


class AttentionBlock(nn.Module):
    """x + attention(x): every pixel looks at every other one (Vaswani et al. 2017, equation 1)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float):
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(zero(nn.Linear(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, HW, C / heads)

        q, k, v = split(self.to_q(pixels)), split(self.to_k(pixels)), split(self.to_v(pixels))
        mixed = self.to_out(self.mixed(q, k, v).transpose(1, 2).flatten(2))  # (B, HW, C)
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √d) v, (B, heads, HW, C / heads)."""
        return F.scaled_dot_product_attention(q, k, v)


class NoAttention(nn.Identity):
    """Stands where a level has no attention, with a text or without one."""

    def forward(self, x: Tensor, *text: Text) -> Tensor:
        return x


class Downsample(nn.Module):
    """Half the height and width, by a convolution with stride 2."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # DDPM's own (TensorFlow) networks pad on the right and below only; that is padding 0 here,
        # as in diffusers.
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)


class Upsample(nn.Module):
    """Twice the height and width: every pixel is repeated, a convolution smooths."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2H, 2W)


class Level(nn.Module):
    """What the U-Net holds for one resolution: residual blocks, attentions beside them, a change of
    size or none.
    """

    def __init__(
        self, resnets: list, attentions: list, downsamplers: Sequence = (),
        upsamplers: Sequence = (),
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)


@dataclass(frozen=True)
class UNetConfig:
    """Everything that a UNet is built from. Raises ValueError for settings that do not fit
    together.
    """

    # height and width of the pictures in pixels; a multiple of patch_size * 2 ** (levels - 1)
    image_size: int = 32
    in_channels: int = 3  # of the pictures (3 for colour)
    out_channels: int = None  # type: ignore[assignment]  # None: as in_channels
    channels: int = 64  # width of the first level; level i has channels * channel_mults[i]
    channel_mults: tuple[int, ...] = (1, 2, 2)
    # residual blocks per level on the way down (one more on the way up, as in DDPM)
    blocks_per_level: int = 1
    # a level: does attention follow each of its residual blocks?
    attention: tuple[bool, ...] = (False, False, True)
    # K adds an embedding of K + 1 labels: 0 ... K-1, and K = "no label" (for guidance)
    num_classes: int | None = None
    # p folds p x p pixels into the channels, and unfolds them at the end: p ** 2 times fewer pixels
    patch_size: int = 1
    dropout: float = 0.0
    # of every GroupNorm; None: min(32, channels // 4)
    norm_num_groups: int = None  # type: ignore[assignment]
    norm_eps: float = 1e-5
    attention_head_dim: int | None = None  # channels per attention head; None is a single head
    # this and the next two as in diffusers, for loading published networks
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    downsample_padding: int = 1
    # D numbers a word: attention then also looks at a text (core/text.py makes its states)
    cross_attention_dim: int | None = None
    # numbers that tell how a training picture was augmented (data/augment.py); 0: never told
    augment_dim: int = 0

    def __post_init__(self) -> None:
        groups = self.norm_num_groups
        if groups is None:
            groups = min(32, max(1, self.channels // 4))
        out = self.in_channels if self.out_channels is None else self.out_channels
        for name, value in (
            ("out_channels", out), ("channel_mults", tuple(self.channel_mults)),
            ("norm_num_groups", groups), ("attention", tuple(bool(yes) for yes in self.attention)),
        ):
            object.__setattr__(self, name, value)  # JSON and YAML hand over lists
        check_settings(self)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * mult for mult in self.channel_mults]


class UNet(nn.Module):
    """The denoising network: `UNet(image_size=32)(x_t, t)` or `UNet(num_classes=K)(x_t, t,
    labels)`.

    Takes the fields of UNetConfig, or one: `UNet(config)`; `config` holds it. Raises ValueError for
    settings that do not fit together.
    """

    def __init__(self, config: UNetConfig | None = None, **settings: Any):
        super().__init__()
        self.config = c = UNetConfig(**settings) if config is None else replace(config, **settings)
        self.image_size, self.in_channels = c.image_size, c.in_channels
        self.patch_size, self.num_classes = c.patch_size, c.num_classes
        self.augment_dim = c.augment_dim
        widths, time_dim, groups = c.widths, 4 * c.channels, c.norm_num_groups

        def res(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, time_dim, groups, c.norm_eps, c.dropout)

        def attend(width: int, yes: bool = True) -> nn.Module:
            heads = width // (c.attention_head_dim or width)
            if yes and c.cross_attention_dim:
                return TextAttentionBlock(width, c.cross_attention_dim, heads, groups)
            return AttentionBlock(width, heads, groups, c.norm_eps) if yes else NoAttention()

        self.conv_in = nn.Conv2d(c.in_channels * c.patch_size**2, c.channels, 3, padding=1)
        self.time_embedding = TimeEmbedding(c.channels, c.flip_sin_to_cos, c.freq_shift)
        self.class_embedding = (
            None if c.num_classes is None else nn.Embedding(c.num_classes + 1, time_dim)
        )
        self.augment_embedding = (
            zero(nn.Linear(c.augment_dim, time_dim, bias=False)) if c.augment_dim else None
        )

        self.down_blocks = nn.ModuleList()
        at, kept = c.channels, [c.channels]  # channels of x, and of everything kept for the way up
        for i, width in enumerate(widths):
            resnets = [res(at if j == 0 else width, width) for j in range(c.blocks_per_level)]
            attentions = [attend(width, c.attention[i]) for _ in resnets]
            downsamplers = [Downsample(width, c.downsample_padding)] if i < len(widths) - 1 else []
            self.down_blocks.append(Level(resnets, attentions, downsamplers=downsamplers))
            kept += [width] * (len(resnets) + len(downsamplers))
            at = width

        self.mid_block = Level([res(at, at), res(at, at)], [attend(at)])

        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            resnets = [res((at if j == 0 else width) + kept.pop(), width)
                       for j in range(c.blocks_per_level + 1)]
            attentions = [attend(width, c.attention[i]) for _ in resnets]
            self.up_blocks.append(
                Level(resnets, attentions, upsamplers=[] if i == 0 else [Upsample(width)])
            )
            at = width

        self.conv_norm_out = nn.GroupNorm(groups, at, c.norm_eps)
        self.conv_out = zero(nn.Conv2d(at, c.out_channels * c.patch_size**2, 3, padding=1))
        for block in self.modules():
            if isinstance(block, TextAttentionBlock):
                zero(block.proj_out)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | Text | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Noisy pictures x (B, C, H, W), their timesteps t (B,) int64 in 0 ... T-1 -> (B, C_out, H,
        W), dtype of x.

        condition: labels (B,) int64 in 0 ... K with K = no label; None means no label for all.
        With cross_attention_dim D: a Text of states (B, L, D), which must be given. augment (B,
        augment_dim); None means zeros. Raises ValueError for other shapes and dtypes, and for
        labels out of range (on a CPU only: a GPU would have to wait).
        """
        check_input(self, x, t, condition, augment)
        dtype, text = x.dtype, (condition,) if isinstance(condition, Text) else ()
        time = self.time_embedding(t)  # (B, E)
        if self.class_embedding is not None:
            labels = torch.full_like(t, self.num_classes) if condition is None else condition
            time = time + self.class_embedding(labels)
        if self.augment_embedding is not None and augment is not None:
            # no bias: zeros, as when sampling, add nothing
            time = time + self.augment_embedding(augment)
        # (B, channels, H / patch, W / patch)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        kept = [x]
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                x = attention(resnet(x, time), *text)
                kept.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                kept.append(x)

        x = self.mid_block.attentions[0](self.mid_block.resnets[0](x, time), *text)
        x = self.mid_block.resnets[1](x, time)

        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                x = attention(resnet(torch.cat([x, kept.pop()], dim=1), time), *text)
            for upsample in level.upsamplers:
                x = upsample(x)

        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        # (B, C_out, H, W); autocast's bfloat16 ends here
        return F.pixel_shuffle(x, self.patch_size).to(dtype)


def zero(layer: nn.Module) -> nn.Module:
    """The same layer with weights and bias 0: what it ends adds nothing at first, so deep networks
    start tame.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_settings(c: UNetConfig) -> None:
    """Raises ValueError, one line with the remedy, where the settings of a UNet do not fit
    together.
    """
    for name in (
        "image_size", "in_channels", "out_channels", "channels", "blocks_per_level", "patch_size",
        "augment_dim",
    ):
        if getattr(c, name) < (least := int(name != "augment_dim")):
            raise ValueError(f"{name} is {getattr(c, name)}; it must be at least {least}.")
    if not c.channel_mults or c.channel_mults[0] != 1 or min(c.channel_mults) < 1:
        raise ValueError(
            f"channel_mults is {list(c.channel_mults)}; give one whole number per level, the "
            "first of them 1."
        )
    levels = len(c.channel_mults)
    if len(c.attention) != levels:
        raise ValueError(
            f"attention has {len(c.attention)} entries, channel_mults {levels}: one True or False "
            "per level."
        )
    factor = c.patch_size * 2 ** (levels - 1)
    if c.image_size % factor:
        raise ValueError(
            f"image_size {c.image_size} is not a multiple of {factor} (patch_size {c.patch_size} "
            "times 2 for each "
            f"of the {levels - 1} halvings); use {math.ceil(c.image_size / factor) * factor}."
        )
    if c.channels % 2:
        raise ValueError(
            f"channels is {c.channels}; it must be even (half sines, half cosines of the time)."
        )
    if c.channels // 2 <= c.freq_shift:
        raise ValueError(f"freq_shift {c.freq_shift} needs more than {c.channels} channels.")
    groups, head = c.norm_num_groups, c.attention_head_dim
    for width in c.widths:
        if groups < 1 or width % groups:
            raise ValueError(
                f"norm_num_groups {groups} does not divide a level's {width} channels; "
                f"use a divisor of {math.gcd(*c.widths)}."
            )
    attending = [width for width, yes in zip(c.widths, c.attention, strict=True) if yes]
    for width in attending + c.widths[-1:]:
        if head is not None and (head < 1 or width % head):
            raise ValueError(
                f"attention_head_dim {head} does not divide a level's {width} channels; "
                "use a divisor."
            )
    if c.downsample_padding not in (0, 1):
        raise ValueError(f"downsample_padding is {c.downsample_padding}; it must be 0 or 1.")
    if c.cross_attention_dim is not None and (c.cross_attention_dim < 1 or c.num_classes):
        raise ValueError(f"cross_attention_dim is {c.cross_attention_dim}; it must be at least 1, "
                         "and num_classes None: a network reads a text or knows classes.")
    if c.num_classes is not None and c.num_classes < 1:
        raise ValueError(f"num_classes is {c.num_classes}; use None for a network without labels.")


def check_said(model: UNet, x: Tensor, said: Tensor | Text | None) -> None:
    """Raises ValueError where a text is given to a network without, or lacks, or does not fit."""
    dim = model.config.cross_attention_dim
    if dim is None:
        if isinstance(said, Text):
            raise ValueError("a text was given but this network reads none: leave it out, or build "
                             "it with cross_attention_dim.")
        return
    if not isinstance(said, Text):
        raise ValueError("this network reads a text: give Text(states (B, L, "
                         f"{dim}), mask (B, L)), as model.encode(model.read(captions)) does.")
    tokens, mask = said
    if tokens.ndim != 3 or tokens.shape[::2] != (len(x), dim) or mask.shape != tokens.shape[:2] \
            or mask.dtype != torch.bool:
        raise ValueError(f"the text has states {tuple(tokens.shape)} and a mask "
                         f"{tuple(mask.shape)} of {mask.dtype}; this network takes ({len(x)}, L, "
                         f"{dim}) and ({len(x)}, L) of torch.bool.")


def check_input(model: UNet, x: Tensor, t: Tensor, said: Tensor | Text | None,
                augment: Tensor | None = None) -> None:
    """Raises ValueError, one line with the remedy, where pictures, times or labels are not what
    `model` takes.
    """
    weights = model.conv_in.weight.dtype
    if not x.is_floating_point():
        raise ValueError(
            f"pictures are {x.dtype}; the network takes {weights} in [-1, 1]: use x.float() / "
            "127.5 - 1."
        )
    lower = (torch.bfloat16, torch.float16)
    if x.dtype != weights and not (x.dtype in lower and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(
            f"pictures are {x.dtype} but the network is {weights}: use x.to({weights})."
        )
    want = (model.in_channels, model.image_size, model.image_size)
    if x.ndim != 4 or tuple(x.shape[1:]) != want:
        raise ValueError(
            f"pictures have shape {tuple(x.shape)}; this network takes (B, "
            f"{', '.join(map(str, want))})."
        )
    check_said(model, x, said)
    wanted = (len(x), model.augment_dim)
    if augment is not None and not (
            model.augment_dim and augment.shape == wanted and augment.is_floating_point()):
        raise ValueError(f"augment is {augment.dtype} of shape {tuple(augment.shape)}; this "
                         f"network takes floats of shape {wanted}"
                         + ("." if model.augment_dim else ": it was built without augment_dim."))
    labels = None if isinstance(said, Text) else said
    for name, tensor in [("t", t)] + [("labels", labels)] * (labels is not None):
        if tensor.dtype != torch.int64 or tensor.shape != x.shape[:1]:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                f"it must be torch.int64 of shape ({len(x)},), "
                "one number a picture."
            )
    if labels is None:
        return
    if model.num_classes is None:
        raise ValueError(
            "labels were given but this network has no classes: leave them out, or build "
            "num_classes=K."
        )
    if (
        labels.device.type == "cpu"
        and len(labels)
        and not 0 <= labels.min() <= labels.max() <= model.num_classes
    ):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; "
            f"the network knows 0 ... {model.num_classes - 1}, "
            f"and {model.num_classes} for no label."
        )
