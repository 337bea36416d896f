"""The forward process and the algebra between ε, x_0 and v."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion_lib.core.diffusion import PREDICTIONS, GaussianDiffusion
from diffusion_lib.core.schedules import cosine_beta_schedule, linear_beta_schedule, make_betas

SHAPE = (10, 3, 4, 4)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_three_arrays_are_stored_and_nothing_else():
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    assert set(vars(diffusion)) == {"betas", "alphas", "alphas_cumprod", "prediction"}
    for table in (diffusion.betas, diffusion.alphas, diffusion.alphas_cumprod):
        assert (
            table.dtype == torch.float64 and table.shape == (1000,) and table.device.type == "cpu"
        )
    assert diffusion.T == 1000 and "T=1000" in repr(diffusion)
    as_list = GaussianDiffusion([0.1, 0.2])
    assert torch.allclose(
        as_list.alphas_cumprod, torch.tensor([0.9, 0.72], dtype=torch.float64), atol=1e-15
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_q_sample_against_diffusers(name):
    diffusion = GaussianDiffusion(make_betas(name, 1000))
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    x_0, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    t = torch.tensor([0, 1, 2, 10, 100, 400, 700, 900, 998, 999])
    error = (
        (diffusion.q_sample(x_0, t, noise) - scheduler.add_noise(x_0, noise, t)).abs().max().item()
    )
    print(f"q_sample, {name}: largest difference from diffusers {error:.1e}")
    assert error < 1e-10


def test_q_sample_is_the_steps_done_one_by_one():
    """Equation 2 ten times over leads to the mean and variance that equation 4 states."""
    diffusion = GaussianDiffusion(linear_beta_schedule(10, 0.05, 0.4))
    x = torch.full((200_000, 1, 1, 1), 0.7, dtype=torch.float64)
    for t, beta in enumerate(diffusion.betas):
        x = (1 - beta).sqrt() * x + beta.sqrt() * randn(t, *x.shape)
    at_once = diffusion.q_sample(torch.full_like(x, 0.7), torch.tensor([9]), randn(99, *x.shape))
    assert abs(x.mean() - at_once.mean()) < 0.01 and abs(x.var() - at_once.var()) < 0.02
    assert abs(x.mean() - 0.7 * diffusion.alphas_cumprod[9].sqrt()) < 0.01


def test_q_sample_gives_every_picture_its_own_t():
    diffusion = GaussianDiffusion(cosine_beta_schedule(100))
    x_0, noise, t = randn(0, *SHAPE), randn(1, *SHAPE), torch.arange(10) * 11
    together = diffusion.q_sample(x_0, t, noise)
    for i in range(10):
        alone = diffusion.q_sample(x_0[i : i + 1], t[i : i + 1], noise[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_tables_are_cast_at_use():
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    x_0, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    t = torch.arange(10)
    single = diffusion.q_sample(x_0.float(), t, noise.float())
    assert single.dtype == torch.float32
    assert (single.double() - diffusion.q_sample(x_0, t, noise)).abs().max() < 1e-6
    signal_rate, noise_rate = diffusion.rates(t, x_0)
    assert (
        signal_rate.shape == (10, 1, 1, 1)
        and (signal_rate**2 + noise_rate**2 - 1).abs().max() < 1e-15
    )


def test_q_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from multiplying two Gaussians, in numbers: no formula of the paper
    used.
    """
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    x_0, x_t = randn(0, 6, 1, 1, 1), randn(1, 6, 1, 1, 1)
    t = torch.tensor([1, 2, 50, 300, 800, 999])
    mean, variance = diffusion.q_posterior(x_0, x_t, t)
    for i, step in enumerate(t.tolist()):
        beta, before = diffusion.betas[step], diffusion.alphas_cumprod[step - 1]
        # prior N(√ᾱ x_0, 1-ᾱ) of x_{t-1}, likelihood N(x_t; √(1-β) x_{t-1}, β): precisions add
        precision = 1 / (1 - before) + (1 - beta) / beta
        expected = (
            before.sqrt() * x_0[i] / (1 - before) + (1 - beta).sqrt() * x_t[i] / beta
        ) / precision
        assert (mean[i] - expected).abs().max() < 1e-10
        assert (variance[i] - 1 / precision).abs().max() < 1e-10


def test_q_posterior_over_several_steps_and_at_the_end():
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    x_0, x_t = randn(0, 1, 1, 2, 2), randn(1, 1, 1, 2, 2)
    for t, t_prev in ((999, 499), (500, 20)):
        mean, variance = diffusion.q_posterior(x_0, x_t, torch.tensor([t]), torch.tensor([t_prev]))
        now, before = diffusion.alphas_cumprod[t], diffusion.alphas_cumprod[t_prev]
        a = now / before
        precision = 1 / (1 - before) + a / (1 - a)
        expected = (before.sqrt() * x_0 / (1 - before) + a.sqrt() * x_t / (1 - a)) / precision
        assert (mean - expected).abs().max() < 1e-10 and abs(
            variance.item() - 1 / precision
        ) < 1e-10
    mean, variance = diffusion.q_posterior(x_0, x_t, torch.tensor([0]))
    assert torch.equal(mean, x_0) and variance.item() == 0  # the step to the clean picture


