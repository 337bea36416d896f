"""How fast noise comes in: the beta schedules, as pure functions.

Every function returns ``betas``, float64, shape (T,), on the CPU. ``betas[t]`` is the variance of
the noise added by the step that leads to x_t; code counts t = 0 … T-1 where the papers count 1 … T
(said once, in ``diffusion.py``). float64 because alphas_cumprod is a product of up to thousands of
numbers close to 1: cast to float32 only when used.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# a step that keeps nothing at all (beta = 1) cannot be undone from a noise prediction
MAX_BETA = 0.999


def _check_T(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ValueError(
            f"the number of timesteps T must be a whole number of at least 1, not {T!r}; "
            "1000 is usual"
        )


def _betas_from_alphas_cumprod(
    alpha_bar: Callable[[float], float], T: int, max_beta: float
) -> Tensor:
    """beta_t = 1 - ᾱ_t / ᾱ_{t-1}, with ᾱ given as a function of the fraction u = t / T in [0, 1].
    """
    alphas_cumprod = [alpha_bar(t / T) for t in range(T + 1)]
    if not min(alphas_cumprod[:-1]) > 0:
        raise ValueError(
            "these settings leave nothing of the picture before the last timestep; use milder ones"
        )
    neighbours = zip(alphas_cumprod, alphas_cumprod[1:], strict=False)
    betas = [1 - after / before for before, after in neighbours]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=max_beta)


def linear_beta_schedule(
    T: int, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    """Betas on a straight line (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section
    4).

    T: number of timesteps. beta_start, beta_end: first and last beta, in (0, 1). The paper's 1e-4
    and 0.02 belong to T = 1000; left out, they are scaled by 1000 / T so that the last picture is
    as noisy for any T (at most 0.999). Returns betas (T,), float64. Raises ValueError if T < 1 or a
    beta lies outside (0, 1).
    """
    _check_T(T)
    beta_start = min(1e-4 * 1000 / T, MAX_BETA) if beta_start is None else beta_start
    beta_end = min(0.02 * 1000 / T, MAX_BETA) if beta_end is None else beta_end
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(
                f"{name} is a variance between 0 and 1 (both excluded), not {beta}; "
                "try 1e-4 to 0.02"
            )
    return torch.linspace(beta_start, beta_end, T, dtype=torch.float64)


def cosine_beta_schedule(T: int, s: float = 0.008, max_beta: float = MAX_BETA) -> Tensor:
    """ᾱ follows a squared cosine (Nichol & Dhariwal 2021, "Improved DDPM", equation 17).

    ᾱ(u) = f(u) / f(0), f(u) = cos²((u + s) / (1 + s) · π/2). s keeps the first betas from
    vanishing; max_beta caps the last ones (the cosine itself ends at ᾱ = 0). Returns betas (T,),
    float64. Raises ValueError if T < 1 or s < 0.
    """
    _check_T(T)
    if not s >= 0:
        raise ValueError(
            f"the cosine schedule's offset s must be 0 or more, not {s}; 0.008 is usual"
        )
    return _betas_from_alphas_cumprod(
        lambda u: math.cos((u + s) / (1 + s) * math.pi / 2) ** 2, T, max_beta
    )


def sigmoid_beta_schedule(
    T: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = MAX_BETA
) -> Tensor:
    """ᾱ follows a sigmoid (Jabri et al. 2022; Chen 2023, "On the Importance of Noise Scheduling",
    algorithm 1).

    ᾱ(u) = (σ(end/τ) - σ((start + u (end - start))/τ)) / (σ(end/τ) - σ(start/τ)). A larger tau is
    closer to a straight line in ᾱ. Returns betas (T,), float64. Raises ValueError if T < 1, start
    >= end, tau <= 0, or ᾱ is 0 too early.
    """
    _check_T(T)
    if start >= end or tau <= 0:
        raise ValueError(
            f"sigmoid schedule needs start < end and tau > 0, not start={start}, end={end}, "
            f"tau={tau}"
        )

    def sigmoid(x: float) -> float:
        return (1 + math.tanh(x / 2)) / 2  # 1 / (1 + exp(-x)) that cannot overflow

    low, high = sigmoid(start / tau), sigmoid(end / tau)
    return _betas_from_alphas_cumprod(
        lambda u: (high - sigmoid((start + u * (end - start)) / tau)) / (high - low), T, max_beta
    )


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale √ᾱ so that the last picture is pure noise (Lin et al. 2024, "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", algorithm 1).

    betas (T,) in (0, 1), T at least 2. Returns betas (T,), float64, the last exactly 1: use it with
    prediction "v" or "x0" (where nothing of the picture is left, a noise prediction says nothing
    about it). Raises ValueError if T < 2.
    """
    if len(betas) < 2:
        raise ValueError(
            f"zero terminal SNR needs at least 2 timesteps, not {len(betas)}; 1000 is usual"
        )
    signal_rates = torch.cumprod(1 - betas.double(), dim=0).sqrt()
    first, last = signal_rates[0].clone(), signal_rates[-1].clone()
    signal_rates = (signal_rates - last) * first / (first - last)
    alphas_cumprod = signal_rates**2
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    alphas[-1] = 0.0
    return 1 - alphas


def shift_snr(betas: Tensor, factor: float) -> Tensor:
    """Multiply every timestep's signal-to-noise ratio by `factor` (Hoogeboom et al. 2023, "simple
    diffusion", section 3.1).

    The mean of k x k neighbouring pixels has 1/k² of their noise: a schedule made for small
    pictures hides as much of ones k times as wide with factor 1/k². betas (T,) in (0, 1]. Returns
    betas (T,), float64. Raises ValueError unless factor > 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(
            f"the factor of the signal-to-noise ratio must be above 0, not {factor}; "
            "1/16 suits pictures 4 times as wide"
        )
    alphas_cumprod = torch.cumprod(1 - betas.double(), dim=0)
    shifted = factor * alphas_cumprod / (factor * alphas_cumprod + 1 - alphas_cumprod)
    before = torch.cat([torch.ones(1, dtype=torch.float64), shifted[:-1]])
    return 1 - shifted / before


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_beta_schedule, "cosine": cosine_beta_schedule,
    "sigmoid": sigmoid_beta_schedule,
}


def make_betas(
    name: str, T: int = 1000, *, snr_factor: float = 1.0, zero_terminal_snr: bool = False
) -> Tensor:
    """Betas (T,) of the schedule called `name` ("linear", "cosine" or "sigmoid"), as a config file
    names it.

    snr_factor: see shift_snr(). Raises ValueError for an unknown name, listing the known ones.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown beta schedule {name!r}; known are {', '.join(SCHEDULES)}")
    betas = SCHEDULES[name](T)
    betas = betas if snr_factor == 1 else shift_snr(betas, snr_factor)
    return rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas
