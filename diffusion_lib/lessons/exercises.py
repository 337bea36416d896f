"""The exercises' checkers: `check("recover_picture", my_function)` prints one line.

A checker asks the learner's function a few questions and compares the answers with those of a right
one. If they differ, it tries the *typical slips* (a root forgotten, ᾱ and 1 - ᾱ swapped, off by
one), most of them the right function with other options, and names the one that fits. Every checker
is one function, named as its exercise: it returns what has been shown, or raises NotYet.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.diffusion import GaussianDiffusion
from ..core.schedules import cosine_beta_schedule, linear_beta_schedule
from .checker import bar, check, compare, exercise, pictures
from .planted import PROGRAMS

__all__ = ["check"]  # with this import the exercises are among its checkers


@exercise
def recover_picture(function: Callable) -> str:
    """From x_t, ᾱ and the noise back to x_0: DDPM equation 4, solved for the picture."""
    def right(x: Tensor, a: Tensor, e: Tensor, noise=0.5, picture=0.5, sign=1) -> Tensor:
        return (x - sign * (1 - a) ** noise * e) / a**picture

    questions = {}
    for seed, a in enumerate((0.9, 0.3, 0.05)):
        x_0, noise = pictures(seed)
        questions[f"ᾱ = {a}"] = (a**0.5 * x_0 + (1 - a) ** 0.5 * noise, bar(a), noise)
    compare(function, questions, right, {
        "the root over 1 - ᾱ is forgotten: the noise in x_t is √(1-ᾱ) ε": {"noise": 1},
        "the root over ᾱ is forgotten: the picture in x_t is √ᾱ x_0": {"picture": 1},
        "ᾱ and 1 - ᾱ are swapped: ᾱ belongs to the picture": lambda x, a, e: right(x, 1 - a, e),
        "the noise is gone, but the picture is still too weak: divide by √ᾱ": {"picture": 0},
        "the sign of the noise: it was added, so take it away": {"sign": -1},
        "the noise is taken away whole; x_t holds only √(1-ᾱ) of it": {"noise": 0},
        "both roots are forgotten: the factors are √ᾱ and √(1-ᾱ)": {"noise": 1, "picture": 1},
        "the factor √ᾱ is divided out of x_t alone; take the noise away first, then divide":
            lambda x, a, e: x / a**0.5 - (1 - a) ** 0.5 * e,
        "multiplied by √ᾱ; it was multiplied on the way there, so divide":
            lambda x, a, e: (x - (1 - a) ** 0.5 * e) * a**0.5,
        "this is x_t, unchanged": lambda x, a, e: x,
    })
    return "who knows the noise knows the picture: it is enough to ask a network for the noise."


@exercise
def jump_between(function: Callable) -> str:
    """From x_s, ᾱ_s, ᾱ_t and noise to x_t: √(ᾱ_t / ᾱ_s) x_s + √(1 - ᾱ_t / ᾱ_s) ε (s before t)."""
    def right(x: Tensor, s: Tensor, t: Tensor, e: Tensor, ratio=lambda s, t: t / s,
              picture=0.5, noise=0.5, sign=1) -> Tensor:
        a = ratio(s, t)
        return a**picture * x + sign * (1 - a) ** noise * e

    def rates(rate: Callable, x: Tensor, s: Tensor, t: Tensor, e: Tensor) -> Tensor:
        return (t / s) ** 0.5 * x + rate(s, t) * e

    questions = {f"ᾱ from {s} to {t}": (*pictures(seed)[:1], bar(s), bar(t), pictures(seed)[1])
                 for seed, (s, t) in enumerate(((1.0, 0.6), (0.9, 0.5), (0.4, 0.01)))}
    compare(function, questions, right, {
        "this jumps from the clean picture; x_s has taken s steps already: use the ratio ᾱ_t / ᾱ_s":
            {"ratio": lambda s, t: t},
        "the roots are forgotten: the factors are √(ᾱ_t / ᾱ_s) and √(1 - ᾱ_t / ᾱ_s)":
            {"picture": 1, "noise": 1},
        "the root over the noise's variance is forgotten": {"noise": 1},
        "the root over the factor on x_s is forgotten": {"picture": 1},
        "the ratio is upside down: ᾱ_t is the smaller one": {"ratio": lambda s, t: s / t},
        "the variance of the new noise is 1 - ᾱ_t / ᾱ_s, not 1 - ᾱ_t: some noise is in already":
            lambda *q: rates(lambda s, t: (1 - t) ** 0.5, *q),
        "the variance of the new noise is not ᾱ_s - ᾱ_t: x_s shrinks, and its noise with it":
            lambda *q: rates(lambda s, t: (s - t) ** 0.5, *q),
        "noise rates do not subtract; variances would, had x_s not shrunk":
            lambda *q: rates(lambda s, t: (1 - t) ** 0.5 - (1 - s) ** 0.5, *q),
        "the two factors are swapped: the large one belongs to x_s":
            lambda x, s, t, e: right(e, s, t, x),
        "the noise is added whole; its factor is √(1 - ᾱ_t / ᾱ_s)":
            lambda *q: rates(lambda s, t: 1, *q),
        "the new noise is missing": lambda *q: rates(lambda s, t: 0, *q),
        "the noise is taken away; this is the way forward: add it": {"sign": -1},
        "this is x_s, unchanged": lambda x, s, t, e: x,
    })
    return "several steps are one step, with the ratio of the two ᾱ in place of α."


@exercise
def first_mostly_noise(function: Callable) -> str:
    """From betas (T,) to the first t, counted from 0, at which SNR = ᾱ / (1 - ᾱ) is below 1."""
    def kept(betas: Tensor) -> Tensor:
        return torch.cumprod(1 - betas, dim=0)

    def right(betas: Tensor, limit=0.5, off=0, left=kept) -> int:
        return int((left(betas) < limit).int().argmax()) + off

    steep = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
    questions = {"the linear schedule": (linear_beta_schedule(1000),),
                 "the cosine schedule": (cosine_beta_schedule(400),),
                 "betas that begin with 0.6": (steep,)}
    compare(function, questions, right, {
        "off by one: this is the paper's t, which counts from 1; the code's from 0": {"off": 1},
        "off by one: at this t the picture is still the stronger; take the next": {"off": -1},
        "this looks at one step's α; the SNR needs ᾱ, the product of all steps so far":
            {"left": lambda betas: 1 - betas},
        "SNR < 1 means ᾱ < 1 - ᾱ; you seem to ask for √ᾱ < 1/2": {"limit": 0.25},
        "SNR < 1 means ᾱ < 1 - ᾱ; you seem to ask for ᾱ < 1/10": {"limit": 0.1},
        "this is how many timesteps are mostly noise; asked for is the first of them":
            lambda betas: int((kept(betas) < 0.5).sum()),
        "the betas are added up; each step multiplies: ᾱ is the product of the (1 - beta)":
            lambda betas: int((betas.cumsum(0) > 0.5).int().argmax()),
        "always t = 0: is the comparison the wrong way round, or is ᾱ compared with 1?":
            lambda betas: 0,
    })
    return "SNR < 1 is the same as ᾱ < 1/2, and the first such t is found by counting from 0."


@exercise
def straight_log_snr(function: Callable) -> str:
    """From T, first and last log-SNR to the betas (T,) whose log-SNR falls in a straight line."""
    def ratio(a: Tensor) -> Tensor:
        return a / torch.cat([torch.ones_like(a[:1]), a[:-1]])

    def right(T: int, first: float, last: float, line=torch.linspace, snr=torch.exp,
              end=lambda a: 1 - ratio(a)) -> Tensor:
        r = snr(line(first, last, T, dtype=torch.float64))
        return end(r / (1 + r))

    def whole(T: int, first: float, last: float, **options) -> Tensor:
        """One more point than asked for, the first taken as the clean picture."""
        return right(T + 1, first, last, end=lambda a: (1 - ratio(a))[1:], **options)

    def no_log(T: int, first: float, last: float) -> Tensor:
        return right(T, math.exp(first), math.exp(last), snr=lambda r: r)

    questions = {"T = 40, from 6 to -6": (40, 6.0, -6.0), "T = 9, from 3 to -8": (9, 3.0, -8.0)}
    compare(function, questions, right, {
        "this is ᾱ; asked for are the betas that lead to it": {"end": lambda a: a},
        "these are the alphas; beta = 1 - alpha": {"end": ratio},
        "this is 1 - ᾱ, the noise of all steps so far; a beta is that of one":
            {"end": lambda a: 1 - a},
        "one beta is missing, the first: before t = 0 comes the clean picture, with ᾱ = 1":
            {"end": lambda a: 1 - a[1:] / a[:-1]},
        "at t = 0 you took the last ᾱ (roll or index -1); before t = 0 ᾱ is 1":
            {"end": lambda a: 1 - a / a.roll(1)},
        "upside down: ᾱ_t is divided by the ᾱ before it": {"end": lambda a: 1 - 1 / ratio(a)},
        "a difference of neighbours; each step multiplies: a ratio":
            {"end": lambda a: torch.cat([torch.ones_like(a[:1]), a[:-1]]) - a},
        "the line begins one step before t = 0; asked for is a log-SNR of `first` at t = 0": whole,
        "the SNR itself falls in a straight line; its logarithm should": no_log,
        "the logarithm is the natural one: SNR = exp(log-SNR), not a power of ten":
            {"snr": lambda r: 10**r},
        "the line runs the wrong way: from `first`, at t = 0, down to `last`":
            lambda T, first, last: right(T, last, first),
        "ᾱ is SNR / (1 + SNR); 1 / (1 + SNR) is the noise's part": {"snr": lambda r: (-r).exp()},
    }, within=(0, 1))
    return "a schedule is any falling curve: log-SNR to SNR, to ᾱ = SNR / (1 + SNR), to betas."


@exercise
def pixels_seen(function: Callable) -> str:
    """From layers [(window, stride), …] to how many pixels wide one number at their end looks."""
    def right(layers: list, reach=lambda window, step: (window - 1) * step, wide=1, early=False):
        step = 1
        for window, stride in layers:
            step *= stride if early else 1
            wide += reach(window, step)
            step *= 1 if early else stride
        return wide

    questions = {"two 3 × 3 layers": ([(3, 1), (3, 1)],),
                 "a halving, then 3 × 3 and 5 × 5": ([(3, 2), (3, 1), (5, 1)],),
                 "two halvings and a 1 × 1": ([(4, 2), (3, 2), (1, 1), (3, 1)],),
                 "folded, then 3 × 3 twice": ([(2, 2), (3, 1), (3, 1)],)}
    compare(function, questions, right, {
        "the stride is not used: after a halving, one step on the map is two pixels":
            {"reach": lambda window, step: window - 1},
        "a layer's own stride counts only for the layers after it": {"early": True},
        "a window of 3 adds 2 pixels, not 3: its middle is seen already":
            {"reach": lambda window, step: window * step},
        "without any layer, one pixel is seen: begin with 1, not 0": {"wide": 0},
        "the widths are multiplied; each window adds (width - 1) steps":
            lambda layers: math.prod(width for width, _ in layers),
        "this is how far to one side; asked for is the whole width":
            lambda layers: (right(layers) - 1) // 2,
        "this is how many pixels one step on the last map is; asked for is how many are seen":
            lambda layers: math.prod(stride for _, stride in layers),
        "the strides are added; each halving doubles what is one step": lambda layers: 1 + sum(
            (width - 1) * (1 + sum(stride - 1 for _, stride in layers[:i]))
            for i, (width, _) in enumerate(layers)),
        "only the last layer counts here; what it sees has seen more already":
            lambda layers: layers[-1][0],
        "the wrong end first: the first layer lies next to the picture":
            lambda layers: right(layers[::-1]),
    })
    return "each window adds (width - 1) steps, and each stride makes all later steps longer."


@exercise
def multi_head(function: Callable) -> str:
    """From q, k, v (B, N, c) and a number of heads to attention head by head, (B, N, c)."""
    def split(x: Tensor, heads: int) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, N, c / heads)

    def join(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def right(q: Tensor, k: Tensor, v: Tensor, heads: int, split=split, join=join, over=-1,
              scale=lambda c, d: d**-0.5, softmax=torch.softmax) -> Tensor:
        c, (q, k, v) = q.shape[2], (split(x, heads) for x in (q, k, v))
        return join(softmax(q @ k.transpose(2, 3) * scale(c, q.shape[3]), over) @ v)

    def every_other(x: Tensor, heads: int) -> Tensor:
        return x.unflatten(2, (-1, heads)).permute(0, 3, 1, 2)

    def cut_rows(x: Tensor, heads: int) -> Tensor:
        return x.reshape(len(x), heads, x.shape[1], -1)

    def shape(x: Tensor, heads: int) -> Tensor:
        """Heads last, as if each head were a pixel of its own."""
        return x.unflatten(2, (heads, -1))

    questions = {}
    for seed, heads in enumerate((2, 4, 1)):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(3, 2, 6, 8, generator=generator) * 2
        questions[f"{heads} heads" if heads > 1 else "one head"] = (*rows, heads)
    compare(function, questions, right, {
        "this is attention with one head: cut the channels into heads first":
            lambda q, k, v, heads: right(q, k, v, 1),
        "each head has c / heads channels, so divide by √(c / heads), not √c":
            {"scale": lambda c, d: c**-0.5},
        "the root is forgotten: divide by √(c / heads)": {"scale": lambda c, d: 1 / d},
        "the division by √(c / heads) is missing": {"scale": lambda c, d: 1},
        "multiplied by √(c / heads); divide by it": {"scale": lambda c, d: d**0.5},
        "the softmax runs over the pixels that ask; those that are asked are in the last dim":
            {"over": -2},
        "a head is a run of neighbouring channels, not every other one":
            {"split": every_other, "join": lambda x: x.permute(0, 2, 3, 1).flatten(2)},
        "the cut mixes pixels and channels: unflatten the channels, then move the heads forward":
            {"split": cut_rows, "join": lambda x: x.reshape(len(x), x.shape[2], -1)},
        "the heads are joined in the wrong order: move them back beside their channels first":
            {"join": lambda x: x.reshape(len(x), x.shape[2], -1)},
        "every head attends to the other heads of its own pixel: move the heads before the pixels":
            {"split": shape, "join": lambda x: x.flatten(2)},
        "the softmax is missing": {"softmax": lambda x, over: x},
        "this is v, unchanged": lambda q, k, v, heads: v,
        "k and q have changed places": lambda q, k, v, heads: right(k, q, v, heads),
    })
    return "several heads look at several things at once, for the price of one."


@exercise
def planted_bug(function: Callable) -> str:
    """From the name of a program, "A" to "E", to the number of the slip in it, 1 to 5."""
    symptoms = {
        "A": "its loss is the right program's, and there are cats; what do their colours lack?",
        "B": "noise is left in its samples, so it never learnt to name noise pixel by pixel",
        "C": "its loss is the right program's, so the slip lies in the sampler; its cats are "
             "smooth and alike, as if too little were left to chance",
        "D": "there are cats, but the loss is higher: with this slip x_t holds less noise than "
             "the sampler believes",
        "E": "its loss is far too high: the steps do not go where this batch says",
    }
    for program, number in PROGRAMS.items():
        compare(function, {f"program {program}": (program,)}, lambda p: PROGRAMS[p], {
            f"program {program}, {wrong}: {symptoms[program]}": lambda p, wrong=wrong: wrong
            for wrong in range(1, 6) if wrong != number}, within=(1, 5))
    return "the loss tells slips of the training from those of the sampler; the samples tell which."


@exercise
def copied_share(function: Callable) -> str:
    """From samples (N, 3, H, W) and the M >= 2 pictures trained on to the share of samples whose
    nearest one is less than a third as far as their second nearest (Yoon et al. 2023).
    """
    def right(x: Tensor, known: Tensor, part=1 / 3, second=1, power=1.0, over=None) -> Tensor:
        far = torch.cdist(x.flatten(1).double(), known.flatten(1).double()) ** power
        near = (far if over is None else far.T).sort(dim=1).values
        return (near[:, 0] < part * near[:, second]).double().mean()

    questions = {}
    for seed, copies in enumerate((3, 6, 0)):
        g = torch.Generator().manual_seed(seed)
        known, x = (torch.randn(n, 3, 4, 4, generator=g) for n in (30, 12))
        x[:copies] = known[:copies] + 0.05 * x[:copies]
        known[21] = known[20] + 0.1 * known[21]  # a picture that is there twice
        x[9:11] = (known[20] + known[21]) / 2
        x[11] = 0.68 * known[22] + 0.32 * known[23]  # between two: no copy of either
        questions[f"{copies} copies among 12"] = (x, known)
    compare(function, questions, right, {
        "this is how many; asked for is the share": lambda *q: right(*q) * len(q[0]),
        "this is the share of those that are no copies": lambda *q: 1 - right(*q),
        "the nearest must be below a third of the second nearest, not below all of it": {"part": 1},
        "these are squared distances: a third of them is less than the root of a third":
            {"power": 2.0},
        "compare with the second nearest, not with the farthest": {"second": -1},
        "compare with the second nearest; this is the third": {"second": 2},
        "the wrong way round: this asks for each known picture whether a sample is its copy":
            {"over": "known"},
        "no sample is ever a copy: is the nearest compared with itself?":
            lambda x, known: torch.zeros((), dtype=torch.float64),
    }, within=(0, 1))
    return "no threshold in pixels is needed: how near is near, the other pictures tell."


def guess(x: Tensor, a: Tensor) -> Tensor:
    """A guesser of x̂_0 from x at ᾱ, for the samplers that are asked for."""
    return 1.5 * torch.tanh(x) + 0.1 * a.to(x.dtype)


@exercise
def eta_sampler(function: Callable) -> str:
    """From a guesser of x̂_0, x_T, rising ᾱ, η, noises to a picture: DDIM equations 12, 16."""
    def fresh(now: Tensor, later: Tensor) -> Tensor:
        return ((1 - later) / (1 - now) * (1 - now / later)).sqrt()

    def right(guess, x, bars, eta, noises, clip=True, early=True, sigma=lambda eta, s: eta * s,
              spread=fresh, room=True, added=lambda s: s, at=0, last=True) -> Tensor:
        pairs = list(zip(bars, bars[1:], strict=False))
        for i, (now, later) in enumerate(pairs if last else pairs[:-1]):
            said = guess(x, now + at * (later - now))
            x_0 = said.clamp(-1, 1) if clip else said
            noise = (x - now.sqrt() * (x_0 if early else said)) / (1 - now).sqrt()
            s = sigma(eta, spread(now, later))
            rest = (1 - later - s**2 if room else 1 - later).clamp(min=0).sqrt()
            x = later.sqrt() * x_0 + rest * noise + added(s) * noises[i]
        return x

    questions = {}
    for seed, eta in enumerate((0.0, 0.4, 1.0)):
        noises = [pictures(10 * seed + i)[1] for i in range(3)]
        bars = torch.tensor([0.05, 0.3, 0.8, 1.0], dtype=torch.float64)
        questions[f"η = {eta}"] = (guess, pictures(seed)[1], bars, eta, noises)
    compare(function, questions, right, {
        "the guess is not clipped to [-1, 1]": {"clip": False},
        "the noise in x_t is worked out from the guess before it was clipped": {"early": False},
        "η multiplies σ, not its square": {"sigma": lambda eta, s: eta**0.5 * s},
        "no room is made for the fresh noise: the old one gets √(1 - later - σ²)": {"room": False},
        "the fresh noise is multiplied by σ², the variance; multiply by σ":
            {"added": lambda s: s**2},
        "room is made for the fresh noise, but it is never added": {"added": lambda s: 0},
        "η is not used; this is DDIM at any η": {"sigma": lambda eta, s: 0 * s},
        "η is not used; this is DDPM at any η": {"sigma": lambda eta, s: s},
        "σ lacks the factor √((1 - later) / (1 - now)), and so there is noise in the last step":
            {"spread": lambda now, later: (1 - now / later).sqrt()},
        "σ lacks the factor √(1 - now / later)":
            {"spread": lambda now, later: ((1 - later) / (1 - now)).sqrt()},
        "σ lacks its root: what stands there is σ²": {"spread": lambda a, b: fresh(a, b) ** 2},
        "the guesser is asked with the level of where you go; ask with that of where you are":
            {"at": 1},
        "the last step, to ᾱ = 1, is missing": {"last": False},
        "every step has its own noise; this uses the first one each time":
            lambda guess, x, bars, eta, noises: right(guess, x, bars, eta, noises[:1] * 3),
    })
    return "one number leads from DDIM (η = 0) to DDPM (η = 1)."


@exercise
def step_variance(function: Callable) -> str:
    """From ᾱ (T,) and t to the variance of DDPM's step, equation 7; 0 at t = 0."""
    def before(a: Tensor, t: int) -> Tensor:
        return a[t - 1] if t else torch.ones((), dtype=a.dtype)

    def beta(a: Tensor, t: int) -> Tensor:
        return 1 - a[t] / before(a, t)

    def right(a: Tensor, t: int) -> float:
        return float((1 - before(a, t)) / (1 - a[t]) * beta(a, t))

    a = GaussianDiffusion(linear_beta_schedule(1000)).alphas_cumprod
    compare(function, {f"t = {t}": (a, t) for t in (0, 1, 500, 999)}, right, {
        "noise on the last step: at t = 0 alphas_cumprod[t - 1] is the last of the row":
            lambda a, t: (1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1]),
        "this is beta_t: multiply by (1 - ᾱ_before) / (1 - ᾱ_t)": beta,
        "this is beta_t, with 0 at the end: multiply by (1 - ᾱ_before) / (1 - ᾱ_t)":
            lambda a, t: beta(a, t) if t else 0,
        "this is the standard deviation; square it": lambda a, t: right(a, t) ** 0.5,
        "beta_t is missing": lambda a, t: (1 - before(a, t)) / (1 - a[t]),
        "1 - ᾱ_t is the noise of all steps; beta_t that of one": lambda a, t: 1 - before(a, t),
    }, within=(0, 1))
    return "the noise that goes in is a little less than beta_t, and none at all at the last step."


