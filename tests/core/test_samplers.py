"""The samplers: against diffusers step by step, against Gaussian data whose answer is known, and
their contract.
"""

import math
from collections.abc import Callable

import diffusers.schedulers.scheduling_ddpm as diffusers_ddpm
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from references import (
    MEAN,
    PROCESSES,
    SHAPE,
    SMALL,
    Curved,
    gaussian_errors,
    gaussian_model,
    in_language,
    largest,
    noise_as_ours,
    order_errors,
    randn,
    random_unet,
    theirs,
)
from torch import Tensor, nn

from diffusion_lib.core.autoencoder import Autoencoder
from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.guidance import autoguided, guided, perturbed_attention
from diffusion_lib.core.samplers import (
    SAMPLERS,
    Step,
    ddim,
    ddpm,
    dpm_solver_pp,
    heun,
    last_step,
    sample,
    sde_dpm_solver_pp,
    timesteps_trailing,
)
from diffusion_lib.core.schedules import (
    cosine_beta_schedule,
    linear_beta_schedule,
    make_betas,
    rescale_zero_terminal_snr,
)
from diffusion_lib.core.unet import AttentionBlock, UNet
from diffusion_lib.saving.pretrained import load_model

ALL = list(SAMPLERS)
DETERMINISTIC = ["ddim", "heun", "dpm_solver_pp"]














# -- against diffusers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_timesteps_are_diffusers_trailing_ones(kind):
    for T, counts in (
        (1000, [1, 2, 3, 7, 20, 27, 30, 50, 64, 333, 500, 667, 999, 1000]),
        (10, range(1, 11)),
        (37, range(1, 38)),
    ):
        for steps in counts:
            scheduler = kind(num_train_timesteps=T, timestep_spacing="trailing")
            scheduler.set_timesteps(steps)
            expected = scheduler.timesteps.tolist()[:steps]  # rounding may give it one more, t = -1
            assert timesteps_trailing(T, steps) == expected, (T, steps)


def test_timesteps_start_at_the_last_and_fall():
    for T in (1, 2, 10, 97, 1000):
        for steps in range(1, T + 1):
            ts = timesteps_trailing(T, steps)
            assert len(ts) == steps and ts[0] == T - 1 and ts[-1] >= 0
            assert all(a > b for a, b in zip(ts, ts[1:], strict=False))
    assert timesteps_trailing(1000, 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", [1.001, 1.5, 2.0, 7.0])
def test_spaced_timesteps_are_closer_near_the_picture(spacing):
    for T in (1, 2, 10, 97, 1000):
        for steps in range(1, T + 1):
            ts = timesteps_trailing(T, steps, spacing)
            assert len(ts) == steps and ts[0] == T - 1 and ts[-1] >= 0
            assert all(a > b for a, b in zip(ts, ts[1:], strict=False))
            exact = [T * (i / steps) ** spacing for i in range(steps, 0, -1)]
            assert all(
                abs(t + 1 - e) <= 0.5
                for i, (t, e) in enumerate(zip(ts, exact, strict=True))
                if e >= steps - i
            )
    assert timesteps_trailing(1000, 20, 1.5)[-2:] == [31, 10] and timesteps_trailing(1000, 20)[
        -2:
    ] == [99, 49]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_the_spacing(name):
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000))
    seen = [
        s.t
        for s in SAMPLERS[name](
            diffusion, Curved(), SHAPE, steps=7, x_T=randn(0, *SHAPE), spacing=1.5
        )
    ]
    assert seen == [*timesteps_trailing(1000, 7, 1.5), -1]


