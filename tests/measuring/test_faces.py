"""Judges of cat faces that no training saw, and what an autoencoder keeps."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import Autoencoder
from diffusion_lib.__main__ import main
from diffusion_lib.data.decode import fit
from diffusion_lib.measuring import catface
from diffusion_lib.measuring.features import feature_network
from diffusion_lib.measuring.reconstruction import (
    added_waves,
    fixed_pattern,
    grid,
    psnr,
    reconstruction,
    stands_out,
)
from diffusion_lib.measuring.report import Reference, evaluate

cv2 = pytest.importorskip("cv2")


def chelsea():
    """A photograph of a cat, uint8 (1, 3, 128, 128); she tilts her head, which is turned back."""
    picture = Image.fromarray(pytest.importorskip("skimage.data").chelsea())
    return fit(picture.crop((78, 0, 378, 300)).rotate(8), 128)[None]


def noise(n, size=128):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def test_a_cat_is_found_and_noise_and_the_sky_are_not():
    cat = chelsea()
    assert catface.found(cat).tolist() == [True]
    assert not catface.found(cat.flip(-2)).any()  # upside down
    assert not catface.found(noise(8)).any() and not catface.found(torch.zeros_like(cat)).any()


def test_the_share_has_its_interval_and_what_it_is_of_real_pictures():
    cats = chelsea().expand(6, -1, -1, -1)
    half = torch.cat([cats, noise(6)])
    measure = catface.face_share(half, n=12, floor=1.0)
    assert measure.value == 0.5 and measure.low < 0.5 < measure.high and measure.floor == 1


def test_gradients_tell_directions():
    """Upright stripes and level ones differ; a lighter picture does not."""
    stripes = (torch.arange(128) // 8 % 2 * 200).to(torch.uint8).expand(1, 3, 128, 128)
    upright, level, light = (feature_network("catface")(p.contiguous()) for p in
                             (stripes, stripes.transpose(2, 3), stripes // 2 + 100))
    assert upright.shape == (1, 144)
    assert (upright - level).norm() > 5 * (upright - light).norm()


def test_a_reference_of_faces_is_judged_by_the_cascade():
    cats = chelsea().expand(30, -1, -1, -1) // 8 * 8
    shades = torch.arange(30, dtype=torch.uint8)[:, None, None, None]
    pictures = cats // 2 + shades  # thirty pictures that differ
    reference = Reference.of(pictures, pictures.flip(-1), name="one cat", features="catface")
    told = evaluate(pictures, reference, n=30)[-1]
    assert "cat's face" in told.name and told.floor == reference.verdicts["held-out pictures"][0]
    assert "upside down 0.00" in told.note


# -- autoencoders ----------------------------------------------------------------------------------


def test_psnr_by_hand():
    x = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    y = x.clone()
    y += 10
    assert math.isclose(psnr(y, x).value, 20 * math.log10(255 / 10), abs_tol=1e-6)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_grid_is_seen_at_its_period(period):
    smooth = torch.nn.functional.avg_pool2d(noise(20).float(), 5, 1, 2)
    wave = torch.from_numpy(6 * np.cos(2 * np.pi * np.arange(128) / period)).float()
    wrong = (smooth + wave).clamp(0, 255).to(torch.uint8)
    right = smooth.to(torch.uint8)
    told = grid(wrong, right, period)
    assert told.value > told.floor + 6
    other = {2: 4, 4: 8, 8: 4}[period]
    assert abs(stands_out(wrong, other) - stands_out(right, other)) < 2


@pytest.mark.parametrize("period", [2, 4, 8])
def test_waves_that_a_decoder_adds_are_told_from_a_blur(period):
    """A blurred picture has fewer of all waves than the picture, one with a grid has more of its
    own; half as high a wave is 6 dB fainter.
    """
    right = noise(20)
    wave = torch.from_numpy(20 * np.cos(2 * np.pi * np.arange(128) / period)).float()
    wrong = (right.float() + wave).clamp(0, 255).to(torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(right.float(), 3, 1, 1).to(torch.uint8)
    halved = ((right.float() - 128) / 2 + 128).to(torch.uint8)
    assert added_waves(right, right, period).value == 0
    assert added_waves(wrong, right, period).value > 6
    assert added_waves(blurred, right, period).value < -1
    assert abs(added_waves(halved, right, period).value + 6.02) < 0.2


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_in_all_pictures_is_told_from_waves_of_each(period):
    """Behind a blur; waves whose sign differs from picture to picture are none."""
    right = noise(64)[..., 8:-8, 8:-8]
    blurred = torch.nn.functional.avg_pool2d(noise(64).float(), 3, 1, 1)[..., 8:-8, 8:-8]
    wave = torch.from_numpy(4 * np.cos(2 * np.pi * np.arange(112) / period)).float()
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None, None, None]
    height = 4 if period == 2 else 4 / 2**0.5  # cos is 1, -1, 1, ... there
    wrong, each = ((blurred + wave * s).round().to(torch.uint8) for s in (1, signs))
    told = fixed_pattern(wrong, right)
    assert abs(told.value - height) < 0.2 and told.low <= told.value <= told.high
    assert fixed_pattern(each, right).value < 1  # what is left of 64 pictures of noise
    assert fixed_pattern(right, right).value == 0


def test_evaluate_tells_what_an_autoencoder_keeps(tmp_path, capsys):
    folder = tmp_path / "cats"
    folder.mkdir()
    for i, picture in enumerate(noise(40, 32)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    settings = ["--model.image_size", "32", "--model.channels", "8", "--loss.perceptual", "0",
                "--model.norm_num_groups", "4", "--train.precision", "float32"]
    assert (
        main(
            [
                "train",
                "--config",
                "catfaces_autoencoder",
                "--data",
                f"folder:{folder}#train",
                "--steps",
                "2",
                "--batch-size",
                "4",
                "--out",
                str(tmp_path / "ae"),
                *settings,
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "ae"), "--data", f"folder:{folder}#train",
                 "--json", str(tmp_path / "told.json")]) == 0
    told = capsys.readouterr().out
    assert "PSNR" in told and "grid of 8 px" in told and "#held_out, encoded and decoded" in told
    assert "PSNR" in (tmp_path / "told.json").read_text()


def test_reconstruction_refuses_what_it_cannot_measure():
    model = Autoencoder(image_size=32, channels=8, channel_mults=(1, 2), norm_num_groups=4).eval()
    with pytest.raises(ValueError, match="n is 50"):
        reconstruction(model, noise(10, 32), n=50)
