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


@pytest.mark.parametrize("pictures, pixels, heads", [(3, 16, 1), (5, 1024, 2), (2, 1600, 1)])
def test_attention_in_slices_equals_plain_attention_with_its_gradients(pictures, pixels, heads):
    """The last two take several slices; 1,600 pixels are more than a slice is meant to hold."""
    plain = AttentionBlock(8, heads, 4, 1e-5)
    plain.to_out[0].weight.data = randn(8, 8, seed=4)  # zero in a new one
    quick = quicken(copy.deepcopy(plain))
    assert type(quick) is QuickAttentionBlock
    found = []
    for module in (quick, plain):
        x = randn(pictures, 8, int(pixels**0.5), int(pixels**0.5), seed=5).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
        y.float().backward(randn(*y.shape, seed=6))
        found.append((y.detach(), x.grad, module.to_q.weight.grad, module.to_v.weight.grad))
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= 0.05 * b.abs().max()


def test_attention_in_slices_runs_only_where_it_is_quicker(monkeypatch):
    block, softmaxes = quicken(AttentionBlock(8, 1, 4, 1e-5)), []
    whole = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax",
                        lambda *given, **more: softmaxes.append(1) or whole(*given, **more))
    x = randn(3, 8, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)  # no gradient
    block(x)  # float32
    assert not softmaxes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
    assert len(softmaxes) == 2  # two pictures of 1,024 pixels, then one


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
