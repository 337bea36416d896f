"""The beta schedules against their formulas in 50 digits and against diffusers."""

import mpmath
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as diffusers_rescale
from references import alphas_cumprod, exact_cosine, exact_linear, exact_sigmoid, largest_error

from diffusion_lib.core.schedules import (
    cosine_beta_schedule,
    linear_beta_schedule,
    make_betas,
    rescale_zero_terminal_snr,
    shift_snr,
    sigmoid_beta_schedule,
)

mpmath.mp.dps = 50














@pytest.mark.parametrize("T", [50, 1000, 4000])
@pytest.mark.parametrize(
    "schedule, exact",
    [(linear_beta_schedule, exact_linear), (cosine_beta_schedule, exact_cosine),
     (sigmoid_beta_schedule, exact_sigmoid)],
)
def test_alphas_cumprod_against_formula_in_50_digits(schedule, exact, T):
    betas = schedule(T)
    assert betas.dtype == torch.float64 and betas.shape == (T,)
    error = largest_error(alphas_cumprod(betas), exact(T))
    print(f"{schedule.__name__}, T = {T}: largest error of alphas_cumprod {error:.1e}")
    assert error < 1e-12


@pytest.mark.parametrize("ours, theirs", [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_alphas_cumprod_against_diffusers(ours, theirs):
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).alphas_cumprod
    error = (alphas_cumprod(make_betas(ours, 1000)) - theirs.double()).abs().max().item()
    print(f"{ours}: largest difference of alphas_cumprod from diffusers' float32 table {error:.1e}")
    assert error < 1e-6


def test_linear_defaults_are_the_papers_at_1000_and_end_as_noisy_at_any_T():
    betas = linear_beta_schedule(1000)
    assert betas[0] == 1e-4 and abs(betas[-1] - 0.02) < 1e-15
    ends = [alphas_cumprod(linear_beta_schedule(T))[-1].log().item() for T in (250, 1000, 10_000)]
    assert max(ends) - min(ends) < 1.5  # log of ᾱ_T is about -10 in all
    assert torch.equal(
        linear_beta_schedule(3, 0.1, 0.3), torch.linspace(0.1, 0.3, 3, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_every_beta_is_a_variance_and_noise_only_grows(name, T):
    betas = make_betas(name, T)
    assert ((betas > 0) & (betas < 1)).all()
    assert (alphas_cumprod(betas).diff() < 0).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_snr(name):
    betas = make_betas(name, 1000)
    ours = rescale_zero_terminal_snr(betas)
    assert ours[-1] == 1 and ((ours[:-1] > 0) & (ours[:-1] < 1)).all()
    root = alphas_cumprod(betas).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])  # algorithm 1 of Lin et al.
    assert (alphas_cumprod(ours).sqrt() - expected).abs().max() < 1e-12
    assert (alphas_cumprod(ours) - alphas_cumprod(diffusers_rescale(betas))).abs().max() < 1e-12
    assert torch.equal(make_betas(name, 1000, zero_terminal_snr=True), ours)
    again = rescale_zero_terminal_snr(ours)
    assert (again - ours).abs().max() < 1e-9  # nothing left to change


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("factor", [1 / 16, 4.0])
def test_shifted_snr_is_the_factor_times_the_old_one(name, factor):
    betas = make_betas(name, 1000)
    shifted = make_betas(name, 1000, snr_factor=factor)
    assert torch.equal(shifted, shift_snr(betas, factor)) and torch.equal(
        make_betas(name, 1000, snr_factor=1.0), betas
    )
    assert shifted.dtype == torch.float64 and (shifted > 0).all() and (shifted <= 0.9999).all()
    before, after = (alphas_cumprod(b) / (1 - alphas_cumprod(b)) for b in (betas, shifted))
    error = (after / (factor * before) - 1).abs().max().item()
    print(f"{name}, factor {factor}: largest relative error of the SNR {error:.1e}")
    assert error < 1e-9
    back = shift_snr(shifted, 1 / factor)
    assert (alphas_cumprod(back) - alphas_cumprod(betas)).abs().max() < 1e-12
    snr0 = make_betas(name, 1000, snr_factor=factor, zero_terminal_snr=True)
    assert snr0[-1] == 1 and torch.equal(snr0, rescale_zero_terminal_snr(shifted))


def test_why_a_sixteenth_the_mean_of_a_patch():
    """Noised with 1/16 of the SNR, the mean of 4 x 4 equal pixels is as noisy, next to its signal,
    as one pixel at the whole SNR.
    """
    small, large = (
        alphas_cumprod(make_betas("cosine", 1000, snr_factor=factor))[[100, 500, 900]]
        for factor in (1.0, 1 / 16)
    )
    noise = torch.randn(
        (20_000, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for one, many in zip(small.tolist(), large.tolist(), strict=True):
        of_patch = many / ((1 - many) * noise.mean(dim=1).var().item())
        # standard error of the variance: 1 %
        assert abs(of_patch / (one / (1 - one)) - 1) < 0.05


def test_zero_terminal_snr_against_diffusers_scheduler():
    theirs = DDIMScheduler(
        beta_schedule="linear", rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    assert (
        alphas_cumprod(make_betas("linear", 1000, zero_terminal_snr=True)) - theirs
    ).abs().max() < 1e-6


def test_sigmoid_with_a_large_tau_is_a_straight_line():
    alpha_bar = alphas_cumprod(sigmoid_beta_schedule(100, tau=1000.0))
    assert (alpha_bar[:-1] - (1 - torch.arange(1, 100) / 100)).abs().max() < 1e-5


@pytest.mark.parametrize("T", [0, -5, 2.5, "10", True, None])
@pytest.mark.parametrize("schedule", [
    linear_beta_schedule, cosine_beta_schedule, sigmoid_beta_schedule])
def test_bad_T_is_refused(refuses, schedule, T):
    with refuses(ValueError, repr(T), "at least 1", "1000"):
        schedule(T)


def test_bad_settings_are_refused(refuses):
    with refuses(ValueError, "quadratic", "linear, cosine, sigmoid"):
        make_betas("quadratic")
    for start, end, bad in (
        (0.0, 0.02, "beta_start"),
        (1e-4, 1.0, "beta_end"),
        (float("nan"), 0.02, "nan"),
    ):
        with refuses(ValueError, bad, "between 0 and 1", "1e-4 to 0.02"):
            linear_beta_schedule(10, start, end)
    with refuses(ValueError, "start=3", "start < end"):
        sigmoid_beta_schedule(10, start=3, end=3)
    with refuses(ValueError, "tau=0", "tau > 0"):
        sigmoid_beta_schedule(10, tau=0)
    with refuses(ValueError, "nothing of the picture", "milder"):
        sigmoid_beta_schedule(10, tau=1e-3)
    with refuses(ValueError, "-0.1", "0.008"):
        cosine_beta_schedule(10, s=-0.1)
    with refuses(ValueError, "at least 2", "not 1"):
        rescale_zero_terminal_snr(torch.tensor([0.5]))
    for factor in (0, -1.0, float("nan"), float("inf")):
        with refuses(ValueError, "above 0", str(factor), "1/16"):
            shift_snr(torch.tensor([0.5]), factor)
