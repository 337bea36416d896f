"""The exercises' checkers: `check("recover_picture", my_function)` prints one line, a hint or what has just been shown.

A checker asks the learner's function a few questions and compares the answers with the right ones. If they differ, it
compares them with the *typical wrong* ones (a root forgotten, ᾱ and 1 - ᾱ swapped, off by one) and names the slip.
Every checker is one function below, named as its exercise: it returns what has been shown, and raises NotYet with a hint. How it
asks and compares is in `answers.py`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.diffusion import GaussianDiffusion
from ..core.schedules import cosine_beta_schedule, linear_beta_schedule
from .checker import NotYet, ask, bar, check, compare, exercise, pictures

__all__ = ["check"]  # with this import the exercises are among its checkers

# -- notebook 01 -------------------------------------------------------------------------------------------------------
@exercise
def recover_picture(function: Callable) -> str:
    """From x_t, ᾱ and the noise back to x_0: DDPM equation 4, solved for the picture."""
    questions = {}
    for seed, a in enumerate((0.9, 0.3, 0.05)):
        x_0, noise = pictures(seed)
        questions[f"ᾱ = {a}"] = (a**0.5 * x_0 + (1 - a) ** 0.5 * noise, bar(a), noise)
    compare(function, questions, lambda x, a, e: (x - (1 - a).sqrt() * e) / a.sqrt(), {
        "the root over 1 - ᾱ is forgotten: the noise in x_t is √(1-ᾱ) ε": lambda x, a, e: (x - (1 - a) * e) / a.sqrt(),
        "the root over ᾱ is forgotten: the picture in x_t is √ᾱ x_0": lambda x, a, e: (x - (1 - a).sqrt() * e) / a,
        "both roots are forgotten: x_t = √ᾱ x_0 + √(1-ᾱ) ε": lambda x, a, e: (x - (1 - a) * e) / a,
        "ᾱ and 1 - ᾱ are swapped: ᾱ belongs to the picture": lambda x, a, e: (x - a.sqrt() * e) / (1 - a).sqrt(),
        "the noise is gone, but the picture is still too weak: divide by √ᾱ": lambda x, a, e: x - (1 - a).sqrt() * e,
        "brackets: x_t is divided by √ᾱ, the noise is not": lambda x, a, e: x / a.sqrt() - (1 - a).sqrt() * e,
        "the sign of the noise: it was added, so take it away": lambda x, a, e: (x + (1 - a).sqrt() * e) / a.sqrt(),
        "the noise is taken away whole; x_t holds only √(1-ᾱ) of it": lambda x, a, e: (x - e) / a.sqrt(),
        "this is x_t, unchanged": lambda x, a, e: x,
    })
    return "who knows the noise knows the picture, at any t. That is why it is enough to ask a network for the noise."


@exercise
def first_mostly_noise(function: Callable) -> str:
    """From betas (T,) to the first t, counted from 0, at which SNR = ᾱ / (1 - ᾱ) is below 1."""
    def kept(betas: Tensor) -> Tensor:
        return torch.cumprod(1 - betas, dim=0)

    def first(yes: Tensor) -> int:
        return int(yes.int().argmax())

    questions = {"the linear schedule": (linear_beta_schedule(1000),), "the cosine schedule": (cosine_beta_schedule(400),),
                 "betas that begin with 0.6": (torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64),)}
    compare(function, questions, lambda b: first(kept(b) < 0.5), {
        "off by one: this is the paper's t, which counts from 1; the code's t counts from 0": lambda b: first(kept(b) < 0.5) + 1,
        "off by one: at this t the picture is still the stronger; the next one is asked for": lambda b: first(kept(b) < 0.5) - 1,
        "this looks at one step's α; the SNR needs ᾱ, the product of all steps so far": lambda b: first(1 - b < 0.5),
        "SNR < 1 means ᾱ < 1 - ᾱ; you seem to ask for √ᾱ < 1/2": lambda b: first(kept(b) < 0.25),
        "this is how many timesteps are mostly noise; asked for is the first of them": lambda b: int((kept(b) < 0.5).sum()),
        "always t = 0: is the comparison the wrong way round, or is ᾱ compared with 1?": lambda b: 0,
    })
    return "SNR < 1 is the same as ᾱ < 1/2, and the first such t is found by counting from 0, as the code does."


# -- notebook 02 -------------------------------------------------------------------------------------------------------
@exercise
def betas_from_alpha_bar(function: Callable) -> str:
    """From ᾱ (T,) to its betas (T,): 1 - ᾱ_t / ᾱ_(t-1), with ᾱ = 1 before the first step."""
    def ratio(a: Tensor, first: Tensor) -> Tensor:
        return a / torch.cat([first, a[:-1]])

    one = torch.ones(1, dtype=torch.float64)
    questions = {name: (GaussianDiffusion(betas).alphas_cumprod,)
                 for name, betas in (("the linear ᾱ", linear_beta_schedule(1000)), ("the cosine ᾱ", cosine_beta_schedule(50)))}
    compare(function, questions, lambda a: 1 - ratio(a, one), {
        "one beta is missing, the first: before t = 0 comes the clean picture, with ᾱ = 1": lambda a: 1 - a[1:] / a[:-1],
        "the first beta is 0: before t = 0 comes the clean picture, with ᾱ = 1": lambda a: 1 - ratio(a, a[:1]),
        "off by one: beta_t sits at t - 1; it takes ᾱ_t and the ᾱ before it": lambda a: 1 - torch.cat([a[1:], a[-1:]]) / a,
        "at t = 0 you took the last ᾱ (roll or index -1); before t = 0 ᾱ is 1": lambda a: 1 - a / a.roll(1),
        "these are the alphas; beta = 1 - alpha": lambda a: ratio(a, one),
        "this is 1 - ᾱ, the noise of all steps so far; a beta is the noise of one step": lambda a: 1 - a,
        "upside down: ᾱ_t is divided by the ᾱ before it, not the other way round": lambda a: 1 - 1 / ratio(a, one),
        "this is the difference of neighbours; each step multiplies, so take the ratio": lambda a: torch.cat([one, a[:-1]]) - a,
        "no root here: a beta is a variance, and ᾱ is a product of alphas": lambda a: 1 - ratio(a, one).sqrt(),
    }, within=(0, 1))
    return "any falling curve of ᾱ is a schedule: beta_t = 1 - ᾱ_t / ᾱ_(t-1), with ᾱ = 1 before the first step."


@exercise
def shift_for_size(function: Callable) -> str:
    """From ᾱ (T,) for 32 pixels and a size to ᾱ (T,) for that size: its SNR divided by (size / 32)²."""
    def back(snr: Tensor) -> Tensor:
        return snr / (1 + snr)

    a = GaussianDiffusion(cosine_beta_schedule(60)).alphas_cumprod
    questions = {"128 pixels": (a, 128), "64 pixels": (a, 64), "16 pixels": (a, 16)}
    compare(function, questions, lambda a, s: back(a / (1 - a) / (s / 32) ** 2), {
        "the square is forgotten: the SNR falls with the number of pixels, (size / 32)²": lambda a, s: back(a / (1 - a) / (s / 32)),
        "the wrong way round: a larger picture needs more noise, a smaller SNR": lambda a, s: back(a / (1 - a) * (s / 32) ** 2),
        "this is the SNR; asked for is ᾱ = SNR / (1 + SNR)": lambda a, s: a / (1 - a) / (s / 32) ** 2,
        "you divide ᾱ; the SNR = ᾱ / (1-ᾱ) is what is divided": lambda a, s: a / (s / 32) ** 2,
        "the schedule was made for 32 pixels: the factor is (size / 32)², not size²": lambda a, s: back(a / (1 - a) / s**2),
        "this is ᾱ, unchanged": lambda a, s: a,
    }, within=(0, 1))
    return "dividing the SNR by (size / 32)² makes a schedule equally hard at another size; for a smaller one it multiplies."


# -- notebook 03 -------------------------------------------------------------------------------------------------------
@exercise
def pixels_seen(function: Callable) -> str:
    """From layers [(window, stride), …] to how many pixels wide one number at their end looks."""
    def see(layers: list, reach: Callable = lambda window, step: (window - 1) * step, wide: int = 1, early: bool = False) -> int:
        step = 1
        for window, stride in layers:
            step *= stride if early else 1
            wide += reach(window, step)
            step *= 1 if early else stride
        return wide

    questions = {"two 3 × 3 layers": ([(3, 1), (3, 1)],), "a halving, then 3 × 3 and 5 × 5": ([(3, 2), (3, 1), (5, 1)],),
                 "two halvings and a 1 × 1": ([(4, 2), (3, 2), (1, 1), (3, 1)],)}
    compare(function, questions, see, {
        "the stride is not used: after a halving, one step on the map is two pixels": lambda x: see(x, lambda w, s: w - 1),
        "a layer's own stride counts only for the layers after it": lambda x: see(x, early=True),
        "a window of 3 adds 2 pixels, not 3: its middle is seen already": lambda x: see(x, lambda w, s: w * s),
        "without any layer, one pixel is seen: begin with 1, not 0": lambda x: see(x, wide=0),
        "the wrong end first: the first layer of the list lies next to the picture": lambda x: see(x[::-1]),
    })
    return "each window adds (width - 1) steps, and each stride makes all later steps longer: halving is what sees far."


@exercise
def attention_cost(function: Callable) -> str:
    """From channels, height and width to the multiply-adds of one self-attention."""
    questions = {f"c = {c}, {h} × {w}": (c, h, w) for c, h, w in ((48, 4, 4), (24, 8, 16), (16, 5, 3))}
    compare(function, questions, lambda c, h, w: 4 * h * w * c * c + 2 * (h * w) ** 2 * c, {
        "the two products of all pixels with all pixels are missing": lambda c, h, w: 4 * h * w * c * c,
        "the four linear layers are missing": lambda c, h, w: 2 * (h * w) ** 2 * c,
        "there are two products of all pixels with all pixels": lambda c, h, w: 4 * h * w * c * c + (h * w) ** 2 * c,
        "there are four linear layers: q, k, v and the one at the end": lambda c, h, w: 3 * h * w * c * c + 2 * (h * w) ** 2 * c,
        "each linear layer works on every pixel": lambda c, h, w: 4 * c * c + 2 * (h * w) ** 2 * c,
        "each product of two pixels runs over c channels": lambda c, h, w: 4 * h * w * c * c + 2 * (h * w) ** 2,
        "all pixels with all pixels is (height · width)² pairs": lambda c, h, w: 4 * h * w * c * c + 2 * h * w * c,
    })
    return "the pairs grow with the square of the number of pixels, the layers only with the number itself."


@exercise
def scale_and_shift(function: Callable) -> str:
    """From h (B, c, H, W) and a vector (B, 2c) to h · (1 + scale) + shift."""
    generator = torch.Generator().manual_seed(0)
    h, vector = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 6, generator=generator)
    questions = {"a random vector": (h, vector), "a zero vector": (h, torch.zeros(2, 6))}

    def halves(v: Tensor) -> tuple[Tensor, Tensor]:
        return v[:, :3, None, None], v[:, 3:, None, None]

    compare(function, questions, lambda h, v: h * (1 + halves(v)[0]) + halves(v)[1], {
        "the 1 is missing: a zero vector must change nothing": lambda h, v: h * halves(v)[0] + halves(v)[1],
        "the halves are swapped: the first is the scale, the second the shift": lambda h, v: h * (1 + halves(v)[1]) + halves(v)[0],
        "the halves are the first c and the last c numbers, not every other one":
            lambda h, v: h * (1 + v[:, ::2, None, None]) + v[:, 1::2, None, None],
        "the shift is missing": lambda h, v: h * (1 + halves(v)[0]),
        "the scale is missing": lambda h, v: h + halves(v)[1],
        "this is h, unchanged": lambda h, v: h,
    })
    return "one vector can turn the volume of every channel up and down, and a zero vector leaves all as it is."


# -- notebook 04 -------------------------------------------------------------------------------------------------------
@exercise
def v_loss(function: Callable) -> str:
    """From a network, x_0, t, noise and ᾱ (T,) to the mean squared error in v (Salimans & Ho 2022)."""
    weight = torch.tensor(0.7, requires_grad=True)
    alphas_cumprod = GaussianDiffusion(cosine_beta_schedule(100)).alphas_cumprod.float()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return weight * x_t.tanh() + 0.01 * t.reshape(-1, 1, 1, 1)

    def loss(target: Callable, power: float = 0.5, blind: bool = False, end: Callable = lambda e: e.square().mean()) -> Callable:
        def wrong_or_right(network: Callable, x_0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
            a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
            x_t = a.sqrt() * x_0 + (1 - a) ** power * noise
            return end(network(x_0 if blind else x_t, t) - target(a.sqrt(), (1 - a).sqrt(), x_0, noise))
        return wrong_or_right

    def v(alpha: Tensor, sigma: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
        return alpha * noise - sigma * x_0

    questions = {f"t = {t}": (network, pictures(t[0])[0], torch.tensor(t), pictures(t[0])[1], alphas_cumprod)
                 for t in ([5, 40], [70, 95])}
    compare(function, questions, loss(v), {
        "sum for mean: the loss must not grow with the size of the picture": loss(v, end=lambda e: e.square().sum()),
        "the target is the noise; with v it is √ᾱ ε - √(1-ᾱ) x_0": loss(lambda a, s, x, e: e),
        "the target is the clean picture; with v it is √ᾱ ε - √(1-ᾱ) x_0": loss(lambda a, s, x, e: x),
        "the sign: v is √ᾱ ε minus √(1-ᾱ) x_0": loss(lambda a, s, x, e: a * e + s * x),
        "√ᾱ and √(1-ᾱ) are swapped in v: √ᾱ belongs to the noise there": loss(lambda a, s, x, e: s * e - a * x),
        "the roots are forgotten in v": loss(lambda a, s, x, e: a**2 * e - s**2 * x),
        "the root over 1 - ᾱ is forgotten in x_t": loss(v, power=1.0),
        "the network gets the clean picture; it must be asked about x_t": loss(v, blind=True),
        "a root too many: the loss is the mean of the squares": loss(v, end=lambda e: e.square().mean().sqrt()),
        "these are absolute values; the error is squared": loss(v, end=lambda e: e.abs().mean()),
    })
    if not ask(function, questions["t = [5, 40]"]).requires_grad:
        raise NotYet("the number is right, but no gradient can flow back through it; leave detach() and no_grad() out")
    return "only the target changed. Noising, asking and the squared error are the same for ε, x_0 and v."


@exercise
def ema_half_life(function: Callable) -> str:
    """From an average, a weight and a half-life in steps to the next average."""
    def mix(keep: Callable[[float], float]) -> Callable:
        return lambda average, weight, h: keep(h) * average + (1 - keep(h)) * weight

    average, weight = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, 2.5, -1.0])
    questions = {f"half_life = {h}": (average, weight, h) for h in (1, 10, 200)}
    compare(function, questions, mix(lambda h: 0.5 ** (1 / h)), {
        "swapped: with a long half-life the average is kept, and little of the new weight comes in": mix(lambda h: 1 - 0.5 ** (1 / h)),
        "after half_life steps this leaves 1/e or so, not 1/2: keep 0.5 ** (1 / half_life) a step": mix(lambda h: math.exp(-1 / h)),
        "1 - 1 / half_life is near, but h steps of it do not leave one half": mix(lambda h: 1 - 1 / h),
        "this halves at every step, whatever the half-life": mix(lambda h: 0.5),
        "upside down: 0.5 ** half_life is after half_life halvings; one step is 1 / half_life of a halving": mix(lambda h: 0.5**h),
        "halves do not divide evenly: h steps multiply, so one step keeps the h-th root of 1/2": mix(lambda h: 1 - 0.5 / h),
        "the shares must add up to 1: the new weight comes in with 1 - decay": lambda a, w, h: 0.5 ** (1 / h) * a + w,
        "the average never moves": lambda a, w, h: a,
        "this is the new weight, no average": lambda a, w, h: w,
    })
    return "keep 0.5 ** (1 / half_life) at every step, and after half_life steps just one half is left."


# -- notebook 05 -------------------------------------------------------------------------------------------------------
@exercise
def ddim_step(function: Callable) -> str:
    """From x_t, x̂_0, ᾱ now and ᾱ later to the next x: DDIM equation 12 with σ = 0, x̂_0 clipped first."""
    def step(x: Tensor, guess: Tensor, a: Tensor, b: Tensor, in_noise: bool = True, in_picture: bool = True, power: float = 0.5,
             scaled: bool = True) -> Tensor:
        clipped = guess.clamp(-1, 1)
        noise = (x - a.sqrt() * (clipped if in_noise else guess)) / ((1 - a) ** power if scaled else 1)
        return b.sqrt() * (clipped if in_picture else guess) + (1 - b) ** power * noise

    questions = {}
    for seed, (now, later) in enumerate(((0.1, 0.4), (0.5, 0.9), (0.8, 1.0))):
        x_0, noise = pictures(seed)
        questions[f"ᾱ from {now} to {later}"] = (now**0.5 * x_0 + (1 - now) ** 0.5 * noise, 1.5 * x_0, bar(now), bar(later))
    compare(function, questions, step, {
        "the guess is not clipped to [-1, 1]": lambda x, g, a, b: step(x, g, a, b, False, False),
        "the noise is worked out from the guess before it was clipped; clip first": lambda x, g, a, b: step(x, g, a, b, in_noise=False),
        "the noise comes from the clipped guess, but the picture from the other": lambda x, g, a, b: step(x, g, a, b, in_picture=False),
        "the result is clipped; clip the guess, before all else": lambda x, g, a, b: step(x, g, a, b, False, False).clamp(-1, 1),
        "the result is clipped too, but noise may go beyond 1; clip only the guess": lambda x, g, a, b: step(x, g, a, b).clamp(-1, 1),
        "this stays at the noise level of now; the new picture needs later": lambda x, g, a, b: step(x, g, a, a),
        "now and later are swapped": lambda x, g, a, b: step(x, g, b, a),
        "the roots over 1 - now and 1 - later are forgotten": lambda x, g, a, b: step(x, g, a, b, power=1.0),
        "all the noise of x_t is kept; only √(1 - later) ε belongs in": lambda x, g, a, b: (b.sqrt() - a.sqrt()) * g.clamp(-1, 1) + x,
        "divide by √(1 - now) to get the noise": lambda x, g, a, b: step(x, g, a, b, scaled=False),
        "this is the clipped guess; the noise that is still due is missing": lambda x, g, a, b: g.clamp(-1, 1),
    })
    return "clip, work out the noise, go to the next noise level: no dice. And the last step, to ᾱ = 1, lands on the guess itself."


@exercise
def step_variance(function: Callable) -> str:
    """From ᾱ (T,) and t to the variance of DDPM's step, equation 7; 0 at t = 0."""
    def before(a: Tensor, t: int) -> Tensor:
        return a[t - 1] if t else torch.ones((), dtype=a.dtype)

    def beta(a: Tensor, t: int) -> Tensor:
        return 1 - a[t] / before(a, t)

    process = GaussianDiffusion(linear_beta_schedule(1000))
    questions = {f"t = {t}": (process.alphas_cumprod, t) for t in (0, 1, 500, 999)}
    compare(function, questions, lambda a, t: float((1 - before(a, t)) / (1 - a[t]) * beta(a, t)), {
        "noise on the last step: at t = 0 alphas_cumprod[t - 1] is the last of the row; the clean picture has ᾱ = 1, so the variance is 0":
            lambda a, t: (1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1]),
        "this is beta_t, which knows nothing of x_0: multiply by (1 - ᾱ_before) / (1 - ᾱ_t)": beta,
        "this is beta_t, with 0 at the end: multiply by (1 - ᾱ_before) / (1 - ᾱ_t)": lambda a, t: beta(a, t) if t else 0,
        "noise on the last step: at t = 0 this is beta_0; the variance of a finished picture is 0":
            lambda a, t: (1 - before(a, t)) / (1 - a[t]) * beta(a, t) if t else beta(a, t),
        "this is the standard deviation; the variance is its square": lambda a, t: ((1 - before(a, t)) / (1 - a[t]) * beta(a, t)).sqrt(),
        "upside down: (1 - ᾱ_before) is divided by (1 - ᾱ_t)": lambda a, t: (1 - a[t]) / (1 - before(a, t)) * beta(a, t),
        "beta_t is missing": lambda a, t: (1 - before(a, t)) / (1 - a[t]),
        "alpha_t stands where beta_t should": lambda a, t: (1 - before(a, t)) / (1 - a[t]) * a[t] / before(a, t),
        "1 - ᾱ_t is the noise of all steps; beta_t = 1 - ᾱ_t / ᾱ_before that of one": lambda a, t: 1 - before(a, t),
    }, within=(0, 1))
    return "the noise that goes in is a little less than beta_t, and none at all after the last step."


