""".ci/widen.py: a wider network answers almost as the narrow one, and its copies part."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from widen import main_autoencoder, widen, widen_autoencoder

from diffusion_lib import Autoencoder, UNet, load_autoencoder


def network(channels: int, groups: int, seed: int) -> UNet:
    torch.manual_seed(seed)
    net = UNet(image_size=16, in_channels=4, channels=channels, channel_mults=(1, 2, 3),
               attention=(True, True, True), norm_num_groups=groups)
    for name, weight in net.named_parameters():  # no layer may answer 0, or it would not count
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
        if "bias" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return net.eval()


def answers(net: UNet) -> Tensor:
    x = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return net(x, torch.arange(50, 850, 100))


def test_a_wider_copy_answers_almost_the_same() -> None:
    narrow, wide, other = network(24, 6, 0), network(32, 8, 1), network(32, 8, 2)
    with torch.no_grad():
        widen(narrow, wide)
    wanted = answers(narrow)
    off = (answers(wide) - wanted).std() / wanted.std()
    assert off < 0.2, f"off by {off:.2f} of the answers' spread"
    assert (answers(other) - wanted).std() / wanted.std() > 0.5
    assert max(weight.abs().max() for weight in wide.parameters()) < 30  # float16 holds them all


@pytest.mark.parametrize("wanted", [{"channels": 24}, {"channels": 56}, {"num_classes": 3},
                                    {"norm_num_groups": 4}])
def test_what_cannot_be_widened_is_refused(wanted: dict) -> None:
    narrow = network(24, 6, 0)
    wide = UNet(narrow.config, **{"channels": 32, "norm_num_groups": None, **wanted})
    if "num_classes" in wanted:
        narrow = UNet(narrow.config, num_classes=3)
    with pytest.raises(ValueError, match="widened|cannot become"):
        widen(narrow, wide)


def test_its_copies_part() -> None:
    narrow, wide = network(24, 6, 0), network(32, 8, 1)
    with torch.no_grad():
        widen(narrow, wide)
    block = wide.mid_block.resnets[0]
    twins = [(i, j) for i in range(72) for j in range(72, 96)
             if torch.equal(block.norm2.weight[i], block.norm2.weight[j])
             and torch.equal(block.conv1.bias[i], block.conv1.bias[j])]
    assert len(twins) == 24  # each new channel copies an old one
    assert all(not torch.equal(block.conv2.weight[:, i], block.conv2.weight[:, j])
               for i, j in twins)
    wide(torch.randn(2, 4, 16, 16), torch.tensor([100, 900])).square().mean().backward()
    gradient, (i, j) = block.conv1.weight.grad, twins[0]
    assert not torch.allclose(gradient[i], gradient[j])


def autoencoder(channels: int, groups: int, seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    net = Autoencoder(image_size=16, channels=channels, channel_mults=(1, 2), attention=True,
                      norm_num_groups=groups, patch_size=2)
    for name, weight in net.named_parameters():
        if "bias" in name or not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    net.latent_mean.normal_()
    net.latent_std.uniform_(1, 2)
    return net.eval()


def test_a_wider_autoencoder_answers_the_same() -> None:
    narrow, wide = autoencoder(16, 4, 0), autoencoder(24, 6, 1)
    with torch.no_grad():
        widen_autoencoder(narrow, wide)
        x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        z = narrow.encode(x)
        torch.testing.assert_close(wide.encode(x), z, rtol=0, atol=1e-4)
        torch.testing.assert_close(wide.decode(z), narrow.decode(z), rtol=0, atol=1e-4)
        assert narrow.decode(z).std() > 0.05
    with pytest.raises(ValueError, match="cannot become"):
        widen_autoencoder(narrow, autoencoder(24, 4, 1))


@torch.no_grad()
def test_a_widened_autoencoder_is_one_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main_autoencoder("toycats64_autoencoder", 24, tmp_path / "wide")
    narrow, wide = load_autoencoder("toycats64_autoencoder"), load_autoencoder(tmp_path / "wide")
    assert wide.config.channels == 24 and narrow.config.channels == 16
    assert "latents differ by" in capsys.readouterr().out
    z = torch.randn(2, *narrow.latent_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide.decode(z), narrow.decode(z), rtol=0, atol=1e-4)
