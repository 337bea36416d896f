"""What is quicker on a CPU answers as PyTorch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lib import UNet
from diffusion_lib.core.cpu_kernels import (
    QuickAttention,
    QuickAttentionBlock,
    QuickGroupNorm,
    QuickUpsample,
    enlarge_and_convolve,
    quicken,
)
from diffusion_lib.core.transformer import Attention
from diffusion_lib.core.unet import AttentionBlock


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(norm, x, dy):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    y.backward(dy)
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("dtype, digits", [
    (torch.float64, 1e-11), (torch.float32, 2e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape, groups", [
    ((3, 32, 8, 8), 8), ((2, 24, 5, 7), 6), ((4, 16, 2, 2), 1), ((2, 16, 4, 4), 16),
    ((2, 8, 32, 32), 4), ((1, 8, 33, 40), 2)])
def test_group_norm_equals_pytorchs_with_its_gradients(shape, groups, dtype, digits):
    ours, theirs = QuickGroupNorm(groups, shape[1]), nn.GroupNorm(groups, shape[1])
    for norm in (ours, theirs):
        norm.weight.data, norm.bias.data = randn(shape[1], seed=1), randn(shape[1], seed=2)
        norm.double() if dtype == torch.float64 else None
    x = (randn(*shape, dtype=dtype) * 2 + 0.5).to(memory_format=torch.channels_last)
    dy = randn(*shape, seed=3, dtype=dtype).to(memory_format=torch.channels_last)
    for a, b in zip(gradients(ours, x, dy), gradients(theirs, x, dy), strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= digits * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype, digits", [
    (torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("size", [4, 32, 40])
def test_group_norm_without_a_gradient_equals_pytorchs_and_keeps_the_order(size, dtype, digits):
    x = (randn(2, 16, size, size) * 2 + 5).to(dtype).to(memory_format=torch.channels_last)
    ours, theirs = QuickGroupNorm(4, 16).to(dtype), nn.GroupNorm(4, 16).to(dtype)
    with torch.no_grad():
        y = ours(x)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        assert (y - theirs(x.contiguous())).abs().max() <= digits


@pytest.mark.parametrize("size, heads, quick_runs", [(8, 1, True), (16, 4, True), (16, 1, False)])
def test_attention_of_few_pixels_is_as_exact_as_plain_attention(size, heads, quick_runs):
    """Also with scores of hundreds, which trained networks have: rounded to bfloat16 before the
    softmax they would be off by one or two."""
    plain = AttentionBlock(64, heads, 4, 1e-5)
    quick = quicken(copy.deepcopy(plain))
    assert type(quick) is QuickAttentionBlock
    q, k, v, dy = (randn(3, heads, size**2, 64 // heads, seed=i).bfloat16() for i in range(4))
    found, q = [], q * 16
    assert ((q @ k.mT).abs().max() * (64 // heads) ** -0.5) > 60
    for module, dtype in ((plain, torch.float64), (plain, torch.bfloat16), (quick, torch.bfloat16)):
        given = [each.to(dtype).requires_grad_() for each in (q, k, v)]
        y = module.mixed(*given)
        assert y.dtype == dtype
        y.backward(dy.to(dtype))
        found.append((y.detach(), *(each.grad for each in given)))
    exact, plainly, quickly = ([each.double() for each in row] for row in found)
    for true, a, b in zip(exact, plainly, quickly, strict=True):
        assert (b - true).norm() <= 1.2 * (a - true).norm() + 1e-9
    assert quick_runs == any((a != b).any() for a, b in zip(plainly, quickly, strict=True))


@pytest.mark.parametrize("change", [
    lambda x: x[:, :16], lambda x: x[:1].expand(3, -1, -1, -1)[:, :16], lambda x: x[:, :16, ::2]])
def test_group_norm_of_a_slice_is_plain(change):
    big = randn(2, 32, 40, 40).to(memory_format=torch.channels_last).requires_grad_()
    y = QuickGroupNorm(4, 16)(change(big))
    y.sum().backward()
    assert (y - nn.GroupNorm(4, 16)(change(big))).abs().max() < 1e-4


def test_group_norm_without_weights_has_a_gradient():
    x = randn(2, 16, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    QuickGroupNorm(4, 16, affine=False)(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_the_quick_gradient_is_the_one_that_runs():
    x = randn(2, 16, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    assert "GroupNormGradient" in type(QuickGroupNorm(4, 16)(x).grad_fn).__name__
    assert (
        "GroupNormGradient"
        not in type(QuickGroupNorm(4, 16)(randn(2, 16, 4, 4).requires_grad_()).grad_fn).__name__
    )


@pytest.mark.parametrize("dtype, digits", [
    (torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.05)])
def test_attention_to_words_equals_plain_attention(dtype, digits):
    torch.manual_seed(0)
    plain = Attention(16, 12, 4).to(dtype)
    quick = quicken(copy.deepcopy(plain))
    assert type(quick) is QuickAttention
    mask, found = torch.arange(7) < torch.tensor([[3], [7]]), []
    for module in (quick, plain):
        x, seen = (randn(2, n, c, seed=c, dtype=dtype).requires_grad_()
                   for n, c in ((5, 16), (7, 12)))
        y = module(x, seen, mask)
        y.backward(randn(*y.shape, seed=3, dtype=dtype))
        found.append((y.detach(), x.grad, seen.grad, module.to_k.weight.grad))
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= digits * b.abs().max().clamp(min=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = [module.float()(randn(2, 5, 16), randn(2, 7, 12), mask)
                   for module in (quick, plain)]
    assert answers[0].dtype == answers[1].dtype == torch.bfloat16
    assert (answers[0] - answers[1]).abs().max() < 0.05


@pytest.mark.parametrize("dtype, digits", [
    (torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape, out", [((2, 8, 5, 7), 8), ((3, 16, 1, 1), 4), ((1, 4, 8, 8), 12)])
def test_convolving_an_enlarged_picture_equals_enlarging_and_convolving(
    shape, out, layout, dtype, digits
):
    found = []
    for quick in (True, False):
        x = randn(*shape, dtype=dtype).to(memory_format=layout).requires_grad_()
        weight, bias = (
            randn(*size, seed=1, dtype=dtype).requires_grad_()
            for size in ((out, shape[1], 3, 3), (out,))
        )
        if quick:
            y = enlarge_and_convolve(x, weight, bias)
        else:
            y = F.conv2d(
                F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1
            )
        y.backward(randn(*y.shape, seed=2, dtype=dtype))
        found.append((y.detach(), x.grad, weight.grad, bias.grad))
    for a, b in zip(*found, strict=True):
        assert (
            a.dtype == b.dtype
            and a.shape == b.shape
            and (a - b).abs().max() <= digits * b.abs().max()
        )


def test_elsewhere_than_on_a_cpu_pytorchs_own_convolution_runs():
    layer, x = (
        QuickUpsample(3).to("meta"),
        torch.empty(2, 3, 4, 4, device="meta", requires_grad=True),
    )
    y = layer(x)
    assert (
        y.shape == (2, 3, 8, 8)
        and type(y.grad_fn.next_functions[0][0]).__name__ == "UpsampleNearest2DBackward0"
    )


def test_a_quickened_network_answers_and_learns_what_the_plain_one_does():
    torch.manual_seed(0)
    plain = UNet(
        image_size=16, channels=16, channel_mults=(1, 2), attention=(False, True), num_classes=3
    )
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    quick = quicken(copy.deepcopy(plain))
    kinds = [
        {type(module) for module in model.modules()}
        for model in (plain, quick, copy.deepcopy(quick))
    ]
    assert (
        nn.GroupNorm in kinds[0]
        and QuickGroupNorm in kinds[1]
        and QuickUpsample in kinds[1]
        and kinds[1] == kinds[2]
    )
    assert nn.GroupNorm not in kinds[1] and plain.state_dict().keys() == quick.state_dict().keys()
    x, t, labels = randn(3, 3, 16, 16), torch.tensor([1, 500, 999]), torch.tensor([0, 3, 1])
    answers = [model(x, t, labels) for model in (plain, quick)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    for answer in answers:
        answer.square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-3 * a.grad.abs().max() + 1e-7, name
