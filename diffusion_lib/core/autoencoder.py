"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): a picture becomes a small
latent, and a picture again.

A 128 px picture holds 49,152 numbers, most of which say how the hairs lie. An encoder keeps 1,024
of them (16 × 16 × 4), a decoder paints the rest, and diffusion works in between, where a step costs
a small part. It is made of the U-Net's own pieces, without time and without the bridges from the
way down to the way up. Names of modules follow `diffusers.AutoencoderKL`, so that both have the
same `state_dict`.

Latents have mean 0 and spread 1 in every channel *by construction*: what the encoder says is
divided by its spread, and in training some noise is added. An encoder that wants to be understood
cannot shout; it must say what matters so that it survives the noise. (A variational autoencoder
with a fixed noise; the fixed spread takes the place of its KL term.)
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import AttentionBlock, Downsample, Level, ResBlock, Upsample


@dataclass(frozen=True)
class AutoencoderConfig:
    """What an Autoencoder is built from. Raises ValueError for settings that do not fit together.
    """

    # height and width of the pictures in pixels; a multiple of patch_size * 2 ** (levels - 1)
    image_size: int = 128
    in_channels: int = 3
    latent_channels: int = 4
    channels: int = 16  # width of the first level; level i has channels * channel_mults[i]
    channel_mults: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 1  # on the way down; one more on the way up
    attention: bool = False  # in the middle
    patch_size: int = 1  # p folds p x p pixels into the channels, as in UNet
    norm_num_groups: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mults", tuple(self.channel_mults))
        check_settings(self)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * mult for mult in self.channel_mults]


