"""To and from diffusers: the same pictures from the same noise, nothing lost on the way, foreign
settings refused.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline, UNet2DModel
from references import CONFIGURATIONS, DDPM_CIFAR10, SMALL, pictures, random_unet
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.guidance import guided
from diffusion_lib.core.samplers import ddim, ddpm, last_step
from diffusion_lib.core.schedules import make_betas, rescale_zero_terminal_snr
from diffusion_lib.core.unet import UNet
from diffusion_lib.saving.diffusers_format import (
    WEIGHTS,
    fold_label,
    from_diffusers_unet,
    load_diffusers,
    save_diffusers,
    to_diffusers_unet,
)

SEEDS = [3, 4, 7]
T = torch.tensor([3, 977])


def linear(prediction: str = "epsilon", steps: int = 1000) -> GaussianDiffusion:
    return GaussianDiffusion(make_betas("linear", steps), prediction)


def drawn_by_pipeline(folder, steps: int) -> torch.Tensor:
    """Pictures in [0, 1] by diffusers alone, which draws noise as our samplers do, given a
    generator per picture.
    """
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(len(SEEDS), generator=generators, num_inference_steps=steps,
                    output_type="pt").images


def drawn_by_us(diffusion, model, steps: int) -> torch.Tensor:
    shape = (len(SEEDS), 3, model.image_size, model.image_size)
    return (last_step(ddpm(diffusion, model, shape, steps=steps, seeds=SEEDS)).x_t / 2
            + 0.5).clamp(0, 1)


# -- the same pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, T, steps, prediction",
    [
        ("linear", 1000, 25, "epsilon"),
        ("linear", 100, 100, "epsilon"),
        ("cosine", 1000, 25, "epsilon"),
        ("cosine", 1000, 30, "x0"),
        ("sigmoid", 1000, 25, "v"),
        ("zero terminal SNR", 1000, 30, "v"),
    ],
)
def test_the_pipeline_draws_the_same_pictures(tmp_path, schedule, T, steps, prediction):
    snr0 = schedule == "zero terminal SNR"
    betas = rescale_zero_terminal_snr(make_betas("cosine", T)) if snr0 else make_betas(schedule, T)
    diffusion, model = GaussianDiffusion(betas, prediction), random_unet(**SMALL)
    save_diffusers(model, diffusion, tmp_path / "out")
    theirs, ours = drawn_by_pipeline(tmp_path / "out", steps), drawn_by_us(diffusion, model, steps)
    error = (ours - theirs).abs().max().item() * 255
    inside = ((ours > 0.01) & (ours < 0.99)).float().mean().item()
    print(f"{schedule}, T {T}, {steps} steps, {prediction} {error:.4f} of 255; {inside:.0%} inside")
    assert inside > 0.1 and ours.std() > 0.05  # not merely both clipped to black and white
    assert error < 2
    # and the comparison does notice another network, and another prediction type
    assert (drawn_by_us(diffusion, random_unet(1, **SMALL), steps) - theirs).abs().max() * 255 > 20
    wrong = GaussianDiffusion(betas, "v" if prediction == "x0" else "x0")
    assert (drawn_by_us(wrong, model, steps) - theirs).abs().max() * 255 > 20


def test_the_published_configuration_as_a_pipeline(tmp_path):
    model, diffusion = random_unet(**DDPM_CIFAR10), linear()
    save_diffusers(model, diffusion, tmp_path / "out")
    ours, theirs = drawn_by_us(diffusion, model, 3), drawn_by_pipeline(tmp_path / "out", 3)
    error = (ours - theirs).abs().max().item() * 255
    print(f"google/ddpm-cifar10-32's settings, 3 steps: largest difference {error:.4f} of 255")
    assert error < 2


@torch.no_grad()
def test_a_folded_label_is_that_label(tmp_path):
    model = random_unet(**SMALL, num_classes=3)
    x = pictures(model)
    for label in range(4):
        labels = torch.full((2,), label)
        folded = fold_label(model, label)
        error = (folded(x, T) - model(x, T, labels)).abs().max().item()
        print(f"label {label} folded: largest absolute difference {error:.1e}")
        assert error < 1e-5
        assert (folded(x, T) - model(x, T, (labels + 1) % 4)).abs().max() > 0.01
        assert folded.num_classes is None
    assert torch.equal(model(x, T), model(x, T, torch.full((2,), 3)))  # it was left alone

    save_diffusers(model, linear(), tmp_path / "two", label=2)

    class Two(torch.nn.Module):
        image_size = model.image_size

        def forward(self, x_t, t):
            return model(x_t, t, torch.full_like(t, 2))

    theirs = drawn_by_pipeline(tmp_path / "two", 20)
    error = (drawn_by_us(linear(), Two(), 20) - theirs).abs().max().item() * 255
    print(f"pipeline of label 2: largest difference {error:.4f} of 255")
    assert error < 2
    assert (drawn_by_us(linear(), fold_label(model, 0), 20) - theirs).abs().max() * 255 > 2


class OneLabelEach(torch.nn.Module):
    """Exported models, one a label, with the interface of the network of diffusers' DiTPipeline."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, unets: dict[int, UNet2DModel]) -> None:
        super().__init__()
        self.parts, self.labels = torch.nn.ModuleList(unets.values()), list(unets)
        self.config = self.parts[0].config

    def forward(self, x, timestep, class_labels):
        answers = [self.parts[self.labels.index(label)](x[i : i + 1], timestep[i : i + 1]).sample
                   for i, label in enumerate(class_labels.tolist())]
        return SimpleNamespace(sample=torch.cat(answers))


