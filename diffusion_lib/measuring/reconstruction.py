"""How much of a picture an autoencoder keeps: what `evaluate` says of one."""

import importlib.util
import math

import torch
from torch import Tensor

from ..core.autoencoder import Autoencoder
from ..data.sources import in_batches, to_float, to_uint8
from .metrics import Measure, check_pictures, in_colour

PERIODS = (2, 4, 8)  # pixels after which a decoder's grid would repeat: its three doublings


def reconstruction(autoencoder: Autoencoder, pictures: Tensor, *, n: int) -> list[Measure]:
    """Measures of n uint8 pictures (N, C, H, W), grey or colour, encoded and decoded: best
    held-out ones.

    PSNR; a grid, if there is one, against its neighbours and against the pictures' own waves; the
    share in which a face is found, where OpenCV is installed. The floors are those of the pictures
    themselves. Raises ValueError for unusable pictures.
    """
    channels, pictures = pictures.shape[1], to_uint8(check_pictures(in_colour(pictures), n))
    own = pictures[:, :channels]  # an autoencoder of grey pictures takes one
    decoded = in_colour(to_uint8(in_batches(autoencoder.to("cpu"), own, 32)))
    measures = [psnr(decoded, pictures)]
    for period in PERIODS:
        measures += [grid(decoded, pictures, period), added_waves(decoded, pictures, period)]
    measures.append(fixed_pattern(decoded, pictures))
    if importlib.util.find_spec("cv2"):
        from .catface import face_share, found

        measures.append(face_share(decoded, n=n, floor=found(pictures).double().mean().item()))
    return measures


def psnr(decoded: Tensor, pictures: Tensor) -> Measure:
    """Peak signal to noise ratio in decibels, 10 log₁₀ (255² / mean squared error): the mean over
    pictures, with the interval of that mean.
    """
    squares = (decoded.double() - pictures.double()).square().mean((1, 2, 3))
    values = 10 * torch.log10(255**2 / squares.clamp(min=1e-3))
    mean, n = float(values.mean()), len(values)
    error = 1.96 * float(values.std()) / math.sqrt(n)
    return Measure("PSNR (dB; more is better)", mean, mean - error, mean + error, n)


def grid(decoded: Tensor, pictures: Tensor, period: int) -> Measure:
    """How far waves of exactly `period` pixels stand out from their neighbours, in decibels.

    A decoder that paints a pattern of its own shows here; photographs are near 0. So may one that
    blurs the neighbours more than the wave, which `added_waves` tells. The interval is that of
    halves of the pictures.
    """
    value, real = stands_out(decoded, period), stands_out(pictures, period)
    halves = [stands_out(part, period) for part in decoded.chunk(2)]
    name = f"grid of {period} px (dB over neighbours)"
    return Measure(name, value, min(halves), max(halves), len(decoded), real)


def added_waves(decoded: Tensor, pictures: Tensor, period: int) -> Measure:
    """Power of waves of `period` pixels in what was decoded against the same waves in the pictures,
    in decibels: below 0 the decoder blurs. Power does not tell whose a wave is: a faint grid may
    stand where a stronger wave of the picture was lost (`fixed_pattern`). The interval is that of
    halves of the pictures.
    """
    pairs = [(decoded, pictures), *zip(decoded.chunk(2), pictures.chunk(2), strict=True)]
    at = pictures.shape[-1] // period
    value, *halves = [float(10 * torch.log10(lines(a)[at] / lines(b)[at])) for a, b in pairs]
    name = f"waves of {period} px (dB against the pictures' own)"
    return Measure(name, value, min(halves), max(halves), len(decoded), 0.0)


def fixed_pattern(decoded: Tensor, pictures: Tensor) -> Measure:
    """The grid that a decoder paints into every picture alike, in grey levels of 255: its error,
    averaged over all pictures and all blocks of 8 × 8 pixels (so what is left repeats after 2, 4 or
    8), as the root of its mean square around its own mean. Rounding to 8 bits moves a pixel by half
    a level at most. The interval is that of halves of the pictures.
    """
    value, *halves = [repeated(a, b) for a, b in (
        (decoded, pictures), *zip(decoded.chunk(2), pictures.chunk(2), strict=True))]
    name = "the same grid in all (grey levels of 255)"
    return Measure(name, value, min(value, *halves), max(value, *halves), len(decoded))


def repeated(decoded: Tensor, pictures: Tensor) -> float:
    """What `fixed_pattern` tells, of uint8 pictures (N, C, S, S)."""
    error = (decoded.double() - pictures.double()).mean(0)
    block = max(PERIODS)
    whole = error.shape[-1] // block * block
    blocks = error[:, :whole, :whole].unflatten(2, (-1, block)).unflatten(1, (-1, block))
    mean = blocks.mean((1, 3))  # (C, block, block)
    return float((mean - mean.mean((1, 2), keepdim=True)).square().mean().sqrt())


def stands_out(pictures: Tensor, period: int, reach: int = 3) -> float:
    """Power of upright and level waves of this period against the mean of `reach` frequencies on
    either side, in decibels.
    """
    power = lines(pictures)
    at = pictures.shape[-1] // period
    near = [i for i in range(at - reach - 1, at + reach + 2)
            if abs(i - at) > 1 and 0 < i < len(power)]  # the window spreads a wave over 3
    return float(10 * torch.log10(power[at] / power[near].log().mean().exp()))


def lines(pictures: Tensor) -> Tensor:
    """Mean power of upright and level waves of uint8 pictures (N, C, S, S): (S // 2 + 1,), by how
    often a wave fits into the picture.
    """
    size = pictures.shape[-1]
    grey = to_float(pictures).mean(1)
    waves = torch.fft.fft2(grey * torch.hann_window(size) * torch.hann_window(size)[:, None])
    power = waves.abs().square().mean(0)
    return (power[:, 0] + power[0, :])[: size // 2 + 1]
