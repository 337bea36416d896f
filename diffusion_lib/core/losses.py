"""What the network is trained on: a squared error between what it said and what it should have
said.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .diffusion import PREDICTIONS, GaussianDiffusion, check_finite

Model = Callable[..., Tensor]  # model(x_t, t, condition=None) -> (B, C, H, W), t int64 (B,)
WEIGHTINGS = ("uniform", "min_snr")


# Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4
def min_snr_weight(diffusion: GaussianDiffusion, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight (B,), float64, that caps how much the nearly clean timesteps count.

    min(SNR, γ) is the weight of the error in x_0; an error in ε or in v is that error times 1/SNR
    or 1/(SNR + 1). Raises ValueError unless gamma > 0.
    """
    if not gamma > 0:
        raise ValueError(
            f"gamma of the min-SNR weight must be above 0, not {gamma}; the paper uses 5"
        )
    snr = diffusion.snr(t)
    divisor = {"epsilon": snr, "x0": torch.ones_like(snr), "v": snr + 1}[diffusion.prediction]
    return snr.clamp(max=gamma) / divisor


# DDPM equation 14, L_simple, for any of the three targets
def noise_prediction_loss(
    diffusion: GaussianDiffusion, model: Model, x_0: Tensor, t: Tensor, noise: Tensor,
    condition: Tensor | None = None, *,
    weighting: str = "uniform", gamma: float = 5.0, places: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error of the network on noised pictures.

    x_0, noise (B, C, H, W), t int64 (B,), condition (labels, int64 (B,)) or None. weighting:
    "uniform" (L_simple) or "min_snr". places: weights (H, W) of mean 1, or None; every pixel's best
    answer is its own mean, so they change what a small network works at, not what a perfect one
    says. Returns a number, or (B,) with reduction="none". Raises ValueError for an unknown
    weighting or reduction, a model that answers in another shape, and pictures that hold NaN or
    infinite pixels.
    """
    check_loss(x_0, weighting, reduction)
    x_t = diffusion.q_sample(x_0, t, noise)                                    # (B, C, H, W)
    output = ask(model, x_t, t, condition)
    # autocast may answer in bfloat16
    error = output.to(x_0.dtype) - diffusion.target(x_0, noise, t)
    square = error.square() if places is None else places * error.square()
    loss = square.flatten(1).mean(dim=1)                                       # (B,)
    if weighting == "min_snr":
        loss = loss * min_snr_weight(diffusion, t, gamma).to(loss.dtype).to(loss.device)
    return loss.mean() if reduction == "mean" else loss


@torch.no_grad()
def loss_per_timestep(
    diffusion: GaussianDiffusion, model: Model, x_0: Tensor, timesteps: Sequence[int], *,
    seed: int = 0, condition: Tensor | None = None, target: str | None = "epsilon",
) -> Tensor:
    """Mean squared error of the network at each of `timesteps`, over the same pictures x_0 (B, C,
    H, W).

    The same noise (from `seed`) is used at every timestep. target: what is measured, "epsilon",
    "x0" or "v", whatever the network predicts; None for what it predicts. Returns (len(timesteps),)
    on the CPU, dtype of x_0. Raises ValueError for an unknown target, a timestep outside 0 … T-1,
    and pictures that hold NaN or infinite pixels.
    """
    target = target or diffusion.prediction
    check_finite(x_0)
    if target not in PREDICTIONS:
        raise ValueError(
            f"unknown target {target!r}; the error can be measured in {', '.join(PREDICTIONS)}"
        )
    translate = {
        "epsilon": diffusion.predict_epsilon, "x0": diffusion.predict_x0, "v": diffusion.predict_v,
    }[target]
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(x_0)
    losses = []
    for t in (torch.full((len(x_0),), int(t)) for t in timesteps):
        x_t = diffusion.q_sample(x_0, t, noise)
        said = translate(ask(model, x_t, t, condition).to(x_0.dtype), x_t, t)
        losses.append((said - diffusion.target(x_0, noise, t, target)).square().mean().cpu())
    return torch.stack(losses)


def ask(model: Model, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    """model(x_t, t) or model(x_t, t, condition). Raises ValueError for an answer of another shape
    than x_t.
    """
    t = t.to(x_t.device)
    output = model(x_t, t) if condition is None else model(x_t, t, condition)
    if output.shape != x_t.shape:
        raise ValueError(
            f"the model answered {tuple(output.shape)} to pictures of shape {tuple(x_t.shape)}; "
            "they must be equal: check its out_channels"
        )
    return output


def check_loss(x_0: Tensor, weighting: str, reduction: str) -> None:
    """Raises ValueError for unknown words and for pictures that hold NaN or infinite pixels."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown loss weighting {weighting!r}; known are {', '.join(WEIGHTINGS)}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'none'")
    check_finite(x_0)