@exercise
def power_above(function: Callable) -> str:
    """From a spectrum in decibels and a frequency to the share of the power above it."""
    def right(decibels: Tensor, limit: int, start=1, root=10, power=lambda d: 10 ** (d / 10),
              waves=1):
        p = torch.arange(len(decibels)) ** waves * power(decibels * 10 / root)
        return p[limit + start :].sum() / p.sum()

    decibels = torch.tensor([30, 24, 17, 12, 5, 2, -3, -9], dtype=torch.float64)
    compare(function, {f"above {limit}": (decibels, limit) for limit in (0, 2, 5)}, right, {
        "decibels are logarithms and cannot be added up: first 10 ** (decibels / 10)":
            {"power": lambda d: d},
        "an entry is the mean over about 2πf waves: multiply entry f by f before you add":
            {"waves": 0},
        "above means without the limit itself: start at limit + 1": {"start": 0},
        "this is the share below and at the limit; asked for is the rest":
            lambda d, limit: 1 - right(d, limit),
        "a power is 10 ** (decibels / 10); / 20 is for amplitudes": {"root": 20},
        "this is the power above the limit; divide by the power of all": lambda d, limit: (
            torch.arange(len(d)) * 10 ** (d / 10))[limit + 1 :].sum(),
        "natural logarithms have no place here: decibels are powers of ten": {"power": torch.exp},
    }, within=(0, 1))
    return "decibels back to power, each times the number of its waves, then sums."


