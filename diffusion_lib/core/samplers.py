"""From noise to pictures: five samplers with one signature.

    for step in ddim(diffusion, model, shape=(16, 3, 32, 32), steps=50, seeds=range(16)):
        ...                                  # step.t, step.x_t, step.x0_hat: watch it happen
    pictures = step.x_t                      # the last step has t = -1

A sampler is a generator. It yields one `Step` per transition, x_t being what entered it, and then a
last one with the finished picture; what to do with the steps (a plot, a progress bar, nothing) is
the caller's business.

All five think in the same order: ask the network, turn its answer into x̂_0, clip x̂_0 to [-1, 1],
then step. Clipping comes before the step is built from x̂_0; clipping afterwards, or not at all, is
a classic mistake.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .autoencoder import Autoencoder
from .diffusion import GaussianDiffusion
from .losses import Model, ask


class Step(NamedTuple):
    """One moment of sampling."""

    t: int  # timestep of x_t; -1 for the finished picture
    x_t: Tensor  # (B, C, H, W): what entered this step (the picture itself in the last Step)
    x0_hat: Tensor  # (B, C, H, W): the guess of the clean picture made from x_t
    evaluations: int  # network evaluations spent so far, this step's included


# DDPM algorithm 2, the reverse step as x̂_0 → clip → posterior mean (equation 7) → noise
@torch.no_grad()
def ddpm(
    diffusion: GaussianDiffusion, model: Model, shape: Sequence[int], *, steps: int,
    seeds: Sequence[int] | None = None, x_T: Tensor | None = None, clip: bool = True,
    spacing: float = 1.0,
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020): fresh noise after every step but the last.

    shape (B, C, H, W); steps from 1 to T network evaluations; seeds, one a picture (0 … B-1 when
    left out); x_T, the noise to start from (drawn from the seeds when left out); clip x̂_0 to [-1,
    1] before it is used; spacing, see `timesteps_trailing`. Yields `Step`s. The variance is the
    posterior's own ("fixed small" in diffusers). Raises ValueError for steps outside 1 … T.
    """
    ts = timesteps_trailing(diffusion.T, steps, spacing)
    noise = SeededNoise(model, shape, seeds, x_T)
    x = noise.x_T
    for i, (t, t_prev) in enumerate(zip(ts, [*ts[1:], -1], strict=True)):
        x0_hat = predict_x0_clipped(diffusion, model, x, t, clip)  # 1. the picture?  2. clip
        yield Step(t, x, x0_hat, i + 1)
        mean, variance = diffusion.q_posterior(                             # 3. the mean
            x0_hat, x, torch.tensor([t]), torch.tensor([t_prev]))
        x = mean + variance.sqrt() * noise.next() if t_prev >= 0 else mean  # 4. noise
    yield finished(x, len(ts))


# DDIM equation 12 with σ = 0
@torch.no_grad()
def ddim(
    diffusion: GaussianDiffusion, model: Model, shape: Sequence[int], *, steps: int,
    seeds: Sequence[int] | None = None, x_T: Tensor | None = None, clip: bool = True,
    spacing: float = 1.0,
) -> Iterator[Step]:
    """Deterministic sampling (Song et al. 2021): the seed decides x_T, and x_T decides the picture.

    Arguments, yields and errors as `ddpm`. The noise direction is taken from the clipped x̂_0
    (diffusers' `use_clipped_model_output=True`), so that x_t keeps the noise level that t promises.
    First order: halving the step halves the error.
    """
    ts = timesteps_trailing(diffusion.T, steps, spacing)
    signal, noise = rates_at(diffusion, ts)
    x = SeededNoise(model, shape, seeds, x_T).x_T
    for i, t in enumerate(ts):
        x0_hat = predict_x0_clipped(diffusion, model, x, t, clip)
        yield Step(t, x, x0_hat, i + 1)
        epsilon_hat = (x - signal[i] * x0_hat) / noise[i]
        x = signal[i + 1] * x0_hat + noise[i + 1] * epsilon_hat
    yield finished(x, len(ts))


