"""The ideal denoiser: known answers, no lower loss on its own pictures, and what sampling from it
returns.
"""

import math

import pytest
import torch
from torch import Tensor

from diffusion_lib.core.diffusion import PREDICTIONS, GaussianDiffusion
from diffusion_lib.core.ideal import IdealDenoiser
from diffusion_lib.core.losses import noise_prediction_loss
from diffusion_lib.core.samplers import SAMPLERS, ddim, last_step
from diffusion_lib.core.schedules import cosine_beta_schedule, linear_beta_schedule, make_betas


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def pictures(toy_images) -> Tensor:
    """Twelve different pictures (12, 3, 8, 8), float64 in [-1, 1]."""
    return toy_images.double() / 127.5 - 1


# -- known answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 1, 100, 500, 999])
def test_two_points_have_a_tanh(t):
    """For the data set {-1, +1} the posterior mean is tanh(√ᾱ x / (1-ᾱ))."""
    diffusion = GaussianDiffusion(linear_beta_schedule(1000), "x0")
    ideal = IdealDenoiser(
        diffusion, torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None, None]
    )
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None, None, None]
    bar = diffusion.alphas_cumprod[t]
    assert (
        ideal(x, torch.full((61,), t)) - torch.tanh(bar.sqrt() * x / (1 - bar))
    ).abs().max() < 1e-12


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_picture_leaves_nothing_to_guess(prediction, pictures):
    """For a single picture y: x_0 = y, ε = (x_t - √ᾱ y) / √(1-ᾱ) exactly; the loss is 0."""
    diffusion = GaussianDiffusion(linear_beta_schedule(1000), prediction)
    ideal, t = IdealDenoiser(diffusion, pictures[:1]), torch.tensor([0, 1, 30, 400, 999])
    noise = randn(0, 5, 3, 8, 8)
    x_0 = pictures[:1].expand(5, -1, -1, -1)
    bar = diffusion.alphas_cumprod[t][:, None, None, None]
    right = {"epsilon": noise, "x0": x_0, "v": bar.sqrt() * noise - (1 - bar).sqrt() * x_0}[
        prediction
    ]
    assert (ideal(bar.sqrt() * x_0 + (1 - bar).sqrt() * noise, t) - right).abs().max() < 1e-10
    assert noise_prediction_loss(diffusion, ideal, x_0, t, noise) < 1e-20
    away = randn(1, 5, 3, 8, 8)  # wherever x_t is
    assert (diffusion.predict_x0(ideal(away, t), away, t) - x_0).abs().max() < 1e-10


def test_against_the_sum_written_by_hand(pictures):
    diffusion = GaussianDiffusion(linear_beta_schedule(1000), "x0")
    ideal, x_t, t = (
        IdealDenoiser(diffusion, pictures),
        randn(0, 4, 3, 8, 8),
        torch.tensor([20, 300, 600, 999]),
    )
    for i, step in enumerate(t.tolist()):
        bar = diffusion.alphas_cumprod[step].item()
        exponents = [
            -(x_t[i] - bar**0.5 * y).square().sum().item() / (2 * (1 - bar)) for y in pictures
        ]
        terms = [math.exp(e - max(exponents)) for e in exponents]
        weights = [term / sum(terms) for term in terms]
        assert (
            ideal.weights(x_t, t)[i] - torch.tensor(weights, dtype=torch.float64)
        ).abs().max() < 1e-10
        expected = sum(w * y for w, y in zip(weights, pictures, strict=True))
        assert (ideal(x_t, t)[i] - expected).abs().max() < 1e-10
    assert (
        ideal.weights(x_t, t).shape == (4, 12)
        and (ideal.weights(x_t, t).sum(dim=1) - 1).abs().max() < 1e-12
    )


def test_it_knows_the_nearly_clean_and_guesses_the_mean_of_noise(pictures):
    diffusion = GaussianDiffusion(make_betas("cosine", 1000, zero_terminal_snr=True), "x0")
    ideal = IdealDenoiser(diffusion, pictures)
    noised = diffusion.q_sample(pictures, torch.full((12,), 20), randn(0, 12, 3, 8, 8))
    assert (ideal(noised, torch.full((12,), 20)) - pictures).abs().max() < 1e-6
    assert (
        ideal(randn(1, 12, 3, 8, 8), torch.full((12,), 999)) - pictures.mean(dim=0)
    ).abs().max() < 1e-12


# -- the lowest loss there is ----------------------------------------------------------------------