class NoLatents(torch.nn.Module):
    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, x):
        return SimpleNamespace(sample=x)


@torch.no_grad()
def test_guidance_in_a_pipeline_of_diffusers(tmp_path):
    """Its own loop and its own guidance, on a class and on "no class" of one exported model."""
    model, diffusion = random_unet(**SMALL, num_classes=3), linear("v")
    unets = {}
    for label, theirs in ((2, 2), (3, 1000)):  # 1000 is what this pipeline calls "no class"
        save_diffusers(model, diffusion, tmp_path / str(label), label=label)
        unets[theirs] = UNet2DModel.from_pretrained(tmp_path / str(label) / "unet")
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "2/scheduler", clip_sample=False)
    pipeline = DiTPipeline(OneLabelEach(unets), NoLatents(), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def its(scale):
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return pipeline([2] * len(SEEDS), guidance_scale=scale, generator=generators,
                        num_inference_steps=10, output_type="pt").images

    def ours(scale):
        shape = (len(SEEDS), 3, model.image_size, model.image_size)
        steps = ddim(diffusion, guided(model, 2, scale), shape, steps=10, seeds=SEEDS, clip=False)
        return (last_step(steps).x_t / 2 + 0.5).clamp(0, 1)

    for scale in (1, 1.5, 4):
        error = (ours(scale) - its(scale)).abs().max().item() * 255
        print(f"DiTPipeline, scale {scale}: largest difference {error:.4f} of 255")
        assert error < 1
    assert (ours(4) - ours(1)).abs().max() * 255 > 20
    # it switches guidance off at scales up to 1: there, 0 and 0.5 draw what 1 draws
    assert torch.equal(its(0), its(1)) and torch.equal(its(0.5), its(1))
    assert (ours(0) - ours(1)).abs().max() * 255 > 20


@torch.no_grad()
def test_a_patch_model_writes_its_inner_network_only(tmp_path):
    model, diffusion = random_unet(**SMALL, patch_size=2), linear("v")
    with pytest.warns(UserWarning, match="patch size 2: only the inner UNet2DModel was written"):
        save_diffusers(model, diffusion, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("model_index.json"))
    inner = UNet2DModel.from_pretrained(tmp_path / "out")
    assert (inner.config.sample_size, inner.config.in_channels,
            inner.config.out_channels) == (8, 12, 12)
    assert DDPMScheduler.from_pretrained(tmp_path / "out").config.prediction_type == "v_prediction"
    x = pictures(model)
    theirs = F.pixel_shuffle(inner(F.pixel_unshuffle(x, 2), T).sample, 2)
    assert (model(x, T) - theirs).abs().max() < 1e-4
    again, process = load_diffusers(tmp_path / "out")
    assert again.config == model.config and torch.equal(again(x, T), model(x, T))
    assert torch.equal(process.betas, diffusion.betas)


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_network_round_trip(name):
    model = random_unet(**CONFIGURATIONS[name])
    again = from_diffusers_unet(to_diffusers_unet(model), patch_size=model.patch_size)
    assert again.config == model.config
    assert torch.equal(again(pictures(model), T), model(pictures(model), T))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_folder_round_trip_loses_nothing(tmp_path, prediction):
    model = random_unet(**SMALL, dropout=0.1)
    diffusion = GaussianDiffusion(make_betas("cosine", 777), prediction)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    save_diffusers(model, diffusion, tmp_path / "out")
    again, process = load_diffusers(str(tmp_path / "out"))
    assert again.config == model.config and not again.training
    for name, weights in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weights), name
    assert torch.equal(process.betas, diffusion.betas)  # all 64 bits
    assert process.prediction == prediction
    assert not list(tmp_path.glob(".*")), "a temporary folder was left behind"
    assert "/" not in (tmp_path / "out/model_index.json").read_text(), "a path was written"


