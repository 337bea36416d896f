"""The network of DDPM (Ho et al. 2020, appendix B): a U-Net that sees a noisy picture and the time.

A picture goes down through a few levels, each half as wide as the one before, and comes up again through as many;
what each block made on the way down is kept and handed to the block on the same level on the way up. Every residual
block is told the time. Names of modules follow `diffusers.UNet2DModel`, so that both have the same `state_dict`
(see interchange.py). Trailing comments give shapes: B pictures, C channels, H rows, W columns, E = 4 * channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cpu_kernels import GroupNorm, enlarge_and_convolve


class TimeEmbedding(nn.Module):
    """Time as a vector: sines and cosines of t (Vaswani et al. 2017, section 3.5), then two linear layers."""

    def __init__(self, channels: int, flip_sin_to_cos: bool = True, freq_shift: int = 0):
        super().__init__()
        self.channels, self.flip_sin_to_cos, self.freq_shift = channels, flip_sin_to_cos, freq_shift
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) integers -> (B, E)."""
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - self.freq_shift)
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * exponents)  # (B, channels / 2)
        waves = [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        waves = torch.cat(waves, dim=1).to(self.linear_1.weight.dtype)  # (B, channels)
        return self.linear_2(F.silu(self.linear_1(waves)))  # (B, E)


class ResBlock(nn.Module):
    """x + f(x, time): two convolutions, the time added between them. At first f = 0: the last convolution is zero."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int, eps: float, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = GroupNorm(groups, c_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h


class AttentionBlock(nn.Module):
    """x + attention(x): every pixel looks at every other one (Vaswani et al. 2017, equation 1)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float):
        super().__init__()
        self.heads = heads
        self.group_norm = GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(zero(nn.Linear(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, HW, C / heads)

        q, k, v = split(self.to_q(pixels)), split(self.to_k(pixels)), split(self.to_v(pixels))
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = self.to_out(mixed.transpose(1, 2).flatten(2))  # (B, HW, C)
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Downsample(nn.Module):
    """Half the height and width, by a convolution with stride 2."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # DDPM's own (TensorFlow) networks pad on the right and below only; that is padding 0 here, as in diffusers.
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)


class Upsample(nn.Module):
    """Twice the height and width: every pixel is repeated, a convolution smooths."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return enlarge_and_convolve(x, self.conv.weight, self.conv.bias)  # (B, C, 2H, 2W)


class Level(nn.Module):
    """What the U-Net holds for one resolution: residual blocks, attentions beside them, a change of size or none."""

    def __init__(self, resnets: list, attentions: list, downsamplers: Sequence = (), upsamplers: Sequence = ()):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)


class UNet(nn.Module):
    """The denoising network: `UNet(...)(x_t, t)` or `UNet(..., num_classes=K)(x_t, t, labels)`.

    image_size        height and width of the pictures in pixels; a multiple of patch_size * 2 ** (levels - 1)
    in_channels, out_channels   of the pictures (3 for colour)
    channels          width of the first level; level i has channels * channel_mults[i]
    blocks_per_level  residual blocks per level on the way down (one more on the way up, as in DDPM)
    attention         for each level: does self-attention follow each of its residual blocks?
    num_classes       K adds an embedding of K + 1 labels: 0 ... K-1, and K = "no label" (for guidance)
    patch_size        p folds p x p pixels into the channels, and unfolds them at the end: p ** 2 times fewer pixels
    norm_num_groups   of every GroupNorm; default min(32, channels // 4)
    attention_head_dim   channels per attention head; None is a single head
    augment_dim       numbers that tell how a training picture was augmented (augment.py); none: it was not. 0: never told
    norm_eps, flip_sin_to_cos, freq_shift, downsample_padding   as in diffusers, for loading published networks

    Raises ValueError for settings that do not fit together. `config` is a dict with which UNet(**config) rebuilds it.
    """

    def __init__(
        self,
        image_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 64,
        channel_mults: Sequence[int] = (1, 2, 2),
        blocks_per_level: int = 1,
        attention: Sequence[bool] = (False, False, True),
        num_classes: int | None = None,
        patch_size: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        attention_head_dim: int | None = None,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        downsample_padding: int = 1,
        augment_dim: int = 0,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        groups = min(32, max(1, channels // 4)) if norm_num_groups is None else norm_num_groups
        self.config |= {"channel_mults": list(channel_mults), "attention": [bool(yes) for yes in attention], "norm_num_groups": groups}
        widths = [channels * mult for mult in channel_mults]
        check_settings(self.config, widths, groups)
        self.image_size, self.in_channels, self.patch_size = image_size, in_channels, patch_size
        self.num_classes, self.augment_dim = num_classes, augment_dim
        time_dim = 4 * channels

        def res(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, time_dim, groups, norm_eps, dropout)

        def attend(width: int, yes: bool = True) -> nn.Module:
            heads = width // (attention_head_dim or width)
            return AttentionBlock(width, heads, groups, norm_eps) if yes else nn.Identity()

        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.time_embedding = TimeEmbedding(channels, flip_sin_to_cos, freq_shift)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, time_dim)

        self.augment_embedding = zero(nn.Linear(augment_dim, time_dim, bias=False)) if augment_dim else None
        self.down_blocks = nn.ModuleList()
        c, kept = channels, [channels]  # channels of x, and of everything kept for the way up
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            resnets = [res(c if j == 0 else width, width) for j in range(blocks_per_level)]
            attentions = [attend(width, attention[i]) for _ in resnets]
            downsamplers = [] if last else [Downsample(width, downsample_padding)]
            self.down_blocks.append(Level(resnets, attentions, downsamplers=downsamplers))
            kept += [width] * (len(resnets) + len(downsamplers))
            c = width

        self.mid_block = Level([res(c, c), res(c, c)], [attend(c)])

        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            resnets = [res((c if j == 0 else width) + kept.pop(), width) for j in range(blocks_per_level + 1)]
            attentions = [attend(width, attention[i]) for _ in resnets]
            self.up_blocks.append(Level(resnets, attentions, upsamplers=[] if i == 0 else [Upsample(width)]))
            c = width

        self.conv_norm_out = GroupNorm(groups, c, norm_eps)
        self.conv_out = zero(nn.Conv2d(c, out_channels * patch_size**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Noisy pictures x (B, C, H, W), their timesteps t (B,) int64 in 0 ... T-1 -> (B, C_out, H, W), dtype of x.

        labels (B,) int64 in 0 ... K with K = no label; None means no label for all. augment (B, augment_dim); None means zeros.
        Raises ValueError for other shapes and dtypes, and for labels out of range (on a CPU only: a GPU would have to wait).
        """
        check_input(self, x, t, labels)
        dtype = x.dtype
        time = self.time_embedding(t)  # (B, E)
        if self.class_embedding is not None:
            time = time + self.class_embedding(torch.full_like(t, self.num_classes) if labels is None else labels)
        if self.augment_embedding is not None and augment is not None:
            time = time + self.augment_embedding(augment)  # no bias: zeros, as when sampling, add nothing
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))  # (B, channels, H / patch, W / patch)
        kept = [x]
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                x = attention(resnet(x, time))
                kept.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                kept.append(x)

        x = self.mid_block.attentions[0](self.mid_block.resnets[0](x, time))
        x = self.mid_block.resnets[1](x, time)

        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                x = attention(resnet(torch.cat([x, kept.pop()], dim=1), time))
            for upsample in level.upsamplers:
                x = upsample(x)

        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size).to(dtype)  # (B, C_out, H, W); autocast's bfloat16 ends here


def zero(layer: nn.Module) -> nn.Module:
    """The same layer with weights and bias 0: what it ends adds nothing at first, so deep networks start tame."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_settings(config: dict, widths: list[int], groups: int) -> None:
    """Raises ValueError, one line with the remedy, where the settings of a UNet do not fit together."""
    for name in ("image_size", "in_channels", "out_channels", "channels", "blocks_per_level", "patch_size", "augment_dim"):
        if config[name] < (least := int(name != "augment_dim")):
            raise ValueError(f"{name} is {config[name]}; it must be at least {least}.")
    mults = config["channel_mults"]
    if not mults or mults[0] != 1 or min(mults) < 1:
        raise ValueError(f"channel_mults is {mults}; give one whole number per level, the first of them 1.")
    if len(config["attention"]) != len(widths):
        given = len(config["attention"])
        raise ValueError(f"attention has {given} entries, channel_mults {len(widths)}: one True or False per level.")
    factor = config["patch_size"] * 2 ** (len(widths) - 1)
    if config["image_size"] % factor:
        raise ValueError(
            f"image_size {config['image_size']} is not a multiple of {factor} (patch_size {config['patch_size']} times "
            f"2 for each of the {len(widths) - 1} halvings); use {math.ceil(config['image_size'] / factor) * factor}."
        )
    if config["channels"] % 2:
        raise ValueError(f"channels is {config['channels']}; it must be even (half sines, half cosines of the time).")
    if config["channels"] // 2 <= config["freq_shift"]:
        raise ValueError(f"freq_shift {config['freq_shift']} needs more than {config['channels']} channels.")
    for width in widths:
        if groups < 1 or width % groups:
            raise ValueError(f"norm_num_groups {groups} does not divide a level's {width} channels; "
                             f"use a divisor of {math.gcd(*widths)}.")
    head = config["attention_head_dim"]
    attending = [width for width, yes in zip(widths, config["attention"], strict=True) if yes] + widths[-1:]
    for width in attending:
        if head is not None and (head < 1 or width % head):
            raise ValueError(f"attention_head_dim {head} does not divide a level's {width} channels; use a divisor.")
    if config["downsample_padding"] not in (0, 1):
        raise ValueError(f"downsample_padding is {config['downsample_padding']}; it must be 0 or 1.")
    if config["num_classes"] is not None and config["num_classes"] < 1:
        raise ValueError(f"num_classes is {config['num_classes']}; use None for a network without labels.")


def check_input(model: UNet, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
    """Raises ValueError, one line with the remedy, where pictures, times or labels are not what `model` takes."""
    weights = model.conv_in.weight.dtype
    if not x.is_floating_point():
        raise ValueError(f"pictures are {x.dtype}; the network takes {weights} in [-1, 1]: use x.float() / 127.5 - 1.")
    lower = (torch.bfloat16, torch.float16)
    if x.dtype != weights and not (x.dtype in lower and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"pictures are {x.dtype} but the network is {weights}: use x.to({weights}).")
    want = (model.in_channels, model.image_size, model.image_size)
    if x.ndim != 4 or tuple(x.shape[1:]) != want:
        raise ValueError(f"pictures have shape {tuple(x.shape)}; this network takes (B, {', '.join(map(str, want))}).")
    for name, tensor in [("t", t)] + [("labels", labels)] * (labels is not None):
        if tensor.dtype != torch.int64 or tensor.shape != x.shape[:1]:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be torch.int64 of shape ({len(x)},), "
                             "one number a picture.")
    if labels is None:
        return
    if model.num_classes is None:
        raise ValueError("labels were given but this network has no classes: leave them out, or build num_classes=K.")
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() <= model.num_classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; the network knows 0 ... {model.num_classes - 1}, "
                         f"and {model.num_classes} for no label.")