@pytest.mark.parametrize("t", [5, 200, 500, 800])
def test_no_other_function_has_a_lower_loss(t):
    """Exactly, by integrals over x_t: with f = ideal + δ the expected loss is larger by ∫ p(x)
    δ(x)² dx, for any δ.
    """
    diffusion = GaussianDiffusion(linear_beta_schedule(1000), "x0")
    data = torch.tensor([-0.9, 0.1, 0.6], dtype=torch.float64)
    ideal = IdealDenoiser(diffusion, data[:, None, None, None])
    bar = diffusion.alphas_cumprod[t]
    sigma = (1 - bar).sqrt()
    x = torch.linspace(-1 - 9 * sigma.item(), 1 + 9 * sigma.item(), 20_001, dtype=torch.float64)
    # (3, n)
    density = (
        torch.exp(-((x - bar.sqrt() * data[:, None]) ** 2) / (2 * sigma**2))
        / (sigma * math.sqrt(2 * math.pi))
        / 3
    )
    assert abs(torch.trapezoid(density.sum(dim=0), x) - 1) < 1e-9
    best = ideal(x[:, None, None, None], torch.full((20_001,), t)).flatten()

    def loss(f: Tensor) -> float:
        return torch.trapezoid((density * (f - data[:, None]) ** 2).sum(dim=0), x).item()

    waves = (torch.ones_like(x), x, torch.sin(3 * x), torch.cos(20 * x + 1))
    perturbations = [size * wave for size in (1e-3, -1e-3, 0.3) for wave in waves]
    perturbations += [0.1 * torch.exp(-((x - c) ** 2) / 0.02) for c in (-0.5, 0.0, 0.4)] + [
        -0.02 * best,
        0.02 * best,
    ]
    for delta in perturbations:
        extra = torch.trapezoid(density.sum(dim=0) * delta**2, x).item()
        assert loss(best + delta) > loss(best)
        assert abs(loss(best + delta) - loss(best) - extra) < 1e-6 * extra + 1e-13
    nearest = data[(x[:, None] - bar.sqrt() * data).abs().argmin(dim=1)]
    assert loss(nearest) >= loss(best) and loss(data.mean().expand_as(x)) > loss(best)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lower_loss_on_its_own_pictures_than_its_rivals(prediction, pictures):
    """The same in pictures and with the library's loss: 12 pictures, 200 noises each, the same for
    all.
    """
    betas = linear_beta_schedule(1000)
    diffusion = GaussianDiffusion(betas, prediction)
    x_0, noise = pictures.repeat(200, 1, 1, 1), randn(0, 2400, 3, 8, 8)
    ideal = IdealDenoiser(diffusion, pictures)
    bias = 0.1 * randn(1, 3, 8, 8)
    rivals = {
        "a constant added": lambda x, t: ideal(x, t) + bias,
        "a little too much": lambda x, t: 1.1 * ideal(x, t),
        "a little too little": lambda x, t: 0.9 * ideal(x, t),
        "a little of x_t added": lambda x, t: ideal(x, t) + 0.05 * x,
        "one picture forgotten": IdealDenoiser(diffusion, pictures[1:]),
        "one picture seen twice": IdealDenoiser(diffusion, torch.cat([pictures, pictures[:1]])),
        "the timestep misread": lambda x, t: ideal(x, t - 100),
    }
    # where it is in doubt: neither certain of a picture nor left with the mean of all
    for t in (500, 650):
        best = noise_prediction_loss(diffusion, ideal, x_0, torch.full((2400,), t), noise).item()
        assert best > 1e-4
        for name, rival in rivals.items():
            theirs = noise_prediction_loss(
                diffusion, rival, x_0, torch.full((2400,), t), noise
            ).item()
            print(f"{prediction}, t {t}: ideal {best:.5f}, {name} {theirs:.5f}")
            assert theirs > best, name


