"""What tests and benchmarks hold the library against: networks, exact answers, diffusers in our
words.
"""

from collections.abc import Callable

import mpmath
import torch
from torch import Tensor, nn

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.samplers import SAMPLERS, last_step
from diffusion_lib.core.unet import UNet

# The settings of google/ddpm-cifar10-32, a published model: the original network of DDPM.
DDPM_CIFAR10 = dict(
    image_size=32,
    channels=128,
    channel_mults=(1, 2, 2, 2),
    blocks_per_level=2,
    attention=(False, True, False, False),
    norm_num_groups=32,
    norm_eps=1e-6,
    attention_head_dim=None,
    flip_sin_to_cos=False,
    freq_shift=1,
    downsample_padding=0,
)
SMALL = dict(image_size=16, channels=16)
CONFIGURATIONS = {
    "default": {},
    "google/ddpm-cifar10-32": DDPM_CIFAR10,
    "10 classes, heads of 8": dict(
        channels=32, num_classes=10, attention_head_dim=8, attention=(False, True, True)
    ),
    "patch 2": dict(
        channels=32, patch_size=2, channel_mults=(1, 2), attention=(True, True), blocks_per_level=2
    ),
    "one channel in, two out, one level": dict(
        **SMALL, in_channels=1, out_channels=2, channel_mults=(1,), attention=(False,)
    ),
}  # fmt: skip


def random_unet(seed: int = 0, **settings) -> UNet:
    """A UNet in which nothing is zero or one, so that no part of it can hide."""
    torch.manual_seed(seed)
    model = UNet(**settings)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return model.eval()


def eight_steps(model: nn.Module, *given: object) -> tuple[list[float], list[str]]:
    """The losses of eight steps of Adam towards given[0], and the weights that did not move."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(8):
        loss = (model(*given) - given[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def pictures(model: UNet, batch: int = 2) -> torch.Tensor:
    shape = (batch, model.in_channels, model.image_size, model.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


SHAPE = (3, 2, 4, 4)
THEIR_NAME = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
# schedule, zero terminal SNR, prediction: all that GaussianDiffusion allows, but for the sigmoid
# curve
PROCESSES = [(name, False, p) for name in ("linear", "cosine") for p in THEIR_NAME] + [
    ("linear", True, "v"),
    ("cosine", True, "x0"),
]


class Curved(nn.Module):
    """A small network in float64 whose answer (a picture) depends on every neighbour and on t, and
    leaves [-1, 1].
    """

    def __init__(self, size: float = 1.5) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(4)
        for p in self.parameters():
            nn.init.normal_(p, std=0.4, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.size * torch.tanh(self.conv(x) + torch.sin(t / 300)[:, None, None, None])


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def largest(differences: list[Tensor]) -> float:
    """The largest absolute number in all of them; NaN if there is one (Python's max would pass it
    over).
    """
    return torch.stack([d.abs().max() for d in differences]).max().item()


def in_language(
    diffusion: GaussianDiffusion, x0_model: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A model of pictures made to answer in the process's language, so that its pictures stay of
    the size of pictures.
    """

    def model(x: Tensor, t: Tensor) -> Tensor:
        x0_hat, bar = x0_model(x, t), diffusion.alphas_cumprod[int(t[0])]
        if diffusion.prediction == "x0":
            return x0_hat
        alpha, sigma = bar.sqrt().to(x.dtype), (1 - bar).sqrt().to(x.dtype)
        epsilon_hat = (x - alpha * x0_hat) / sigma
        v_hat = alpha * epsilon_hat - sigma * x0_hat
        return epsilon_hat if diffusion.prediction == "epsilon" else v_hat

    return model


def theirs(kind: type, diffusion: GaussianDiffusion, steps: int, **settings):
    """diffusers' scheduler on our float64 tables (its own are float32)."""
    scheduler = kind(
        num_train_timesteps=diffusion.T,
        prediction_type=THEIR_NAME[diffusion.prediction],
        timestep_spacing="trailing",
        **settings,
    )
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def noise_as_ours(seeds: list[int], shape: tuple, skip: int) -> Callable[..., Tensor]:
    """In place of diffusers' randn_tensor: the noise of one generator a seed, in float32, the first
    `skip` draws passed over.
    """
    generators = [torch.Generator().manual_seed(s) for s in seeds]

    def draw(*_, **__) -> Tensor:
        return torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).double()

    for _ in range(skip):
        draw()
    return draw


MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.25]], dtype=torch.float64)


