"""Notebook 10: the own autoencoder, slips in the exercises, and Stable Diffusion 2 taken apart and
joined by our sampler and our guidance.
"""

import re

import pytest
import torch
from notebook_cells import cell, printed
from torch.distributions import Normal, kl_divergence

import diffusion_lib
from diffusion_lib.lessons.exercises import check

STEPS = 3


def run(space: dict, *identities: str) -> dict:
    """These cells, in this order, with the names in `space`."""
    for identity in identities:
        exec(compile(cell("10", identity).source, identity, "exec"), space)
    return space


# -- the learner's autoencoder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> dict:
    """The names that the program leaves, run for a few steps."""
    source, count = re.subn(r"^STEPS = \d+", f"STEPS = {STEPS}",
                            cell("10", "own-program-10").source, flags=re.MULTILINE)
    assert count == 1
    names: dict = {"torch": torch}
    exec(compile(source, "own-program", "exec"), names)
    return names


def test_the_kl_is_that_of_two_normal_distributions(own: dict) -> None:
    mean, log_variance = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(own["kl"](mean, log_variance), truth)


@torch.no_grad()
def test_there_and_back(own: dict) -> None:
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    for channels in (1, 2, 4, 8, 16):  # as exercise 4 asks
        mean, log_variance = own["Encoder"](channels)(pictures)
        assert mean.shape == log_variance.shape == (2, channels, 8, 8)
        assert own["Decoder"](channels)(mean).shape == pictures.shape


def test_what_uncompared_cells_claim() -> None:
    shares = [int(x) for x in re.findall(r"(\d+)%", printed("10", "own-count-10"))]
    decibels = re.findall(r"PSNR +(\w+)", printed("10", "own-count-10"))
    assert len(shares) == 10 and min(shares[:5]) >= 95  # the reader reads what was drawn
    fur, _, eyes, _, background = shares[5:]
    assert min(fur, background) >= 90 and eyes < min(fur, background)
    light, heavy = (int(x) for x in re.findall(r"PSNR +(\d+)", printed("10", "heavy-count-10")))
    assert decibels[0] == "inf" and int(decibels[1]) == light > heavy


# -- exercises -------------------------------------------------------------------------------------


def redraw(root=0.5, start=None, at=0, end=lambda decode, z: decode(z)):
    """The solution, with slips."""
    def function(picture, encode, decode, guess, bars, noise):
        z = bars[0] ** root * encode(picture) + (1 - bars[0]) ** root * noise
        z = noise if start == "noise" else z
        for now, later in zip(bars[:-1], bars[1:], strict=True):
            z_0 = guess(z, later if at else now)
            epsilon = (z - now.sqrt() * z_0) / (1 - now).sqrt()
            z = later.sqrt() * z_0 + (1 - later).sqrt() * epsilon
        return end(decode, z)
    return function


def roots(first, last, T):
    return torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64)


@pytest.mark.parametrize("name, function, said", [
    ("scaling_factor", lambda z: z.std(), "one over it"),
    ("scaling_factor", lambda z: 1 / z.var(), "over the variance"),
    ("scaling_factor", lambda z: 1 / z.std((0, 2, 3)).mean(), "mean of the channels' spreads"),
    ("scaling_factor", lambda z: 1 / z.square().mean().sqrt(), "counts the mean as spread"),
    ("scaling_factor", lambda z: 1 / z.abs().max(), "the largest number"),
    ("scaling_factor", lambda z: (1 / z.std()).item(), "Correct: one over the spread"),
    ("redraw", redraw(root=1), "roots are forgotten"),
    ("redraw", redraw(start="noise"), "pure noise"),
    ("redraw", redraw(at=1), "of where you go"),
    ("redraw", redraw(end=lambda decode, z: z), "is a latent; decode it"),
    ("redraw", lambda x, encode, decode, *_: decode(encode(x)), "only encodes and decodes"),
    ("redraw", redraw(), "Correct: a sampler may start anywhere"),
    ("terminal_snr", lambda a, b, T: float((1 - roots(a, b, T) ** 2).prod()), "this is ᾱ"),
    ("terminal_snr", lambda a, b, T: float((lambda k: (1 - k) / k)(
        (1 - roots(a, b, T) ** 2).prod())), "upside down"),
    ("terminal_snr", lambda a, b, T: float((lambda k: k / (1 - k))(
        (1 - torch.linspace(a, b, T, dtype=torch.float64)).prod())), "lie evenly themselves"),
    ("terminal_snr", lambda a, b, T: float((lambda k: k / (1 - k))(1 - b)), "only the last step"),
])
def test_slips(name: str, function, said: str, capsys: pytest.CaptureFixture) -> None:
    check(name, function)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and said in line, line


def test_stable_diffusions_terminal_snr() -> None:
    kept = float((1 - roots(0.00085, 0.012, 1000) ** 2).prod())
    assert round(kept / (1 - kept), 4) == 0.0047 and round(kept**0.5, 3) == 0.068


# -- Stable Diffusion 2, taken apart ---------------------------------------------------------------


def test_our_sampler_and_guidance_in_their_pipeline() -> None:
    for name in ("diffusers", "transformers"):
        pytest.importorskip(name)
    torch.manual_seed(0)
    prompt = "a white cat with stripes, green eyes and round ears on blue"
    text = {"words": diffusion_lib.words_of([prompt]), "width": 32, "mask_padding": False}
    reader = diffusion_lib.TextUNet({"image_size": 16, "in_channels": 4, "channels": 16}, text)
    names = "guided", "ddim", "last_step"
    space = {name: getattr(diffusion_lib, name) for name in names}
    space |= {"torch": torch, "reader": reader, "PROMPT": prompt}
    run(space, "sd2-build-10", "sd2-load-10", "sd2-text-10", "sd2-unet-run-10", "sd2-join-10",
        "sd2-compare-10")
    ours, theirs = space["by_us"], space["by_pipeline"]
    error = (ours - theirs(**space["ours_is"])).abs().max().item() * 255
    print(f"largest difference {error:.4f} of 255")
    assert error < 2 and ours.std() > 0.02
    assert (ours - theirs()).abs().max() * 255 > 2
