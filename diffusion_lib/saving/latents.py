"""A data set encoded once: its latents, float16, in one file that knows whose they are."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..core.autoencoder import Autoencoder
from ..data.sources import ImageData, to_float
from .files import fingerprint, whole


@torch.no_grad()
def encode_set(
    data: ImageData, autoencoder: Autoencoder, *, mirrored: bool = True,
    file: Path | str | None = None, progress: bool = False,
) -> ImageData:
    """The data set with latents, float16 (N, C, h, w), in place of pictures.

    mirrored: every picture's mirror image is encoded too, behind all others (N doubles): a mirrored
    latent is not the latent of the mirrored picture. file: where they are kept, or were kept
    before. Raises ValueError for a file that was made from other pictures, by another autoencoder,
    or is damaged.
    """
    marks = {"pictures": fingerprint(data.images), "autoencoder": fingerprint_of(autoencoder),
             "mirrored": str(mirrored)}
    if file is not None and Path(file).exists():
        latents = read(Path(file), marks)
    else:
        latents = encode(data.images, autoencoder, mirrored, progress)
        if file is not None:
            with whole(file) as temporary:
                save_file({"latents": latents}, temporary, metadata=marks)
    times = 1 + mirrored
    labels, attributes = (rows if rows is None else torch.cat([rows] * times)
                          for rows in (data.labels, data.attributes))
    return replace(data, images=latents, labels=labels, attributes=attributes,
                   captions=data.captions * times)


def encode(images: Tensor, autoencoder: Autoencoder, mirrored: bool, progress: bool) -> Tensor:
    """Latents of uint8 pictures, a batch at a time. Raises ValueError where their spread is far
    from 1 (the autoencoder never measured it), and for an autoencoder in training mode.
    """
    if autoencoder.training:
        raise ValueError("the autoencoder is in training mode, where it measures every batch anew; "
                         "call autoencoder.eval() first")
    device, parts = next(autoencoder.parameters()).device, []
    turns: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: x.flip(-1)]
    for turn in turns[: 1 + mirrored]:
        for rows in tqdm(images.split(32), desc="encoding", unit="batch", disable=not progress):
            parts.append(autoencoder.encode(turn(to_float(rows.to(device)))).cpu())
    latents = torch.cat(parts)
    spread = latents.std((0, 2, 3)) if len(latents) > 1 else torch.ones(1)
    if not ((spread > 0.5) & (spread < 2)).all():
        told = [round(s, 2) for s in spread.tolist()]
        raise ValueError(f"the latents' spread a channel is {told}, not about 1: this "
                         "autoencoder has not measured its latents; train it "
                         "further, on pictures like these")
    return latents.half().contiguous()


def read(file: Path, marks: dict[str, str]) -> Tensor:
    """Latents from a file. Raises ValueError unless it holds what `marks` says."""
    remedy = f"remove {file}, and they are encoded again"
    try:
        with safe_open(file, "pt") as content:
            told, latents = content.metadata() or {}, content.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} holds no encoded pictures (it is damaged); {remedy}") from error
    for what, mark in marks.items():
        if told.get(what) != mark:
            reason = {"pictures": "of other pictures than the folder holds now",
                      "autoencoder": "by another autoencoder"}.get(what, "with other settings")
            raise ValueError(f"{file} was encoded {reason}; {remedy}")
    return latents


def fingerprint_of(autoencoder: Autoencoder) -> str:
    """sha256 of the weights that make latents, as stored in float16 (so shipping keeps it); those
    that paint pictures of them may learn on while latents stay.
    """
    every = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            every.update(name.encode())
            every.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return every.hexdigest()
