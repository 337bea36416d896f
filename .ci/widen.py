"""A wider copy of a trained network without classes or text, which answers almost as the narrow one
did: a start for a training that need not begin anew (Chen et al. 2016, "Net2Net", section 2.3).

    python .ci/widen.py catfaces128 64 runs/wide
    python -m diffusion_lib train --config catfaces128 --model.channels 64 --init runs/wide --out …
    python .ci/widen.py catfaces_autoencoder 48 runs/wide_autoencoder

A new channel is a copy of an old one, and what read the old one reads both, in random shares that
make 1: the sum is the same, but their gradients differ, so they part. Whole groups of a GroupNorm
are copied, so it sees the same numbers; not where two streams are joined, hence "almost" (an
autoencoder joins none: its copy answers the same). New numbers of a query meet zeros in the keys.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib.core.autoencoder import Autoencoder
from diffusion_lib.core.unet import UNet
from diffusion_lib.saving import pretrained
from diffusion_lib.saving.checkpoint import save_checkpoint
from diffusion_lib.saving.diffusers_format import check_new, save_diffusers


class Widener:
    """Copies the weights of a network into a wider one, a layer at a time."""

    def __init__(self, narrow: nn.Module, wide: nn.Module, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.old, self.new = dict(narrow.named_parameters()), dict(wide.named_parameters())
        self.groups = narrow.config.norm_num_groups, wide.config.norm_num_groups
        self.streams: dict[int, Tensor] = {}

    def stream(self, width: int) -> Tensor:
        """Which old channel each new one copies: a map for each width, the same everywhere."""
        if width not in self.streams:
            old, new = self.groups
            size = width // old  # channels a group
            copied = torch.randperm(old, generator=self.random)[: new - old]
            groups = torch.cat([torch.arange(old), copied])
            self.streams[width] = (groups[:, None] * size + torch.arange(size)).flatten()
        return self.streams[width]

    def put(self, name: str, out: Tensor | None, into: Tensor | None) -> None:
        """One weight: its rows copied by `out`, its columns shared out by `into` (None: as is)."""
        weight = self.old[name].detach()
        if out is not None:
            weight = weight[out]
        if into is not None:
            shares = 1 + torch.rand(len(weight), len(into), generator=self.random)
            sums = torch.zeros(len(weight), int(into.max()) + 1)
            sums.index_add_(1, into, shares)
            shares = (shares / sums[:, into]).view(shares.shape + (1,) * (weight.ndim - 2))
            weight = weight[:, into] * shares
        self.new[name].data.copy_(weight)

    def layer(self, name: str, out: Tensor | None, into: Tensor | None) -> None:
        """A convolution or a linear layer."""
        self.put(f"{name}.weight", out, into)
        self.put(f"{name}.bias", out, None)

    def norm(self, name: str, channels: Tensor) -> None:
        """A GroupNorm."""
        self.put(f"{name}.weight", channels, None)
        self.put(f"{name}.bias", channels, None)

    def res(self, name: str, block: nn.Module, streams: list[int], time: Tensor | None) -> int:
        """A ResBlock that reads `streams` of these widths, joined; returns its width."""
        into, offset = [], 0
        for width in streams:
            into.append(self.stream(width) + offset)
            offset += width
        joined, width = torch.cat(into), block.conv1.out_channels
        out = self.stream(width)
        self.norm(f"{name}.norm1", joined)
        self.layer(f"{name}.conv1", out, joined)
        if time is not None:
            self.layer(f"{name}.time_emb_proj", out, time)
        self.norm(f"{name}.norm2", out)
        self.layer(f"{name}.conv2", out, out)
        if isinstance(block.conv_shortcut, nn.Conv2d):
            self.layer(f"{name}.conv_shortcut", out, joined)
        return width

    def attend(self, name: str, block: nn.Module) -> None:
        """An AttentionBlock."""
        if isinstance(block, nn.Identity):
            return
        width = block.to_q.out_features
        x = self.stream(width)
        self.norm(f"{name}.group_norm", x)
        for part in ("to_q", "to_k", "to_v"):
            self.layer(f"{name}.{part}", x, x)
        self.layer(f"{name}.to_out.0", x, x)
        for kind in ("weight", "bias"):  # softmax(q k / √d) stays: no new products, the old √d
            self.new[f"{name}.to_k.{kind}"].data[width:] = 0
            self.new[f"{name}.to_q.{kind}"].data.mul_((len(x) / width) ** 0.5)

    def middle(self, level: nn.Module, name: str, at: int, time: Tensor | None) -> None:
        """The blocks at the bottom, with attention between them or without."""
        for j, block in enumerate(level.resnets):
            self.res(f"{name}.resnets.{j}", block, [at], time)
        for j, block in enumerate(level.attentions):
            self.attend(f"{name}.attentions.{j}", block)


def check_widths(narrow: nn.Module, wide: nn.Module) -> None:
    """Raises ValueError for networks that this script cannot copy into each other."""
    told = ("num_classes", "augment_dim", "cross_attention_dim", "attention_head_dim")
    if any(getattr(narrow.config, name, None) for name in told):
        raise ValueError("only networks that are told nothing but the time, with one attention "
                         "head, can be widened")
    sizes = [net.config.channels // net.config.norm_num_groups for net in (narrow, wide)]
    if sizes[0] != sizes[1] or not narrow.config.channels < wide.config.channels <= 2 * \
            narrow.config.channels:
        raise ValueError(f"{narrow.config.channels} channels in groups of {sizes[0]} cannot become "
                         f"{wide.config.channels} in groups of {sizes[1]}; groups must stay as "
                         "large, and channels may double at most")


def widen(narrow: UNet, wide: UNet, T: int = 1000) -> None:
    """Fill `wide` with the weights of `narrow`, which was trained with T timesteps. Raises
    ValueError for networks that cannot be copied.
    """
    check_widths(narrow, wide)
    w = Widener(narrow, wide)
    first, time = w.stream(narrow.config.channels), w.stream(4 * narrow.config.channels)
    w.layer("conv_in", first, None)

    # The waves that tell the time have other frequencies: their mix is fitted anew.
    def waves(net: UNet) -> Tensor:
        seen, layer = [], net.time_embedding.linear_1
        hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        net.time_embedding(torch.arange(T))
        hook.remove()
        return torch.cat([seen[0], torch.ones(T, 1)], dim=1).double()

    old, a = narrow.time_embedding.linear_1, waves(wide)
    wanted = old(waves(narrow)[:, :-1].float()).double()[:, time]
    # Slow waves are nearly alike: a fit without a price on weights would take differences of
    # millions, which float32 cannot hold, and float16 even less.
    fit = torch.linalg.solve(a.T @ a + torch.eye(a.shape[1]), a.T @ wanted)
    w.new["time_embedding.linear_1.weight"].data.copy_(fit[:-1].T)
    w.new["time_embedding.linear_1.bias"].data.copy_(fit[-1])
    print(f"time: error {(a @ fit - wanted).square().mean().sqrt():.4f} of {wanted.std():.2f}")
    w.layer("time_embedding.linear_2", time, time)

    at, kept = narrow.config.channels, [narrow.config.channels]
    for i, level in enumerate(narrow.down_blocks):
        name = f"down_blocks.{i}"
        for j, (block, attention) in enumerate(zip(level.resnets, level.attentions, strict=True)):
            at = w.res(f"{name}.resnets.{j}", block, [at], time)
            w.attend(f"{name}.attentions.{j}", attention)
            kept.append(at)
        for j, _ in enumerate(level.downsamplers):
            w.layer(f"{name}.downsamplers.{j}.conv", w.stream(at), w.stream(at))
            kept.append(at)
    w.middle(narrow.mid_block, "mid_block", at, time)
    for i, level in enumerate(narrow.up_blocks):
        name = f"up_blocks.{i}"
        for j, (block, attention) in enumerate(zip(level.resnets, level.attentions, strict=True)):
            at = w.res(f"{name}.resnets.{j}", block, [at, kept.pop()], time)
            w.attend(f"{name}.attentions.{j}", attention)
        for j, _ in enumerate(level.upsamplers):
            w.layer(f"{name}.upsamplers.{j}.conv", w.stream(at), w.stream(at))
    w.norm("conv_norm_out", first)
    w.layer("conv_out", None, first)


def widen_autoencoder(narrow: Autoencoder, wide: Autoencoder) -> None:
    """Fill `wide` with the weights of `narrow`. Its latents and pictures are the same. Raises
    ValueError for networks that cannot be copied.
    """
    check_widths(narrow, wide)
    w = Widener(narrow, wide)
    at = narrow.config.channels
    w.layer("encoder.conv_in", w.stream(at), None)
    for part, net in (("encoder", narrow.encoder), ("decoder", narrow.decoder)):
        if part == "decoder":
            w.layer("decoder.conv_in", w.stream(at), None)
            w.middle(net.mid_block, "decoder.mid_block", at, None)
        for i, level in enumerate(net.down_blocks if part == "encoder" else net.up_blocks):
            name = f"{part}.{'down' if part == 'encoder' else 'up'}_blocks.{i}"
            for j, block in enumerate(level.resnets):
                at = w.res(f"{name}.resnets.{j}", block, [at], None)
            for kind in ("downsamplers", "upsamplers"):
                for j, _ in enumerate(getattr(level, kind)):
                    w.layer(f"{name}.{kind}.{j}.conv", w.stream(at), w.stream(at))
        if part == "encoder":
            w.middle(net.mid_block, "encoder.mid_block", at, None)
        w.norm(f"{part}.conv_norm_out", w.stream(at))
        w.layer(f"{part}.conv_out", None, w.stream(at))
    for name in ("quant_conv", "post_quant_conv"):
        w.layer(name, None, None)
    for name in ("latent_mean", "latent_std"):
        getattr(wide, name).copy_(getattr(narrow, name))


def main_autoencoder(name: str, channels: int, out: Path) -> None:
    """Widen an autoencoder, and tell how far its latents and pictures are from the narrow one's."""
    narrow = pretrained.load_autoencoder(name)
    groups = narrow.config.norm_num_groups * channels // narrow.config.channels
    wide = Autoencoder(narrow.config, channels=channels, norm_num_groups=groups).eval()
    widen_autoencoder(narrow, wide)
    x = torch.rand(4, narrow.in_channels, narrow.image_size, narrow.image_size,
                   generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = narrow.encode(x)
    print(f"latents differ by {(wide.encode(x) - z).abs().max():.1e}, "
          f"pictures by {(wide.decode(z) - narrow.decode(z)).abs().max():.1e}")
    told = {"model": dataclasses.asdict(wide.config), "step": 0}
    check_new(out)
    save_checkpoint(out / "checkpoints" / "step_0000000", {"model": wide}, {}, told)


@torch.no_grad()
def main() -> None:
    """Widen a model, and tell how far its answers are from the narrow one's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="a shipped model's name, or a run")
    parser.add_argument("channels", type=int, help="of the first level")
    parser.add_argument("out", type=Path, help="a new folder")
    asked = parser.parse_args()
    if pretrained.is_autoencoder(asked.name):
        main_autoencoder(asked.name, asked.channels, asked.out)
        return
    model = pretrained.load_model(asked.name)
    narrow = model.model
    wide = UNet(narrow.config, channels=asked.channels, norm_num_groups=None)
    widen(narrow, wide, model.diffusion.T)
    c = narrow.config
    x = torch.randn(16, c.in_channels, c.image_size, c.image_size,
                    generator=torch.Generator().manual_seed(0))
    for t in (model.diffusion.T * share // 10 for share in (1, 5, 9)):
        times = torch.full((16,), t)
        there, here = narrow(x, times), wide(x, times)
        print(f"t = {t}: answers differ by {(here - there).square().mean().sqrt():.3f} "
              f"of {there.std():.3f}")
    save_diffusers(wide, model.diffusion, asked.out)


if __name__ == "__main__":
    main()