@exercise
def at_least_one(function: Callable) -> str:
    """From the share of decent samples and n tries to the chance of a decent one: 1 - (1 - p)^n."""
    tries = ((0.02, 50), (0.5, 1), (0.1, 10), (0.001, 64))
    questions = {f"share {share}, {n} tries": (share, n) for share, n in tries}
    compare(function, questions, lambda p, n: 1 - (1 - p) ** n, {
        "this is how many decent ones to expect; a chance does not go above 1": lambda p, n: p * n,
        "this is the chance that every one is decent": lambda p, n: p**n,
        "this is the chance that none is decent; asked for is the rest": lambda p, n: (1 - p) ** n,
        "this is 1 minus the chance that all are decent": lambda p, n: 1 - p**n,
        "near, but e ** (-share n) is an approximation": lambda p, n: 1 - math.exp(-p * n),
    }, within=(0, 1))
    return "with 50 tries, two in a hundred are enough to show a decent one two times in three."


@exercise
def frechet_1d(function: Callable) -> str:
    """From two means and two standard deviations to the Fréchet distance of the two Gaussians."""
    def right(m: float, s: float, n: float, r: float, means=1, power=1, cross=2) -> float:
        return means * (m - n) ** 2 + s ** (2 * power) + r ** (2 * power) - cross * (s * r) ** power

    heaps = ((0.0, 1.0, 2.0, 1.0), (1.0, 3.0, 1.0, 0.5), (-0.5, 0.2, 1.5, 2.0))
    questions = {f"means {m} and {n}, deviations {s} and {r}": (m, s, n, r) for m, s, n, r in heaps}
    compare(function, questions, right, {
        "this is its root; the Fréchet distance is left squared": lambda *q: right(*q) ** 0.5,
        "the deviations differ too: a narrow heap is not a wide one": lambda m, s, n, r: (m - n)**2,
        "the means differ too": {"means": 0},
        "it is the deviations that are subtracted, not the variances": {"power": 2},
        "σ² + r² - 2 σ r: a 2 is missing": {"cross": 1},
        "absolute differences; both are squared": lambda m, s, n, r: abs(m - n) + abs(s - r),
        "the difference of the means is not squared":
            lambda m, s, n, r: abs(m - n) + (s - r) ** 2,
        "the difference of the deviations is not squared":
            lambda m, s, n, r: (m - n) ** 2 + abs(s - r),
        "the deviations are added; equal ones have distance 0":
            lambda m, s, n, r: (m - n) ** 2 + (s + r) ** 2,
        "in one number, the trace of σ² + r² alone is too much: take 2 σ r off": {"cross": 0},
    })
    return "the squared distance of the means plus that of the deviations."