def test_spacing_brings_the_picture_nearer_to_the_exact_one():
    """Where the last step's error rules, at few steps: the picture of a Gaussian, whose exact one
    is known.
    """
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), "x0")
    x_T = randn(0, *SHAPE)
    exact = last_step(dpm_solver_pp(diffusion, Curved(), SHAPE, steps=1000, x_T=x_T)).x_t
    errors = [
        (
            last_step(dpm_solver_pp(diffusion, Curved(), SHAPE, steps=20, x_T=x_T, spacing=s)).x_t
            - exact
        )
        .abs()
        .mean()
        .item()
        for s in (1.0, 1.5)
    ]
    print(
        "20 steps, spaced evenly and by 1.5: mean distance from the picture of 1,000 steps "
        f"{errors[0]:.1e} and {errors[1]:.1e}"
    )
    assert errors[1] < errors[0]


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name, snr0, prediction", PROCESSES)
@torch.no_grad()
def test_ddpm_steps_against_diffusers(monkeypatch, name, snr0, prediction, clip):
    seeds = [5, 6, 9]
    # 27 does not divide 1000: steps of 37 and of 38; and all there are
    for T, steps in ((1000, 40), (1000, 27), (30, 30)):
        diffusion = GaussianDiffusion(make_betas(name, T, zero_terminal_snr=snr0), prediction)
        model = in_language(diffusion, Curved())
        scheduler = theirs(
            DDPMScheduler, diffusion, steps, clip_sample=clip, variance_type="fixed_small"
        )
        ours = list(
            ddpm(diffusion, model, SHAPE, steps=steps, seeds=seeds, clip=clip, x_T=randn(0, *SHAPE))
        )
        monkeypatch.setattr(diffusers_ddpm, "randn_tensor", noise_as_ours(seeds, SHAPE, skip=1))
        differences, moves = [], []
        for now, after in zip(ours, ours[1:], strict=False):
            # diffusers adds noise of standard deviation 1e-10 to the picture, its floor; we add
            # none
            if after.t < 0:
                monkeypatch.setattr(
                    diffusers_ddpm,
                    "randn_tensor",
                    lambda *a, **k: torch.zeros(SHAPE, dtype=torch.float64),
                )
            expected = scheduler.step(model(now.x_t, torch.full((3,), now.t)), now.t, now.x_t)
            differences += [
                after.x_t - expected.prev_sample,
                now.x0_hat - expected.pred_original_sample,
            ]
            moves.append(after.x_t - now.x_t)
        worst = largest(differences)
        print(
            f"ddpm, {name}, {prediction}, clip {clip}, {steps} of {T} steps: "
            f"largest difference of a step {worst:.1e}"
        )
        assert worst < 1e-10 and largest(moves) > 0.1


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name, snr0, prediction", PROCESSES)
@torch.no_grad()
def test_ddim_steps_against_diffusers(name, snr0, prediction, clip):
    diffusion = GaussianDiffusion(make_betas(name, 1000, zero_terminal_snr=snr0), prediction)
    model = in_language(diffusion, Curved())
    # its DDIM takes every step T // steps long, so only steps that divide T can be compared
    scheduler = theirs(DDIMScheduler, diffusion, 40, clip_sample=clip)
    ours = list(ddim(diffusion, model, SHAPE, steps=40, x_T=randn(0, *SHAPE), clip=clip))
    differences = []
    for now, after in zip(ours, ours[1:], strict=False):
        output = model(now.x_t, torch.full((3,), now.t))
        expected = scheduler.step(output, now.t, now.x_t, use_clipped_model_output=True)
        differences += [
            after.x_t - expected.prev_sample,
            now.x0_hat - expected.pred_original_sample,
        ]
    worst = largest(differences)
    print(f"ddim, {name}, {prediction}, clip {clip}: largest difference of a step {worst:.1e}")
    assert worst < 1e-10


# under 15 and above, where diffusers' rules for the last steps differ
@pytest.mark.parametrize("steps", [10, 40, 27])
# it replaces ᾱ = 0 by 2⁻²⁴
@pytest.mark.parametrize("name, snr0, prediction", [p for p in PROCESSES if not p[1]])
@pytest.mark.parametrize("sampler, algorithm, first_order", [
    (dpm_solver_pp, "dpmsolver++", ddim), (sde_dpm_solver_pp, "sde-dpmsolver++", ddpm)])
@torch.no_grad()
def test_dpm_solvers_trajectories_against_diffusers(
    sampler, algorithm, first_order, name, snr0, prediction, steps
):
    diffusion = GaussianDiffusion(make_betas(name, 1000), prediction)
    model = in_language(diffusion, Curved(0.7))
    scheduler = theirs(
        DPMSolverMultistepScheduler, diffusion, steps, algorithm_type=algorithm, solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True,
    )  # fmt: skip
    how = dict(steps=steps, x_T=randn(0, *SHAPE), clip=False)
    ours = list(sampler(diffusion, model, SHAPE, **how))
    assert [s.t for s in ours[:-1]] == scheduler.timesteps.tolist()
    fresh = noise_as_ours(range(SHAPE[0]), SHAPE, skip=1)
    x, differences = ours[0].x_t, []
    # its own x all along: differences may add up
    for now, after in zip(ours, ours[1:], strict=False):
        said, noise = model(x, torch.full((3,), now.t)), fresh()
        x = scheduler.step(said, now.t, x, variance_noise=noise).prev_sample
        differences.append((after.x_t - x) / x.abs().max())
    worst = largest(differences)
    # diffusers steps in float32, which √ᾱ = 5e-5 at the start of the cosine schedule magnifies
    # where x̂_0 comes from ε
    print(
        f"{algorithm}, {name}, {prediction}, {steps} steps: "
        f"largest relative difference {worst:.1e}"
    )
    assert worst < 1e-5
    # the comparison does notice the second order
    first = last_step(first_order(diffusion, model, SHAPE, **how)).x_t
    assert (first - x).abs().max() / x.abs().max() > 1e-4


@torch.no_grad()
def test_heun_is_heuns_rule():
    """In y = x / σ and τ = α / σ the process is dy/dτ = x̂_0: the textbook's predictor and
    corrector in these two.
    """
    diffusion, model = GaussianDiffusion(linear_beta_schedule(1000), "x0"), Curved(0.7)
    ours = list(heun(diffusion, model, SHAPE, steps=20, x_T=randn(0, *SHAPE), clip=False))
    ts = [s.t for s in ours]
    alpha, sigma = diffusion.alphas_cumprod.sqrt(), (1 - diffusion.alphas_cumprod).sqrt()
    y = ours[0].x_t / sigma[ts[0]]
    for now, after in zip(ts[:-2], ts[1:-1], strict=True):
        tau = [alpha[now] / sigma[now], alpha[after] / sigma[after]]
        slope = model(y * sigma[now], torch.full((3,), now))
        predicted = y + (tau[1] - tau[0]) * slope
        y = (
            y
            + (tau[1] - tau[0])
            * (slope + model(predicted * sigma[after], torch.full((3,), after)))
            / 2
        )
    assert (ours[-2].x_t - y * sigma[ts[-2]]).abs().max() < 1e-12
    # lands on the guess
    assert torch.equal(ours[-1].x_t, model(ours[-2].x_t, torch.full((3,), ts[-2])))


