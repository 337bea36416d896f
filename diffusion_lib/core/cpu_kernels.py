"""The two operations that are worth more lines than PyTorch's, both on a CPU; elsewhere PyTorch's own run.

**GroupNorm's gradient** for pictures stored channel by channel last. Convolutions with few channels are up to 1.7 times faster on a CPU
when a pixel's channels lie side by side (channels_last). PyTorch's GroupNorm is not: its gradient took 11 ms there instead of 0.8
(32 channels in 8 groups, 32 × 32 pixels, a batch of 32), which ate up the gain. The gradient below takes 1.6 ms.

**The convolution after an enlargement.** Where every pixel was repeated in a square of four, the nine taps of a 3 × 3 kernel fall on four
different pixels only. Their weights can be added up beforehand: 4 products instead of 9, in half the time (128 channels, 16 to 32 pixels,
a batch of 32: 50 ms instead of 96, forward and backward), and the same answer but for rounding.

Below them a word to the C library. `tests/benchmarks/throughput.py` measures whole steps.
"""

import ctypes
import functools
import platform

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _GroupNorm(torch.autograd.Function):
    """Wu & He 2018, equation 1, forward as PyTorch has it; backward in sums over pixels first, over a group's channels then."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:  # noqa: ANN001
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        group, count = c // ctx.groups, c // ctx.groups * h * w
        dy, pixels = (z.permute(0, 2, 3, 1).reshape(b, h * w, c) for z in (dy, x))      # (B, HW, C), no copy: that is how they are stored
        full = torch.promote_types(x.dtype, torch.float32)                              # sums of bfloat16 need more digits
        sum_dy = dy.sum(dim=1, dtype=full)                                              # (B, C)
        sum_dy_x = (dy * pixels if x.dtype == full else dy.to(full) * pixels).sum(dim=1)
        mean, rstd = mean.to(full), rstd.to(full)                                       # (B, groups)

        def over(per_channel: Tensor) -> Tensor:                                        # (B, C) -> (B, groups)
            return (per_channel * weight).unflatten(1, (ctx.groups, group)).sum(dim=2)

        def spread(per_group: Tensor) -> Tensor:                                        # (B, groups) -> (B, C)
            return per_group.repeat_interleave(group, dim=1)

        slope = rstd**3 * (mean * over(sum_dy) - over(sum_dy_x)) / count                # of dx in x
        offset = -slope * mean - rstd * over(sum_dy) / count
        dx = pixels * spread(slope)[:, None].to(x.dtype)
        dx.addcmul_(dy, (spread(rstd) * weight)[:, None].to(x.dtype)).add_(spread(offset)[:, None].to(x.dtype))
        d_weight = (spread(rstd) * (sum_dy_x - spread(mean) * sum_dy)).sum(dim=0)
        return dx.unflatten(1, (h, w)).permute(0, 3, 1, 2), d_weight.to(weight.dtype), sum_dy.sum(dim=0).to(weight.dtype), None, None


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, with the same weights and answers, and a quicker gradient for channels-last pictures on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.device.type == "cpu" and torch.is_grad_enabled() and not x.is_contiguous() \
                and x.is_contiguous(memory_format=torch.channels_last):
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


def enlarge_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(every pixel of x (B, C, H, W) repeated 2 × 2, weight (C', C, 3, 3), padding 1) -> (B, C', 2H, 2W).

    On a CPU as one transposed convolution with stride 2: entry (a, b) of its 4 × 4 kernel is the sum of the four of `weight` that meet
    the same repeated pixel. (The argument is that of Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?")
    """
    if x.device.type != "cpu":
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    turned = F.pad(weight.flip(2, 3), (1, 1, 1, 1))                                     # (C', C, 5, 5)
    summed = turned[..., 1:, 1:] + turned[..., 1:, :-1] + turned[..., :-1, 1:] + turned[..., :-1, :-1]
    return F.conv_transpose2d(x, summed.transpose(0, 1), bias, stride=2, padding=1)


@functools.cache
def keep_memory() -> bool:
    """Ask the C library to keep freed memory for the next step instead of handing it back; True where it can be asked (glibc).

    Large tensors are otherwise fetched from the operating system anew in every step, page by page: 50,000 page faults a step were
    seen, 5 to 8 % of its time. The process stays as large as its largest step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3             # names and numbers of malloc.h
    kept = library.mallopt(mmap_threshold, 2**30) or library.mallopt(mmap_threshold, 2**25)  # older ones take no more
    return bool(kept and library.mallopt(trim_threshold, 2**31 - 1))