class Autoencoder(nn.Module):
    """`z = encode(pictures)`, `pictures = decode(z)`; `config` holds its AutoencoderConfig.

    latent_mean, latent_std (latent_channels,): of what the encoder says on the training pictures;
    followed during training, and used to standardise afterwards.
    """

    def __init__(self, config: AutoencoderConfig | None = None, **settings: Any):
        super().__init__()
        c = AutoencoderConfig(**settings) if config is None else replace(config, **settings)
        self.config, self.image_size, self.in_channels = c, c.image_size, c.in_channels
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        # diffusers' encoder says a mean and a spread for each number; ours says the mean only
        self.quant_conv = nn.Conv2d(c.latent_channels, c.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(c.latent_channels, c.latent_channels, 1)
        self.register_buffer("latent_mean", torch.zeros(c.latent_channels))
        self.register_buffer("latent_std", torch.ones(c.latent_channels))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        c = self.config
        size = c.image_size // (c.patch_size * 2 ** (len(c.channel_mults) - 1))
        return c.latent_channels, size, size

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), floats in [-1, 1] -> latents (B, C, h, w) of mean 0, spread 1."""
        check_shape(pictures, (self.in_channels, self.image_size, self.image_size), "pictures")
        said = self.quant_conv(self.encoder(pictures)).float()
        mean, std = self.latent_mean, self.latent_std
        learns = self.training and self.quant_conv.weight.requires_grad
        if learns:  # of this batch, so that the gradient knows of them
            mean, std = said.mean((0, 2, 3)), said.std((0, 2, 3)) + 1e-4
            self.latent_mean.lerp_(mean.detach(), 0.01)
            self.latent_std.lerp_(std.detach(), 0.01)
        return (said - mean[:, None, None]) / std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), about in [-1, 1] (not clipped)."""
        check_shape(latents, self.latent_shape, "latents")
        return self.decoder(self.post_quant_conv(latents)).float()

    def forward(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """decode(encode(pictures) + noise)."""
        latents = self.encode(pictures)
        return self.decode(latents if noise is None else latents + noise)


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> (B, latent_channels, h, w)."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        self.patch_size, widths = c.patch_size, c.widths
        self.conv_in = nn.Conv2d(c.in_channels * c.patch_size**2, widths[0], 3, padding=1)
        self.down_blocks, at = nn.ModuleList(), widths[0]
        for i, width in enumerate(widths):
            blocks = [block(c, at if j == 0 else width, width) for j in range(c.blocks_per_level)]
            smaller = [Downsample(width, padding=0)] if i < len(widths) - 1 else []
            self.down_blocks.append(Level(blocks, [], downsamplers=smaller))
            at = width
        self.mid_block = middle(c, at)
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, at, 1e-6)
        self.conv_out = nn.Conv2d(at, c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        for level in self.down_blocks:
            for layer in (*level.resnets, *level.downsamplers):
                x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(through_middle(self.mid_block, x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> pictures (B, 3, H, W)."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        self.patch_size, widths = c.patch_size, c.widths
        at = widths[-1]
        self.conv_in = nn.Conv2d(c.latent_channels, at, 3, padding=1)
        self.mid_block = middle(c, at)
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            count = c.blocks_per_level + 1
            blocks = [block(c, at if j == 0 else width, width) for j in range(count)]
            self.up_blocks.append(Level(blocks, [], upsamplers=[Upsample(width)] if i else []))
            at = width
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, at, 1e-6)
        self.conv_out = nn.Conv2d(at, c.in_channels * c.patch_size**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = through_middle(self.mid_block, self.conv_in(x))
        for level in self.up_blocks:
            for layer in (*level.resnets, *level.upsamplers):
                x = layer(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.patch_size)


def block(c: AutoencoderConfig, c_in: int, c_out: int) -> ResBlock:
    """A residual block that is told no time."""
    return ResBlock(c_in, c_out, None, c.norm_num_groups, 1e-6, 0.0)


def middle(c: AutoencoderConfig, width: int) -> Level:
    """Two blocks, attention between them if asked."""
    attention = [AttentionBlock(width, 1, c.norm_num_groups, 1e-6)] if c.attention else []
    return Level([block(c, width, width), block(c, width, width)], attention)


def through_middle(level: Level, x: Tensor) -> Tensor:
    """The middle's layers, one after the other."""
    x = level.resnets[0](x)
    for attention in level.attentions:
        x = attention(x)
    return level.resnets[1](x)


class PatchCritic(nn.Module):
    """Says of each patch whether it is from a photograph (high) or from the decoder (low).

    Isola et al. 2017, section 3.2.2: a few convolutions that see patches only, so they judge
    texture, not the picture. Returns what every layer sees, the verdicts last.
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, fold: int = 2):
        super().__init__()
        self.fold = fold
        widths = [in_channels * fold**2, channels, 2 * channels, 2 * channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1)
            for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.verdict = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) -> features of each layer, then verdicts (B, 1, h, w)."""
        x, seen = F.pixel_unshuffle(pictures, self.fold), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            seen.append(x)
        return [*seen, self.verdict(x)]


def check_settings(c: AutoencoderConfig) -> None:
    """Raises ValueError, one line with the remedy, for what cannot be built."""
    for name in ("image_size", "in_channels", "latent_channels", "channels", "blocks_per_level",
                 "patch_size", "norm_num_groups"):
        if getattr(c, name) < 1:
            raise ValueError(f"{name} is {getattr(c, name)}; it must be at least 1.")
    if not c.channel_mults or min(c.channel_mults) < 1:
        raise ValueError(f"channel_mults is {list(c.channel_mults)}; give one whole number a "
                         "level, 1 or more.")
    if c.image_size % (factor := c.patch_size * 2 ** (len(c.channel_mults) - 1)):
        raise ValueError(f"image_size {c.image_size} is not a multiple of {factor} (patch_size "
                         f"times 2 for each of the {len(c.channel_mults) - 1} halvings).")
    if any(width % c.norm_num_groups for width in c.widths):
        raise ValueError(f"norm_num_groups {c.norm_num_groups} does not divide every level's "
                         f"channels {c.widths}.")


def check_shape(x: Tensor, shape: tuple[int, int, int], what: str) -> None:
    """Raises ValueError unless x is (B, *shape), floats."""
    if x.ndim != 4 or tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise ValueError(f"the autoencoder takes {what} (B, {', '.join(map(str, shape))}), floats, "
                         f"not {tuple(x.shape)} {x.dtype}")