# -- notebook 06 -------------------------------------------------------------------------------------------------------
@exercise
def power_above(function: Callable) -> str:
    """From a spectrum in decibels and a frequency to the share of the power above it: 10 ** (dB / 10), summed, divided."""
    def power(decibels: Tensor) -> Tensor:
        return 10 ** (decibels / 10)

    def share(decibels: Tensor, limit: int, start: int = 1, root: float = 10.0) -> Tensor:
        p = 10 ** (decibels / root)
        return p[limit + start :].sum() / p.sum()

    decibels = torch.tensor([30.0, 24.0, 17.0, 12.0, 5.0, 2.0, -3.0, -9.0], dtype=torch.float64)
    questions = {f"above {limit}": (decibels, limit) for limit in (0, 2, 5)}
    compare(function, questions, share, {
        "decibels are logarithms, and logarithms cannot be added up: first 10 ** (decibels / 10)": lambda d, f: d[f + 1 :].sum() / d.sum(),
        "above means without the limit itself: start at limit + 1": lambda d, f: share(d, f, start=0),
        "this is the share below and at the limit; asked for is the rest": lambda d, f: 1 - share(d, f),
        "a power is 10 ** (decibels / 10); / 20 is for amplitudes": lambda d, f: share(d, f, root=20.0),
        "this is the power above the limit; divide by the power of all": lambda d, f: power(d)[f + 1 :].sum(),
        "means instead of sums: this compares the average frequency above with the average of all":
            lambda d, f: power(d)[f + 1 :].mean() / power(d).mean(),
        "natural logarithms have no place here: decibels are powers of ten": lambda d, f: d.exp()[f + 1 :].sum() / d.exp().sum(),
    }, within=(0, 1))
    return "decibels back to power, then sums. A picture's power sits at the bottom; what looks sharp is a very small share of it."


