"""A model of captions and latents as a `diffusers.StableDiffusionPipeline`: five parts, one folder.

U-Net, autoencoder and text encoder have diffusers' and transformers' own `state_dict`, so they are
copied. The tokenizer is another matter: CLIP's joins letters to words by rules, ours knows whole
words; `byte_pairs` writes rules that lead to exactly ours. diffusers and transformers are imported
only when needed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import functional as F

from ..core.autoencoder import Autoencoder
from ..core.diffusion import GaussianDiffusion
from ..core.text import PADDING, TextEncoder, TextUNet, Tokenizer
from ..data.needed import needed
from .diffusers_format import (
    PREDICTION_TYPES,
    check_new,
    to_diffusers_autoencoder,
    to_diffusers_unet,
)
from .files import whole

if TYPE_CHECKING:
    import diffusers
    import transformers

END = "</w>"  # what CLIP's rules write behind a word's last letter
SPECIAL = {"pad_token": "<|padding|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}


def to_pipeline(
    model: TextUNet, diffusion: GaussianDiffusion, autoencoder: Autoencoder
) -> "diffusers.StableDiffusionPipeline":
    """The same model as a pipeline of diffusers, on the CPU, with copies of all weights.

    Its scheduler is DDIM over evenly spaced timesteps: given the same noise as `latents`, it draws
    what `ddim` draws. Raises ValueError for a model that hides padding from its pixels, as theirs
    do not, and for an autoencoder with patches; ImportError without diffusers or transformers.
    """
    check_parts(model, autoencoder)
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline(
        vae=to_diffusers_autoencoder(autoencoder), unet=to_diffusers_unet(model.unet),
        text_encoder=to_clip_text(model.text_encoder), tokenizer=to_clip_tokenizer(model.tokenizer),
        scheduler=to_ddim_scheduler(diffusion), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(
    model: TextUNet, diffusion: GaussianDiffusion, autoencoder: Autoencoder, folder: Path | str
) -> None:
    """Write `to_pipeline` as a folder that `StableDiffusionPipeline.from_pretrained` loads, whole
    or not at all. Raises as `to_pipeline`; ValueError for a folder that holds something, OSError if
    it cannot be written.
    """
    check_new(folder := Path(folder))
    pipeline = to_pipeline(model, diffusion, autoencoder)
    with whole(folder) as temporary:
        pipeline.save_pretrained(temporary)


def to_ddim_scheduler(diffusion: GaussianDiffusion) -> "diffusers.DDIMScheduler":
    """A DDIMScheduler that steps as `ddim(…, clip=False)` does."""
    import diffusers

    return diffusers.DDIMScheduler(
        num_train_timesteps=diffusion.T, trained_betas=diffusion.betas.tolist(),
        prediction_type=PREDICTION_TYPES[diffusion.prediction], clip_sample=False,
        set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing")


def to_clip_text(encoder: TextEncoder) -> "transformers.CLIPTextModel":
    """The same encoder as a `transformers.CLIPTextModel`. Its table of tokens has more rows than
    ours: zeros, for the pieces of words that `byte_pairs` needs on its way.
    """
    import transformers

    c, words = encoder.config, list(encoder.config.words)
    vocabulary, _ = byte_pairs(words)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=c.width, intermediate_size=4 * c.width,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, hidden_act="quick_gelu",
        max_position_embeddings=c.length, projection_dim=c.width, pad_token_id=PADDING,
        bos_token_id=len(words) + 1, eos_token_id=len(words) + 2))
    weights, table = encoder.state_dict(), "embeddings.token_embedding.weight"
    weights[table] = F.pad(weights[table], (0, 0, 0, len(vocabulary) - len(weights[table])))
    prefix = "text_model." if hasattr(theirs, "text_model") else ""  # before transformers 5
    theirs.load_state_dict({prefix + name: value for name, value in weights.items()})
    return theirs.eval()


def to_clip_tokenizer(tokenizer: Tokenizer) -> "transformers.CLIPTokenizer":
    """The same numbers for the same captions as a `transformers.CLIPTokenizer`.

    What it does not refuse, ours does: unknown words (it says pieces of them, or the end) and
    captions that are too long (it cuts them).
    """
    import transformers

    vocabulary, merges = byte_pairs(tokenizer.numbers)
    # by these names: recent transformers take the old vocab_file= without a word, and ignore it
    theirs = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=tokenizer.length,
        unk_token=SPECIAL["eos_token"], **SPECIAL)
    if len(theirs) != len(vocabulary):
        raise RuntimeError(f"transformers built a tokenizer of {len(theirs)} tokens from "
                           f"{len(vocabulary)}; this version takes other arguments")
    return theirs


# Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1
def byte_pairs(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, rules) by which CLIP's tokenizer makes one token of each word, of our number.

    A rule joins two neighbours; the first rule in the list that fits goes first. Each word gets the
    rules that it lacks, below all others, so that words that are done stay as they are.
    """
    words = list(words)
    rules: list[tuple[str, str]] = []
    for word in words:
        while len(pieces := joined(letters(word), rules)) > 1:
            rules.append((pieces[0], pieces[1]))
    known = [SPECIAL["pad_token"], *(joined(letters(word), rules)[0] for word in words),
             SPECIAL["bos_token"], SPECIAL["eos_token"]]
    parts = [part for word in words for part in letters(word)] + [a + b for a, b in rules]
    every = dict.fromkeys([*known, *parts])  # in this order, each once
    return {token: number for number, token in enumerate(every)}, rules


