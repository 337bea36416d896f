"""A network that reads, to diffusers' and transformers' files and back."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from references import pictures, random_unet
from safetensors.torch import save_file

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.schedules import make_betas
from diffusion_lib.core.text import TextConfig, TextUNet, words_of
from diffusion_lib.core.transformer import Text
from diffusion_lib.core.unet import UNetConfig
from diffusion_lib.data.toycats import ToyCats
from diffusion_lib.saving.diffusers_format import EXTRA, from_diffusers_unet
from diffusion_lib.saving.pretrained import load_model
from diffusion_lib.saving.text_format import save_text_unet

T = torch.tensor([3, 977])
SETTINGS = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, sample_size=16,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), in_channels=3,
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), out_channels=3,
                cross_attention_dim=24, attention_head_dim=(2, 4), use_linear_projection=True)


@torch.no_grad()
def test_there_and_back(tmp_path):
    torch.manual_seed(0)
    model = TextUNet(UNetConfig(image_size=16, channels=16, patch_size=2, channel_mults=(1, 2),
                                attention=(False, True)),
                     TextConfig(words_of(ToyCats(n=500).captions), width=24)).eval()
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    save_text_unet(model, GaussianDiffusion(make_betas("cosine", 1000), "v"), tmp_path / "out")
    again, diffusion, _ = load_model(tmp_path / "out")
    x, captions = pictures(model), ["a white cat with round ears", ""]
    answer = model(x, T, model.read(captions))
    assert (again(x, T, again.read(captions)) - answer).abs().max() < 1e-5
    assert answer.std() > 0.01 and again.config == model.config
    assert diffusion.prediction == "v"
    # the parts alone, by diffusers and transformers
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "out", subfolder="text_encoder")
    tokens, mask = model.read(captions)
    theirs = unet(torch.nn.functional.pixel_unshuffle(x, 2), T, encoder(tokens).last_hidden_state,
                  encoder_attention_mask=mask).sample
    assert (torch.nn.functional.pixel_shuffle(theirs, 2) - answer).abs().max() < 1e-4


@torch.no_grad()
def test_a_foreign_network_is_read():
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**SETTINGS).eval()
    ours = from_diffusers_unet(theirs)
    assert ours.config.attention_head_dim == 8 and ours.config.cross_attention_dim == 24
    x, states, mask = pictures(ours), torch.randn(2, 5, 24), torch.arange(5) < torch.tensor([[3],
                                                                                            [5]])
    answer = theirs(x, T, states, encoder_attention_mask=mask).sample
    assert (ours(x, T, Text(states, mask)) - answer).abs().max() < 1e-4


@pytest.mark.parametrize("changes, said", [
    ({"use_linear_projection": False}, "use_linear_projection"),
    ({"attention_head_dim": 2}, "attention_head_dim"),
    ({"transformer_layers_per_block": 2}, "transformer_layers_per_block"),
    ({"only_cross_attention": True}, "only_cross_attention"),
])
def test_what_ours_lacks_is_refused(refuses, changes, said):
    theirs = UNet2DConditionModel(**{**SETTINGS, **changes})
    with refuses(ValueError, said):
        from_diffusers_unet(theirs)


def test_a_lacking_part_is_named(tmp_path, refuses):
    model = TextUNet(UNetConfig(image_size=16, channels=8), TextConfig(("a", "cat"), width=8))
    save_text_unet(model, GaussianDiffusion(make_betas("cosine", 1000)), tmp_path / "out")
    with refuses(ValueError, "not empty"):
        save_text_unet(model, GaussianDiffusion(make_betas("cosine", 1000)), tmp_path / "out")
    weights, told = tmp_path / "out/text_encoder/model.safetensors", tmp_path / "out" / EXTRA
    kept, words = weights.read_bytes(), told.read_text()
    weights.write_bytes(kept[:-100])
    with refuses(ValueError, "model.safetensors", "cut short"):
        load_model(tmp_path / "out")
    save_file({"text_model.other": torch.zeros(1)}, weights)
    with refuses(ValueError, "holds no embeddings.token_embedding.weight", "export"):
        load_model(tmp_path / "out")
    weights.write_bytes(kept)
    told.write_text(words.replace("patch_size", "patch"))
    with refuses(ValueError, EXTRA, "does not say patch_size", "export"):
        load_model(tmp_path / "out")
    told.write_text(words)
    load_model(tmp_path / "out")
    weights.unlink()
    with refuses(FileNotFoundError, "text_encoder", "export"):
        load_model(tmp_path / "out")
    assert random_unet(image_size=16, channels=8).config.cross_attention_dim is None
