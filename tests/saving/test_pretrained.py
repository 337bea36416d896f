"""Any trained model by name or path: old checkpoints, runs without one, diffusers' folders, grey
ones.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from references import SMALL, random_unet
from torch import nn

from diffusion_lib import (
    GaussianDiffusion,
    cosine_beta_schedule,
    load_model,
    sample,
    save_diffusers,
    save_grid,
)
from diffusion_lib.core.unet import UNet
from diffusion_lib.saving import pretrained
from diffusion_lib.saving.checkpoint import read_state, save_checkpoint

DIFFUSION = GaussianDiffusion(cosine_beta_schedule(20))


def save(run: Path, step: int, **networks: UNet) -> Path:
    model = dataclasses.asdict(networks["model"].config)
    state = {"step": step, "model": model, "diffusion": DIFFUSION.state_dict()}
    return save_checkpoint(run / f"checkpoints/step_{step:08d}", networks, {}, state)


@pytest.mark.parametrize("averages", [0, 1, 2])
def test_what_is_sampled_from_is_the_last_average_there_is(tmp_path: Path, averages: int) -> None:
    networks = {"model": random_unet(9, **SMALL)}
    networks |= {f"ema_{i}": random_unet(i, **SMALL) for i in range(averages)}
    save(tmp_path, 4, **networks)
    last = [*networks.values()][-1].state_dict()
    loaded = load_model(tmp_path).model.state_dict()
    assert loaded.keys() == last.keys() and all(torch.equal(loaded[key], last[key]) for key in last)


def test_a_checkpoint_of_before_UNetConfig_loads(tmp_path: Path) -> None:
    folder = save(tmp_path, 4, model=random_unet(1, **SMALL))
    state = json.loads((folder / "state.json").read_text())
    state["model"] = {key: value for key, value in state["model"].items() if value is not None}
    (folder / "state.json").write_text(json.dumps(state))
    assert load_model(folder, "model").model.image_size == SMALL["image_size"]


def test_a_run_without_a_checkpoint_yet_says_so(tmp_path: Path, refuses: Callable) -> None:
    (tmp_path / "config.yaml").write_text("data: toycats\n")
    with refuses(FileNotFoundError, str(tmp_path), "without a checkpoint yet",
                 "wait for its first"):
        load_model(tmp_path)


@pytest.mark.parametrize("settings", [
    {}, {"in_channels": 1, "out_channels": 1}, {"patch_size": 2, "image_size": 32},
], ids=["colour", "grey", "patches"])
@pytest.mark.filterwarnings("ignore:patch size 2")
def test_a_folder_of_diffusers_is_a_model_like_others(tmp_path: Path, settings: dict) -> None:
    model = random_unet(3, **{**SMALL, **settings})
    save_diffusers(model, DIFFUSION, tmp_path / "out")
    loaded, diffusion, info = load_model(tmp_path / "out")
    assert torch.equal(diffusion.betas, DIFFUSION.betas) and info["source"] == str(tmp_path / "out")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    drawn = sample(loaded, diffusion, 2, steps=3)
    torch.testing.assert_close(drawn, sample(model, DIFFUSION, 2, steps=3), rtol=0, atol=2 / 255)
    assert drawn.shape == (2, model.in_channels, model.image_size, model.image_size)
    save_grid(drawn, tmp_path / "grid.png")


def test_an_export_is_never_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "", tmp_path, Path("new/..")):
        with refuses(ValueError, "the folder you are in", "choose another name"):
            save_diffusers(random_unet(3, **SMALL), DIFFUSION, folder)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_table_lists_those_there_are(refuses, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    with refuses(FileNotFoundError, "no table 'arms'", "there are none"):
        pretrained.shipped_table("arms")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "arms.json").write_text('{"cats32": {"n": 500}}')
    assert pretrained.shipped_table("arms")["cats32"]["n"] == 500
    with refuses(FileNotFoundError, "'legs'", "there are arms"):
        pretrained.shipped_table("legs")


def test_the_last_of_many_averages_is_the_one_with_the_largest_number(tmp_path: Path) -> None:
    folder = tmp_path / "step_0000001"
    parts = {f"ema_{i}": nn.Linear(1, 1) for i in range(11)}
    save_checkpoint(folder, parts, {}, {"model": {}, "step": 1})
    found = pretrained._weights(folder, read_state(folder), "ema")
    assert torch.equal(found["weight"], parts["ema_10"].weight)


def test_a_network_that_is_refused_as_a_start_changes_nothing() -> None:
    model = UNet(channels=8, channel_mults=[1, 2], attention=[False] * 2)
    other = UNet(channels=16, channel_mults=[1], attention=[False])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="have their like"):
        pretrained.start_from(model, other)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
