"""Text: equal to CLIP's encoder and to diffusers' U-Net on copied weights; words that are not known
are named; guidance by captions.
"""

import dataclasses
import json

import pytest
import torch
from references import eight_steps, pictures, random_unet
from torch.nn import functional as F

from diffusion_lib.core.guidance import guided
from diffusion_lib.core.text import TextConfig, TextEncoder, TextUNet, Tokenizer, split, words_of
from diffusion_lib.core.transformer import Attention, Text
from diffusion_lib.core.unet import UNet, UNetConfig
from diffusion_lib.data.toycats import ToyCats
from diffusion_lib.saving.diffusers_format import to_diffusers_unet

CAPTIONS = ["a white cat with stripes, green eyes and round ears on blue", "a grey cat"]
WORDS = words_of(ToyCats(n=500).captions)
SMALL = UNetConfig(image_size=16, channels=16)
CONFIGURATIONS = {
    "default": dict(image_size=16, channels=16, cross_attention_dim=24),
    "heads of 8, two blocks a level, all levels": dict(
        channels=32, attention_head_dim=8, attention=(True, True, True), blocks_per_level=2,
        cross_attention_dim=40,
    ),
    "patch 2, diffusers' published settings of time": dict(
        channels=32, patch_size=2, channel_mults=(1, 2), attention=(False, True),
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_num_groups=16,
        cross_attention_dim=16,
    ),
}


def random_text_unet(seed: int = 0) -> TextUNet:
    torch.manual_seed(seed)
    model = TextUNet(SMALL, TextConfig(WORDS, width=24))
    model.unet.load_state_dict(random_unet(seed, **dataclasses.asdict(model.unet.config))
                               .state_dict())
    return model.eval()


# -- against others --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_equals_diffusers_on_copied_weights(name):
    model = random_unet(**CONFIGURATIONS[name])
    theirs = to_diffusers_unet(model)
    assert set(theirs.state_dict()) == set(model.state_dict())  # nothing is renamed
    x, t = pictures(model), torch.tensor([3, 977])
    states = torch.randn(2, 9, model.config.cross_attention_dim)
    mask = torch.arange(9) < torch.tensor([[4], [9]])
    ours = model(x, t, Text(states, mask))
    answer = theirs(F.pixel_unshuffle(x, model.patch_size), t, states,
                    encoder_attention_mask=mask).sample
    answer = F.pixel_shuffle(answer, model.patch_size)
    error = (ours - answer).abs().max().item()
    print(f"{name}: largest absolute difference {error:.1e}, outputs to {answer.abs().max():.2f}")
    assert error < 1e-4 and answer.std() > 0.1
    seen = model(x, t, Text(states, torch.ones_like(mask)))  # the mask forgotten
    assert (seen[0] - ours[0]).abs().max() > 0.01 and (seen[1] - ours[1]).abs().max() < 1e-4


@torch.no_grad()
def test_encoder_equals_clips():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(WORDS, length=20, width=32, layers=3, heads=4)).eval()
    for p in encoder.parameters():
        p.normal_(std=0.3)
    end = len(WORDS) + 2
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(WORDS) + 3, hidden_size=32, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=20, bos_token_id=end - 1, eos_token_id=end,
        pad_token_id=0)).eval()
    theirs.load_state_dict(encoder.state_dict())
    tokens, mask = Tokenizer(WORDS, 20)(CAPTIONS)
    ours, answer = encoder(tokens), theirs(tokens)
    error = (ours - answer.last_hidden_state).abs().max().item()
    print(f"text encoder: largest absolute difference {error:.1e}")
    assert error < 1e-4 and ours.std() > 0.1
    pooled = ours[range(2), tokens.argmax(dim=1)]  # the end has the largest number
    assert (pooled - answer.pooler_output).abs().max() < 1e-4


@torch.no_grad()
def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 12, 4), torch.nn.MultiheadAttention(
        16, 4, bias=True, kdim=12, vdim=12, batch_first=True)
    theirs.in_proj_bias.zero_()
    for name in "qkv":
        getattr(theirs, f"{name}_proj_weight").copy_(getattr(ours, f"to_{name}").weight)
    theirs.out_proj.load_state_dict(ours.to_out[0].state_dict())
    x, seen, mask = torch.randn(2, 5, 16), torch.randn(2, 7, 12), torch.rand(2, 7) < 0.6
    mask[:, 0] = True
    answer = theirs(x, seen, seen, key_padding_mask=~mask)[0]
    assert (ours(x, seen, mask) - answer).abs().max() < 1e-6


# -- words -----------------------------------------------------------------------------------------


def test_words_and_numbers():
    assert split("A white Cat, two-tailed 12") == [
        "a", "white", "cat", ",", "two", "-", "tailed", "1", "2"]
    assert words_of(["b a", "a, c"]) == (",", "a", "b", "c")
    tokenizer = Tokenizer(("a", "cat", "white"), 6)
    tokens, mask = tokenizer(["a cat", "", "a white cat a"])
    assert tokens.tolist() == [[4, 1, 2, 5, 0, 0], [4, 5, 0, 0, 0, 0], [4, 1, 3, 2, 1, 5]]
    assert mask.sum(dim=1).tolist() == [4, 2, 6]
    assert tokenizer("a cat").tokens.tolist() == [[4, 1, 2, 5, 0, 0]]
    longest = max(len(split(caption)) for caption in ToyCats(n=500).captions)
    assert longest + 2 <= TextConfig().length