# -- the sequence of steps -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("name", ALL)
def test_what_a_sampler_yields(name, steps):
    diffusion, calls = GaussianDiffusion(cosine_beta_schedule(100)), []
    network = Curved()

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64 and t.shape == (3,) and (t == t[0]).all()
        calls.append((x.clone(), int(t[0])))
        return network(x, t)

    x_T = randn(0, *SHAPE)
    before = x_T.clone()
    out, made = [], []
    for step in SAMPLERS[name](diffusion, model, SHAPE, steps=steps, x_T=x_T):
        assert isinstance(step, Step) and not step.x_t.requires_grad
        assert (
            step.x_t.shape == step.x0_hat.shape == SHAPE
            and step.x_t.dtype == step.x0_hat.dtype == torch.float64
        )
        out.append(step)
        made.append(len(calls))  # the evaluations made by the time this step is handed out
    assert torch.equal(x_T, before)  # the caller's noise is left as it was
    assert [s.t for s in out] == [*timesteps_trailing(100, steps), -1]
    assert torch.equal(out[0].x_t, x_T)
    per_step = 2 if name == "heun" else 1
    assert (
        [s.evaluations for s in out]
        == made
        == [1 + per_step * i for i in range(steps)] + [1 + per_step * (steps - 1)]
    )
    own = calls[::per_step]  # the first evaluation of each step sees the x_t that was handed out
    for step, (x, t) in zip(out, own, strict=False):
        assert t == step.t and torch.equal(x, step.x_t)
        t_batch = torch.full((3,), step.t)
        assert torch.equal(
            step.x0_hat,
            diffusion.predict_x0(network(step.x_t, t_batch), step.x_t, t_batch).clamp(-1, 1),
        )
    assert torch.equal(out[-1].x0_hat, out[-1].x_t)
    # no noise after the last step: the picture is the last guess
    assert (out[-1].x_t - out[-2].x0_hat).abs().max() < 1e-14
    assert torch.equal(
        last_step(SAMPLERS[name](diffusion, model, SHAPE, steps=steps, x_T=x_T)).x_t, out[-1].x_t
    )


@pytest.mark.parametrize("name", ALL)
def test_clipping_comes_before_the_step(name):
    """Clipping in the sampler is the same as a network that clips itself; and it is not the same as
    clipping at the end.
    """
    diffusion, model, x_T = (
        GaussianDiffusion(linear_beta_schedule(1000), "x0"),
        Curved(3.0),
        randn(0, *SHAPE),
    )

    def run(model: Callable, clip: bool) -> list[Step]:
        return list(SAMPLERS[name](diffusion, model, SHAPE, steps=20, x_T=x_T, clip=clip))

    clipped, itself = run(model, True), run(lambda x, t: model(x, t).clamp(-1, 1), False)
    for a, b in zip(clipped, itself, strict=True):
        assert (
            torch.equal(a.x_t, b.x_t)
            and torch.equal(a.x0_hat, b.x0_hat)
            and a.x0_hat.abs().max() <= 1
        )
    free = run(model, False)
    assert max(s.x0_hat.abs().max() for s in free) > 1.5
    assert (free[-1].x_t.clamp(-1, 1) - clipped[-1].x_t).abs().max() > 0.05
    assert (
        torch.equal(free[0].x_t, clipped[0].x_t)
        and (free[1].x_t - clipped[1].x_t).abs().max() > 1e-3
    )


# -- seeds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_seed_is_the_same_picture_in_any_batch(name):
    model, diffusion = random_unet(**SMALL), GaussianDiffusion(cosine_beta_schedule(1000))

    def draw(seeds: list[int] | None, count: int) -> Tensor:
        return last_step(
            SAMPLERS[name](diffusion, model, (count, 3, 16, 16), steps=8, seeds=seeds)
        ).x_t

    together, alone = draw([3, 7, 12, 0, 5], 5), draw([7], 1)
    error = (together[1] - alone[0]).abs().max().item() * 127.5
    print(f"{name}: seed 7 alone and second of five differ by {error:.4f} of 255")
    assert error < 2
    assert torch.equal(draw([7], 1), alone)
    assert (draw([7, 7], 2) - alone).abs().max() * 127.5 < 2
    assert (together[0] - together[1]).abs().max() > 0.5  # other seeds, other pictures
    assert (draw(None, 2)[0] - together[3]).abs().max() * 127.5 < 2  # left out: 0, 1, …
    assert (draw(range(7, 9), 2)[:1] - alone).abs().max() * 127.5 < 2