@exercise
def suspicious(function: Callable) -> str:
    """From samples (N, F), training (M, F) and held-out (K, F) pictures to the share of samples
    nearer to their nearest training picture than 99 of 100 held-out ones are to theirs.
    """
    def nearest(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y).min(dim=1).values

    def right(x: Tensor, train: Tensor, held: Tensor, near=nearest, part=0.01) -> Tensor:
        return (near(x, train) < near(held, train).quantile(part)).double().mean()

    def against(x: Tensor, train: Tensor, limit: Tensor) -> Tensor:
        return (nearest(x, train) < limit).double().mean()

    questions = {}
    for seed, copies in enumerate((3, 8, 0)):
        g = torch.Generator().manual_seed(seed)
        train, held, x = (torch.randn(n, 3, generator=g, dtype=torch.float64)
                          for n in (40, 400, 20))
        x[:copies] = train[:copies] + 0.001 * x[:copies]
        x[-4:] *= 3
        x[10:12] = held[:2] + 0.001 * x[10:12]
        x[15] = train.mean(dim=0)  # far from no training picture
        limits = nearest(held, train).quantile(torch.tensor([0, 0.01, 0.02, 0.05]).double())
        for i in range(3):  # between the limits of the slips below
            x[12 + i] = train[12 + i] + limits[i : i + 2].mean() * x[12 + i] / x[12 + i].norm()
        questions[f"{copies} copies among 20"] = (x, train, held)
    compare(function, questions, right, {
        "the nearest counts: take the smallest distance to a training picture, not the mean":
            {"near": lambda x, y: torch.cdist(x, y).mean(dim=1)},
        "this takes the farthest training picture; take the nearest":
            {"near": lambda x, y: torch.cdist(x, y).max(dim=1).values},
        "the limit is the quantile 0.01 of the held-out distances, not 0.99": {"part": 0.99},
        "the limit is the quantile 0.01, not the median": {"part": 0.5},
        "the limit is the quantile 0.01: one new photograph in a hundred lies below it, not two":
            {"part": 0.02},
        "the limit is the quantile 0.01: one new photograph in a hundred lies below it, not five":
            {"part": 0.05},
        "the limit is the quantile 0.01, not the smallest of the held-out distances": {"part": 0},
        "this is the share of those that are not suspicious": lambda *q: 1 - right(*q),
        "this is how many; asked for is the share": lambda *q: right(*q) * len(q[0]),
        "the wrong way round: this asks for each training picture whether a sample lies near":
            lambda x, train, held: against(train, x, nearest(held, train).quantile(0.01)),
        "this asks how near the samples lie to held-out pictures; copies lie near training ones":
            lambda x, train, held: against(x, held, nearest(held, train).quantile(0.01)),
        "a training picture is its own nearest, at distance 0; the limit comes from held-out ones":
            lambda x, train, held: against(x, train, nearest(train, train).quantile(0.01)),
        "the limit comes from all distances; it comes from the nearest of each held-out picture":
            lambda x, train, held: against(x, train, torch.cdist(held, train).quantile(0.01)),
        "the limit comes from the samples' own distances; then one in a hundred is always below it":
            lambda x, train, held: against(x, train, nearest(x, train).quantile(0.01)),
    }, within=(0, 1))
    return "an honest model gets about 1 %: that is how many new photographs look like copies."