# Heun's rule (Karras et al. 2022, "Elucidating the Design Space", algorithm 1), on x̂_0
@torch.no_grad()
def heun(
    diffusion: GaussianDiffusion, model: Model, shape: Sequence[int], *, steps: int,
    seeds: Sequence[int] | None = None, x_T: Tensor | None = None, clip: bool = True,
    spacing: float = 1.0,
) -> Iterator[Step]:
    """Look, step, look again, and repeat the step with the average of both guesses.

    Arguments, yields and errors as `ddpm`. Two network evaluations a step (`steps` counts steps),
    one in the last, which lands on the guess itself. Second order on the way: halving the step
    quarters the error. The last step is first order, and the picture's error falls by about 2.5
    (measured by `tests/benchmarks/sampler_order.py`).
    """
    ts = timesteps_trailing(diffusion.T, steps, spacing)
    signal, noise = rates_at(diffusion, ts)
    x = SeededNoise(model, shape, seeds, x_T).x_T
    evaluations = 0
    for i, t in enumerate(ts):
        x0_hat = predict_x0_clipped(diffusion, model, x, t, clip)
        evaluations += 1
        yield Step(t, x, x0_hat, evaluations)
        ratio = noise[i + 1] / noise[i]
        x_next = ratio * x + (signal[i + 1] - ratio * signal[i]) * x0_hat     # DDIM's step
        if i + 1 < len(ts):
            second = predict_x0_clipped(diffusion, model, x_next, ts[i + 1], clip)
            evaluations += 1
            x_next = ratio * x + (signal[i + 1] - ratio * signal[i]) * (x0_hat + second) / 2
        x = x_next
    yield finished(x, evaluations)


# Lu et al. 2022, "DPM-Solver++", algorithm 2 (2M, data prediction, midpoint)
@torch.no_grad()
def dpm_solver_pp(
    diffusion: GaussianDiffusion, model: Model, shape: Sequence[int], *, steps: int,
    seeds: Sequence[int] | None = None, x_T: Tensor | None = None, clip: bool = True,
    spacing: float = 1.0, fresh_noise: bool = False,
) -> Iterator[Step]:
    """DDIM's step with x̂_0 extrapolated from this guess and the last: second order at one
    evaluation a step.

    Arguments, yields and errors as `ddpm`. The first and the last step are DDIM's, of first order.
    fresh_noise: see `sde_dpm_solver_pp`.
    """
    ts = timesteps_trailing(diffusion.T, steps, spacing)
    signal, noise = rates_at(diffusion, ts)
    drawn = SeededNoise(model, shape, seeds, x_T)
    x = drawn.x_T
    # λ, half the log of the SNR
    lam = [math.log(a / b) if a > 0 and b > 0 else math.copysign(math.inf, a - b)
           for a, b in zip(signal, noise, strict=True)]
    previous = None
    for i, t in enumerate(ts):
        x0_hat = predict_x0_clipped(diffusion, model, x, t, clip)
        yield Step(t, x, x0_hat, i + 1)
        data = x0_hat
        if previous is not None and i + 1 < len(ts):
            # length of the last step over this one's
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            # r = ∞ after a start at ᾱ = 0: plain DDIM
            data = x0_hat + (x0_hat - previous) / (2 * r)
        ratio = noise[i + 1] / noise[i]
        if fresh_noise:  # DDPM's share of x (equation 7): the rest of its noise is drawn anew
            ratio *= ratio * signal[i] / signal[i + 1]
        x = ratio * x + (signal[i + 1] - ratio * signal[i]) * data
        previous = x0_hat
        if fresh_noise and i + 1 < len(ts):
            x = x + math.sqrt(noise[i + 1] ** 2 - (ratio * noise[i]) ** 2) * drawn.next()
    yield finished(x, len(ts))


def sde_dpm_solver_pp(*arguments: Any, **settings: Any) -> Iterator[Step]:
    """DDPM's step with x̂_0 extrapolated as in `dpm_solver_pp` (the same article,
    "SDE-DPM-Solver++(2M)"): fresh noise, and few steps.

    Arguments, yields and errors as `ddpm`. In few steps `ddpm` draws pictures that are too much
    alike: a guess is a mean of all that may come, and a large step takes it for the picture. For
    normal numbers the extrapolation makes up for nearly all of that, for faces for most (notebook
    6). The first and the last step are `ddpm`'s. The extrapolated x̂_0 is not clipped again.
    """
    return dpm_solver_pp(*arguments, fresh_noise=True, **settings)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddpm": ddpm, "ddim": ddim, "heun": heun, "dpm_solver_pp": dpm_solver_pp,
    "sde_dpm_solver_pp": sde_dpm_solver_pp}