@exercise
def at_least_one(function: Callable) -> str:
    """From the share of decent samples and a number of tries to the chance that at least one is decent: 1 - (1 - share) ** n."""
    questions = {f"share {share}, {n} tries": (share, n) for share, n in ((0.02, 50), (0.5, 1), (0.1, 10), (0.001, 64))}
    compare(function, questions, lambda share, n: 1 - (1 - share) ** n, {
        "this is how many decent ones to expect; it goes above 1, a chance cannot": lambda share, n: share * n,
        "this is how many decent ones to expect, capped: 50 tries at 2 % are not certain": lambda share, n: min(share * n, 1.0),
        "this is the chance that every one is decent": lambda share, n: share**n,
        "this is the chance that none is decent; asked for is the rest": lambda share, n: (1 - share) ** n,
        "this is 1 minus the chance that all are decent; ask for the chance that none is": lambda share, n: 1 - share**n,
        "near, for small shares: but e ** (-share n) is an approximation": lambda share, n: 1 - math.exp(-share * n),
    }, within=(0, 1))
    return "with 50 tries, two in a hundred are enough to show a decent one two times in three. So the best of 50 says little about the 49."


# -- notebook 07 -------------------------------------------------------------------------------------------------------
@exercise
def frechet_1d(function: Callable) -> str:
    """From two means and two standard deviations to the Fréchet distance of the two Gaussians."""
    def right(m: float, s: float, n: float, r: float) -> float:
        return (m - n) ** 2 + (s - r) ** 2

    questions = {f"means {a[0]} and {a[2]}, deviations {a[1]} and {a[3]}": a
                 for a in ((0.0, 1.0, 2.0, 1.0), (1.0, 3.0, 1.0, 0.5), (-0.5, 0.2, 1.5, 2.0))}
    compare(function, questions, right, {
        "this is its root; the Fréchet distance of the literature is left squared": lambda m, s, n, r: right(m, s, n, r) ** 0.5,
        "the deviations differ too: a narrow heap is not a wide one": lambda m, s, n, r: (m - n) ** 2,
        "the means differ too": lambda m, s, n, r: (s - r) ** 2,
        "it is the deviations that are subtracted, not the variances": lambda m, s, n, r: (m - n) ** 2 + (s**2 - r**2) ** 2,
        "σ² + r² - 2 σ r, where σ r is the root of the product of the variances: a 2 is missing":
            lambda m, s, n, r: (m - n) ** 2 + s**2 + r**2 - s * r,
        "these are absolute differences; both are squared": lambda m, s, n, r: abs(m - n) + abs(s - r),
        "in one number, the trace of σ² + r² alone is too much: take 2 σ r off": lambda m, s, n, r: (m - n) ** 2 + s**2 + r**2,
    })
    return "the squared distance of the means plus that of the deviations: two heaps are alike if they lie alike and spread alike."