@exercise
def away_from(function: Callable) -> str:
    """From the answers u (no class) and n (an unwanted class) and s to u - s (n - u)."""
    def right(u: Tensor, n: Tensor, s: float, sign=-1, base=lambda u, n: u) -> Tensor:
        return base(u, n) + sign * s * (n - u)

    questions = {f"s = {s}": (*pictures(seed), s) for seed, s in enumerate((0.5, 1.0, 4.0))}
    compare(function, questions, right, {
        "this goes towards the unwanted class: it is guidance; turn the push round": {"sign": 1},
        "the push starts at the unwanted class; start at u, the answer without a class":
            {"base": lambda u, n: n},
        "with s = 0 the answer must be u; you still add n - u": lambda u, n, s: u - (1 + s) * (n-u),
        "take away the difference to u, not all of the unwanted answer": lambda u, n, s: u - s * n,
        "an average has no push: u must keep its whole weight and more":
            lambda u, n, s: (1 - s) * u - s * n,
        "this is u, whatever s": lambda u, n, s: u,
    })
    return "guidance with the push turned round: away from a class, not towards one."


@exercise
def guided_answer(function: Callable) -> str:
    """From a network, x_t, t, labels, the label of "no class" and s to u + s (c - u)."""
    def network(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        factor = (1 + labels).reshape(-1, 1, 1, 1)
        return factor * x_t.tanh() + 0.01 * t.reshape(-1, 1, 1, 1) * factor.sqrt()

    def right(network: Callable, x: Tensor, t: Tensor, labels: Tensor, null: int, s: float,
              mix=lambda c, u, s: u + s * (c - u), nothing=torch.full_like) -> Tensor:
        return mix(network(x, t, labels), network(x, t, nothing(labels, null)), s)

    questions = {f"s = {s}": (network, pictures(seed)[0], torch.tensor([40, 700]),
                              torch.tensor([2, 1]), 5, s) for seed, s in enumerate((0.5, 3.0, 7.5))}
    compare(function, questions, right, {
        "this is the other convention, c + s (c - u); asked for is u + s (c - u)":
            {"mix": lambda c, u, s: c + s * (c - u)},
        "c and u are swapped: this goes away from what was asked for":
            {"mix": lambda c, u, s: c + s * (u - c)},
        "the push is missing its start, u": {"mix": lambda c, u, s: s * (c - u)},
        "push by the difference c - u, not by all of c": {"mix": lambda c, u, s: u + s * c},
        "this is the answer for the class alone; where is the one without a class?":
            {"mix": lambda c, u, s: c},
        "this is the answer without a class, whatever s": {"mix": lambda c, u, s: u},
        "for \"no class\" ask with null_label for every picture, not with zeros":
            {"nothing": lambda labels, null: torch.zeros_like(labels)},
    })
    return "two questions, one line: the same for any network that knows what \"no class\" is."


@exercise
def two_wishes(function: Callable) -> str:
    """From the answers u, first, second and s to u + s (first - u) + s (second - u)."""
    def right(u: Tensor, a: Tensor, b: Tensor, s: float, start=lambda u, a, b: u,
              push=lambda u, a, b: a + b - 2 * u) -> Tensor:
        return start(u, a, b) + s * push(u, a, b)

    questions = {f"s = {s}": (*pictures(seed), pictures(seed + 10)[0], s)
                 for seed, s in enumerate((0.5, 2.0, 4.0))}
    compare(function, questions, right, {
        "u is taken away only once; each wish has a difference of its own, c - u":
            {"push": lambda u, a, b: a + b - u},
        "this is the mean of the two pushes; add them": {"push": lambda u, a, b: (a + b) / 2 - u},
        "each push has its own u to start from; u stands in the sum once":
            {"start": lambda u, a, b: 2 * u},
        "the push is missing its start, u": {"start": lambda u, a, b: 0 * u},
        "this starts at the first answer; start at u": {"start": lambda u, a, b: a},
        "only the first wish is heard": {"push": lambda u, a, b: a - u},
        "only the second wish is heard; each push starts at u, not at the other answer":
            {"push": lambda u, a, b: b - u},
        "push by the differences c - u, not by all of the two answers":
            {"push": lambda u, a, b: a + b},
        "the pushes are turned round: this goes away from both wishes":
            {"push": lambda u, a, b: 2 * u - a - b},
        "this is u, whatever s": {"push": lambda u, a, b: 0 * u},
    })
    return "two pushes from one u: nobody has to have seen both wishes together."


@exercise
def cross_attention(function: Callable) -> str:
    """From pixels (B, N, c), words (B, L, D), a mask (B, L) and three matrices to what each pixel
    reads, (B, N, d).
    """
    def right(x: Tensor, states: Tensor, mask: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor,
              scale=lambda d: d**-0.5, hide=lambda scores, seen: scores.masked_fill(
                  ~seen[:, None], float("-inf")), share=lambda z: z.softmax(2)) -> Tensor:
        q, k, v = x @ w_q, states @ w_k, states @ w_v
        return share(hide(q @ k.transpose(1, 2) * scale(q.shape[2]), mask)) @ v

    def nobody(scores: Tensor, seen: Tensor) -> Tensor:
        return scores

    def after(x: Tensor, states: Tensor, mask: Tensor, w_q: Tensor, w_k: Tensor,
              w_v: Tensor) -> Tensor:
        scores = x @ w_q @ (states @ w_k).transpose(1, 2) * w_q.shape[1]**-0.5
        return scores.softmax(2) * mask[:, None] @ (states @ w_v)

    questions = {}
    for seed, words in enumerate((3, 4, 2)):
        dice = torch.Generator().manual_seed(seed)
        shapes = ((2, 7, 6), (2, 5, 8), (6, 4), (8, 4), (8, 4))
        x, states, *matrices = (torch.randn(shape, generator=dice) for shape in shapes)
        mask = torch.arange(5).expand(2, 5) < torch.tensor([[words], [max(words - 2, 1)]])
        questions[f"{words} words and {max(words - 2, 1)}"] = (x, states, mask, *matrices)
    compare(function, questions, right, {
        "the mask is forgotten: padding is looked at like a word": {"hide": nobody},
        "the mask is turned round: True is where there is a word, so hide the others":
            {"hide": lambda z, seen: z.masked_fill(seen[:, None], float("-inf"))},
        "a score of 0 is no mask: its share is still e⁰ over the sum; use -inf":
            {"hide": lambda z, seen: z.masked_fill(~seen[:, None], 0.0)},
        "the mask comes after the softmax: the shares of the words then add up to less than 1":
            after,
        "the division by √d is missing": {"scale": lambda d: 1.0},
        "the root is forgotten: divide by √d": {"scale": lambda d: 1 / d},
        "multiplied by √d; divide by it": {"scale": lambda d: d**0.5},
        "the softmax runs over the pixels; each pixel shares itself out over the words, the last "
        "dim": {"share": lambda z: z.softmax(1),
                "hide": lambda z, seen: z.masked_fill(~seen[:, None], -1e9)},
        "every word gets the same share, whatever the pixel asks":
            {"scale": lambda d: 0.0},
    })
    return "the same attention as in notebook 3; only those who are asked are words."


@exercise
def scaling_factor(function: Callable) -> str:
    """From latents (N, C, H, W) to the number that brings their spread to 1: 1 / std over all."""
    def right(z: Tensor, spread=lambda z: z.std(), over=1.0) -> float:
        return float(over / spread(z))

    questions = {}
    for seed, (size, apart) in enumerate(((5.5, 0.0), (0.2, 1.0), (9.0, 0.6))):
        g = torch.Generator().manual_seed(seed)
        means = apart * size * torch.tensor([-2.0, 0.5, 1.0, 3.0])[:, None, None]
        sizes = size * torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None]
        questions[f"latents of spread about {size}"] = (
            means + sizes * torch.randn(8, 4, 16, 16, generator=g),)
    compare(function, questions, right, {
        "this is the spread itself; multiply latents by one over it": lambda z: float(z.std()),
        "this is one over the variance; the spread is its root": {"spread": lambda z: z.var()},
        "a mean of the channels' spreads leaves out how far the channels' means lie apart":
            {"spread": lambda z: z.std((0, 2, 3)).mean()},
        "a root mean square of the channels' spreads leaves out how far their means lie apart":
            {"spread": lambda z: z.var((0, 2, 3)).mean().sqrt()},
        "a mean of each latent's own spread; take the spread over all latents at once":
            {"spread": lambda z: z.flatten(1).std(1).mean()},
        "the mean of the squares counts the mean as spread; take it off first (std does)":
            {"spread": lambda z: z.square().mean().sqrt()},
        "one over the largest number; that is a range, and one odd latent decides it":
            {"spread": lambda z: z.abs().max()},
        "one over the mean size |z|; asked for is the standard deviation":
            {"spread": lambda z: z.abs().mean()},
    })
    return "one over the spread. Stable Diffusion's 0.18215 says that its latents have spread 5.49."


