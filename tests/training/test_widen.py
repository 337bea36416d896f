""".ci/widen.py: a wider network answers almost as the narrow one, and its copies part."""

import pytest
import torch
from torch import Tensor
from widen import widen

from diffusion_lib import UNet


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