@torch.no_grad()
def test_x_T_and_the_noise_after_it():
    """The first noise of a seed is its x_T; given an x_T, what ddpm adds later must be the same and
    not that x_T once more.
    """
    diffusion = GaussianDiffusion(linear_beta_schedule(1000), "x0")

    def zero(x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    own = list(ddpm(diffusion, zero, SHAPE, steps=5, seeds=[1, 2, 3]))
    first = torch.stack([randn(s, *SHAPE[1:], dtype=torch.float32) for s in (1, 2, 3)])
    assert torch.equal(own[0].x_t, first)
    again = list(ddpm(diffusion, zero, SHAPE, steps=5, seeds=[1, 2, 3], x_T=first))
    assert all(torch.equal(a.x_t, b.x_t) for a, b in zip(own, again, strict=True))
    mean, variance = diffusion.q_posterior(
        torch.zeros(SHAPE), first, torch.tensor([999]), torch.tensor([799])
    )
    added = (own[1].x_t - mean) / variance.sqrt()
    # 96 numbers: 0.1 by chance
    assert abs(torch.corrcoef(torch.stack([added.flatten(), first.flatten()]))[0, 1]) < 0.4
    assert 0.7 < added.std() < 1.3
    other = list(ddpm(diffusion, zero, SHAPE, steps=5, seeds=[4, 5, 6], x_T=first))
    assert torch.equal(other[0].x_t, first) and not torch.equal(other[1].x_t, own[1].x_t)
    for name in DETERMINISTIC:  # there the seed counts only through x_T
        a, b = (
            last_step(
                SAMPLERS[name](diffusion, Curved().float(), SHAPE, steps=5, seeds=s, x_T=first)
            )
            for s in ([1, 2, 3], [4, 5, 6])
        )
        assert torch.equal(a.x_t, b.x_t)


# -- a Gaussian data set, whose best denoiser is known ---------------------------------------------







# As many steps as make the sampler's own error small beside that of 40,000 points (0.5 % of a
# standard deviation in the
# mean, 0.7 % in a variance); ddpm and ddim need far more for it than the two of second order.
@pytest.mark.parametrize("name, steps", [
    ("ddpm", 1000), ("ddim", 500), ("heun", 100), ("dpm_solver_pp", 60),
    ("sde_dpm_solver_pp", 100)])
@pytest.mark.parametrize("schedule, snr0, prediction", [
    ("cosine", False, "epsilon"), ("cosine", True, "v")])
def test_samplers_recover_a_gaussian_within_sampling_error(schedule, snr0, prediction, name, steps):
    diffusion = GaussianDiffusion(make_betas(schedule, 1000, zero_terminal_snr=snr0), prediction)
    _, _, off = gaussian_errors(diffusion, name, steps)
    print(
        f"{name}, {steps} steps, {prediction}: mean and covariance of 40,000 points off by at most "
        f"{off:.1f} standard errors"
    )
    # five numbers of which chance alone takes one beyond 4 in 3,000 such tests; seeds fixed: no
    # flicker
    assert off < 4


def test_ddpm_draws_too_much_alike_in_few_steps_and_the_extrapolated_guess_mends_it():
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000))
    lost = {}
    for name in ("ddpm", "sde_dpm_solver_pp"):
        _, covariance_error, _ = gaussian_errors(diffusion, name, 25)
        lost[name] = -float(covariance_error.diag().mean())
    print("variance lost in 25 steps:", lost)
    assert lost["ddpm"] > 0.04
    assert abs(lost["sde_dpm_solver_pp"]) < lost["ddpm"] / 4


def test_too_few_steps_of_ddpm_are_noticed():
    """The same measure does see the known error of few steps: the "fixed small" variance makes
    pictures too narrow.
    """
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000))
    _, covariance_error, off = gaussian_errors(diffusion, "ddpm", 40)
    print(f"ddpm, 40 steps: off by {off:.0f} standard errors")
    assert off > 8 and (covariance_error.diag() < 0).all()




# Windows: an order is a limit, reached from below; with 40, 80 and 160 steps each measured order
# lies within 0.1 of it
# halfway. Near the end a step takes a larger part of the noise away, and dpm_solver_pp is further
# from its limit.
@pytest.mark.parametrize("snr0", [False, True])
@pytest.mark.parametrize("name, order, near_end", [
    ("ddim", 1, 0.1), ("heun", 2, 0.1), ("dpm_solver_pp", 2, 0.2)])
def test_order_of_convergence(name, order, near_end, snr0):
    betas = linear_beta_schedule(10_080)
    diffusion = GaussianDiffusion(rescale_zero_terminal_snr(betas) if snr0 else betas, "x0")
    errors = order_errors(name, diffusion, (40, 80, 160))
    measured = {
        word: [math.log2(a / b) for a, b in zip(e, e[1:], strict=False)]
        for word, e in errors.items()
    }
    print(name, {word: [round(m, 2) for m in orders] for word, orders in measured.items()})
    assert all(len(e) == 3 for e in errors.values())
    assert all(abs(m - order) < 0.1 for m in measured["halfway"])
    assert all(abs(m - order) < near_end for m in measured["near the end"])
    # The last step, to the clean picture, is first order in all: its error is the noise left at t =
    # T/steps - 1.
    assert all(m > 0.9 for m in measured["picture"])