def test_snr():
    diffusion = GaussianDiffusion([0.5, 0.5, 0.5])
    assert torch.allclose(
        diffusion.snr(torch.arange(3)), torch.tensor([1.0, 1 / 3, 1 / 7], dtype=torch.float64)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_conversions_agree_with_each_other_and_with_the_truth(prediction, name):
    diffusion = GaussianDiffusion(make_betas(name, 1000), prediction)
    x_0, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    t = torch.tensor([0, 1, 2, 10, 100, 400, 700, 900, 980, 990])
    x_t = diffusion.q_sample(x_0, t, noise)
    right = diffusion.target(x_0, noise, t)
    signal_rate, noise_rate = diffusion.rates(t, x_t)
    assert (diffusion.predict_x0(right, x_t, t) - x_0).abs().max() < 1e-10
    assert (diffusion.predict_epsilon(right, x_t, t) - noise).abs().max() < 1e-10
    assert (
        diffusion.predict_v(right, x_t, t) - (signal_rate * noise - noise_rate * x_0)
    ).abs().max() < 1e-10

    wrong = randn(2, *SHAPE)  # any answer: the three readings of it must describe the same x_t
    x0_hat, epsilon_hat = (
        diffusion.predict_x0(wrong, x_t, t),
        diffusion.predict_epsilon(wrong, x_t, t),
    )
    scale = x0_hat.abs().flatten(1).amax(1).clamp(min=1)[:, None, None, None]
    assert ((signal_rate * x0_hat + noise_rate * epsilon_hat - x_t) / scale).abs().max() < 1e-12
    v = signal_rate * epsilon_hat - noise_rate * x0_hat
    assert ((diffusion.predict_v(wrong, x_t, t) - v) / scale).abs().max() < 1e-12


@pytest.mark.parametrize("ours, theirs", [
    ("epsilon", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_predict_x0_against_diffusers(ours, theirs):
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), ours)
    scheduler = DDIMScheduler(
        1000, prediction_type=theirs, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    scheduler.set_timesteps(1000)
    output, x_t = randn(0, 1, 3, 4, 4), randn(1, 1, 3, 4, 4)
    for t in (0, 10, 500, 900):
        expected = scheduler.step(output, t, x_t).pred_original_sample
        assert (diffusion.predict_x0(output, x_t, torch.tensor([t])) - expected).abs().max() < 1e-10
    if ours == "v":
        t = torch.tensor([0, 500])
        x_0, noise = randn(2, 2, 3, 4, 4), randn(3, 2, 3, 4, 4)
        assert (
            diffusion.target(x_0, noise, t) - scheduler.get_velocity(x_0, noise, t)
        ).abs().max() < 1e-10


def test_state_dict_survives_json_exactly():
    diffusion = GaussianDiffusion(make_betas("sigmoid", 1000, zero_terminal_snr=True), "v")
    back = GaussianDiffusion.from_state_dict(json.loads(json.dumps(diffusion.state_dict())))
    assert torch.equal(back.betas, diffusion.betas) and torch.equal(
        back.alphas_cumprod, diffusion.alphas_cumprod
    )
    assert back.prediction == "v"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_betas_out_of_range_are_refused(refuses, bad):
    with refuses(ValueError, "betas[1]", str(bad), "(0, 1]", "1e-4 to 0.02"):
        GaussianDiffusion([0.1, bad, 0.2])


def test_other_bad_settings_are_refused(refuses):
    with refuses(ValueError, "betas[1] = 1", "only betas[-1]"):
        GaussianDiffusion([0.1, 1.0, 0.2], "v")
    with refuses(ValueError, "last beta is 1", "prediction='v'"):
        GaussianDiffusion([0.1, 1.0])
    assert GaussianDiffusion([0.1, 1.0], "v").alphas_cumprod[-1] == 0
    assert GaussianDiffusion([0.1, 1.0], "x0").alphas_cumprod[-1] == 0
    with refuses(ValueError, "noise", "epsilon, x0, v"):
        GaussianDiffusion([0.1], "noise")
    for betas, shape in (
        (torch.rand(2, 2), "(2, 2)"),
        (torch.tensor([]), "(0,)"),
        (torch.tensor(0.1), "()"),
    ):
        with refuses(ValueError, shape, "(T,)"):
            GaussianDiffusion(betas)


def test_bad_pictures_are_refused(refuses):
    diffusion, t = GaussianDiffusion(linear_beta_schedule(10)), torch.zeros(2, dtype=torch.int64)
    pictures = torch.zeros(2, 3, 4, 4)
    for dtype in (torch.uint8, torch.int64):
        with refuses(ValueError, str(dtype), "[-1, 1]", "to_float"):
            diffusion.q_sample(pictures.to(dtype), t, pictures)
    with refuses(ValueError, "(2, 3, 4, 5)", "(2, 3, 4, 4)", "randn_like"):
        diffusion.q_sample(pictures, t, torch.zeros(2, 3, 4, 5))
    for bad, shown in (([0, 10], "[0, 10]"), ([-1, 0], "[-1, 0]"), ([0.5, 1.0], "0.5")):
        with refuses(ValueError, shown, "0 … 9"):
            diffusion.q_sample(pictures, torch.tensor(bad), pictures)
    with refuses(ValueError, "3 timesteps", "2 pictures", "one t a picture"):
        diffusion.q_sample(pictures, torch.zeros(3, dtype=torch.int64), pictures)


@pytest.mark.parametrize("betas", [
    linear_beta_schedule(1000, 1e-4, 0.99), torch.full((10,), 1e-17, dtype=torch.float64)])
def test_betas_that_leave_nothing_or_everything_are_refused(betas):
    with pytest.raises(ValueError, match="too small at the start, or too large before the end"):
        GaussianDiffusion(betas, "v")


def test_the_betas_are_its_own():
    betas = cosine_beta_schedule(10)
    process = GaussianDiffusion(betas)
    betas[0] = 0.5
    assert process.betas[0] != 0.5
