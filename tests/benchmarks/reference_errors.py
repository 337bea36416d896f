"""How far the library is from independent references: diffusers, and the schedules' formulas in 50
digits.

    python tests/benchmarks/reference_errors.py

Prints one line a quantity: the largest absolute difference found (relative where it says so), the
limit, pass or not.
Ends with exit code 1 if one does not pass. The comparisons are set up as in the tests, whose
helpers are used here; what
each takes in: schedules at T = 50, 1000 and 4000; steps in float64 with the scheduler's
`alphas_cumprod` and `one` set to our
tables (its own are float32), all three predictions, clipped and not; networks in float32 on copied
random weights.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import diffusers.schedulers.scheduling_ddpm as diffusers_ddpm
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from references import (
    CONFIGURATIONS,
    PROCESSES,
    SHAPE,
    Curved,
    alphas_cumprod,
    exact_cosine,
    exact_linear,
    exact_sigmoid,
    in_language,
    largest,
    largest_error,
    noise_as_ours,
    pictures,
    randn,
    random_unet,
    theirs,
)

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.samplers import Step, ddim, ddpm, dpm_solver_pp
from diffusion_lib.core.schedules import make_betas
from diffusion_lib.saving.diffusers_format import to_diffusers_unet

Row = tuple[str, float, float]  # quantity, largest difference, limit
SEEDS = [5, 6, 9]


def schedules() -> Iterator[Row]:
    for name, exact in (
        ("linear", exact_linear),
        ("cosine", exact_cosine),
        ("sigmoid", exact_sigmoid),
    ):
        worst = max(
            largest_error(alphas_cumprod(make_betas(name, T)), exact(T)) for T in (50, 1000, 4000)
        )
        yield f"alphas_cumprod, {name}: formula in 50 digits", worst, 1e-12
    for name, their_name in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        table = DDPMScheduler(num_train_timesteps=1000, beta_schedule=their_name).alphas_cumprod
        yield (
            f"alphas_cumprod, {name}: diffusers' float32 table",
            largest([alphas_cumprod(make_betas(name, 1000)) - table]),
            1e-6,
        )
    table = DDIMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True).alphas_cumprod
    ours = alphas_cumprod(make_betas("linear", 1000, zero_terminal_snr=True))
    yield "alphas_cumprod, linear, zero terminal SNR: diffusers", largest([ours - table]), 1e-6


def noising() -> Iterator[Row]:
    t = torch.arange(1000)
    x_0, noise = randn(0, 1000, 2, 4, 4), randn(1, 1000, 2, 4, 4)
    for name in ("linear", "cosine", "sigmoid"):
        diffusion = GaussianDiffusion(make_betas(name, 1000))
        scheduler = theirs(DDPMScheduler, diffusion, 1000)
        yield (
            f"q_sample, {name}, every t",
            largest([diffusion.q_sample(x_0, t, noise) - scheduler.add_noise(x_0, noise, t)]),
            1e-10,
        )


def step_errors(ours: list[Step], scheduler, model, draw=None, **settings) -> list[torch.Tensor]:
    """Differences of x_t-1 and x̂_0 over all steps of a run, each step from the x_t that we came
    to.
    """
    differences = []
    for now, after in zip(ours, ours[1:], strict=False):
        # diffusers adds noise of standard deviation 1e-10, its floor, to the finished picture; we
        # add none
        diffusers_ddpm.randn_tensor = (
            draw if after.t >= 0 else lambda *_, **__: torch.zeros(SHAPE, dtype=torch.float64)
        )
        expected = scheduler.step(
            model(now.x_t, torch.full((SHAPE[0],), now.t)), now.t, now.x_t, **settings
        )
        differences += [
            after.x_t - expected.prev_sample,
            now.x0_hat - expected.pred_original_sample,
        ]
    return differences


@torch.no_grad()
def steps() -> Iterator[Row]:
    found: dict[str, list[torch.Tensor]] = {}
    for name, snr0, prediction in PROCESSES:
        for clip in (True, False):
            for T, count in ((1000, 40), (1000, 27), (30, 30)):
                diffusion = GaussianDiffusion(
                    make_betas(name, T, zero_terminal_snr=snr0), prediction
                )
                model = in_language(diffusion, Curved())
                settings = dict(steps=count, seeds=SEEDS, clip=clip, x_T=randn(0, *SHAPE))
                title = f"{name}{', zero terminal SNR' if snr0 else ''}, {prediction}"
                scheduler = theirs(
                    DDPMScheduler, diffusion, count, clip_sample=clip, variance_type="fixed_small"
                )
                draw = noise_as_ours(SEEDS, SHAPE, skip=1)
                ours = list(ddpm(diffusion, model, SHAPE, **settings))
                found.setdefault(f"DDPM step, {title}", []).extend(
                    step_errors(ours, scheduler, model, draw)
                )
                if T % count == 0:  # its DDIM takes every step T // count long
                    scheduler = theirs(DDIMScheduler, diffusion, count, clip_sample=clip)
                    ours = list(ddim(diffusion, model, SHAPE, **settings))
                    errors = step_errors(ours, scheduler, model, use_clipped_model_output=True)
                    found.setdefault(f"DDIM step, {title}", []).extend(errors)
    for title in sorted(found):
        yield title, largest(found[title]), 1e-10


@torch.no_grad()
def trajectories() -> Iterator[Row]:
    for name, snr0, prediction in PROCESSES:
        if snr0:  # diffusers' replaces ᾱ = 0 by 2⁻²⁴
            continue
        diffusion, relative = GaussianDiffusion(make_betas(name, 1000), prediction), []
        model = in_language(diffusion, Curved(0.7))
        for count in (10, 27, 40):
            scheduler = theirs(
                DPMSolverMultistepScheduler, diffusion, count, algorithm_type="dpmsolver++",
                solver_order=2, solver_type="midpoint", final_sigmas_type="zero",
                lower_order_final=True,
            )  # fmt: skip
            ours = list(
                dpm_solver_pp(
                    diffusion, model, SHAPE, steps=count, x_T=randn(0, *SHAPE), clip=False
                )
            )
            x = ours[0].x_t
            for after, t in zip(ours[1:], scheduler.timesteps, strict=True):
                x = scheduler.step(model(x, torch.full((SHAPE[0],), int(t))), t, x).prev_sample
                relative.append((after.x_t - x) / x.abs().max())
        yield f"DPM-Solver++ trajectory, {name}, {prediction} (relative)", largest(relative), 1e-5


@torch.no_grad()
def networks() -> Iterator[Row]:
    for name, settings in CONFIGURATIONS.items():
        model = random_unet(**settings)
        other = to_diffusers_unet(model)
        x, t = pictures(model), torch.tensor([3, 977])
        labels = None if model.num_classes is None else torch.tensor([4, model.num_classes])
        answer = other(F.pixel_unshuffle(x, model.patch_size), t, class_labels=labels).sample
        yield (
            f"UNet, {name} (float32)",
            largest([model(x, t, labels) - F.pixel_shuffle(answer, model.patch_size)]),
            1e-4,
        )


def main() -> int:
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
          f"{torch.get_num_threads()} threads")
    print(f"{'quantity':58}{'largest difference':>20}{'limit':>9}  pass")
    failed = 0
    for part in (schedules, noising, steps, trajectories, networks):
        for quantity, difference, limit in part():
            passed = difference <= limit
            failed += not passed
            print(
                f"{quantity:58}{difference:20.1e}{limit:9.0e}  {'yes' if passed else 'NO'}",
                flush=True,
            )
    print("all within their limits" if not failed else f"{failed} beyond their limit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