def test_second_order_is_worth_it():
    """Fewer evaluations, a smaller error, at the picture too: 40 of dpm_solver_pp and 39 of heun
    against 40 of ddim.
    """
    diffusion = GaussianDiffusion(cosine_beta_schedule(10_080), "x0")
    ddim_error, heun_error, dpm_error = (
        order_errors(name, diffusion, (n,))["picture"][0]
        for name, n in (("ddim", 40), ("heun", 20), ("dpm_solver_pp", 40))
    )
    print(
        f"picture's largest error: ddim {ddim_error:.4f}, heun {heun_error:.4f}, "
        f"dpm_solver_pp {dpm_error:.4f}"
    )
    assert dpm_error < ddim_error / 4 and heun_error < ddim_error


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_zero_terminal_snr(name, prediction, steps):
    """ᾱ = 0 is no special case: the first guess is the data's mean, and every number is finite."""
    diffusion = GaussianDiffusion(make_betas("cosine", 1000, zero_terminal_snr=True), prediction)
    model = gaussian_model(diffusion)
    out = list(
        SAMPLERS[name](diffusion, model, SHAPE, steps=steps, x_T=randn(0, *SHAPE), clip=False)
    )
    assert all(torch.isfinite(s.x_t).all() and torch.isfinite(s.x0_hat).all() for s in out)
    assert (out[0].x0_hat - MEAN[:, None, None]).abs().max() < 1e-12
    # the language must not matter
    other = GaussianDiffusion(diffusion.betas, "x0" if prediction == "v" else "v")
    again = last_step(
        SAMPLERS[name](
            other, gaussian_model(other), SHAPE, steps=steps, x_T=randn(0, *SHAPE), clip=False
        )
    )
    assert (again.x_t - out[-1].x_t).abs().max() < 1e-10


# -- guidance --------------------------------------------------------------------------------------


class Labelled(Curved):
    """Curved, with three classes and the null label 3."""

    num_classes = 3

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return (
            super().forward(x, t) * (1 + labels)[:, None, None, None] + labels[:, None, None, None]
        )


@torch.no_grad()
def test_guidance_formula():
    model, x, t = Labelled(), randn(0, *SHAPE), torch.tensor([5, 50, 500])
    labels = torch.tensor([0, 2, 1])
    conditional, unconditional = model(x, t, labels), model(x, t, torch.full((3,), 3))
    assert (conditional - unconditional).abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert torch.equal(guided(model, labels, 0)(x, t), unconditional)
    assert torch.equal(guided(model, labels, 1)(x, t), conditional)
    for scale in (0.5, 3, 7.5):
        expected = unconditional + scale * (conditional - unconditional)
        assert (guided(model, labels, scale)(x, t) - expected).abs().max() < 1e-12
    model.calls = 0
    guided(model, labels, 3)(x, t)
    assert model.calls == 1  # both in one batch
    # one class for all
    assert torch.equal(guided(model, 2, 1)(x, t), model(x, t, torch.full((3,), 2)))
    assert torch.equal(guided(model, 0, 0, null_label=1)(x, t), model(x, t, torch.full((3,), 1)))
    assert torch.equal(guided(model, labels.to(torch.int32), 1)(x, t), conditional)


@torch.no_grad()
def test_guided_sampling():
    """All samplers take the guided model as any other, and guidance in ε is guidance in x̂_0.
    """
    diffusion, model = GaussianDiffusion(cosine_beta_schedule(1000), "x0"), Labelled(0.2)

    class AsEpsilon(Labelled):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            signal_rate, noise_rate = diffusion.rates(t, x)
            return (x - signal_rate * super().forward(x, t, labels)) / noise_rate

    for sampler in SAMPLERS.values():

        def draw(
            diffusion: GaussianDiffusion,
            model: nn.Module,
            scale: float,
            sampler: Callable = sampler,
        ) -> Tensor:
            model = guided(model, 1, scale)
            return last_step(
                sampler(diffusion, model, SHAPE, steps=6, x_T=randn(0, *SHAPE), clip=False)
            ).x_t

        none, once, thrice = (draw(diffusion, model, scale) for scale in (0, 1, 3))
        assert (none - once).abs().max() > 0.1 and (once - thrice).abs().max() > 0.1
        assert (
            draw(GaussianDiffusion(diffusion.betas), AsEpsilon(0.2), 3) - thrice
        ).abs().max() < 1e-9


@torch.no_grad()
def test_guidance_formula_is_diffusers():
    """Plain, rescaled and projected, against diffusers' own three guiders."""
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), "x0")
    model, x, t = Labelled(), randn(0, *SHAPE), torch.tensor([5, 50, 500])
    labels = torch.tensor([0, 2, 1])
    conditional, unconditional = model(x, t, labels), model(x, t, torch.full((3,), 3))
    for scale in (0.5, 1.5, 3, 8):
        # an answer in x_0 is x̂_0 itself: there diffusers' projection, which knows no t, is ours
        for options, guider in (
            ({}, ClassifierFreeGuidance(scale)),
            ({"rescale": 0.7}, ClassifierFreeGuidance(scale, guidance_rescale=0.7)),
            ({"rescale": 1.0}, ClassifierFreeGuidance(scale, guidance_rescale=1.0)),
            # the paper's form, c + w (what is left of c - u), with w = s - 1
            ({"apg": diffusion}, AdaptiveProjectedGuidance(
                scale - 1, adaptive_projected_guidance_rescale=0.0, eta=0.0,
                use_original_formulation=True)),
        ):
            theirs = guider.forward(conditional, unconditional).pred
            ours = guided(model, labels, scale, **options)(x, t)
            error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
            assert error < 1e-12, (scale, options, error)
    # plain guidance in that form
    theirs = ClassifierFreeGuidance(2, use_original_formulation=True)
    ours = guided(model, labels, 3)(x, t)
    assert (theirs.forward(conditional, unconditional).pred - ours).abs().max() < 1e-12


