"""How a picture reads a text: the block of a U-Net in which pixels look at pixels, then at words.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3.
Names of modules follow diffusers' Transformer2DModel with use_linear_projection, so that a UNet
with text has the `state_dict` of a `diffusers.UNet2DConditionModel`. Trailing comments give shapes:
B pictures, C channels, H rows, W columns, L words, D numbers a word.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Text(NamedTuple):
    """What a network is asked for in words, one row a picture.

    tokens: numbers of words, int64 (B, L), for a TextUNet; or what its encoder made of them, floats
    (B, L, D). mask: bool (B, L), False where a row is only padded; attention does not look there.
    """

    tokens: Tensor
    mask: Tensor

    def expand(self, n: int) -> "Text":
        """One row for all becomes n; n rows stay. Raises ValueError for another number."""
        if len(self.tokens) not in (1, n):
            raise ValueError(f"{len(self.tokens)} captions for {n} pictures; give one for all, or "
                             "one a picture")
        return Text(self.tokens.expand(n, *self.tokens.shape[1:]), self.mask.expand(n, -1))


class Attention(nn.Module):
    """Each row of x looks at the rows of `seen` (Vaswani et al. 2017, equation 1): queries from x,
    keys and values from `seen`.
    """

    def __init__(self, channels: int, seen: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(seen, channels, bias=False)
        self.to_v = nn.Linear(seen, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, C), seen (B, L, D), mask (B, L) bool, False: not to be seen -> (B, N, C)."""
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, …, C / heads)
                   for y in (self.to_q(x), self.to_k(seen), self.to_v(seen)))
        mask = None if mask is None else mask[:, None, None]  # the same for all heads and pixels
        return self.to_out(self.mixed(q, k, v, mask).transpose(1, 2).flatten(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q kᵀ / √d) v, (B, heads, N, C / heads)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# Shazeer 2020, "GLU Variants Improve Transformer", equation 6
class GEGLU(nn.Module):
    """Four times wider; each number is let through as far as another one says."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class ReadingLayer(nn.Module):
    """Pixels look at pixels, then at words; then each is worked on alone. Each step is added."""

    def __init__(self, channels: int, text_dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = Attention(channels, channels, heads)
        self.attn2 = Attention(channels, text_dim, heads)
        net = nn.Sequential(GEGLU(channels), nn.Identity(), nn.Linear(4 * channels, channels))
        self.ff = nn.ModuleDict({"net": net})

    def forward(self, x: Tensor, text: Text) -> Tensor:
        pixels = self.norm1(x)
        x = x + self.attn1(pixels, pixels)
        x = x + self.attn2(self.norm2(x), text.tokens.to(x.dtype), text.mask)
        return x + self.ff["net"](self.norm3(x))


class TextAttentionBlock(nn.Module):
    """x + what its pixels read in the text."""

    def __init__(self, channels: int, text_dim: int, heads: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([ReadingLayer(channels, text_dim, heads)])

    def forward(self, x: Tensor, text: Text) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, HW, C)
        for layer in self.transformer_blocks:
            h = layer(h, text)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
