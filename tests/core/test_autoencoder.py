"""The autoencoder against diffusers', its latents, its refusals."""

import pytest
import torch
from torch.nn import functional as F

from diffusion_lib import Autoencoder, AutoencoderConfig, to_diffusers_autoencoder
from diffusion_lib.core.autoencoder import PatchCritic
from diffusion_lib.core.cpu_kernels import quicken

SMALL = {"image_size": 32, "channels": 8, "channel_mults": (1, 2), "norm_num_groups": 4}


def scrambled(**settings) -> Autoencoder:
    """With weights that are nowhere zero."""
    torch.manual_seed(0)
    model = Autoencoder(**{**SMALL, **settings})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        model.latent_mean.normal_()
        model.latent_std.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"patch_size": 2, "attention": True},
                                      {"blocks_per_level": 2, "channel_mults": (1, 2, 2)}])
@torch.no_grad()
def test_equals_diffusers_AutoencoderKL(settings):
    ours = scrambled(**settings)
    theirs, p = to_diffusers_autoencoder(ours), ours.config.patch_size
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = theirs.encode(F.pixel_unshuffle(x, p)).latent_dist.mode()
    torch.testing.assert_close(ours.encode(x), z, atol=2e-5, rtol=1e-4)
    y = F.pixel_shuffle(theirs.decode(z).sample, p)
    torch.testing.assert_close(ours.decode(z), y, atol=2e-5, rtol=1e-4)


def test_latents_are_standardised_by_construction():
    model = scrambled().train()
    for _ in range(5):
        z = model.encode(torch.rand(8, 3, 32, 32) * 2 - 1)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_what_the_batches_were_is_followed_and_used_afterwards():
    model = scrambled()
    x = torch.rand(16, 3, 32, 32) * 2 - 1
    for _ in range(1000):
        with torch.no_grad():
            model.train().encode(x)
    torch.testing.assert_close(model.eval().encode(x), model.train().encode(x), atol=1e-2, rtol=0)


def test_the_quick_network_answers_the_same():
    model, x = scrambled(), torch.rand(2, 3, 32, 32) * 2 - 1
    slow = model(x)
    torch.testing.assert_close(quicken(model)(x), slow, atol=1e-5, rtol=1e-4)


def test_a_critic_sees_patches_only():
    critic = PatchCritic()
    x = torch.rand(1, 3, 128, 128)
    y = x.clone()
    y[..., 64:] = 0  # the right half
    a, b = critic(x)[-1], critic(y)[-1]
    assert torch.equal(a[..., :2], b[..., :2])
    assert not torch.equal(a[..., 6:], b[..., 6:])


@pytest.mark.parametrize("settings, said", [
    ({"image_size": 30, "channel_mults": (1, 2, 2)}, "image_size 30 is not a multiple of 4"),
    ({"latent_channels": 0}, "latent_channels is 0"),
    ({"channel_mults": ()}, "channel_mults is"),
    ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide"),
])
def test_impossible_settings_are_one_line(settings, said):
    with pytest.raises(ValueError, match=said):
        AutoencoderConfig(**{**SMALL, **settings})


@pytest.mark.parametrize("call, shape", [("encode", (1, 3, 16, 16)), ("decode", (1, 3, 16, 16))])
def test_wrong_shapes_are_one_line(call, shape):
    with pytest.raises(ValueError, match="the autoencoder takes"):
        getattr(scrambled(), call)(torch.zeros(shape))
