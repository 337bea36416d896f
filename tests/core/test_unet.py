"""The UNet: equal to diffusers' on copied weights, and clear about what it does not take."""

import dataclasses
import json

import pytest
import torch
from references import CONFIGURATIONS, DDPM_CIFAR10, SMALL, eight_steps, pictures, random_unet
from torch.nn import functional as F

from diffusion_lib.core.unet import TimeEmbedding, UNet
from diffusion_lib.saving.diffusers_format import to_diffusers_unet


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_equals_diffusers_on_copied_weights(name):
    model = random_unet(**CONFIGURATIONS[name])
    theirs = to_diffusers_unet(model)
    # identical names: nothing is renamed
    assert set(theirs.state_dict()) == set(model.state_dict())
    x, t = pictures(model), torch.tensor([3, 977])
    labels = None if model.num_classes is None else torch.tensor([4, model.num_classes])
    ours = model(x, t, labels)
    answer = theirs(F.pixel_unshuffle(x, model.patch_size), t, class_labels=labels).sample
    answer = F.pixel_shuffle(answer, model.patch_size)
    error = (ours - answer).abs().max().item()
    print(f"{name}: largest absolute difference {error:.1e}, outputs to {answer.abs().max():.2f}")
    assert ours.shape == answer.shape and answer.std() > 0.1
    assert error < 1e-4


@torch.no_grad()
def test_settings_for_published_networks_matter():
    """A wrong one would load cleanly and draw something else; by how much is printed."""
    model = random_unet(**SMALL)
    x, t = pictures(model), torch.tensor([3, 977])
    right = model(x, t)
    for field, value in dict(
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, attention_head_dim=8
    ).items():
        other = UNet(model.config, **{field: value}).eval()
        other.load_state_dict(model.state_dict())
        error = (other(x, t) - right).abs().max().item()
        print(f"{field} wrong: off by {error:.2f}, outputs to {right.abs().max():.2f}")
        assert error > 0.01


def test_time_embedding_is_vaswanis():
    embedding = TimeEmbedding(8, flip_sin_to_cos=False)
    torch.nn.init.eye_(embedding.linear_1.weight)
    waves = torch.tensor([[torch.tensor(7.0 / 10_000 ** (i / 4)).sin() for i in range(4)]
                          + [torch.tensor(7.0 / 10_000 ** (i / 4)).cos() for i in range(4)]])
    expected = embedding.linear_2(F.silu(embedding.linear_1(waves)))
    assert (embedding(torch.tensor([7])) - expected).abs().max() < 1e-6


def test_starts_at_zero_and_learns():
    """The output and every residual branch start at 0; after a few steps of training every weight
    has moved.
    """
    torch.manual_seed(0)
    model = UNet(**SMALL, num_classes=3)
    x, t, labels = pictures(model), torch.tensor([1, 2]), torch.tensor([0, 3])
    assert model(x, t, labels).abs().max() == 0
    assert model.down_blocks[0].resnets[0].conv2.weight.abs().max() == 0
    assert model.mid_block.attentions[0].to_out[0].weight.abs().max() == 0
    losses, still = eight_steps(model, x, t, labels)
    assert losses[-1] < 0.9 * losses[0]
    # softmax does not feel a bias of the keys
    assert all(name.endswith("to_k.bias") for name in still), still


@torch.no_grad()
def test_config_rebuilds_the_network():
    for settings in (
        DDPM_CIFAR10,
        CONFIGURATIONS["10 classes, heads of 8"],
        CONFIGURATIONS["patch 2"],
        SMALL,
    ):
        model = random_unet(**settings)
        again = UNet(**json.loads(json.dumps(dataclasses.asdict(model.config)))).eval()
        assert again.config == model.config
        again.load_state_dict(model.state_dict())
        assert torch.equal(
            again(pictures(model), torch.tensor([0, 9])),
            model(pictures(model), torch.tensor([0, 9])),
        )


@torch.no_grad()
def test_labels_and_the_null_label():
    model = random_unet(**SMALL, num_classes=3)
    x, t = pictures(model), torch.tensor([5, 5])
    none, null, zero = (
        model(x, t),
        model(x, t, torch.tensor([3, 3])),
        model(x, t, torch.tensor([0, 0])),
    )
    assert torch.equal(none, null)
    assert (none - zero).abs().max() > 0.01
    assert model.class_embedding.weight.shape[0] == 4


@torch.no_grad()
def test_pictures_of_a_batch_and_their_times_do_not_mix():
    model = random_unet(**SMALL)
    x, t = pictures(model, 3), torch.tensor([0, 500, 999])
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert (model(x, t) - alone).abs().max() < 1e-5
    assert (model(x, t) - model(x, t.flip(0))).abs().max() > 0.01
    assert model(x[:0], t[:0]).shape == (0, 3, 16, 16)


