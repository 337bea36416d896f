"""The best denoiser there can be for a *finite* set of pictures, with no training: it has them all
by heart.
"""

import torch
from torch import Tensor

from .diffusion import GaussianDiffusion, check_finite, check_one_each


class IdealDenoiser:
    """The mean of the training pictures, weighted by how likely each led to x_t (Karras et al.
    2022, appendix B.3).

    x̂_0 = Σ_i w_i y_i, w = softmax_i(-‖x_t - √ᾱ_t y_i‖² / 2(1-ᾱ_t)). No network can have a lower
    loss on exactly these pictures; and sampled from, it returns exactly these pictures: perfect
    loss is memorisation. On fresh pictures of an endless source it is *not* the best possible, and
    a trained network beats it (notebook 04).

    images: (N, C, H, W) floats in [-1, 1]. Callable like a network, `model(x_t, t)`, it answers in
    the language of `diffusion.prediction`. Cost: N · C · H · W multiply-adds a picture, in float64
    (near t = 0 exponents reach 10⁷). Raises ValueError for an empty set, NaN, or pictures of
    another shape.
    """

    def __init__(self, diffusion: GaussianDiffusion, images: Tensor) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"images must be (N, C, H, W) with N of at least 1, not {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images hold {images.dtype} pixels; "
                             "scale them to floats in [-1, 1] first (diffusion_lib.to_float)")
        check_finite(images, "the images")
        self.diffusion, self.shape = diffusion, tuple(images.shape[1:])
        self.prediction = diffusion.prediction
        self.flat = images.flatten(1).double()                                       # (N, D)
        self.half_norms = self.flat.square().sum(dim=1) / 2                          # (N,)

    def weights(self, x_t: Tensor, t: Tensor) -> Tensor:
        """How likely each training picture led to x_t: (B, N), float64, rows sum to 1.

        Raises ValueError for pictures of another shape, and for a t that is not one timestep a
        picture.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ValueError(
                f"x_t has pictures of shape {tuple(x_t.shape[1:])}, the known ones have "
                f"{self.shape}; give it that shape"
            )
        check_one_each(t, len(x_t))
        signal_rate, noise_rate = self.diffusion.rates(t, self.flat)  # (B, 1) each, float64
        # -‖x - s y‖² / 2n² without the ‖x‖² that softmax ignores
        products = x_t.flatten(1).double() @ self.flat.T  # (B, N)
        return (
            (signal_rate * products - signal_rate**2 * self.half_norms) / noise_rate**2
        ).softmax(dim=1)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        x0_hat = (self.weights(x_t, t) @ self.flat).reshape(x_t.shape)  # (B, C, H, W), float64
        signal_rate, noise_rate = self.diffusion.rates(t, x0_hat)
        epsilon_hat = (x_t.double() - signal_rate * x0_hat) / noise_rate
        return self.diffusion.target(x0_hat, epsilon_hat, t).to(x_t.dtype)
