"""Augmentation: what it does to a picture, and that it never leaks into what is drawn."""

import math

import pytest
import torch

from diffusion_lib import GaussianDiffusion, TrainConfig, Trainer, UNet, cosine_beta_schedule
from diffusion_lib.data.augment import MOVES, augment, draw_moves
from diffusion_lib.saving.diffusers_format import from_diffusers_unet, to_diffusers_unet


def moves(right=0.0, down=0.0, size=0.0, turn=0.0):
    """One picture's row, every change certain."""
    return torch.tensor([[right, down, size, turn, 0.0, 0.0, 0.0, 0.0]])


def dot(size=32, row=10, column=12):
    picture = torch.zeros(1, 1, size, size)
    picture[..., row, column] = 1
    return picture


def place(picture):
    return divmod(int(picture.flatten().argmax()), picture.shape[-1])


def test_nothing_done_is_exactly_the_picture_and_told_as_zeros():
    picture = torch.randn(3, 3, 16, 16)
    changed, told = augment(picture, draw_moves(3, torch.Generator().manual_seed(0)), 0.0)
    assert torch.equal(changed, picture) and told.shape == (3, MOVES) and not told.any()


def test_a_shift_goes_right_and_down_by_what_is_told():
    changed, told = augment(dot(), moves(right=1, down=-0.5), 1.0)
    assert place(changed) == (10 - 2, 12 + 4) and told[0, 0] == 1 / 8 and told[0, 1] == -1 / 16


def test_a_turn_goes_round_the_centre_and_scaling_away_from_it():
    changed, told = augment(dot(33, 16, 26), moves(turn=6), 1.0)  # 90 degrees
    row, column = place(changed)
    assert column == 16 and abs(row - 16) == 10 and told[0, 3:].tolist() == pytest.approx([-1, 1])
    changed, told = augment(dot(33, 16, 20), moves(size=5), 1.0)  # twice as large
    assert place(changed) == (16, 24) and told[0, 2] == pytest.approx(1)


def test_each_change_has_its_chance():
    moved = draw_moves(4000, torch.Generator().manual_seed(0))
    _, told = augment(torch.zeros(4000, 1, 4, 4), moved, 0.12)
    for column in (0, 1, 2, 4):
        share = float((told[:, column] != 0).float().mean())
        assert abs(share - 0.12) < 4 * math.sqrt(0.12 * 0.88 / 4000)


def unet(augment_dim=MOVES):
    torch.manual_seed(0)
    return UNet(image_size=8, channels=8, channel_mults=(1, 2), attention=(False, True),
                augment_dim=augment_dim)


def test_told_nothing_is_told_zeros_and_the_export_draws_the_same():
    model = unet().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        plain = model(x, t)
        assert torch.equal(plain, model(x, t, augment=torch.zeros(2, MOVES)))
        assert not torch.allclose(plain, model(x, t, augment=torch.ones(2, MOVES)))
        again = from_diffusers_unet(to_diffusers_unet(model))
        torch.testing.assert_close(again(x, t), plain)
    assert again.config.augment_dim == 0


def trainer(toy_images, model, out=None, **changes):
    config = TrainConfig(steps=6, batch_size=4, warmup=2, precision="float32", device="cpu",
                         augment=0.5, **changes)
    diffusion = GaussianDiffusion(cosine_beta_schedule(20))
    return Trainer(model, diffusion, toy_images, config, out=out)


def test_training_tells_the_network_and_resumes_exactly(toy_images, tmp_path):
    whole = trainer(toy_images, unet()).fit()
    assert whole.model.augment_embedding.weight.abs().max() > 0  # it began at zero
    trainer(toy_images, unet(), tmp_path).fit(3)
    rest = trainer(toy_images, unet(), tmp_path).resume().fit()
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_that_cannot_be_told_is_refused(toy_images):
    with pytest.raises(ValueError, match="needs augment_dim 5"):
        trainer(toy_images, unet(augment_dim=0))
