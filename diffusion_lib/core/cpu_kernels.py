"""What is quicker on a CPU than PyTorch's own, put into a network by one call: `quicken(model)`.
Same weights, same answers.

**Channels last.** Convolutions with few channels are up to 1.7 times faster on a CPU when a pixel's
channels lie side by side.

**GroupNorm's gradient.** PyTorch's is not quick in that order: it took 11 ms instead of 0.8 (32
channels in 8 groups, 32 × 32 pixels, a batch of 32), which ate up the gain. The gradient below
takes 1.6 ms.

**The convolution after an enlargement.** Where every pixel was repeated in a square of four, the
nine taps of a 3 × 3 kernel fall on four different pixels only. Their weights can be added up
beforehand: 4 products instead of 9, in half the time (128 channels, 16 to 32 pixels, a batch of 32:
50 ms instead of 96, forward and backward), and the same answer but for rounding.

**Attention to words in float32.** PyTorch's gradient of attention in bfloat16 is slow where heads
are small: 69 ms against 10 in float32 (64 pictures, 4 heads of 16 numbers, 64 pixels).

`tests/benchmarks/throughput.py` measures whole steps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .transformer import Attention
from .unet import Upsample


def quicken(model: nn.Module) -> nn.Module:
    """Put what is quicker on a CPU into `model`, in place; returns it. Names, weights and answers
    stay (but for rounding).

    Copies keep it. On another device the modules compute as PyTorch's own do.
    """
    for module in model.modules():
        if (quick := QUICK.get(type(module))):
            module.__class__ = quick  # both add a way to compute, no state
    return model.to(memory_format=torch.channels_last)


class GroupNormGradient(torch.autograd.Function):
    """Wu & He 2018, equation 1, forward as PyTorch has it; backward in sums over pixels first, over
    a group's channels then.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        group, count = c // ctx.groups, c // ctx.groups * h * w
        # (B, HW, C), no copy: that is how they are stored
        dy, pixels = (z.permute(0, 2, 3, 1).reshape(b, h * w, c) for z in (dy, x))
        full = torch.promote_types(x.dtype, torch.float32)  # sums of bfloat16 need more digits
        sum_dy = dy.sum(dim=1, dtype=full)                                              # (B, C)
        sum_dy_x = (dy * pixels if x.dtype == full else dy.to(full) * pixels).sum(dim=1)
        mean, rstd = mean.to(full), rstd.to(full)  # (B, groups)

        def over(per_channel: Tensor) -> Tensor:  # (B, C) -> (B, groups)
            return (per_channel * weight).unflatten(1, (ctx.groups, group)).sum(dim=2)

        def spread(per_group: Tensor) -> Tensor:  # (B, groups) -> (B, C)
            return per_group.repeat_interleave(group, dim=1)

        slope = rstd**3 * (mean * over(sum_dy) - over(sum_dy_x)) / count                # of dx in x
        offset = -slope * mean - rstd * over(sum_dy) / count
        dx = pixels * spread(slope)[:, None].to(x.dtype)
        dx.addcmul_(dy, (spread(rstd) * weight)[:, None].to(x.dtype)).add_(
            spread(offset)[:, None].to(x.dtype)
        )
        d_weight = (spread(rstd) * (sum_dy_x - spread(mean) * sum_dy)).sum(dim=0)
        return (
            dx.unflatten(1, (h, w)).permute(0, 3, 1, 2), d_weight.to(weight.dtype),
            sum_dy.sum(dim=0).to(weight.dtype), None, None,
        )


class QuickGroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with a quicker gradient for channels-last pictures on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.ndim == 4
            and x.device.type == "cpu"
            and torch.is_grad_enabled()
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            return GroupNormGradient.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class QuickUpsample(Upsample):
    """unet.Upsample with its enlargement and convolution in one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return enlarge_and_convolve(x, self.conv.weight, self.conv.bias)


class QuickAttention(Attention):
    """transformer.Attention whose softmax and sums are taken in float32."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.device.type != "cpu" or q.dtype == torch.float64:
            return super().mixed(q, k, v, mask)
        with torch.autocast("cpu", enabled=False):
            return super().mixed(q.float(), k.float(), v.float(), mask).to(q.dtype)


QUICK: dict[type, type] = {
    nn.GroupNorm: QuickGroupNorm, Upsample: QuickUpsample, Attention: QuickAttention,
}


def enlarge_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(every pixel of x (B, C, H, W) repeated 2 × 2, weight (C', C, 3, 3), padding 1) -> (B,
    C', 2H, 2W).

    As one transposed convolution with stride 2: entry (a, b) of its 4 × 4 kernel is the sum of the
    four of `weight` that meet the same repeated pixel. (The argument is that of Shi et al. 2016,
    "Is the deconvolution layer the same as a convolutional layer?")
    """
    turned = F.pad(weight.flip(2, 3), (1, 1, 1, 1))  # (C', C, 5, 5)
    summed = (
        turned[..., 1:, 1:] + turned[..., 1:, :-1] + turned[..., :-1, 1:] + turned[..., :-1, :-1]
    )
    return F.conv_transpose2d(x, summed.transpose(0, 1), bias, stride=2, padding=1)