def last_step(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end and return its last `Step`: `last_step(ddim(…)).x_t` is the
    pictures.
    """
    return deque(steps, maxlen=1)[0]


def sample(
    model: Model, diffusion: GaussianDiffusion, n: int, *, sampler: str = "ddim", steps: int = 50,
    seed: int = 0, batch_size: int = 64, shape: Sequence[int] | None = None, clip: bool = True,
    spacing: float = 1.0, on_step: Callable[[Step, int], None] | None = None,
    progress: bool = False, autoencoder: Autoencoder | None = None,
) -> Tensor:
    """n pictures of consecutive seeds from `seed` on, a batch at a time: float32 (n, C, H, W) in
    [-1, 1], on the CPU.

    model: a network, or one that `guided` made for one label or for n. shape: (C, H, W) of a
    picture, the network's own when left out. autoencoder: of a network that draws latents, which
    are not clipped, and decoded in the end; a loaded model's own when left out. on_step: called as
    on_step(step, first seed of the batch) for every `Step`. progress: a bar. Raises ValueError for
    an unknown sampler, n or batch_size below 1, and what the sampler refuses.
    """
    check_sample(n, batch_size, sampler, seed, model)
    autoencoder = autoencoder or getattr(model, "autoencoder", None)
    if shape is None:
        shape = model.in_channels, model.image_size, model.image_size  # type: ignore[attr-defined]
    pictures = []
    for start in tqdm(range(0, n, batch_size), desc="sampling", unit="batch", disable=not progress):
        rows = slice(start, min(start + batch_size, n))
        network = model.part(rows) if hasattr(model, "part") else model
        seeds = range(seed + rows.start, seed + rows.stop)
        for step in SAMPLERS[sampler](
            diffusion, network, (len(seeds), *shape), steps=steps, seeds=seeds,
            clip=clip and autoencoder is None, spacing=spacing,
        ):
            if on_step:
                on_step(step, seeds[0])
        with torch.no_grad():
            made = autoencoder.to(step.x_t.device).decode(step.x_t) if autoencoder else step.x_t
        pictures.append(made.float().cpu())
    return torch.cat(pictures)


# -- what the samplers share ----------------------------------------------------------------------


def timesteps_trailing(T: int, steps: int, spacing: float = 1.0) -> list[int]:
    """`steps` timesteps from T-1 down, spaced so that the first is always T-1 (Lin et al. 2024,
    "trailing").

    spacing: 1 spaces them evenly, rounded as diffusers rounds them; above 1 they lie closer
    together where little noise is left, the i-th at T (i / steps)^spacing - 1 (the idea of Karras
    et al. 2022, equation 5). Raises ValueError unless 1 <= steps <= T and spacing is 1 or more.
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= T:
        raise ValueError(
            f"steps must be a whole number from 1 to {T} (the timesteps of training), not {steps!r}"
        )
    if not 1 <= spacing < math.inf:
        raise ValueError(f"spacing must be a number of at least 1, not {spacing}; "
                         "1 spaces timesteps evenly, 1.5 suits 20 steps")
    if spacing == 1:
        return [int(t) - 1 for t in np.round(np.arange(T, 0, -T / steps))[:steps]]
    # none comes twice
    return [max(math.floor(T * (i / steps) ** spacing + 0.5), i) - 1 for i in range(steps, 0, -1)]


def rates_at(diffusion: GaussianDiffusion, ts: list[int]) -> tuple[list[float], list[float]]:
    """Signal and noise rates at each timestep, and 1 and 0 for the clean picture at the end."""
    alphas_cumprod = [float(diffusion.alphas_cumprod[t]) for t in ts] + [1.0]
    return [math.sqrt(a) for a in alphas_cumprod], [math.sqrt(1 - a) for a in alphas_cumprod]


def predict_x0_clipped(
    diffusion: GaussianDiffusion, model: Model, x_t: Tensor, t: int, clip: bool
) -> Tensor:
    """x̂_0 (B, C, H, W): one network evaluation, clipped to [-1, 1] if asked."""
    # IdealDenoiser knows its language
    says = getattr(model, "prediction", None) or diffusion.prediction
    if says != diffusion.prediction:
        raise ValueError(
            f"the model predicts {says!r}, the diffusion reads {diffusion.prediction!r}; "
            "make both with one GaussianDiffusion"
        )
    batch_t = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
    x0_hat = diffusion.predict_x0(ask(model, x_t, batch_t).to(x_t.dtype), x_t, batch_t)
    return x0_hat.clamp(-1, 1) if clip else x0_hat


class SeededNoise:
    """One generator per seed, drawn on the CPU: seed 7 gives the same noise in any batch and on any
    device.
    """

    def __init__(
        self, model: Model, shape: Sequence[int], seeds: Sequence[int] | None, x_T: Tensor | None
    ) -> None:
        seeds = range(shape[0]) if seeds is None else seeds
        check_noise(shape, seeds, x_T)
        self.device = x_T.device if x_T is not None else device_of(model)
        self.dtype = torch.float32 if x_T is None else x_T.dtype
        self.one = tuple(shape[1:])
        self.generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
        # drawn even if x_T is given: else the first noise of a seed would be that x_T once more
        own = self.next()
        self.x_T = own if x_T is None else x_T

    def next(self) -> Tensor:
        """Fresh noise (B, C, H, W)."""
        noise = torch.stack([torch.randn(self.one, generator=g) for g in self.generators])
        return noise.to(self.dtype).to(self.device)


def device_of(model: Model) -> torch.device:
    """Where the model's weights are; a plain function without weights works on the CPU."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return getattr(model, "device", torch.device("cpu")) if parameter is None else parameter.device


def finished(x: Tensor, evaluations: int) -> Step:
    """The last Step. Raises RuntimeError where the picture is not finite."""
    if not torch.isfinite(x).all():
        raise RuntimeError(
            "sampling ended in NaN or infinite pixels: the model's weights are broken; "
            "sample an earlier checkpoint, or train with a lower learning rate"
        )
    return Step(-1, x, x, evaluations)


def check_noise(shape: Sequence[int], seeds: Sequence[int], x_T: Tensor | None) -> None:
    """Raises ValueError unless there is one whole seed a picture, and x_T, if given, is noise of
    this shape.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"shape must be (number of pictures, channels, height, width), not {tuple(shape)}"
        )
    remedy = f"seeds=range({shape[0]}) say"
    if not hasattr(seeds, "__len__"):
        raise ValueError(f"seeds must be a list with one seed a picture, {remedy}, not {seeds!r}")
    if any(isinstance(s, bool) or s != int(s) or not -(2**63) <= s < 2**63 for s in seeds):
        raise ValueError(
            f"seeds must be whole numbers below 2 to the power of 63, not {list(seeds)[:5]}; "
            f"{remedy}"
        )
    if len(seeds) != shape[0]:
        raise ValueError(
            f"{len(seeds)} seeds for {shape[0]} pictures; give one seed a picture, {remedy}"
        )
    if x_T is not None and tuple(x_T.shape) != tuple(shape):
        raise ValueError(
            f"x_T has shape {tuple(x_T.shape)}, but shape={tuple(shape)} was asked for; "
            "make them one"
        )
    if x_T is not None and not x_T.is_floating_point():
        raise ValueError(f"x_T holds {x_T.dtype} numbers; it is noise, torch.randn(shape)")


def check_conditions(model: Any, n: int) -> None:
    """Raises ValueError for a guided model that was asked for neither one label or caption nor n.
    """
    for each in (model.labels, model.nothing, *model.also):
        if each is not None and (count := len(getattr(each, "tokens", each))) not in (1, n):
            raise ValueError(f"{count} labels or captions for {n} pictures; give one for all, or "
                             "one a picture")
    if hasattr(model.worse, "part"):
        check_conditions(model.worse, n)


def check_sample(n: int, batch_size: int, sampler: str, seed: int, model: Any = None) -> None:
    """Raises ValueError for what `sample` cannot do."""
    for name, number in (("n, the number of pictures,", n), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; known are {', '.join(sorted(SAMPLERS))}")
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63 - n:
        raise ValueError(
            f"the seed must be a whole number below 2 to the power of 63, not {seed!r}"
        )
    if hasattr(model, "part"):
        check_conditions(model, n)