# -- the three languages ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_three_languages_agree(name, pictures):
    betas, x_t = make_betas(name, 1000), randn(0, 6, 3, 8, 8)
    t = torch.tensor([0, 1, 50, 400, 800, 990])
    bar = torch.cumprod(1 - betas, dim=0)[t][:, None, None, None]
    said = {p: IdealDenoiser(GaussianDiffusion(betas, p), pictures)(x_t, t) for p in PREDICTIONS}
    assert (bar.sqrt() * said["x0"] + (1 - bar).sqrt() * said["epsilon"] - x_t).abs().max() < 1e-10
    assert (
        bar.sqrt() * said["epsilon"] - (1 - bar).sqrt() * said["x0"] - said["v"]
    ).abs().max() < 1e-10
    for p in PREDICTIONS:
        assert (
            GaussianDiffusion(betas, p).predict_x0(said[p], x_t, t) - said["x0"]
        ).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name, snr0, prediction", [
    *[(name, False, prediction) for name in ("linear", "cosine") for prediction in PREDICTIONS],
    ("cosine", True, "x0"), ("cosine", True, "v"),
])  # fmt: skip
def test_finite_at_both_ends(prediction, name, snr0, dtype, pictures):
    """Near t = 0 the exponents reach 10⁷; at ᾱ = 0 all pictures are equally likely; far from all of
    them one must win.
    """
    diffusion = GaussianDiffusion(make_betas(name, 1000, zero_terminal_snr=snr0), prediction)
    # two of them twice
    ideal = IdealDenoiser(diffusion, torch.cat([pictures, pictures[:2]]).to(dtype))
    for x_t in (
        randn(0, 3, 3, 8, 8),
        torch.zeros(3, 3, 8, 8),
        1000 * randn(1, 3, 3, 8, 8),
        pictures[:3],
    ):
        for t in (0, 1, 2, 997, 998, 999):
            output, weights = (
                ideal(x_t.to(dtype), torch.full((3,), t)),
                ideal.weights(x_t.to(dtype), torch.full((3,), t)),
            )
            assert output.dtype == dtype and output.shape == (3, 3, 8, 8)
            assert (
                torch.isfinite(output).all()
                and torch.isfinite(weights).all()
                and (weights.sum(dim=1) - 1).abs().max() < 1e-9
            )


# -- sampling from it ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction, snr0", [
    ("epsilon", False), ("x0", False), ("v", False), ("v", True)])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_sampling_returns_training_pictures(name, prediction, snr0, pictures):
    diffusion = GaussianDiffusion(make_betas("cosine", 1000, zero_terminal_snr=snr0), prediction)
    ideal = IdealDenoiser(diffusion, pictures.float())
    drawn = last_step(SAMPLERS[name](diffusion, ideal, (24, 3, 8, 8), steps=50)).x_t
    # (24, 12)
    distances = (drawn[:, None] - pictures.float()).abs().amax(dim=(2, 3, 4))
    nearest = distances.min(dim=1)
    print(
        f"{name}, {prediction}: largest difference from a training picture "
        f"{nearest.values.max():.1e}, {len(nearest.indices.unique())} of 12 returned"
    )
    assert nearest.values.max() < 1e-3
    # 24 draws of 12 equally likely ones: 10 or 11 expected
    assert len(nearest.indices.unique()) >= 6


def test_every_training_picture_is_as_likely_as_it_was(pictures):
    """Three pictures, one of them twice in the set: it is drawn half the time."""
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), "x0")
    ideal = IdealDenoiser(diffusion, pictures[[0, 1, 2, 2]])
    drawn = last_step(
        ddim(diffusion, ideal, (600, 3, 8, 8), steps=30, x_T=randn(0, 600, 3, 8, 8))
    ).x_t
    nearest = (drawn[:, None] - pictures[:3]).abs().amax(dim=(2, 3, 4)).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=3) / 600
    print(f"shares of the three pictures: {[round(s, 3) for s in shares.tolist()]}")
    # standard error 0.02, and 30 steps' own
    assert abs(shares[2] - 0.5) < 0.1 and (shares[:2] - 0.25).abs().max() < 0.1


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused(refuses, pictures):
    diffusion = GaussianDiffusion(linear_beta_schedule(10))
    for images in (pictures[:0], pictures[0], torch.zeros(3)):
        with refuses(ValueError, str(tuple(images.shape)), "(N, C, H, W)", "at least 1"):
            IdealDenoiser(diffusion, images)
    with refuses(ValueError, "torch.uint8", "[-1, 1]", "to_float"):
        IdealDenoiser(diffusion, (pictures * 127).to(torch.uint8))
    for value in (float("nan"), float("inf")):
        broken = pictures.clone()
        broken[3, 1, 2, 2] = value
        with refuses(ValueError, "NaN or infinite", "torch.isfinite"):
            IdealDenoiser(diffusion, broken)
    ideal = IdealDenoiser(diffusion, pictures)
    for shape in ((2, 3, 8, 4), (2, 1, 8, 8), (2, 3, 4, 16)):  # the last has as many numbers
        with refuses(ValueError, str(shape[1:]), "(3, 8, 8)"):
            ideal(torch.zeros(shape), torch.tensor([1, 1]))
    with refuses(ValueError, "[10]", "0 … 9"):
        ideal(pictures[:1], torch.tensor([10]))
    with refuses(ValueError, "3 timesteps", "2 pictures"):
        ideal(pictures[:2], torch.tensor([1, 2, 3]))
    for sampler in SAMPLERS.values():
        with refuses(ValueError, "predicts 'epsilon'", "reads 'v'", "one GaussianDiffusion"):
            last_step(
                sampler(
                    GaussianDiffusion(linear_beta_schedule(10), "v"), ideal, (2, 3, 8, 8), steps=2
                )
            )
