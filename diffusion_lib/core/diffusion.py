"""The forward process and the algebra around it: what noise does to a picture; how ε, x_0 and v
turn into each other.

The index. Code counts timesteps t = 0 … T-1; the paper's t is the code's t + 1. So
`alphas_cumprod[0]` belongs to the first, slightest noising, and the clean picture itself has no
index (samplers call it t = -1). It is so everywhere here.
"""

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "x0", "v")


class GaussianDiffusion:
    """The diffusion process of DDPM (Ho et al. 2020, section 2) and what its network is asked to
    predict.

    betas: (T,), each in (0, 1], 1 only in last place. prediction: what the network's output means,
    "epsilon" (the noise), "x0" (the picture) or "v" = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022,
    section 4).

    Stored: `betas`, `alphas` and `alphas_cumprod` (ᾱ), all float64 (T,) on the CPU, and nothing
    else; every other coefficient is derived where it is used. Images are (B, C, H, W) in [-1, 1]; t
    is int64 (B,) in 0 … T-1.

    Raises ValueError for betas out of range, and for a last beta of 1 with prediction "epsilon".
    """

    def __init__(self, betas: Tensor, prediction: str = "epsilon") -> None:
        self.betas = torch.as_tensor(betas).detach().cpu().double().clone()
        check_process(self.betas, prediction)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.prediction = prediction

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.betas)

    def __repr__(self) -> str:
        return f"GaussianDiffusion(T={self.T}, prediction={self.prediction!r})"

    # -- coefficients -----------------------------------------------------------------------------

    def rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal rate √ᾱ_t and noise rate √(1-ᾱ_t): how much of x_t is picture, how much noise.

        Two tensors (B, 1, 1, 1) like `like`. Raises ValueError for a t that is not in 0 … T-1.
        """
        alphas_cumprod = self.alphas_cumprod[check_timesteps(t, self.T)]
        return like_pictures(alphas_cumprod.sqrt(), like), like_pictures(
            (1 - alphas_cumprod).sqrt(), like
        )

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1-ᾱ_t), float64 (B,) (Kingma et al. 2021, equation 2)."""
        alphas_cumprod = self.alphas_cumprod[check_timesteps(t, self.T)]
        return alphas_cumprod / (1 - alphas_cumprod)

    # -- forward ----------------------------------------------------------------------------------

    # equation 4 of DDPM: q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I)
    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε: all t + 1 noising steps in one. All (B, C, H, W).

        Raises ValueError for images that are not floating point (scale them to [-1, 1] first) or of
        another shape than the noise.
        """
        check_pair(x_0, noise, t)
        signal_rate, noise_rate = self.rates(t, x_0)         # (B, 1, 1, 1) each
        return signal_rate * x_0 + noise_rate * noise        # (B, C, H, W)

    # equations 6 and 7 of DDPM: q(x_{t-1} | x_t, x_0) = N(mean, variance I)
    def q_posterior(
        self, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and variance (B, 1, 1, 1) of the less noisy picture, given x_t and x_0.

        t_prev: the timestep stepped to, t - 1 when left out; -1 is the clean picture (variance 0).
        Raises ValueError for a t outside 0 … T-1 and a t_prev outside -1 … t-1.
        """
        t, t_prev = check_step(t, t_prev, self.T)
        now = self.alphas_cumprod[t]                                                      # ᾱ_t
        before = torch.where(t_prev >= 0, self.alphas_cumprod[t_prev.clamp(min=0)], 1.0)  # ᾱ_{t-1}
        alpha = now / before  # α_t; of several steps at once if t_prev < t - 1
        x_0_weight = before.sqrt() * (1 - alpha) / (1 - now)
        x_t_weight = alpha.sqrt() * (1 - before) / (1 - now)
        variance = (1 - before) / (1 - now) * (1 - alpha)
        mean = like_pictures(x_0_weight, x_t) * x_0 + like_pictures(x_t_weight, x_t) * x_t
        return mean, like_pictures(variance, x_t)

    # -- what the network says, in any of the three languages --------------------------------------

    def target(
        self, x_0: Tensor, noise: Tensor, t: Tensor, prediction: str | None = None
    ) -> Tensor:
        """What the network should have said for this picture, noise and t: (B, C, H, W).

        prediction: in which language; the process's own when left out.
        """
        prediction = prediction or self.prediction
        if prediction == "epsilon":
            return noise
        if prediction == "x0":
            return x_0
        signal_rate, noise_rate = self.rates(t, x_0)
        return signal_rate * noise - noise_rate * x_0

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0, the clean picture that the network's output stands for; not clipped."""
        if self.prediction == "x0":
            return output
        signal_rate, noise_rate = self.rates(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - noise_rate * output) / signal_rate     # DDPM equation 15
        return signal_rate * x_t - noise_rate * output           # v

    def predict_epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """ε̂, the noise that the network's output stands for."""
        if self.prediction == "epsilon":
            return output
        signal_rate, noise_rate = self.rates(t, x_t)
        if self.prediction == "x0":
            return (x_t - signal_rate * output) / noise_rate
        return noise_rate * x_t + signal_rate * output           # v

    def predict_v(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v̂ = √ᾱ ε̂ - √(1-ᾱ) x̂_0, the velocity that the network's output stands for."""
        if self.prediction == "v":
            return output
        signal_rate, noise_rate = self.rates(t, x_t)
        epsilon_hat, x0_hat = self.predict_epsilon(output, x_t, t), self.predict_x0(output, x_t, t)
        return signal_rate * epsilon_hat - noise_rate * x0_hat

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Plain numbers for a checkpoint: {"betas": T floats, "prediction": str}. JSON keeps them
        exactly.
        """
        return {"betas": self.betas.tolist(), "prediction": self.prediction}

    @classmethod
    def from_state_dict(cls, state: dict) -> "GaussianDiffusion":
        """The process that `state_dict` described."""
        return cls(torch.tensor(state["betas"], dtype=torch.float64), state["prediction"])


def like_pictures(coefficients: Tensor, like: Tensor) -> Tensor:
    """One number a picture (B,) as (B, 1, 1, 1), dtype and device of `like`."""
    # cast, then move: the tables are float64 on the CPU, and Apple's GPUs have no float64
    return coefficients.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype).to(like.device)


# -- what is refused ------------------------------------------------------------------------------


def check_process(betas: Tensor, prediction: str) -> None:
    """Raises ValueError for betas out of range, an unknown prediction, or two that do not go
    together.
    """
    if betas.ndim != 1 or len(betas) < 1:
        raise ValueError("betas must be a row of at least one number, shape (T,), "
                         f"not shape {tuple(betas.shape)}")
    wrong = ~((betas > 0) & (betas <= 1))
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise ValueError(f"betas[{t}] = {betas[t].item()} lies outside (0, 1]; "
                         "each beta is a variance, try 1e-4 to 0.02")
    bars = (1 - betas).cumprod(dim=0)
    if bars[0] == 1 or (bars[:-1] == 0).any() and not (betas[:-1] == 1).any():
        raise ValueError("these betas are too small at the start, or too large before the end: in "
                         f"64 bits ᾱ goes from {bars[0].item()} to {bars[-1].item()} and is 0 or 1 "
                         "where it must lie between; 1e-4 to 0.02 over 1,000 steps is usual")
    if (betas[:-1] == 1).any():
        t = int((betas[:-1] == 1).nonzero()[0])
        raise ValueError(
            f"betas[{t}] = 1 before the last step: nothing is left for the steps after it; "
            "only betas[-1] may be 1"
        )
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"unknown prediction {prediction!r}; a network can predict {', '.join(PREDICTIONS)}"
        )
    if betas[-1] == 1 and prediction == "epsilon":
        raise ValueError(
            "the last beta is 1 (zero terminal SNR), where the noise says nothing about the "
            "picture; use prediction='v'"
        )


def check_timesteps(t: Tensor, T: int) -> Tensor:
    """t on the CPU, where the tables are. Raises ValueError for a t that is not in 0 … T-1."""
    t = torch.as_tensor(t).cpu()
    whole = not t.is_floating_point() and t.dtype != torch.bool and t.numel() > 0
    if not whole or int(t.min()) < 0 or int(t.max()) >= T:
        few = t.numel() < 5
        shown = t.flatten().tolist() if few else f"{t.min().item()} … {t.max().item()}"
        raise ValueError(f"timestep t must be whole numbers in 0 … {T - 1}, not {shown}")
    return t


def check_pair(x_0: Tensor, noise: Tensor, t: Tensor) -> None:
    """Raises ValueError unless pictures, noise and timesteps go together."""
    if not x_0.is_floating_point():
        raise ValueError(f"x_0 holds {x_0.dtype} pixels; "
                         "scale pictures to floats in [-1, 1] first (diffusion_lib.to_float)")
    if noise.shape != x_0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, the pictures {tuple(x_0.shape)}; "
                         "draw torch.randn_like(x_0)")
    check_one_each(t, len(x_0))


def check_one_each(t: Tensor, n: int) -> None:
    """Raises ValueError unless there is one timestep for all pictures, or one for each of the n."""
    if torch.as_tensor(t).numel() not in (1, n):
        raise ValueError(f"{len(t)} timesteps t for {n} pictures; give one t a picture, shape (B,)")


def check_step(t: Tensor, t_prev: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
    """t and t_prev on the CPU. Raises ValueError unless -1 <= t_prev < t < T."""
    t = check_timesteps(t, T)
    t_prev = t - 1 if t_prev is None else torch.as_tensor(t_prev).cpu()
    if (t_prev < -1).any() or (t_prev >= t).any():
        raise ValueError("t_prev must lie below t and be -1 (the clean picture) or more, "
                         f"not {t_prev.flatten().tolist()[:5]} with t {t.flatten().tolist()[:5]}")
    return t, t_prev


def check_finite(pictures: Tensor, what: str = "the pictures", of: str = "pixels") -> None:
    """Raises ValueError where pictures hold NaN or infinite pixels (or features have such numbers).
    """
    if not torch.isfinite(pictures).all():
        raise ValueError(f"{what} hold NaN or infinite {of}; "
                         "find and remove them (torch.isfinite tells where)")