@torch.no_grad()
def test_guidance_in_an_interval():
    """first ≤ t < end, each picture by its own t; outside, one evaluation, without "no class"."""
    model, x, labels = Labelled(), randn(0, *SHAPE), torch.tensor([0, 2, 1])
    within = guided(model, labels, 3, interval=(200, 800))
    for number, inside in ((199, False), (200, True), (799, True), (800, False)):
        t = torch.full((3,), number)
        assert torch.equal(within(x, t), guided(model, labels, 3 if inside else 1)(x, t)), number
    t = torch.tensor([100, 500, 900])
    both = within(x, t)
    plain, three = guided(model, labels, 1)(x, t), guided(model, labels, 3)(x, t)
    assert torch.equal(both[1], three[1]) and (both[1] - plain[1]).abs().max() > 0.1
    assert (both - plain)[[0, 2]].abs().max() < 1e-12
    model.calls, asked = 0, []
    model.register_forward_pre_hook(lambda _, arguments: asked.append(len(arguments[0])))
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), "x0")
    last_step(ddim(diffusion, guided(model, 1, 3, interval=(200, 800)), SHAPE, steps=10,
                   x_T=randn(0, *SHAPE)))
    assert asked == [3] * 2 + [6] * 6 + [3] * 2
    for first, end in ((0, 1000), (0, 10**9)):
        t = torch.tensor([0, 500, 999])
        everywhere = guided(model, labels, 3, interval=(first, end))(x, t)
        assert torch.equal(everywhere, guided(model, labels, 3)(x, t))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@torch.no_grad()
def test_apg_leaves_the_length_of_the_picture_alone(prediction):
    """In any language, x̂_0 moves at a right angle to the conditional one, and as far as it should.
    """
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), prediction)
    model, x, t = Labelled(), randn(0, *SHAPE), torch.tensor([5, 50, 500])
    labels = torch.tensor([0, 2, 1])
    pictures = {scale: diffusion.predict_x0(guided(model, labels, scale, apg=diffusion)(x, t), x, t)
                for scale in (1, 4)}
    plain = diffusion.predict_x0(guided(model, labels, 4)(x, t), x, t)
    push, whole = pictures[4] - pictures[1], plain - pictures[1]
    off = (push * pictures[1]).sum(dim=(1, 2, 3)).abs() / (push.norm() * pictures[1].norm())
    assert off.max() < 1e-12 and push.flatten(1).norm(dim=1).min() > 0.01
    parallel = whole - push  # what was left out points along x̂_0
    cosine = torch.cosine_similarity(parallel.flatten(1), pictures[1].flatten(1))
    assert (cosine.abs() - 1).abs().max() < 1e-9


@torch.no_grad()
def test_options_go_with_the_rows_of_a_batch():
    model, diffusion = Labelled(), GaussianDiffusion(cosine_beta_schedule(1000), "x0")
    options = {"interval": (200, 800), "rescale": 0.5, "apg": diffusion}
    x, t = randn(0, *SHAPE), torch.full((3,), 300)
    whole = guided(model, torch.tensor([0, 2, 1]), 3, **options)
    part = whole.part(slice(1, 3))
    assert torch.equal(part(x[1:], t[1:]), whole(x, t)[1:])
    # s = 0 asks for nothing, and a rescaled nothing still has the class's deviation
    nothing = guided(model, 1, 0, rescale=1.0)(x, t)
    deviations = [y.std(dim=(1, 2, 3)) for y in (nothing, guided(model, 1, 1)(x, t))]
    assert (deviations[0] - deviations[1]).abs().max() < 1e-12