@exercise
def redraw(function: Callable) -> str:
    """From a picture, E, D, a guesser of ẑ_0, rising ᾱ (last 1), noise to a picture: SDEdit."""
    def encode(x: Tensor) -> Tensor:
        return x.flip(1)[..., ::2] * 1.5

    def decode(z: Tensor) -> Tensor:
        return (z / 1.5).flip(1).repeat_interleave(2, dim=3)

    def right(x, encode, decode, guess, bars, noise, power=0.5, blind=False, at=0, last=True,
              ends=(True, True), fresh=False) -> Tensor:
        z_0 = encode(x) if ends[0] else x[..., ::2]
        z = noise if blind else bars[0] ** power * z_0 + (1 - bars[0]) ** power * noise
        pairs = list(zip(bars, bars[1:], strict=False))
        for now, later in pairs if last else pairs[:-1]:
            said = guess(z, now + at * (later - now))
            epsilon = noise if fresh else (z - now.sqrt() * said) / (1 - now).sqrt()
            z = later.sqrt() * said + (1 - later).sqrt() * epsilon
        return decode(z) if ends[1] else z

    questions = {}
    for seed, first in enumerate((0.1, 0.5, 0.9)):
        x = pictures(seed)[0].repeat(1, 1, 1, 2)[..., :8]
        g = torch.Generator().manual_seed(50 + seed)
        bars = torch.tensor([first, first + (1 - first) / 2, 1.0])
        noise = torch.randn(2, 3, 4, 4, generator=g)
        questions[f"ᾱ from {first}"] = (x, encode, decode, guess, bars, noise)
    compare(function, questions, right, {
        "the last step, to ᾱ = 1, is missing": {"last": False},
        "it starts from pure noise, so nothing of the picture is left: noise its latent":
            {"blind": True},
        "the roots are forgotten where the latent is noised: √ᾱ z + √(1-ᾱ) ε": {"power": 1},
        "what you return is a latent; decode it": {"ends": (True, False)},
        "the picture itself is noised; encode it first": {"ends": (False, True)},
        "the guesser is asked with the ᾱ of where you go; ask with that of where you are":
            {"at": 1},
        "each step takes the noise it was given; work out what is in z now, from the guess":
            {"fresh": True},
        "this only encodes and decodes; nothing was noised or drawn":
            lambda x, e, d, guess, bars, noise: d(e(x)),
        "this is the first guess, decoded; go on from each ᾱ to the next":
            lambda x, e, d, guess, bars, noise: d(guess(
                bars[0] ** 0.5 * e(x) + (1 - bars[0]) ** 0.5 * noise, bars[0])),
    })
    return "a sampler may start anywhere: from a noised latent it draws something like it."