def letters(word: str) -> list[str]:
    """A word as rules see it at first: "cat" -> c, a, t</w>. CLIP writes bytes as letters; those of
    the English alphabet and of marks stand for themselves. Raises ValueError for others.
    """
    if not word.isascii():
        raise ValueError(f"the word {word!r} has letters beyond ASCII, which cannot be written as "
                         "rules of CLIP's tokenizer here; use a vocabulary without it")
    return [*word[:-1], word[-1] + END]


def joined(pieces: list[str], rules: list[tuple[str, str]]) -> list[str]:
    """Pieces after all rules that fit: always the first in the list, wherever it fits."""
    while True:
        pairs = set(zip(pieces, pieces[1:], strict=False))
        rule = next((rule for rule in rules if rule in pairs), None)
        if rule is None:
            return pieces
        done, rest = [], list(pieces)
        while rest:
            fits = tuple(rest[:2]) == rule
            done.append("".join(rest[: 1 + fits]))
            rest = rest[1 + fits :]
        pieces = done


def check_parts(model: Any, autoencoder: Autoencoder | None) -> None:
    """Raises ValueError for a model that no StableDiffusionPipeline can be; ImportError without
    the libraries.
    """
    if not isinstance(model, TextUNet) or autoencoder is None:
        raise ValueError("a StableDiffusionPipeline needs a network that reads captions and draws "
                         "latents, as toysd64 does; this one lacks "
                         f"{'an autoencoder' if isinstance(model, TextUNet) else 'a text encoder'}")
    if model.config.text.mask_padding:
        raise ValueError("this network's pixels do not look at padding, those of a "
                         "StableDiffusionPipeline do, so it would draw something else; train one "
                         "with --text.mask_padding false")
    if odd := [word for word in model.tokenizer.numbers if "'" in word or "_" in word]:
        raise ValueError(f"CLIP's tokenizer cuts words like {odd[0]!r} in another way (apostrophes "
                         "and underscores); train on captions without them")
    if (patch := autoencoder.config.patch_size) > 1 or model.unet.config.patch_size > 1:
        raise ValueError(f"patches of {max(patch, model.unet.config.patch_size)}: diffusers knows "
                         "no patches; train with patch_size 1")
    for name in ("diffusers", "transformers"):
        needed(name, "a StableDiffusionPipeline")
