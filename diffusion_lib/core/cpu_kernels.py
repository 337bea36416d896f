"""What is quicker on a CPU than PyTorch's own, put into a network by one call: `quicken(model)`.
Same weights, same answers.

**Channels last.** Convolutions with few channels are up to 1.7 times faster on a CPU when a pixel's
channels lie side by side.

**GroupNorm.** PyTorch's is not quick in that order: small maps (64 channels of 16 × 16 pixels, a
batch of 128) took 9 ms where the other order, with the way there and back, takes 1.3. Its gradient
took 11 ms (32 channels in 8 groups, 32 × 32 pixels, a batch of 32); the one below takes 1.6 in
float32. In bfloat16 PyTorch's own, in the other order, is twice as fast as ours (3.2 ms and 7.8; 48
channels, 64 × 64 pixels, a batch of 16).

**The convolution after an enlargement.** Where every pixel was repeated in a square of four, the
nine taps of a 3 × 3 kernel fall on four different pixels only. Their weights can be added up
beforehand: 4 products instead of 9, in half the time (128 channels, 16 to 32 pixels, a batch of 32:
50 ms instead of 96, forward and backward), and the same answer but for rounding.

**Attention in float32.** PyTorch's gradient of attention in bfloat16 is slow where there are few
pixels, or small heads: 4.9 ms forward and backward in place of 1.2 (128 pictures of 16 pixels, one
head of 192 numbers), 39 in place of 8 (64 pictures of 256 pixels look at 16 words, 4 heads of 16).
(Written out in bfloat16 it is quicker still, and wrong: scores of hundreds, which trained networks
have, would be rounded before the softmax.)

`tests/benchmarks/cpu_kernels.py` measures whole passes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .transformer import Attention
from .unet import AttentionBlock, Upsample


def quicken(model: nn.Module) -> nn.Module:
    """Put what is quicker on a CPU into `model`, in place; returns it. Names, weights and answers
    stay (but for rounding).

    Copies keep it. On another device the modules compute as PyTorch's own do.
    """
    for module in model.modules():
        module.__class__ = QUICK.get(type(module), type(module))  # a way to compute, no state
    return model.to(memory_format=torch.channels_last)


class GroupNormGradient(torch.autograd.Function):
    """Wu & He 2018, equation 1, forward as PyTorch has it; backward in sums over pixels first, over
    a group's channels then (in bfloat16 as PyTorch has it).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int,
                eps: float) -> Tensor:
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(ordered(x), weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return by_pixels(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        if x.dtype.itemsize == 2:
            dx, *others = torch.ops.aten.native_group_norm_backward(
                dy.contiguous(), x.contiguous(), mean, rstd, weight, b, c, h * w, ctx.groups,
                [True] * 3)
            return by_pixels(dx), *others, None, None
        # (B, HW, C), no copy: that is how they are stored
        dy, pixels = (z.permute(0, 2, 3, 1).reshape(b, h * w, c) for z in (dy, x))
        sum_dy, sum_dy_x = dy.sum(dim=1), (dy * pixels).sum(dim=1)
        # from here on each channel has its group's number: (B, C)
        group = c // ctx.groups
        mean, rstd, over_dy, over_dy_x = (each.repeat_interleave(group, dim=1) for each in (
            mean, rstd, *((each * weight).unflatten(1, (ctx.groups, group)).sum(dim=2)
                          for each in (sum_dy, sum_dy_x))))
        slope = rstd**3 * (mean * over_dy - over_dy_x) / (group * h * w)  # of dx in x
        offset = -slope * mean - rstd * over_dy / (group * h * w)
        dx = pixels * slope[:, None]
        dx.addcmul_(dy, (rstd * weight)[:, None]).add_(offset[:, None])
        d_weight = (rstd * (sum_dy_x - mean * sum_dy)).sum(dim=0)
        return dx.unflatten(1, (h, w)).permute(0, 3, 1, 2), d_weight, sum_dy.sum(dim=0), None, None


class QuickGroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, quicker for channels-last pictures on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type != "cpu" or x.is_contiguous() or not last or not self.affine:
            return super().forward(x)
        if torch.is_grad_enabled():
            return GroupNormGradient.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return by_pixels(super().forward(ordered(x)))


def ordered(x: Tensor) -> Tensor:
    """(B, C, H, W) as PyTorch's GroupNorm likes it: small maps one channel after the other."""
    return x.contiguous() if x.shape[2] * x.shape[3] < 1024 else x


def by_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W), a pixel's channels stored side by side."""
    return x.contiguous(memory_format=torch.channels_last)


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


class QuickAttentionBlock(AttentionBlock):
    """unet.AttentionBlock; where bfloat16 would be slow and a gradient is wanted, in float32."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        slow = q.dtype == torch.bfloat16 and (q.shape[2] <= 64 or q.shape[3] <= 32)
        if q.device.type != "cpu" or not slow or not torch.is_grad_enabled():
            return super().mixed(q, k, v)
        with torch.autocast("cpu", enabled=False):
            return super().mixed(q.float(), k.float(), v.float()).to(q.dtype)


QUICK: dict[type, type] = {nn.GroupNorm: QuickGroupNorm, Upsample: QuickUpsample,
                           Attention: QuickAttention, AttentionBlock: QuickAttentionBlock}


def enlarge_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(every pixel of x (B, C, H, W) repeated 2 × 2, weight (C', C, 3, 3), padding 1) -> (B,
    C', 2H, 2W).

    As one transposed convolution with stride 2: entry (a, b) of its 4 × 4 kernel is the sum of the
    four of `weight` that meet the same repeated pixel. (The argument is that of Shi et al. 2016,
    "Is the deconvolution layer the same as a convolutional layer?")
    """
    turned = F.pad(weight.flip(2, 3), (1, 1, 1, 1))  # (C', C, 5, 5)
    summed = (turned[..., 1:, 1:] + turned[..., 1:, :-1]
              + turned[..., :-1, 1:] + turned[..., :-1, :-1])
    return F.conv_transpose2d(x, summed.transpose(0, 1), bias, stride=2, padding=1)
