"""Notebook 03's drawings: the plan is that of the shipped network, the grid shows what it says."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import load_pretrained
from diffusion_lib.lessons.network import (
    PLAN,
    SKIPS,
    WITH_ATTENTION,
    channel_grid,
    few_colours,
    unet_plan,
    unet_stages,
)
from diffusion_lib.lessons.plots import figure


def test_the_plan_is_the_shipped_networks() -> None:
    model, _, _ = load_pretrained("toycats32")
    made: dict[str, tuple] = {}
    for name, module in unet_stages(model).items():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: made.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32), torch.tensor([0]))
    assert made == {name: (c, side, side) for name, (_, _, c, side) in PLAN.items() if name in made}
    assert list(made) == list(PLAN)[1:]
    assert set(WITH_ATTENTION) | set(SKIPS) | set(SKIPS.values()) <= set(PLAN)
    for kept, joined in SKIPS.items():
        assert PLAN[kept][3] == PLAN[joined][3]


def test_the_stage_in_question_is_dark_and_the_told_ones_have_arrows() -> None:
    plain, dark = (np.asarray(unet_plan(here)).astype(int) for here in (None, "middle"))
    changed = np.argwhere(np.abs(plain - dark).max(axis=2) > 60)
    _, row, _, _ = PLAN["middle"]
    assert len(changed) > 500 and np.abs(changed[:, 0] - (18 + 35 * row)).max() <= 14
    orange = np.abs(plain - np.array([213, 94, 0])).max(axis=2) < 20
    assert orange[:, :40].any() and orange[:, -40:].any() and orange[346:].any()
    assert unet_plan(zoom=1.5).size == (570, 558)


def test_an_unknown_stage_and_other_widths(refuses) -> None:
    with refuses(ValueError, "'middle c'", "up 1a"):
        unet_plan("middle c")
    with refuses(ValueError, "13 channels", "12, 24, 48"):
        channel_grid(torch.zeros(13, 4, 4))


@pytest.mark.parametrize("c, side", [(12, 16), (24, 8), (48, 4)])
def test_channels_share_one_grey_scale(c: int, side: int) -> None:
    features = torch.zeros(c, side, side)
    features[0], features[-1] = 3.0, -3.0
    grid, title = channel_grid(features)
    pixels = np.asarray(grid.convert("L"))
    assert pixels.max() == 255 and pixels[-5, -5] == 0 and 120 <= np.median(pixels) <= 135
    assert title == f"{c} channels of {side} × {side}, white = 3, black = -3"


def test_few_colours_are_few() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    for format in ("png", "webp"):
        opened = Image.open(io.BytesIO(few_colours(noise, 8, format)))
        assert opened.format.lower() == format and len(opened.convert("RGB").getcolors()) <= 8
    assert Image.open(io.BytesIO(few_colours(figure(width=2, height=1)[0]))).size == (200, 100)
