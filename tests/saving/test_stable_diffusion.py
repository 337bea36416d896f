"""A model of captions and latents as diffusers' own pipeline: the same numbers for the same words,
and the same picture from the same noise.
"""

import pytest
import torch

from diffusion_lib import (
    Autoencoder,
    GaussianDiffusion,
    TextUNet,
    ToyCats,
    ddim,
    guided,
    last_step,
    load_pretrained,
    make_betas,
    read_attributes,
    words_of,
)
from diffusion_lib.data.toycats import caption
from diffusion_lib.saving.stable_diffusion import (
    byte_pairs,
    joined,
    letters,
    save_pipeline,
    to_pipeline,
)

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

CAPTIONS = ToyCats(size=16, n=2000).captions
PROMPTS = ["a white cat with stripes, green eyes and round ears on blue", "a grey cat"]
UNET = {"image_size": 8, "in_channels": 4, "channels": 16, "channel_mults": (1, 2),
        "attention": (False, True), "attention_head_dim": 8}


def miniature(**text) -> tuple[TextUNet, GaussianDiffusion, Autoencoder]:
    """All parts, with weights that are nowhere zero."""
    torch.manual_seed(0)
    text = {"words": words_of(CAPTIONS), "width": 32, "mask_padding": False, **text}
    model = TextUNet(UNET, text)
    autoencoder = Autoencoder(image_size=16, channels=8, channel_mults=(1, 2), norm_num_groups=4)
    with torch.no_grad():
        for part in (model, autoencoder):
            for p in part.parameters():
                p.add_(0.1 * torch.randn_like(p))
        autoencoder.latent_mean.normal_()
        autoencoder.latent_std.uniform_(0.5, 2)
    diffusion = GaussianDiffusion(make_betas("cosine", 1000), "v")
    return model.eval(), diffusion, autoencoder.eval()


@torch.no_grad()
def test_the_pipeline_draws_our_picture(tmp_path):
    model, diffusion, autoencoder = miniature()
    save_pipeline(model, diffusion, autoencoder, tmp_path / "sd")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "sd", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def ours(scale: float, negative: str | None = None) -> torch.Tensor:
        network = guided(model, PROMPTS, scale, negative=negative)
        walk = ddim(diffusion, network, noise.shape, steps=10, x_T=noise, clip=False)
        return (autoencoder.decode(last_step(walk).x_t) / 2 + 0.5).clamp(0, 1)

    def theirs(scale: float, negative: str | None = None) -> torch.Tensor:
        return pipeline(
            PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=scale, output_type="pt",
            negative_prompt=None if negative is None else [negative] * 2).images

    for scale, negative in ((1.0, None), (3.0, None), (3.0, "a black cat")):
        error = (ours(scale, negative) - theirs(scale, negative)).abs().max().item() * 255
        print(f"scale {scale}, negative {negative}: largest difference {error:.4f} of 255")
        assert error < 2
    assert (ours(3) - ours(1)).abs().max() * 255 > 10  # guidance, and the negative prompt, matter
    assert (ours(3) - ours(3, "a black cat")).abs().max() * 255 > 10
    assert ours(3).std() > 0.05


@torch.no_grad()
def test_the_shipped_miniature_draws_what_is_asked_and_the_same_in_diffusers():
    model, diffusion, _ = loaded = load_pretrained("toysd64")
    pipeline = to_pipeline(model, diffusion, loaded.autoencoder)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = ["a white cat with stripes, green eyes and round ears on blue",
               "a black cat with amber eyes and folded ears on pink"]
    theirs = pipeline(prompts, latents=noise, num_inference_steps=12, guidance_scale=3.0,
                      output_type="pt").images
    walk = ddim(diffusion, guided(model, prompts, 3.0), noise.shape, steps=12, x_T=noise,
                clip=False)
    drawn = loaded.autoencoder.decode(last_step(walk).x_t)
    assert ((drawn / 2 + 0.5).clamp(0, 1) - theirs).abs().max().item() * 255 < 2
    seen = read_attributes(drawn.clamp(-1, 1))
    assert seen.is_cat.all()
    assert [caption(row) for row in seen.attributes.tolist()] == prompts


def test_the_tokenizer_says_our_numbers():
    model, diffusion, autoencoder = miniature()
    pipeline = to_pipeline(model, diffusion, autoencoder)
    captions = [*CAPTIONS, "", "A WHITE  cat", "a cat , a cat"]
    numbers = pipeline.tokenizer(captions, padding="max_length", truncation=True,
                                 max_length=16, return_tensors="pt").input_ids
    assert torch.equal(numbers, model.tokenizer(captions).tokens)
    assert pipeline.tokenizer.model_max_length == 16


def test_rules_of_words_that_disturb_each_other():
    words = ["an", "and", "a", "round", "on", "un", "ran", "banana", "nana", ",", "ab", "abab"]
    vocabulary, rules = byte_pairs(words)
    for number, word in enumerate(words, 1):
        (token,) = joined(letters(word), rules)
        assert vocabulary[token] == number
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(joined(letters("bandana"), rules)) > 1


def test_refusals(tmp_path):
    model, diffusion, autoencoder = miniature(mask_padding=True)
    with pytest.raises(ValueError, match="do not look at padding.*mask_padding false"):
        to_pipeline(model, diffusion, autoencoder)
    model, _, autoencoder = miniature()
    with pytest.raises(ValueError, match="lacks an autoencoder"):
        to_pipeline(model, diffusion, None)
    with pytest.raises(ValueError, match="lacks a text encoder"):
        to_pipeline(model.unet, diffusion, autoencoder)
    patches = Autoencoder(image_size=16, channels=8, channel_mults=(1,), patch_size=2)
    with pytest.raises(ValueError, match="knows no patches"):
        to_pipeline(model, diffusion, patches)
    with pytest.raises(ValueError, match="'naïve' has letters beyond ASCII"):
        byte_pairs(["cat", "naïve"])
