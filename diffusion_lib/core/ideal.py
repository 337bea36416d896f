"""The best denoiser there can be for a *finite* set of pictures, with no training: it has them all by heart."""

import torch
from torch import Tensor

from .diffusion import GaussianDiffusion


class IdealDenoiser:
    """The mean of the training pictures, weighted by how likely each led to x_t (Karras et al. 2022, appendix B.3).

    x̂_0 = Σ_i w_i y_i, w = softmax_i(-‖x_t - √ᾱ_t y_i‖² / 2(1-ᾱ_t)). No network can have a lower loss on exactly these
    pictures; and sampled from, it returns exactly these pictures: perfect loss is memorisation. On fresh pictures of an
    endless source it is *not* the best possible, and a trained network beats it (notebook 04).

    images: (N, C, H, W) floats in [-1, 1]. Callable like a network, `model(x_t, t)`, it answers in the language of
    `diffusion.prediction`. Cost: N · C · H · W multiply-adds a picture, in float64 (near t = 0 exponents reach 10⁷).
    Raises ValueError for an empty set, NaN, or pictures of another shape.
    """

    num_classes = None

    def __init__(self, diffusion: GaussianDiffusion, images: Tensor) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be (N, C, H, W) with N of at least 1, not {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images hold {images.dtype} pixels; "
                             "scale them to floats in [-1, 1] first (diffusion_lib.to_float)")
        if not torch.isfinite(images).all():
            raise ValueError("images hold NaN or infinite pixels; remove them first (torch.isfinite tells where)")
        self.diffusion, self.shape = diffusion, tuple(images.shape[1:])
        self.flat = images.flatten(1).double()                                           # (N, D)
        self.half_norms = self.flat.square().sum(dim=1) / 2                              # (N,)

    def weights(self, x_t: Tensor, t: Tensor) -> Tensor:
        """How likely each training picture led to x_t: (B, N), float64, rows sum to 1.

        Raises ValueError for pictures of another shape, and for a t that is not one timestep a picture in 0 … T-1.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ValueError(f"x_t has pictures of shape {tuple(x_t.shape[1:])}, the known ones have {self.shape}; "
                             "give it that shape")
        alpha, sigma = self.diffusion.alpha_sigma(t, self.flat)                          # (B, 1) and (B, 1), float64
        if len(alpha) not in (1, len(x_t)):
            raise ValueError(f"{len(alpha)} timesteps t for {len(x_t)} pictures; give one t a picture, shape (B,)")
        # -‖x - a y‖² / 2s² without the ‖x‖² that softmax ignores
        closeness = (alpha * (x_t.flatten(1).double() @ self.flat.T) - alpha**2 * self.half_norms) / sigma**2
        return closeness.softmax(dim=1)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        x0_hat = (self.weights(x_t, t) @ self.flat).reshape(x_t.shape)                   # (B, C, H, W), float64
        if self.diffusion.prediction == "x0":
            return x0_hat.to(x_t.dtype)
        alpha, sigma = self.diffusion.alpha_sigma(t, x0_hat)
        epsilon_hat = (x_t.double() - alpha * x0_hat) / sigma
        output = epsilon_hat if self.diffusion.prediction == "epsilon" else alpha * epsilon_hat - sigma * x0_hat
        return output.to(x_t.dtype)
