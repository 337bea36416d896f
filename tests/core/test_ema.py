"""The average of the weights, against its definition written out."""

import copy
import math

import pytest
import torch
from torch import nn

from diffusion_lib import EMA


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).double()


def change(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("half_life", [0.01, 0.05, 0.5])
def test_after_one_half_life_the_influence_has_halved(half_life: float) -> None:
    ema = EMA(network(), half_life)
    for step in (1, 10, 1000, 123_456):
        steps_per_half_life = half_life * step
        assert ema.decay(step) ** steps_per_half_life == pytest.approx(0.5, rel=1e-12)
        assert 0 <= ema.decay(step) < 1


@pytest.mark.parametrize("half_life", [0.05, 0.3])
def test_updates_against_the_weighted_sum_of_all_weights(half_life: float) -> None:
    """After n updates: start · Π d_k + Σ_k (1 - d_k) w_k Π_{j>k} d_j, with d_k = 2^(-1 / (half_life
    k)).
    """
    model = network()
    ema, start, seen = EMA(model, half_life), copy.deepcopy(list(model.parameters())), []
    for step in range(1, 21):
        change(model, step)
        seen.append([p.detach().clone() for p in model.parameters()])
        ema.update(model, step)
    d = [2.0 ** (-1 / (half_life * k)) for k in range(1, 21)]
    shares = [(1 - d[k]) * math.prod(d[k + 1 :]) for k in range(20)]
    assert sum(shares) + math.prod(d) == pytest.approx(1, abs=1e-12)
    for i, average in enumerate(ema.model.parameters()):
        expected = math.prod(d) * start[i].detach() + sum(
            share * weights[i] for share, weights in zip(shares, seen, strict=True)
        )
        assert (average - expected).abs().max() < 1e-12


def test_the_random_start_is_forgotten_at_once() -> None:
    """Warm-up: with a fixed decay of 0.9999, 90 % of the start would be left after 1,000 steps."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1000.0)
    ema = EMA(model, 0.05)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    for step in range(1, 11):
        ema.update(model, step)
    assert all((p - 1).abs().max() < 1e-6 for p in ema.model.parameters())


def test_it_is_a_copy_for_sampling() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    ema = EMA(model, 0.1)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters()) and all(
        p.requires_grad for p in model.parameters()
    )
    change(model, 1)
    assert all(torch.equal(ema.model.state_dict()[key], before[key]) for key in before)
    moved = copy.deepcopy(model.state_dict())
    ema.update(model, 1)
    # the network that trains is left alone
    assert all(torch.equal(model.state_dict()[key], moved[key]) for key in moved)


def test_buffers_are_copied_not_averaged() -> None:
    model = network().train()
    ema = EMA(model, 0.5)
    # moves the running mean and the counter
    model[:2](torch.randn(2, 3, 5, 5, dtype=torch.float64))
    ema.update(model, 100)
    assert (
        torch.equal(ema.model[1].running_mean, model[1].running_mean)
        and ema.model[1].num_batches_tracked == 1
    )


@pytest.mark.parametrize("half_life", [0, 1, -0.1, 5, math.nan])
def test_half_life_out_of_range(half_life: float, refuses) -> None:
    with refuses(ValueError, "half_life", str(half_life), "between 0 and 1"):
        EMA(network(), half_life)