@torch.no_grad()
def test_precision():
    model = random_unet(**SMALL)
    x, t = pictures(model), torch.tensor([0, 999])
    exact = UNet(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    right = exact(x.double(), t)
    assert right.dtype == torch.float64
    # float32 against float64 with the same float32 time table: rounding only
    print(f"float32 against float64: {(model(x, t) - right).abs().max():.1e}")
    assert (model(x, t) - right).abs().max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x, t)
        again = model(x.bfloat16(), t)
    assert low.dtype == torch.float32 and again.dtype == torch.bfloat16
    print(f"bfloat16 autocast against float64: {(low - right).abs().max():.2f}, "
          f"outputs to {right.abs().max():.2f}")
    assert 0 < (low - right).abs().max() < 0.2 * right.abs().max()


def test_dropout_only_in_training():
    model = random_unet(**SMALL, dropout=0.5)
    x, t = pictures(model), torch.tensor([0, 999])
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.equal(model(x, t), model(x, t))


def test_channels_last_gives_the_same():
    model = random_unet(**SMALL)
    x, t = pictures(model), torch.tensor([0, 999])
    with torch.no_grad():
        right = model(x, t)
        other = model.to(memory_format=torch.channels_last)(
            x.to(memory_format=torch.channels_last), t
        )
    assert (other - right).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(image_size=30), "image_size 30 is not a multiple of 4"),
        (dict(image_size=36, patch_size=2), "image_size 36 is not a multiple of 8 .* use 40"),
        (dict(image_size=0), "image_size is 0"),
        (dict(in_channels=0), "in_channels is 0"),
        (dict(blocks_per_level=0), "blocks_per_level is 0"),
        (dict(channels=20, norm_num_groups=8),
         "norm_num_groups 8 does not divide a level's 20 channels"),
        (dict(channels=33), "channels is 33; it must be even"),
        (dict(channels=2, freq_shift=1), "freq_shift 1"),
        (dict(channel_mults=(1, 2)), "attention has 3 entries, channel_mults 2"),
        (dict(channel_mults=(2, 2, 2)), "channel_mults is \\[2, 2, 2\\]"),
        (dict(channel_mults=()), "channel_mults is \\[\\]"),
        (dict(attention_head_dim=24),
         "attention_head_dim 24 does not divide a level's 128 channels"),
        (dict(downsample_padding=2), "downsample_padding is 2"),
        (dict(num_classes=0), "num_classes is 0"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(ValueError, match=words) as caught:
        UNet(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(x=torch.zeros(2, 4, 16, 16)),
         r"shape \(2, 4, 16, 16\); this network takes \(B, 3, 16, 16\)"),
        (dict(x=torch.zeros(2, 3, 16, 8)), r"shape \(2, 3, 16, 8\)"),
        (dict(x=torch.zeros(2, 3, 32, 32)), r"shape \(2, 3, 32, 32\)"),
        (dict(x=torch.zeros(3, 16, 16)), r"shape \(3, 16, 16\)"),
        (dict(x=torch.zeros(2, 3, 16, 16, dtype=torch.uint8)),
         r"torch.uint8.*x.float\(\) / 127.5 - 1"),
        (dict(x=torch.zeros(2, 3, 16, 16, dtype=torch.float64)),
         r"torch.float64.*use x.to\(torch.float32\)"),
        (dict(x=torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16)),
         r"torch.bfloat16.*use x.to\(torch.float32\)"),
        (dict(t=torch.tensor([1.0, 2.0])), "t is torch.float32"),
        (dict(t=torch.tensor([1, 2], dtype=torch.int32)), "t is torch.int32"),
        (dict(t=torch.tensor(1)),
         r"t is torch.int64 of shape \(\); it must be torch.int64 of shape \(2,\)"),
        (dict(t=torch.tensor([1])), r"of shape \(1,\)"),
        (dict(condition=torch.tensor([0, 4])),
         "labels run from 0 to 4; the network knows 0 ... 2, and 3 for no label"),
        (dict(condition=torch.tensor([-1, 0])), "labels run from -1 to 0"),
        (dict(condition=torch.tensor([0])), r"labels is torch.int64 of shape \(1,\)"),
        (dict(condition=torch.tensor([0.0, 1.0])), "labels is torch.float32"),
    ],
)
def test_bad_input(change, words):
    model = UNet(**SMALL, num_classes=3)
    good = dict(x=torch.zeros(2, 3, 16, 16), t=torch.tensor([1, 2]), condition=torch.tensor([0, 3]))
    model(**good)
    with pytest.raises(ValueError, match=words) as caught:
        model(**{**good, **change})
    assert "\n" not in str(caught.value)


def test_labels_for_a_network_without_classes():
    with pytest.raises(ValueError, match="this network has no classes"):
        UNet(**SMALL)(torch.zeros(1, 3, 16, 16), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize("augment_dim, augment", [
    (0, torch.zeros(2, 4)), (4, torch.zeros(1, 4)), (4, torch.zeros(2, 5)),
    (4, torch.zeros(2, 4, dtype=torch.int64))])
def test_augment_of_another_shape_or_dtype_is_refused(augment_dim, augment):
    model = UNet(image_size=8, channels=8, channel_mults=[1], attention=[False],
                 augment_dim=augment_dim)
    with pytest.raises(ValueError, match="augment is"):
        model(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), augment=augment)