def test_bad_guidance_is_refused(refuses):
    model = Labelled()
    for interval, said in (((800, 200), "turned round; use 200 800"), ((5, 5), "empty"),
                           ((-1, 5), "from 0 to T-1"), ((0, float("nan")), "from 0 to T-1")):
        with refuses(ValueError, f"{interval[0]} ≤ t < {interval[1]}", said):
            guided(model, 0, 3, interval=interval)
        with refuses(ValueError, f"{interval[0]} ≤ t < {interval[1]}", said):
            autoguided(Curved(), Curved(0.3), 3, interval=interval)
    for share in (-0.1, 1.1, float("nan")):
        with refuses(ValueError, f"not {share}", "between 0"):
            guided(model, 0, 3, rescale=share)
    never = Labelled()
    never.label_drop = 0.0
    guided(never, 0, 1)
    guided(never, 0, 3, negative=1)  # both were learnt
    with refuses(ValueError, "also=", "label_drop 0"):
        guided(never, 0, 1, also=[1])
    for scale in (0, 0.5, 3):
        with refuses(ValueError, f"scale {scale}", "label_drop 0", "one thing at scale 1"):
            guided(never, 0, scale)
    for scale in (-1, -0.001, float("nan"), float("inf")):
        with refuses(ValueError, str(scale), "0 or more", "1 asks for it"):
            guided(model, 0, scale)
    for labels, shown in ((3, "[3]"), (-1, "[-1]"), (torch.tensor([0, 7, 1]), "[0, 7, 1]")):
        with refuses(ValueError, shown, "0 … 2"):
            guided(model, labels, 3)
    for labels, shown in (
        (1.5, "1.5"),
        (torch.tensor([[0], [1]]), "[[0], [1]]"),
        ([], "[]"),
        (True, "True"),
    ):
        with refuses(ValueError, shown, "one class number, or one a picture"):
            guided(model, labels, 3)
    with refuses(ValueError, "2 labels for 3 pictures", "one a picture"):
        guided(model, torch.tensor([0, 1]), 3)(randn(0, *SHAPE), torch.tensor([1, 1, 1]))
    for unlabelled in (Curved(), random_unet(**SMALL), lambda x, t: x):
        with refuses(ValueError, "num_classes=None", "sample it as it is"):
            guided(unlabelled, 0, 3)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_refused(refuses, name):
    diffusion, sampler = GaussianDiffusion(linear_beta_schedule(10)), SAMPLERS[name]

    curved = Curved()

    def run(
        model: Callable = curved, shape: tuple = SHAPE, steps: object = 5, **settings
    ) -> None:
        last_step(
            sampler(diffusion, model, shape, steps=steps, **{"x_T": randn(0, *SHAPE), **settings})
        )

    run()
    run(steps=10)
    for spacing in (0.5, -1.0, 0, float("nan"), float("inf")):
        with refuses(ValueError, str(spacing), "at least 1", "1.5"):
            run(spacing=spacing)
    for steps in (0, -1, 11, 2.0, 2.5, True, "5", None):
        with refuses(ValueError, repr(steps), "1 to 10", "whole number"):
            run(steps=steps)
    for seeds in ([1], range(4), []):
        with refuses(ValueError, f"{len(seeds)} seeds for 3 pictures", "seeds=range(3)"):
            run(seeds=seeds)
    with refuses(ValueError, "not 7", "one seed a picture", "range(3)"):
        run(seeds=7)
    for seeds in ([0.5, 1, 2], [True, False, True]):
        with refuses(ValueError, str(seeds), "whole numbers"):
            run(seeds=seeds)
    for shape in ((0, 2, 4, 4), (3,), (3, 2, -1, 4)):
        with refuses(ValueError, str(shape), "number of pictures"):
            run(shape=shape)
    with refuses(ValueError, "(3, 2, 4, 5)", "(3, 2, 4, 4)"):
        run(x_T=torch.zeros(3, 2, 4, 5))
    with refuses(ValueError, "torch.int64", "torch.randn"):
        run(x_T=torch.zeros(SHAPE, dtype=torch.int64))
    for answer in ((3, 1, 4, 4), (3, 4, 4, 4)):  # the first would broadcast, and draw nonsense
        with refuses(ValueError, str(answer), str(SHAPE), "out_channels"):
            run(model=lambda x, t, answer=answer: torch.zeros(answer, dtype=x.dtype))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_broken_weights_are_named(refuses, name, clip):
    """One NaN among the weights is enough; clamp would let it through and a grid would show it as
    black.
    """
    model = random_unet(**SMALL)
    with torch.no_grad():
        model.conv_in.weight[0, 0, 0, 0] = float("nan")
    diffusion = GaussianDiffusion(linear_beta_schedule(1000))
    with refuses(RuntimeError, "NaN", "weights are broken", "earlier checkpoint"):
        last_step(SAMPLERS[name](diffusion, model, (1, 3, 16, 16), steps=3, clip=clip))


def test_a_float64_start_for_a_float32_network_is_refused(refuses):
    with refuses(ValueError, "torch.float64", "torch.float32"):
        last_step(
            ddim(
                GaussianDiffusion([0.1, 0.2]),
                random_unet(**SMALL),
                (1, 3, 16, 16),
                steps=2,
                x_T=randn(0, 1, 3, 16, 16),
            )
        )


def test_posterior_and_snr_name_a_timestep_that_does_not_exist(refuses):
    """-1 means the clean picture to a sampler; as an index it would silently be the noisiest one.
    """
    diffusion, x = GaussianDiffusion(linear_beta_schedule(10)), randn(0, *SHAPE)
    for t in (-1, 10):
        with refuses(ValueError, f"[{t}]", "0 … 9"):
            diffusion.snr(torch.tensor([t]))
        with refuses(ValueError, f"[{t}]", "0 … 9"):
            diffusion.q_posterior(x, x, torch.tensor([t]))
    for t_prev in (-2, 5, 9):
        with refuses(ValueError, f"[{t_prev}]", "[5]", "below t", "clean picture"):
            diffusion.q_posterior(x, x, torch.tensor([5]), torch.tensor([t_prev]))


