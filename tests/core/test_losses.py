"""The losses: against one written by hand, against exact answers, and the weights against their
paper.
"""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lib.core.diffusion import PREDICTIONS, GaussianDiffusion
from diffusion_lib.core.losses import loss_per_timestep, min_snr_weight, noise_prediction_loss
from diffusion_lib.core.schedules import cosine_beta_schedule, linear_beta_schedule, make_betas

SHAPE = (6, 2, 4, 4)
T_BATCH = torch.tensor([0, 1, 50, 300, 700, 999])


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Network(nn.Module):
    """An answer that depends on x_t, t and the labels, through weights that have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(2))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        shift = torch.cos(t / 200) + (0 if labels is None else labels)
        return self.conv(x) + shift[:, None, None, None]


def network(x: Tensor, t: Tensor) -> Tensor:
    return Network()(x, t).detach()


# -- L_simple --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2, 3, 4, 5])])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_against_a_loss_written_by_hand(prediction, labels):
    diffusion, model = GaussianDiffusion(linear_beta_schedule(1000), prediction), Network()
    x_0, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    ours = noise_prediction_loss(diffusion, model, x_0, T_BATCH, noise, labels, reduction="none")
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    by_hand = []
    for i, t in enumerate(T_BATCH.tolist()):
        a, s = bars[t] ** 0.5, (1 - bars[t]) ** 0.5
        x_t = a * x_0[i] + s * noise[i]
        answer = model(x_t[None], torch.tensor([t]), None if labels is None else labels[i : i + 1])[
            0
        ]
        right = {"epsilon": noise[i], "x0": x_0[i], "v": a * noise[i] - s * x_0[i]}[prediction]
        by_hand.append(sum(((answer - right) ** 2).flatten().tolist()) / right.numel())
    assert ours.shape == (6,)
    assert max(abs(a - b) for a, b in zip(ours.tolist(), by_hand, strict=True)) < 1e-12
    mean = noise_prediction_loss(diffusion, model, x_0, T_BATCH, noise, labels)
    assert mean.shape == () and abs(mean.item() - sum(by_hand) / 6) < 1e-12
    mean.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_picture_known_by_heart_has_no_loss(prediction, weighting):
    """If the data set is one point y, ε = (x_t - √ᾱ y) / √(1-ᾱ) is certain, and x_0 and v with it.
    """
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), prediction)
    y = randn(3, 1, *SHAPE[1:])

    def knows(x_t: Tensor, t: Tensor) -> Tensor:
        bar = diffusion.alphas_cumprod[t][:, None, None, None]
        epsilon = (x_t - bar.sqrt() * y) / (1 - bar).sqrt()
        return {
            "epsilon": epsilon,
            "x0": y.expand_as(x_t),
            "v": bar.sqrt() * epsilon - (1 - bar).sqrt() * y,
        }[prediction]

    x_0 = y.expand(SHAPE)
    loss = noise_prediction_loss(
        diffusion, knows, x_0, T_BATCH, randn(1, *SHAPE), weighting=weighting, reduction="none"
    )
    print(f"{prediction}, {weighting}: largest loss {loss.max():.1e}")
    assert loss.max() < 1e-20
    # and of another picture it knows nothing
    assert (
        noise_prediction_loss(
            diffusion, knows, x_0 + 0.5, T_BATCH, randn(1, *SHAPE), weighting=weighting
        )
        > 0.01
    )


def test_a_network_that_says_nothing_has_the_loss_of_the_noise():
    """ε̂ = 0 costs E ε² = 1: where every training run starts."""
    diffusion, n = GaussianDiffusion(linear_beta_schedule(1000)), 4000
    x_0, noise = randn(0, n, 1, 4, 4), randn(1, n, 1, 4, 4)
    t = torch.randint(0, 1000, (n,), generator=torch.Generator().manual_seed(0))
    loss = noise_prediction_loss(diffusion, lambda x, t: torch.zeros_like(x), x_0, t, noise)
    # standard error of 64,000 squares: 0.006
    assert abs(loss - 1) < 0.03 and abs(loss - noise.square().mean()) < 1e-12


def test_the_answer_may_come_in_bfloat16():
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    x_0, noise = randn(0, *SHAPE).float(), randn(1, *SHAPE).float()
    low = noise_prediction_loss(diffusion, lambda x, t: (0.5 * x).bfloat16(), x_0, T_BATCH, noise)
    full = noise_prediction_loss(diffusion, lambda x, t: 0.5 * x, x_0, T_BATCH, noise)
    assert low.dtype == torch.float32 and 0 < abs(low - full) < 0.01 * full


# -- min-SNR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("name, snr0", [("linear", False), ("cosine", False), ("cosine", True)])
def test_min_snr_weight_is_the_papers(name, snr0, gamma):
    """Hang et al. 2023, section 3.4: min(SNR, γ) for x_0, min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR +
    1) for v.
    """
    betas, t = make_betas(name, 1000, zero_terminal_snr=snr0), torch.arange(1000)
    for prediction in PREDICTIONS[1:] if snr0 else PREDICTIONS:
        weight = min_snr_weight(GaussianDiffusion(betas, prediction), t, gamma)
        assert (
            weight.dtype == torch.float64
            and weight.shape == (1000,)
            and torch.isfinite(weight).all()
        )
        bar = torch.cumprod(1 - betas, dim=0).tolist()
        for i in range(0, 1000, 37) if not snr0 else [*range(0, 1000, 37), 999]:
            snr = bar[i] / (1 - bar[i])
            capped = min(snr, gamma)
            expected = {
                "epsilon": lambda c=capped, s=snr: c / s,
                "x0": lambda c=capped: c,
                "v": lambda c=capped, s=snr: c / (s + 1),
            }
            assert abs(weight[i].item() - expected[prediction]()) < 1e-9 * max(
                1, expected[prediction]()
            )


def test_min_snr_loss_is_the_same_whatever_the_network_predicts():
    """One and the same guess of the picture, said in three languages, costs the same: min(SNR, γ) ·
    |x_0 - x̂_0|².
    """
    betas = cosine_beta_schedule(1000)
    x_0, noise, guess = randn(0, *SHAPE), randn(1, *SHAPE), randn(2, *SHAPE)
    bar = torch.cumprod(1 - betas, dim=0)[T_BATCH]
    expected = (bar / (1 - bar)).clamp(max=5) * (x_0 - guess).square().mean(dim=(1, 2, 3))
    uniform = []
    for prediction in PREDICTIONS:
        diffusion = GaussianDiffusion(betas, prediction)

        def say(x_t: Tensor, t: Tensor, prediction: str = prediction) -> Tensor:
            a, s = (bar.sqrt()[:, None, None, None], (1 - bar).sqrt()[:, None, None, None])
            epsilon = (x_t - a * guess) / s
            return {"epsilon": epsilon, "x0": guess, "v": a * epsilon - s * guess}[prediction]

        loss = noise_prediction_loss(
            diffusion, say, x_0, T_BATCH, noise, weighting="min_snr", reduction="none"
        )
        assert ((loss - expected).abs() / expected).max() < 1e-9, prediction
        mean = noise_prediction_loss(diffusion, say, x_0, T_BATCH, noise, weighting="min_snr")
        assert abs(mean - expected.mean()) < 1e-9
        other = noise_prediction_loss(
            diffusion, say, x_0, T_BATCH, noise, weighting="min_snr", gamma=1.0, reduction="none"
        )
        # γ caps only the clean end
        assert (other[:3] < 0.5 * loss[:3]).all() and torch.allclose(other[4:], loss[4:])
        uniform.append(noise_prediction_loss(diffusion, say, x_0, T_BATCH, noise, reduction="none"))
    # unweighted, they differ
    assert all((a - b).abs().max() > 0.01 for a, b in zip(uniform, uniform[1:], strict=False))


# -- per timestep ----------------------------------------------------------------------------------


def test_loss_per_timestep_uses_one_noise_for_all():
    diffusion, seen = GaussianDiffusion(linear_beta_schedule(1000)), []
    x_0 = randn(0, *SHAPE)

    def watching(x_t: Tensor, t: Tensor) -> Tensor:
        assert (t == t[0]).all() and t.dtype == torch.int64 and t.shape == (6,)
        bar = diffusion.alphas_cumprod[t[0]]
        seen.append(((x_t - bar.sqrt() * x_0) / (1 - bar).sqrt(), int(t[0])))
        return network(x_t, t)

    losses = loss_per_timestep(diffusion, watching, x_0, [0, 10, 500, 999])
    assert losses.shape == (4,) and losses.dtype == torch.float64 and losses.device.type == "cpu"
    assert [t for _, t in seen] == [0, 10, 500, 999]
    assert all((noise - seen[-1][0]).abs().max() < 1e-10 for noise, _ in seen)
    assert 0.8 < seen[0][0].std() < 1.2
    noise = seen[-1][0]
    for loss, t in zip(losses, (0, 10, 500, 999), strict=True):
        alone = noise_prediction_loss(diffusion, network, x_0, torch.full((6,), t), noise)
        assert abs(loss - alone) < 1e-10
    assert torch.equal(loss_per_timestep(diffusion, network, x_0, [500, 0]), losses[[2, 0]])
    other = loss_per_timestep(diffusion, network, x_0, [500], seed=1)
    assert (other - losses[2]).abs() > 1e-6


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_per_timestep_in_another_language(prediction):
    """|ε - ε̂|² = SNR |x_0 - x̂_0|² and |v - v̂|² = (SNR + 1) |x_0 - x̂_0|²: one error, measured in
    three ways.
    """
    diffusion, x_0, ts = (
        GaussianDiffusion(cosine_beta_schedule(1000), prediction),
        randn(0, *SHAPE),
        [1, 100, 500, 900],
    )
    before = dict(vars(diffusion))
    measured = {
        target: loss_per_timestep(diffusion, network, x_0, ts, target=target)
        for target in PREDICTIONS
    }
    snr = diffusion.alphas_cumprod[ts] / (1 - diffusion.alphas_cumprod[ts])
    assert ((measured["epsilon"] / (snr * measured["x0"]) - 1).abs() < 1e-8).all()
    assert ((measured["v"] / ((snr + 1) * measured["x0"]) - 1).abs() < 1e-8).all()
    own = loss_per_timestep(diffusion, network, x_0, ts, target=None)
    assert torch.allclose(own, measured[prediction], rtol=1e-12)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    by_hand = [
        noise_prediction_loss(diffusion, network, x_0, torch.full((6,), t), noise) for t in ts
    ]
    assert torch.allclose(own, torch.stack(by_hand), rtol=1e-12)
    assert torch.equal(loss_per_timestep(diffusion, network, x_0, ts), measured["epsilon"])
    # the process itself is left alone
    assert all(vars(diffusion)[name] is value for name, value in before.items())


def test_loss_per_timestep_with_labels_and_without_gradients():
    diffusion, model, x_0 = (
        GaussianDiffusion(linear_beta_schedule(100)),
        Network(),
        randn(0, *SHAPE),
    )
    zero, one = (
        loss_per_timestep(diffusion, model, x_0, [50], condition=torch.full((6,), k))
        for k in (0, 1)
    )
    assert not zero.requires_grad
    assert (
        torch.allclose(zero, loss_per_timestep(diffusion, model, x_0, [50]))
        and (zero - one).abs() > 0.1
    )


def test_loss_per_timestep_at_zero_terminal_snr():
    """At ᾱ = 0 the noise is x_t itself: measured in ε the error is 0, whatever the network says; in
    v it is not.
    """
    diffusion = GaussianDiffusion(make_betas("linear", 1000, zero_terminal_snr=True), "v")
    last = {
        target: loss_per_timestep(diffusion, network, randn(0, *SHAPE), [999], target=target).item()
        for target in PREDICTIONS
    }
    assert last["epsilon"] < 1e-20 and last["v"] > 0.1 and abs(last["v"] - last["x0"]) < 1e-12


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused(refuses):
    diffusion, x_0, noise = (
        GaussianDiffusion(linear_beta_schedule(1000)),
        randn(0, *SHAPE),
        randn(1, *SHAPE),
    )

    def loss(
        model=network, x_0: Tensor = x_0, t: Tensor = T_BATCH, noise: Tensor = noise, **settings
    ) -> Tensor:
        return noise_prediction_loss(diffusion, model, x_0, t, noise, **settings)

    loss()
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = x_0.clone()
        broken[5, 1, 3, 3] = value
        with refuses(ValueError, "NaN or infinite", "torch.isfinite"):
            loss(x_0=broken)
        with refuses(ValueError, "NaN or infinite", "torch.isfinite"):
            loss_per_timestep(diffusion, network, broken, [5])
    with refuses(ValueError, "torch.uint8", "[-1, 1]", "to_float"):
        loss(x_0=torch.zeros(SHAPE, dtype=torch.uint8))
    for channels in (1, 4):  # one channel would broadcast, and train nonsense
        with refuses(ValueError, f"(6, {channels}, 4, 4)", "(6, 2, 4, 4)", "out_channels"):
            loss(
                model=lambda x, t, channels=channels: torch.zeros(
                    6, channels, 4, 4, dtype=torch.float64
                )
            )
    with refuses(ValueError, "min_SNR", "uniform, min_snr"):
        loss(weighting="min_SNR")
    with refuses(ValueError, "sum", "'mean' or 'none'"):
        loss(reduction="sum")
    for gamma in (0, -1.0, float("nan")):
        with refuses(ValueError, str(gamma), "above 0", "5"):
            loss(weighting="min_snr", gamma=gamma)
    for t in (torch.tensor([0, 0, 0, 0, 0, 1000]), torch.tensor([0, 0, 0, 0, 0, -1])):
        with refuses(ValueError, "0 … 999"):
            loss(t=t)
        with refuses(ValueError, "0 … 999"):
            min_snr_weight(diffusion, t)
    with refuses(ValueError, "2 timesteps", "6 pictures"):
        loss(t=torch.tensor([1, 2]))
    with refuses(ValueError, "noise has shape (6, 2, 4, 5)", "randn_like"):
        loss(noise=torch.zeros(6, 2, 4, 5))
    with refuses(ValueError, "velocity", "epsilon, x0, v"):
        loss_per_timestep(diffusion, network, x_0, [1], target="velocity")
    with refuses(ValueError, "1000", "0 … 999"):
        loss_per_timestep(diffusion, network, x_0, [1, 1000])
