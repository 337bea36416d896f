"""A network that reads captions, for diffusers and back: a folder with `unet`
(UNet2DConditionModel), `text_encoder` (transformers' CLIPTextModel), `tokenizer` and `scheduler`.

diffusers has no pipeline of these four alone: Stable Diffusion's wants an autoencoder
(stable_diffusion.py). What their files have no place for stands in diffusion_lib.json.
"""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file

from ..core.diffusion import GaussianDiffusion
from ..core.text import TextConfig, TextUNet
from .checkpoint import load_weights
from .diffusers_format import (
    EXTRA,
    _from_scheduler,
    _read_unet,
    _to_scheduler,
    check_new,
    from_diffusers_unet,
    read_json,
    to_diffusers_unet,
)
from .files import whole
from .pipelines import check_whole_file
from .stable_diffusion import to_clip_text, to_clip_tokenizer

UNET = "UNet2DConditionModel"


def save_text_unet(model: TextUNet, diffusion: GaussianDiffusion, folder: Path | str) -> None:
    """Write the folder, whole or not at all. Raises ValueError for a folder that holds something,
    OSError if it cannot be written, ImportError without diffusers.
    """
    check_new(folder := Path(folder))
    parts = {"unet": to_diffusers_unet(model.unet), "scheduler": _to_scheduler(diffusion),
             "text_encoder": to_clip_text(model.text_encoder),
             "tokenizer": to_clip_tokenizer(model.tokenizer)}
    told = {"patch_size": model.patch_size, "text": dataclasses.asdict(model.config.text)}
    with whole(folder) as temporary:
        temporary.mkdir()
        for name, part in parts.items():
            part.save_pretrained(temporary / name)
        (temporary / EXTRA).write_text(json.dumps(told), encoding="utf-8")


def holds_text_unet(folder: Path) -> bool:
    """Whether `save_text_unet` wrote a folder."""
    return (folder / EXTRA).is_file() and "text" in read_json(folder / EXTRA)


def load_text_unet(folder: Path | str) -> tuple[TextUNet, GaussianDiffusion]:
    """What `save_text_unet` wrote: the network (CPU, eval mode) and its process. Raises ValueError
    for what does not fit, FileNotFoundError for a missing part.
    """
    folder = Path(folder)
    needed = [folder / "unet" / "config.json", folder / "text_encoder" / "model.safetensors",
              folder / "scheduler" / "scheduler_config.json"]
    for path in needed:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; export the model again")
    told = read_json(folder / EXTRA)
    if missing := {"patch_size", "text"} - told.keys():
        raise ValueError(f"{folder / EXTRA} does not say {' and '.join(sorted(missing))}; export "
                         "the model again")
    check_whole_file(needed[1])
    unet = from_diffusers_unet(_read_unet(folder / "unet", UNET), patch_size=told["patch_size"])
    model = TextUNet(unet.config, TextConfig(**told["text"]))
    model.unet.load_state_dict(unet.state_dict())
    weights = {name.removeprefix("text_model."): value
               for name, value in load_file(needed[1]).items()}
    table = "embeddings.token_embedding.weight"  # theirs has rows for pieces of words, too
    if table not in weights:
        raise ValueError(f"{needed[1]} holds no {table}, so it is no text encoder of ours; export "
                         "the model again")
    rows = len(model.text_encoder.embeddings["token_embedding"].weight)
    load_weights(model.text_encoder, {**weights, table: weights[table][:rows]}, folder)
    return model.eval(), _from_scheduler(needed[2])