def gaussian_model(diffusion: GaussianDiffusion) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] = μ + √ᾱ Σ (ᾱ Σ + (1-ᾱ) I)⁻¹ (x_t - √ᾱ μ) for the two channels of each pixel, in
    the process's language.
    """

    def mean_picture(x: Tensor, t: Tensor) -> Tensor:
        bar = diffusion.alphas_cumprod[int(t[0])]
        gain = (
            bar.sqrt()
            * COVARIANCE
            @ torch.linalg.inv(bar * COVARIANCE + (1 - bar) * torch.eye(2, dtype=torch.float64))
        )
        gain, mean, alpha = (z.to(x.dtype) for z in (gain, MEAN[:, None, None], bar.sqrt()))
        centred = x - alpha * mean
        return mean + torch.stack(
            [gain[i, 0] * centred[:, 0] + gain[i, 1] * centred[:, 1] for i in range(2)], dim=1
        )

    return in_language(diffusion, mean_picture)


def gaussian_errors(
    diffusion: GaussianDiffusion, name: str, steps: int, size: int = 100
) -> tuple[Tensor, Tensor, float]:
    """How far the mean (2,) and covariance (2, 2) of 4 · size² sampled points are off, and at most
    in standard errors.
    """
    x = last_step(
        SAMPLERS[name](
            diffusion, gaussian_model(diffusion), (4, 2, size, size), steps=steps, clip=False
        )
    ).x_t
    # (2, n): each pixel is one
    points = x.double().transpose(0, 1).flatten(1)
    n, variances = points.shape[1], COVARIANCE.diag()
    mean_error, covariance_error = points.mean(dim=1) - MEAN, torch.cov(points) - COVARIANCE
    # standard errors of normal samples
    one_mean = (variances / n).sqrt()
    one_covariance = ((variances[:, None] * variances + COVARIANCE**2) / n).sqrt()
    return (
        mean_error,
        covariance_error,
        largest([mean_error / one_mean, covariance_error / one_covariance]),
    )


def order_errors(
    name: str, diffusion: GaussianDiffusion, counts: tuple[int, ...]
) -> dict[str, list[float]]:
    """Largest error halfway (t = T/2 - 1), near the end (t = T/10 - 1) and of the picture, for each
    number of steps.

    Four independent Gaussians, data prediction. The exact path of each: x_t = √ᾱ μ + √((ᾱ s² + 1-ᾱ)
    / (ᾱ_T s² + 1-ᾱ_T)) (x_T - √ᾱ_T μ), so the error is against the truth and not against more
    steps.
    """
    s = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=torch.float64)
    mu = torch.tensor([0.3, -0.5, 0.1, 0.0], dtype=torch.float64)
    x_T, bars = randn(0, 64, 4), diffusion.alphas_cumprod

    def model(x: Tensor, t: Tensor) -> Tensor:
        bar = bars[t[0]]
        return mu + bar.sqrt() * s**2 / (bar * s**2 + 1 - bar) * (x - bar.sqrt() * mu)

    def exact(t: int) -> Tensor:
        bar, last = bars[t] if t >= 0 else torch.tensor(1.0, dtype=torch.float64), bars[-1]
        return bar.sqrt() * mu + ((bar * s**2 + 1 - bar) / (last * s**2 + 1 - last)).sqrt() * (
            x_T - last.sqrt() * mu
        )

    moments = {
        diffusion.T // 2 - 1: "halfway",
        diffusion.T // 10 - 1: "near the end",
        -1: "picture",
    }
    out: dict[str, list[float]] = {word: [] for word in moments.values()}
    for steps in counts:
        # so that all of them stop at the same two timesteps
        assert diffusion.T % steps == 0 and steps % 10 == 0
        for step in SAMPLERS[name](diffusion, model, x_T.shape, steps=steps, x_T=x_T, clip=False):
            if step.t in moments:
                out[moments[step.t]].append((step.x_t - exact(step.t)).abs().max().item())
    return out


def alphas_cumprod(betas: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(1 - betas, dim=0)


def largest_error(ours: torch.Tensor, exact: list) -> float:
    return max(float(abs(mpmath.mpf(a) - b)) for a, b in zip(ours.tolist(), exact, strict=True))


def exact_linear(T: int) -> list:
    first, last = mpmath.mpf(1) / 10 / T, mpmath.mpf(20) / T
    product, out = mpmath.mpf(1), []
    for t in range(T):
        product *= 1 - (first + (last - first) * t / (T - 1))
        out.append(product)
    return out


def exact_from_curve(curve, T: int) -> list:
    """ᾱ with each beta = 1 - ᾱ(u + 1/T)/ᾱ(u) capped at 0.999."""
    values = [curve(mpmath.mpf(t) / T) for t in range(T + 1)]
    product, out = mpmath.mpf(1), []
    for t in range(T):
        product *= 1 - min(1 - values[t + 1] / values[t], mpmath.mpf("0.999"))
        out.append(product)
    return out


def exact_cosine(T: int) -> list:
    s = mpmath.mpf("0.008")
    return exact_from_curve(lambda u: mpmath.cos((u + s) / (1 + s) * mpmath.pi / 2) ** 2, T)


def exact_sigmoid(T: int) -> list:
    def sigmoid(x):
        return 1 / (1 + mpmath.exp(-x))

    return exact_from_curve(
        lambda u: (sigmoid(3) - sigmoid(-3 + 6 * u)) / (sigmoid(3) - sigmoid(-3)), T
    )