# -- autoguidance ----------------------------------------------------------------------------------


@torch.no_grad()
def test_autoguidance_formula_and_an_exact_case():
    good, bad, x, t = Curved(), Curved(0.3), randn(0, *SHAPE), torch.tensor([5, 50, 500])
    a, b = good(x, t), bad(x, t)
    assert torch.equal(autoguided(good, bad, 1)(x, t), a)
    for scale in (1.5, 3):
        assert (autoguided(good, bad, scale)(x, t) - (b + scale * (a - b))).abs().max() < 1e-12
    labelled = Labelled()
    within = autoguided(good, bad, 3, interval=(10, 100))(x, t)
    assert (within - torch.stack([a[0], (b + 3 * (a - b))[1], a[2]])).abs().max() < 1e-12
    asked = autoguided(guided(labelled, 1, 1), bad, 2)(x, t)
    wanted = labelled(x, t, torch.full((3,), 1))
    assert (asked - (b + 2 * (wanted - b))).abs().max() < 1e-12


@torch.no_grad()
def test_perturbed_attention_looks_at_itself_only():
    """By hand: its attention is x + out(v), pixel by pixel. The network itself stays as it is."""
    model = random_unet(**SMALL).eval()
    name, own = next((n, m) for n, m in model.named_modules() if isinstance(m, AttentionBlock))
    size = model.image_size
    x, t = randn(0, 2, model.in_channels, size, size).float(), torch.tensor([5, 9])
    before, blind = model(x, t), perturbed_attention(model)
    assert torch.equal(model(x, t), before) and not torch.allclose(blind(x, t), before)
    h = randn(1, 2, own.to_v.in_features, 4, 4).float()
    pixels = own.group_norm(h).flatten(2).transpose(1, 2)
    expected = h + own.to_out(own.to_v(pixels)).transpose(1, 2).unflatten(2, (4, 4))
    assert (blind.get_submodule(name)(h) - expected).abs().max() < 1e-6
    assert not torch.allclose(own(h), expected)
    mixed = perturbed_attention(model, 0.25)  # a quarter of the copy's answer
    expected = 0.75 * model(x, t) + 0.25 * blind(x, t)
    for answer in (mixed(x, t), mixed(x, t=t)):
        assert (answer - expected).abs().max() < 1e-6


@torch.no_grad()
def test_a_reading_network_still_reads_when_its_attention_is_perturbed():
    reads = load_model("toytext32").model
    blind = perturbed_attention(reads)
    x, t = randn(0, 1, 3, 32, 32).float(), torch.tensor([300])
    asked = [blind(x, t, reads.encode(reads.read(words))) for words in ("a white cat", "")]
    assert not torch.allclose(*asked)
    assert not torch.allclose(asked[1], reads(x, t, reads.encode(reads.read(""))))


def test_bad_autoguidance_is_refused(refuses):
    with refuses(ValueError, "no self-attention", "guide by another"):
        perturbed_attention(torch.nn.Linear(2, 2))
    for share in (0, -0.5, 1.5, float("nan")):
        with refuses(ValueError, str(share), "above 0 and at most at 1"):
            perturbed_attention(random_unet(**SMALL), share)
    small = random_unet(**SMALL)
    for scale in (0.5, -1, float("nan"), float("inf")):
        with refuses(ValueError, str(scale), "1 or more", "2 is usual"):
            autoguided(Curved(), Curved(), scale)
    with refuses(ValueError, "image_size", "same kind of picture"):
        autoguided(small, random_unet(**{**SMALL, "image_size": 2 * small.image_size}), 2)
    with refuses(ValueError, "guided already, with scale 3", "one kind"):
        autoguided(guided(Labelled(), 1, 3), Curved(), 2)


@pytest.mark.parametrize("asked, n, batch", [
    ([0, 1, 2, 3, 4], 8, 4), ([0, 1, 2, 3, 4], 3, 64), ([0, 1], 3, 2)])
def test_neither_one_label_nor_one_a_picture_is_refused_before_the_first_step(asked, n, batch):
    """Sliced by batches, five labels for eight pictures had passed as four and one for all."""
    model = UNet(image_size=8, channels=8, channel_mults=[1], attention=[False], num_classes=10)
    process = GaussianDiffusion(cosine_beta_schedule(10))
    labels = torch.tensor(asked)
    for network in (guided(model, labels, 2.0), guided(model, 1, 2.0, also=[labels])):
        with pytest.raises(ValueError, match=f"{len(asked)} labels or captions for {n} pictures"):
            sample(network, process, n, steps=1, batch_size=batch)


def test_decoding_keeps_no_gradient():
    model = UNet(image_size=4, in_channels=4, channels=8, channel_mults=[1], attention=[False])
    code = Autoencoder(image_size=16, latent_channels=4, channels=8, channel_mults=[1, 1, 1])
    process = GaussianDiffusion(cosine_beta_schedule(10))
    drawn = sample(model, process, 2, steps=1, shape=(4, 4, 4), autoencoder=code)
    assert drawn.shape == (2, 3, 16, 16) and not drawn.requires_grad