@exercise
def terminal_snr(function: Callable) -> str:
    """From first and last beta of a "scaled linear" schedule, and T, to the SNR at its end."""
    def right(first: float, last: float, T: int, root=0.5, end=lambda a: a / (1 - a),
              kept=lambda betas: (1 - betas).prod()) -> float:
        betas = torch.linspace(first**root, last**root, T, dtype=torch.float64) ** (1 / root)
        return float(end(kept(betas)))

    questions = {"Stable Diffusion's": (0.00085, 0.012, 1000), "a short one": (0.001, 0.2, 30),
                 "another": (0.0001, 0.02, 400)}
    compare(function, questions, right, {
        "these betas lie evenly themselves; here their square roots do, so square the line":
            {"root": 1},
        "this is ᾱ at the end; the signal-to-noise ratio is ᾱ / (1 - ᾱ)": {"end": lambda a: a},
        "this is √ᾱ, the share of the picture's size that is left": {"end": lambda a: a**0.5},
        "the ratio of the rates is its root; the SNR compares squares":
            {"end": lambda a: (a / (1 - a)) ** 0.5},
        "upside down: signal over noise, ᾱ / (1 - ᾱ)": {"end": lambda a: (1 - a) / a},
        "this is the logarithm of the SNR": {"end": lambda a: (a / (1 - a)).log()},
        "only the last step is looked at; ᾱ is the product of all 1 - beta":
            {"kept": lambda betas: 1 - betas[-1]},
        "the betas add up nowhere: each step multiplies by 1 - beta":
            {"kept": lambda betas: (-betas.sum()).exp()},
        "the line of roots is not squared: these are not betas yet":
            lambda first, last, T: float((lambda a: a / (1 - a))(
                (1 - torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64)).prod())),
    })
    return ("0.0047: not zero. So it never saw pure noise in training, and starts from it when it "
            "draws.")
