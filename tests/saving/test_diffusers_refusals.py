"""What interchange refuses, by name: foreign settings, damaged folders, places that are taken."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from references import SMALL, random_unet
from safetensors.torch import load_file, save_file

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.schedules import make_betas
from diffusion_lib.core.unet import UNet
from diffusion_lib.saving.diffusers_format import (
    WEIGHTS,
    from_diffusers_unet,
    load_diffusers,
    save_diffusers,
)


def linear() -> GaussianDiffusion:
    return GaussianDiffusion(make_betas("linear", 1000))


def edit(path, **fields) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One exported pipeline, to copy from."""
    folder = tmp_path_factory.mktemp("exported") / "pipeline"
    save_diffusers(random_unet(**SMALL), linear(), folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "pipeline")


FOREIGN = dict(
    center_input_sample=True, time_embedding_type="fourier", time_embedding_dim=64,
    mid_block_scale_factor=2,
    downsample_type="resnet", upsample_type="resnet", act_fn="gelu", attn_norm_num_groups=8,
    resnet_time_scale_shift="scale_shift", add_attention=False, class_embed_type="timestep",
    num_train_timesteps=10,
    mid_block_type=None,
)  # fmt: skip


@pytest.mark.parametrize("field", FOREIGN)
def test_foreign_settings_are_refused_by_name(field):
    settings = dict(sample_size=16, block_out_channels=(32, 64),
                    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                    up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8)  # fmt: skip
    from_diffusers_unet(UNet2DModel(**settings))
    with pytest.raises(ValueError, match=f"^{field} = .* is not supported") as caught:
        from_diffusers_unet(UNet2DModel(**settings, **{field: FOREIGN[field]}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings, words", [
    (dict(block_out_channels=(32, 48)), r"block_out_channels = \(32, 48\)"),
    (dict(down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D")),
     "down_block_types holds 'Resnet"),
    (dict(up_block_types=("UpBlock2D", "AttnUpBlock2D")),
     "up_block_types = .* must mirror down_block_types"),
    (dict(sample_size=None), "sample_size = None is no single size"),
    (dict(sample_size=(16, 32)), r"sample_size = \(16, 32\) is no single size"),
    (dict(num_class_embeds=1), "num_class_embeds = 1"),
    (dict(in_channels=5), "in_channels = 5 is no multiple of patch_size 2 squared"),
])  # fmt: skip
def test_settings_that_unet_cannot_have(settings, words):
    good = dict(sample_size=16, in_channels=12, out_channels=12, block_out_channels=(32, 64),
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    assert from_diffusers_unet(UNet2DModel(**good), patch_size=2).image_size == 32
    with pytest.raises(ValueError, match=words):
        from_diffusers_unet(UNet2DModel(**{**good, **settings}), patch_size=2)


def test_image_size_can_be_said():
    theirs = UNet2DModel(block_out_channels=(32, 64), norm_num_groups=8,
                         down_block_types=("DownBlock2D",) * 2,
                         up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    assert from_diffusers_unet(theirs, image_size=24).image_size == 24


@pytest.mark.parametrize("file, fields, words", [
    ("unet/config.json", dict(new_field=7), "new_field = 7 is not a field of UNet2DModel"),
    ("unet/config.json", dict(_class_name="UNet2DConditionModel"), "is a UNet2DConditionModel"),
    ("unet/config.json", dict(act_fn="gelu"), "act_fn = 'gelu' is not supported"),
    ("unet/config.json", dict(layers_per_block=2), "not made for its config.json"),
    ("unet/config.json", dict(block_out_channels=[32, 64, 64]), "not made for its config.json"),
    ("scheduler/scheduler_config.json", dict(_class_name="FlowMatchEulerDiscreteScheduler"),
     "is a FlowMatchEuler"),
    ("scheduler/scheduler_config.json", dict(variance_type="learned_range"),
     "variance_type = 'learned_range'"),
    ("scheduler/scheduler_config.json", dict(thresholding=True), "thresholding = True"),
    ("scheduler/scheduler_config.json", dict(clip_sample_range=3.0), "clip_sample_range = 3.0"),
    ("scheduler/scheduler_config.json", dict(prediction_type="flow"), "prediction_type = 'flow'"),
    ("scheduler/scheduler_config.json", dict(trained_betas=[0.1, 0.2]),
     "2 betas for num_train_timesteps = 1000"),
])  # fmt: skip
def test_folders_that_do_not_fit(folder, file, fields, words):
    load_diffusers(folder)
    edit(folder / file, **fields)
    with pytest.raises(ValueError, match=words) as caught:
        load_diffusers(folder)
    assert "\n" not in str(caught.value)


def test_no_clipping_is_said(folder):
    edit(folder / "scheduler/scheduler_config.json", clip_sample=False)
    with pytest.warns(UserWarning, match="clip=False"):
        load_diffusers(folder)


def test_damaged_and_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder google/ddpm-cifar10-32; download"):
        load_diffusers("google/ddpm-cifar10-32")
    weights = folder / "unet" / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="weights damaged, or not made for its") as caught:
        load_diffusers(folder)
    assert "\n" not in str(caught.value)
    weights.write_bytes(whole)
    fewer = load_file(weights)
    del fewer["mid_block.resnets.0.conv1.bias"]  # diffusers would put random numbers there
    save_file(fewer, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="in 1 weights: mid_block.resnets.0.conv1.bias"):
        load_diffusers(folder)
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle, which is never opened")
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS} is missing"):
        load_diffusers(folder)
    (folder / "scheduler/scheduler_config.json").write_text("{")
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match="scheduler_config.json is not readable as JSON"):
        load_diffusers(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        load_diffusers(tmp_path / "empty")


def test_saving_refuses(tmp_path):
    model, classes = UNet(**SMALL), UNet(**SMALL, num_classes=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="full is there already and not empty"):
        save_diffusers(model, linear(), tmp_path / "full")
    assert (tmp_path / "full/precious.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="precious.txt is there already"):
        save_diffusers(model, linear(), tmp_path / "full/precious.txt")
    with pytest.raises(ValueError, match="give the label to write, 0 ... 2, or 3 for no label"):
        save_diffusers(classes, linear(), tmp_path / "out")
    with pytest.raises(ValueError, match="label 4 does not exist; the model has 0 ... 2"):
        save_diffusers(classes, linear(), tmp_path / "out", label=4)
    with pytest.raises(ValueError, match="label 0 was asked for, but this model has no classes"):
        save_diffusers(model, linear(), tmp_path / "out", label=0)
    # 1 - 1e-9 is 1 in float32: the scheduler would divide by the square root of 0
    with pytest.raises(ValueError, match="divide by 0"):
        save_diffusers(model, GaussianDiffusion(torch.tensor([0.5, 1 - 1e-9], dtype=torch.float64)),
                       tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DDPMScheduler, "save_pretrained",
                        full_disk)  # after the network was written
    with pytest.raises(OSError, match="could not write .*out .*No space left.*free some disk"):
        save_diffusers(UNet(**SMALL), linear(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_diffusers_is_imported_only_when_needed():
    code = "import sys, diffusion_lib.saving.diffusers_format; print('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True,
                          text=True).stdout == "False\n"
    code = ("import sys; sys.modules['diffusers'] = None\n"
            "from diffusion_lib import UNet, to_diffusers_unet\n"
            "try: to_diffusers_unet(UNet(image_size=8, channels=8))\n"
            "except ImportError as error: print(error)")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "install it: pip install diffusers" in answer.stdout, answer.stderr
