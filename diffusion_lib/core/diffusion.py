"""The forward process and the algebra around it: what noise does to a picture; how ε, x_0 and v turn into each other.

The index. Code counts timesteps t = 0 … T-1; the paper's t is the code's t + 1. So `alphas_cumprod[0]` belongs to the
first, slightest noising, and the clean picture itself has no index (samplers call it t = -1). It is so everywhere here.
"""

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "x0", "v")


class GaussianDiffusion:
    """The diffusion process of DDPM (Ho et al. 2020, section 2) and what its network is asked to predict.

    betas: (T,), each in (0, 1], 1 only in last place. prediction: what the network's output means,
    "epsilon" (the noise), "x0" (the picture) or "v" = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022, section 4).

    Stored: `betas`, `alphas` and `alphas_cumprod` (ᾱ), all float64 (T,) on the CPU, and nothing else; every other
    coefficient is derived where it is used. Images are (B, C, H, W) in [-1, 1]; t is int64 (B,) in 0 … T-1.

    Raises ValueError for betas out of range, and for a last beta of 1 with prediction "epsilon".
    """

    def __init__(self, betas: Tensor, prediction: str = "epsilon") -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or len(betas) < 1:
            raise ValueError(f"betas must be a row of at least one number, shape (T,), not shape {tuple(betas.shape)}")
        wrong = ~((betas > 0) & (betas <= 1))
        if wrong.any():
            t = int(wrong.nonzero()[0])
            raise ValueError(f"betas[{t}] = {betas[t].item()} lies outside (0, 1]; "
                             "each beta is a variance, try 1e-4 to 0.02")
        if (betas[:-1] == 1).any():
            t = int((betas[:-1] == 1).nonzero()[0])
            raise ValueError(f"betas[{t}] = 1 before the last step: nothing is left for the steps after it; "
                             "only betas[-1] may be 1")
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; a network can predict {', '.join(PREDICTIONS)}")
        if betas[-1] == 1 and prediction == "epsilon":
            raise ValueError("the last beta is 1 (zero terminal SNR), where the noise says nothing about the picture; "
                             "use prediction='v'")
        self.betas = betas
        self.alphas = 1 - betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.prediction = prediction

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.betas)

    def __repr__(self) -> str:
        return f"GaussianDiffusion(T={self.T}, prediction={self.prediction!r})"

    # -- coefficients ------------------------------------------------------------------------------------------------

    def _index(self, t: Tensor) -> Tensor:
        """t as an index into the tables, on the CPU as they are. Raises ValueError for a t that is not in 0 … T-1."""
        t = torch.as_tensor(t).cpu()
        if t.is_floating_point() or t.dtype == torch.bool or t.numel() == 0 or int(t.min()) < 0 or int(t.max()) >= self.T:
            shown = t.flatten().tolist() if t.numel() < 5 else f"{t.min().item()} … {t.max().item()}"
            raise ValueError(f"timestep t must be whole numbers in 0 … {self.T - 1}, not {shown}")
        return t

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), how much of x_t is picture and how much is noise: two tensors (B, 1, 1, 1) like `like`."""
        # float64 tables stay on the CPU: index, cast, then move (MPS has no float64)
        alphas_cumprod = self.alphas_cumprod[self._index(t)].reshape(-1, *[1] * (like.ndim - 1))
        alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        return alpha.to(like.dtype).to(like.device), sigma.to(like.dtype).to(like.device)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1-ᾱ_t), float64 (B,) (Kingma et al. 2021, equation 2)."""
        alphas_cumprod = self.alphas_cumprod[self._index(t)]
        return alphas_cumprod / (1 - alphas_cumprod)

    # -- forward -----------------------------------------------------------------------------------------------------

    # equation 4 of DDPM: q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I)
    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε: all t + 1 noising steps in one. x_0, noise (B, C, H, W); returns the same shape.

        Raises ValueError for images that are not floating point (scale them to [-1, 1] first) or of another shape than
        the noise.
        """
        if not x_0.is_floating_point():
            raise ValueError(f"x_0 holds {x_0.dtype} pixels; "
                             "scale pictures to floats in [-1, 1] first (diffusion_lib.to_float)")
        if noise.shape != x_0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, the pictures {tuple(x_0.shape)}; "
                             "draw torch.randn_like(x_0)")
        alpha, sigma = self.alpha_sigma(t, x_0)              # (B, 1, 1, 1) each
        if len(alpha) not in (1, len(x_0)):
            raise ValueError(f"{len(alpha)} timesteps t for {len(x_0)} pictures; give one t a picture, shape (B,)")
        return alpha * x_0 + sigma * noise                   # (B, C, H, W)

    # equations 6 and 7 of DDPM: q(x_{t-1} | x_t, x_0) = N(mean, variance I)
    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and variance (B, 1, 1, 1) of the less noisy picture, given x_t and the clean picture.

        t_prev: the timestep stepped to, t - 1 when left out; -1 is the clean picture (variance 0 there). Raises
        ValueError for a t outside 0 … T-1 and a t_prev outside -1 … t-1.
        """
        t = self._index(t)
        t_prev = t - 1 if t_prev is None else torch.as_tensor(t_prev).cpu()
        if (t_prev < -1).any() or (t_prev >= t).any():
            raise ValueError(f"t_prev must lie below t and be -1 (the clean picture) or more, "
                             f"not {t_prev.flatten().tolist()[:5]} with t {t.flatten().tolist()[:5]}")
        now = self.alphas_cumprod[t]                         # ᾱ_t
        before = torch.where(t_prev >= 0, self.alphas_cumprod[t_prev.clamp(min=0)], 1.0)  # ᾱ_prev, 1: clean picture
        alpha = now / before                                 # α_t, of several steps at once if t_prev < t - 1
        x_0_weight = before.sqrt() * (1 - alpha) / (1 - now)
        x_t_weight = alpha.sqrt() * (1 - before) / (1 - now)
        variance = (1 - before) / (1 - now) * (1 - alpha)

        def spread(c: Tensor) -> Tensor:
            return c.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype).to(x_t.device)

        return spread(x_0_weight) * x_0 + spread(x_t_weight) * x_t, spread(variance)

    # -- what the network says, in any of the three languages ----------------------------------------------------------

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said for this picture, noise and t: (B, C, H, W)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return x_0
        alpha, sigma = self.alpha_sigma(t, x_0)
        return alpha * noise - sigma * x_0

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0, the clean picture that the network's output stands for. All (B, C, H, W); not clipped."""
        if self.prediction == "x0":
            return output
        alpha, sigma = self.alpha_sigma(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * output) / alpha            # DDPM equation 15
        return alpha * x_t - sigma * output                  # v

    def predict_epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """ε̂, the noise that the network's output stands for."""
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t, x_t)
        if self.prediction == "x0":
            return (x_t - alpha * output) / sigma
        return sigma * x_t + alpha * output                  # v

    def predict_v(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v̂ = √ᾱ ε̂ - √(1-ᾱ) x̂_0, the velocity that the network's output stands for."""
        if self.prediction == "v":
            return output
        alpha, sigma = self.alpha_sigma(t, x_t)
        return alpha * self.predict_epsilon(output, x_t, t) - sigma * self.predict_x0(output, x_t, t)

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Plain numbers for a checkpoint: {"betas": T floats, "prediction": str}. float64 survives JSON exactly."""
        return {"betas": self.betas.tolist(), "prediction": self.prediction}

    @classmethod
    def from_state_dict(cls, state: dict) -> "GaussianDiffusion":
        """The process that `state_dict` described."""
        return cls(torch.tensor(state["betas"], dtype=torch.float64), state["prediction"])