@exercise
def precision(function: Callable) -> str:
    """From samples (N, F), real ones (M, F) and their radii (M,) to the share of samples inside at least one ball."""
    def right(x: Tensor, real: Tensor, radii: Tensor) -> float:
        return (torch.cdist(x, real) <= radii).any(dim=1).double().mean()

    questions = {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        real = torch.randn(20, 2, generator=generator, dtype=torch.float64)
        x = torch.randn(15, 2, generator=generator, dtype=torch.float64) * 1.5 + 0.5 * seed
        questions[f"question {seed + 1}"] = (x, real, torch.cdist(real, real).kthvalue(3, dim=1).values)
    compare(function, questions, right, {
        "one ball is enough: any, not all": lambda x, real, radii: (torch.cdist(x, real) <= radii).all(dim=1).double().mean(),
        "this counts pairs; count each sample once, if it lies in any ball":
            lambda x, real, radii: (torch.cdist(x, real) <= radii).double().mean(),
        "this is the share of the balls that hold a sample; asked for is the share of the samples":
            lambda x, real, radii: (torch.cdist(x, real) <= radii).any(dim=0).double().mean(),
        "this is the share outside": lambda x, real, radii: 1 - right(x, real, radii),
        "every real one has its own radius; this takes the mean of all": lambda x, real, radii: right(x, real, 0 * radii + radii.mean()),
        "every real one has its own radius; this takes the largest for all": lambda x, real, radii: right(x, real, 0 * radii + radii.max()),
        "only the ball of the nearest real one is looked at, but a wider one further off may hold the sample":
            lambda x, real, radii: (torch.cdist(x, real).min(1).values <= radii[torch.cdist(x, real).argmin(1)]).double().mean(),
    }, within=(0, 1))
    return "a sample counts if it lies as near to some real picture as that one's own neighbours do."
EXERCISES = (power_above, at_least_one, frechet_1d, precision)
