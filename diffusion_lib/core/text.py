"""From words to what a U-Net can read: a tokenizer, a text encoder, and the network that has both.

    model = TextUNet(UNetConfig(image_size=32), TextConfig(words_of(captions)))
    model(x_t, t, model.read(["a white cat", ""]))     # one caption a picture; "" says nothing

`TextEncoder` has the `state_dict` of `transformers.CLIPTextModel`. Trailing comments give shapes: B
captions, L tokens, D numbers a token.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import Text
from .unet import UNet, UNetConfig

PADDING = 0  # then the words from 1 on, start, end: as in CLIP, the end has the largest number


@dataclass(frozen=True)
class TextConfig:
    """What a text encoder is built from. Raises ValueError for settings that do not fit."""

    words: tuple[str, ...] = ()  # the vocabulary
    length: int = 16  # tokens a caption, start and end included; shorter ones are padded
    width: int = 64  # numbers a token
    layers: int = 2
    heads: int = 4
    # padding is hidden from the picture's pixels; Stable Diffusion's see it, and learn to read it
    mask_padding: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))  # JSON and YAML hand over lists
        check_text(self)


def split(caption: str) -> list[str]:
    """A caption's words and marks, in small letters: "A cat, a dog" -> a, cat, ",", a, dog."""
    return re.findall(r"[^\W\d_]+|\d|[^\w\s]+|_", caption.lower())


def words_of(captions: Iterable[str]) -> tuple[str, ...]:
    """The words of captions, each once, in the order of the alphabet."""
    return tuple(sorted({word for caption in set(captions) for word in split(caption)}))


class Tokenizer:
    """Captions to numbers: each word has one, so have start, end, and what fills a row up.

    `tokenizer(captions)` is a Text of tokens int64 (B, length); "" is an empty caption, which says
    nothing. Raises ValueError for unknown words, which it names, and for a caption that is too
    long, or no text, or only white space.
    """

    def __init__(self, words: Sequence[str], length: int):
        self.length, self.numbers = length, {word: i for i, word in enumerate(words, 1)}
        self.start, self.end = len(words) + 1, len(words) + 2

    def __call__(self, captions: str | Sequence[str]) -> Text:
        captions = [captions] if isinstance(captions, str) else list(captions)
        check_captions(captions, self)
        rows = [[self.start, *(self.numbers[word] for word in split(caption)), self.end]
                for caption in captions]
        tokens = torch.tensor([row + [PADDING] * (self.length - len(row)) for row in rows])
        return Text(tokens, tokens != PADDING)


# Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", 2.4
class EncoderLayer(nn.Module):
    """Each word looks at itself and those before it, then is worked on alone."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width)
                                        for name in ("k", "v", "q", "out")})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width),
                                  "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (self.self_attn[f"{name}_proj"](h).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for name in "qkv")  # (B, heads, L, D / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["out_proj"](mixed.transpose(1, 2).flatten(2))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))  # CLIP's quick GELU


class TextEncoder(nn.Module):
    """Tokens (B, L) -> states (B, L, D): a word's state knows what was said before it, so the end's
    knows all; padding comes after the end and is known to none.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(len(c.words) + 3, c.width),
            "position_embedding": nn.Embedding(c.length, c.width)})
        layers = nn.ModuleList([EncoderLayer(c.width, c.heads) for _ in range(c.layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(c.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings["token_embedding"](tokens)
        x = x + self.embeddings["position_embedding"].weight[: tokens.shape[1]]
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)


@dataclass(frozen=True)
class TextUNetConfig:
    """The two parts' settings."""

    unet: UNetConfig
    text: TextConfig


class TextUNet(nn.Module):
    """A UNet with its text encoder and tokenizer: `model(x_t, t, model.read(captions))`.

    unet, text: the settings of both, or dictionaries of them; the U-Net's cross_attention_dim is
    the text's width. Used like a UNet; for `guided` a condition is a caption, or one a picture.
    """

    num_classes = None

    def __init__(
        self, unet: UNetConfig | Mapping[str, Any], text: TextConfig | Mapping[str, Any]
    ) -> None:
        super().__init__()
        text = text if isinstance(text, TextConfig) else TextConfig(**text)
        settings = asdict(unet) if isinstance(unet, UNetConfig) else unet
        self.unet = UNet(**{**settings, "cross_attention_dim": text.width})
        self.text_encoder, self.tokenizer = TextEncoder(text), Tokenizer(text.words, text.length)
        self.config = TextUNetConfig(self.unet.config, text)
        for name in ("image_size", "in_channels", "patch_size", "augment_dim"):
            setattr(self, name, getattr(self.unet, name))

    def read(self, captions: str | Sequence[str]) -> Text:
        """Captions as a condition: tokens (B, L) and their mask, where the network is. Raises as
        `Tokenizer`.
        """
        tokens, mask = self.tokenizer(captions)
        device, hide = self.unet.conv_in.weight.device, self.config.text.mask_padding
        return Text(tokens.to(device), (mask if hide else torch.ones_like(mask)).to(device))

    def encode(self, text: Text) -> Text:
        """Tokens to states (B, L, D), for a loop that asks the same thing many times."""
        return text if text.tokens.is_floating_point() else text._replace(
            tokens=self.text_encoder(text.tokens))

    def forward(
        self, x: Tensor, t: Tensor, condition: Text | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """As UNet. condition: what `read` or `encode` says; None is the empty caption for all."""
        said = self.encode(self.read("") if condition is None else condition)
        return self.unet(x, t, said.expand(len(x)), augment)


def check_text(c: TextConfig) -> None:
    """Raises ValueError for settings of a text encoder that do not fit together."""
    for name, least in (("length", 3), ("width", 1), ("layers", 1), ("heads", 1)):
        if getattr(c, name) < least:
            raise ValueError(f"{name} of the text is {getattr(c, name)}; it must be at least "
                             f"{least}.")
    if c.width % c.heads:
        raise ValueError(f"heads of the text is {c.heads}, which does not divide its width "
                         f"{c.width}; use a divisor.")
    if odd := [word for word in c.words if split(word) != [word]]:
        raise ValueError(f"{odd[0]!r} is not one word in small letters; a vocabulary holds what "
                         "words_of(captions) finds.")
    if len(set(c.words)) < len(c.words):
        raise ValueError("a vocabulary holds each word once; words_of(captions) makes one.")


def check_captions(captions: Sequence[Any], tokenizer: Tokenizer) -> None:
    """Raises ValueError for captions that the network cannot read."""
    if not captions:
        raise ValueError("there is no caption; give one for all pictures, or one a picture.")
    known = tokenizer.numbers
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"a caption is a text, not {caption!r}.")
        if caption and not caption.strip():
            raise ValueError("the caption holds only white space; \"\" says nothing.")
        words = split(caption)
        if unknown := sorted({word for word in words if word not in known}):
            raise ValueError(f"the network does not know {', '.join(map(repr, unknown))} in "
                             f"{caption!r}; it knows {' '.join(known)}")
        if len(words) > tokenizer.length - 2:
            raise ValueError(f"the caption has {len(words)} words and marks, the network reads at "
                             f"most {tokenizer.length - 2}: {caption!r}")
