"""Pipelines that others made: loaded where they are whole, else refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_lib import load_pipeline, process_of
from diffusion_lib.saving import pipelines

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def made_small(prediction: str = "v_prediction"):
    """A Stable Diffusion 2 of the smallest size."""
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
        vocab_size=10, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "a", "t</w>"]
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
            block_out_channels=[32]),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=8,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)),
        text_encoder=transformers.CLIPTextModel(text), safety_checker=None, feature_extractor=None,
        tokenizer=transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[]),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            clip_sample=False, set_alpha_to_one=False, prediction_type=prediction),
        requires_safety_checker=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "sd2"
    made_small().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "sd2"))


def test_a_whole_one_is_loaded(whole: Path) -> None:
    pipeline = load_pipeline(whole)
    assert type(pipeline).__name__ == "StableDiffusionPipeline" and pipeline.safety_checker is None
    assert load_pipeline(whole, half=True).unet.dtype == torch.bfloat16
    process = process_of(pipeline, "v")
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    assert process.prediction == "v" and (process.betas - roots**2).abs().max() < 1e-8
    assert 0.0046 < float(process.snr(torch.tensor([999]))) < 0.0048  # not zero


def test_prediction_types_mixed_up() -> None:
    assert process_of(made_small("epsilon")).prediction == "epsilon"
    with pytest.raises(ValueError, match="predicts 'epsilon', as its scheduler says, not 'v'"):
        process_of(made_small("epsilon"), "v")


def refused(folder: Path | str, said: str, kind: type = ValueError, **more) -> None:
    with pytest.raises(kind, match=said) as caught:
        load_pipeline(folder, **more)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_pipeline(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no folder .*none", FileNotFoundError)
    refused("owner/name", "also give a revision", FileNotFoundError)
    refused(tmp_path, "is no pipeline of diffusers: model_index.json is missing")
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "model_index.json is not readable as JSON .*; download it again")


def test_another_family(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = "FluxPipeline"
    (copy / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(copy, "holds a FluxPipeline, another family")


def test_half_downloaded(copy: Path) -> None:
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    for length in (len(content) - 1, 3000, 5):
        file.write_bytes(content[:length])
        refused(copy, "cut short")
    file.unlink()
    refused(copy, "unet holds no weights as safetensors")
    shutil.rmtree(copy / "vae")
    refused(copy, "lacks its vae: it was not downloaded whole")


def test_too_little_memory_and_disk(whole: Path, tmp_path: Path, monkeypatch) -> None:
    refused(whole, r"needs about 0\.\d GB of memory and 0\.0 GB are free; half=True", memory=1000)
    monkeypatch.setattr(pipelines, "free_memory", lambda: None)  # a system that does not say
    pipelines.check_room(whole)
    usage = shutil.disk_usage(tmp_path)
    pipelines.check_disk(usage.free // 2, tmp_path / "not/there/yet", "sd2")
    with pytest.raises(ValueError, match=r"sd2 takes .* GB and .* GB are free"):
        pipelines.check_disk(usage.free + 1, tmp_path, "sd2")


def test_half_precision_alone(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """A folder that holds nothing but float16 is loaded; in float32 it needs as much room as any.
    """
    small = tmp_path / "half"
    load_pipeline(whole).to(torch.float16).save_pretrained(small, variant="fp16")
    loaded, plain = load_pipeline(small), load_pipeline(whole)
    assert loaded.unet.dtype == torch.float32
    for ours, theirs in zip(loaded.unet.parameters(), plain.unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    weights = sum(p.numel() for part in (plain.unet, plain.vae, plain.text_encoder)
                  for p in part.parameters())
    for folder in (whole, small):
        pipelines.check_room(folder, int(5.3 * weights))  # 4 bytes a weight, and room beside
        for half, bytes_each in ((False, 5.0), (True, 2.5)):
            with pytest.raises(ValueError, match="are free"):
                pipelines.check_room(folder, int(bytes_each * weights), half)


def test_a_download_that_fails(monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Nowhere:
        def model_info(self, *_, **__):
            raise OSError("no\nnetwork")

    monkeypatch.setattr(hub, "HfApi", Nowhere)
    refused("owner/name", "could not be downloaded \\(no network\\)", RuntimeError, revision="1a2b")