def test_bad_captions_are_refused(refuses):
    tokenizer = Tokenizer(WORDS, 16)
    with refuses(ValueError, "'dragon', 'striped'", "it knows", "ginger"):
        tokenizer(["a cat", "a striped dragon"])
    with refuses(ValueError, "15 words", "at most 14"):
        tokenizer("cat " * 15)
    with refuses(ValueError, "white space"):
        tokenizer("  ")
    with refuses(ValueError, "no caption"):
        tokenizer([])
    with refuses(ValueError, "a text, not 3"):
        tokenizer([3])
    for settings, said in (({"length": 2}, "length"), ({"heads": 3}, "divide"),
                           ({"words": ("A",)}, "'A'"), ({"words": ("a", "a")}, "once")):
        with refuses(ValueError, said):
            TextConfig(**settings)


# -- the network that reads ------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_that_reads():
    model = random_text_unet()
    x, t = pictures(model), torch.tensor([3, 977])
    said = model.read(CAPTIONS)
    answer = model(x, t, said)
    assert (model(x, t, model.encode(said)) - answer).abs().max() == 0
    assert torch.equal(model(x, t), model(x, t, model.read(["", ""])))  # None says nothing
    assert (model(x, t) - answer).abs().amax(dim=(1, 2, 3)).min() > 0.01
    one, other = (model(x, t, model.read(caption)) for caption in (
        "a white cat with green eyes on blue", "a white cat with blue eyes on green"))
    assert (one - other).abs().max() > 0.01
    # padding is not seen: a longer row says the same
    states, mask = model.encode(said)
    longer = Text(torch.cat([states, torch.randn(2, 5, 24)], 1), F.pad(mask, (0, 5)))
    assert (model(x, t, longer) - answer).abs().max() < 1e-5
    told = json.loads(json.dumps(dataclasses.asdict(model.config)))
    again = TextUNet(**told).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, t, again.read(CAPTIONS)), answer)


def test_it_starts_at_zero_and_every_weight_learns():
    torch.manual_seed(0)
    model = TextUNet(SMALL, TextConfig(WORDS, width=24))
    x, t = pictures(model), torch.tensor([3, 977])
    assert model(x, t).abs().max() == 0
    losses, still = eight_steps(model, x, t, model.read(CAPTIONS))
    assert losses[-1] < 0.9 * losses[0]
    # softmax does not feel a bias of the keys
    assert all(name.endswith("k_proj.bias") for name in still), still


@torch.no_grad()
def test_guidance_by_captions():
    model = random_text_unet()
    x, t = torch.cat([pictures(model), pictures(model, 1)]), torch.tensor([3, 500, 977])

    def say(caption):
        return model(x, t, model.read(caption))

    nothing, white, folded, grey = (say(c) for c in (
        "", "a white cat", "a cat with folded ears", "a grey cat"))
    for answer, expected in (
        (guided(model, "a white cat", 3), nothing + 3 * (white - nothing)),
        (guided(model, "a white cat", 1), white), (guided(model, "a white cat", 0), nothing),
        (guided(model, model.read("a white cat"), 1), white),
        # Liu et al. 2022, equation 11
        (guided(model, "a white cat", 2, also=["a cat with folded ears"]),
         nothing + 2 * (white - nothing) + 2 * (folded - nothing)),
        (guided(model, "a white cat", 1, also=["a cat with folded ears"]),
         nothing + (white - nothing) + (folded - nothing)),
        (guided(model, "a white cat", 3, negative="a grey cat"), grey + 3 * (white - grey)),
    ):
        assert (answer(x, t) - expected).abs().max() < 1e-4
    three = ["a white cat", "a grey cat", ""]
    each = guided(model, three, 2, also=["a cat with folded ears"], negative="a grey cat")
    whole = each(x, t)
    assert (each.part(slice(1, 3))(x[1:], t[1:]) - whole[1:]).abs().max() < 1e-4
    assert (guided(model, three, 1)(x, t)[1] - grey[1]).abs().max() < 1e-4


@torch.no_grad()
def test_classes_are_added_up_too():
    model = random_unet(image_size=16, channels=16, num_classes=3)
    x, t = pictures(model), torch.tensor([3, 977])
    a, b, c, none = (model(x, t, torch.full((2,), k)) for k in range(4))
    answer = guided(model, 0, 2, also=[torch.tensor([1, 1])], negative=2)(x, t)
    assert (answer - (c + 2 * (a - c) + 2 * (b - c))).abs().max() < 1e-4
    assert (guided(model, 0, 2)(x, t) - (none + 2 * (a - none))).abs().max() < 1e-4


def test_bad_conditions_are_refused(refuses):
    model, plain = random_text_unet(), random_unet(image_size=16, channels=16)
    x, t = pictures(model), torch.tensor([3, 977])
    with refuses(ValueError, "'tiger'"):
        guided(model, "a white tiger", 3)
    for network in (plain, random_unet(image_size=16, channels=16, num_classes=3)):
        for wanted in ("a white cat", ["a white cat"], model.read("a cat")):
            with refuses(ValueError, "reads no text", "toytext32"):
                guided(network, wanted, 3)
    with refuses(ValueError, "3 captions for 2 pictures"):
        guided(model, ["a cat"] * 3, 2)(x, t)
    with refuses(ValueError, "reads none"):
        plain(x, t, model.read("a cat"))
    with refuses(ValueError, "this network reads a text"):
        model.unet(x, t)
    with refuses(ValueError, "(2, 16)", "24"):
        model.unet(x, t, model.read(CAPTIONS))
    with refuses(ValueError, "0 or more"):
        guided(model, "a cat", -1)
    with refuses(ValueError, "a network reads a text or knows classes"):
        UNet(image_size=16, num_classes=3, cross_attention_dim=8)