def test_copies_are_independent():
    model = random_unet(**SMALL)
    before = model.conv_in.weight.clone()
    theirs = to_diffusers_unet(model)
    with torch.no_grad():
        theirs.conv_in.weight.zero_()
        from_diffusers_unet(theirs).conv_in.weight.fill_(1)
    assert torch.equal(model.conv_in.weight, before) and theirs.conv_in.weight.abs().max() == 0


def test_other_dtypes_survive():
    for dtype in (torch.float64, torch.bfloat16):
        model = random_unet(**SMALL).to(dtype)
        theirs = to_diffusers_unet(model)
        assert theirs.dtype == dtype and from_diffusers_unet(theirs).conv_in.weight.dtype == dtype


@torch.no_grad()
def test_a_published_folder_in_the_old_layout(tmp_path):
    """google/ddpm-cifar10-32 lies flat, has old names for the attention's weights and an old
    scheduler config.
    """
    model = random_unet(**{**DDPM_CIFAR10, "channels": 32, "image_size": 16})
    to_diffusers_unet(model).save_pretrained(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in names.items():
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    assert any("proj_attn" in name for name in weights)
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    for field in ("add_attention", "dropout", "num_class_embeds", "upsample_type",
                  "resnet_time_scale_shift"):
        del config[field]  # it is older than these
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
        "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
        "num_train_timesteps": 1000, "trained_betas": None,
        "variance_type": "fixed_large",
    }))  # fmt: skip
    with pytest.warns(UserWarning, match="variance_type = fixed_large"):
        again, diffusion = load_diffusers(tmp_path)
    assert (again(pictures(model), T) - model(pictures(model), T)).abs().max() == 0
    assert (diffusion.betas - make_betas("linear", 1000)).abs().max() < 1e-8
    assert diffusion.prediction == "epsilon"


@pytest.mark.parametrize("fields", [
    dict(beta_schedule="squaredcos_cap_v2"),
    dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    dict(beta_schedule="sigmoid"), dict(rescale_betas_zero_snr=True,
                                        prediction_type="v_prediction"),
    dict(prediction_type="sample"),
])  # fmt: skip
def test_their_schedules(tmp_path, fields):
    scheduler = DDPMScheduler(**fields)
    DDPMPipeline(to_diffusers_unet(UNet(**SMALL)), scheduler).save_pretrained(tmp_path)
    _, diffusion = load_diffusers(tmp_path)
    assert diffusion.T == 1000
    assert (diffusion.alphas_cumprod - scheduler.alphas_cumprod).abs().max() < 1e-6
