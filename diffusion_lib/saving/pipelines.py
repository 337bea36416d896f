"""A Stable Diffusion that others trained, from a folder: looked at before it is loaded.

Weights of several gigabytes fail late and at length, so what can be seen beforehand is said
beforehand, in one line: no pipeline, one of another family, a file that is cut short, too little
memory. diffusers is imported only when needed.
"""

import json
import math
import os
import re
import shutil
import struct
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.diffusion import GaussianDiffusion
from ..data.needed import needed
from .diffusers_format import PREDICTION_TYPES, read_json

if TYPE_CHECKING:
    import diffusers

FAMILY = "StableDiffusionPipeline"
PARTS = ("tokenizer", "text_encoder", "unet", "scheduler", "vae")
WEIGHTS = {"text_encoder": "model*.safetensors", "unet": "diffusion_pytorch_model*.safetensors",
           "vae": "diffusion_pytorch_model*.safetensors"}
ROOM = 1.3  # of the weights: what a picture on its way needs beside them


def load_pipeline(
    where: str | Path, *, half: bool = False, revision: str = "", memory: int | None = None
) -> "diffusers.StableDiffusionPipeline":
    """A StableDiffusionPipeline from a folder, or from a repository "owner/name" of the Hugging
    Face Hub at a given revision, on the CPU, without a safety checker.

    half: weights in bfloat16, half of the memory. memory: bytes that may be used (what is free when
    left out). Raises ValueError for what is no such pipeline, lacks a part, is cut short, or does
    not fit into memory or on the disk; FileNotFoundError for a missing folder; ImportError without
    diffusers; RuntimeError without a network.
    """
    import torch

    folder = Path(where)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)) and revision:
        folder = download(str(where), revision)
    check_pipeline(folder, revision)
    check_room(folder, memory, half)
    diffusers = needed("diffusers", "a StableDiffusionPipeline")
    kept = [f.name for part, pattern in WEIGHTS.items()
            for f in whole_weights(folder / part, pattern)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # recent ones call torch_dtype dtype
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.bfloat16 if half else torch.float32, local_files_only=True,
            variant="fp16" if ".fp16." in "".join(kept) else None, use_safetensors=True,
            safety_checker=None, feature_extractor=None,
            requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def process_of(pipeline: Any, prediction: str = "") -> GaussianDiffusion:
    """The diffusion process of a pipeline, from its scheduler's settings.

    prediction: what one believes that its network predicts: epsilon, x0 or v. Raises ValueError
    where the scheduler says another; a v read as an ε draws black or grey pictures, without an
    error.
    """
    config = pipeline.scheduler.config
    names = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    if (says := names.get(config.prediction_type)) is None:
        raise ValueError(f"the scheduler's prediction_type is {config.prediction_type!r}, which is "
                         f"none of {', '.join(names)}")
    if prediction and prediction != says:
        raise ValueError(f"the network predicts {says!r}, as its scheduler says, not "
                         f"{prediction!r}; read as that it would draw nonsense")
    # what all schedulers of one family agree on; their steps are another matter
    return GaussianDiffusion(pipeline.scheduler.betas.double(), says)


def download(repository: str, revision: str) -> Path:
    """The folder of a repository's files at one revision: downloaded, or as they were before.
    """
    huggingface_hub = needed("huggingface_hub", "a download (a folder needs none)")
    wanted = ["*.json", "*/*.json", "*/*.txt", *(f"{part}/*.safetensors" for part in WEIGHTS)]
    left = ["*.fp16.*", "*.non_ema.*", "*.bin"]
    try:
        hub = huggingface_hub.HfApi()
        files = hub.model_info(repository, revision=revision, files_metadata=True).siblings or []
        size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors")
                   and "/" in file.rfilename and ".fp16." not in file.rfilename)
        check_disk(size, Path(huggingface_hub.constants.HF_HUB_CACHE), repository)
        return Path(huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=wanted, ignore_patterns=left))
    except ValueError:
        raise
    except Exception as error:  # a dozen kinds, a page long at times
        told = " ".join(str(error).split())[:150]
        raise RuntimeError(f"{repository} at revision {revision} could not be downloaded ({told}); "
                           "look whether it is still there, or give a folder") from error


# -- what is refused before the work ---------------------------------------------------------------


def check_pipeline(folder: Path, revision: str = "") -> None:
    """Raises ValueError or FileNotFoundError, one line, for a folder that holds no whole Stable
    Diffusion.
    """
    if not folder.is_dir():
        hint = ("" if revision else "; for a repository owner/name also give a revision, so that "
                "you get tomorrow what you got today")
        raise FileNotFoundError(f"there is no folder {folder}{hint}")
    if not (index := folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no pipeline of diffusers: {index.name} is missing")
    if (family := read_json(index).get("_class_name")) != FAMILY:
        raise ValueError(f"{folder} holds a {family}, another family than {FAMILY}: its parts fit "
                         "together in another way")
    for part in PARTS:
        if not any((folder / part).glob("*.json")):
            raise ValueError(f"{folder} lacks its {part}: it was not downloaded whole; do it again")
    for part, pattern in WEIGHTS.items():
        files = whole_weights(folder / part, pattern)
        if not files:
            raise ValueError(f"{folder / part} holds no weights as safetensors: it was not "
                             "downloaded whole, or only as pickled .bin, which are not read here")
        for file in files:
            check_whole_file(file)


def whole_weights(folder: Path, pattern: str) -> list[Path]:
    """A part's weights: one file or its shards, those in float32 where there are two kinds."""
    files = [f for f in sorted(folder.glob(pattern)) if ".non_ema." not in f.name]
    return [f for f in files if ".fp16." not in f.name] or files


def check_whole_file(file: Path) -> int:
    """How many numbers a safetensors file holds. Raises ValueError for one that is shorter than its
    first bytes say.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        told = content.read(length) if length < size else b""
    try:
        entries = [entry for name, entry in json.loads(told).items() if name != "__metadata__"]
        needed = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
        numbers = sum(math.prod(entry["shape"]) for entry in entries)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged or cut short ({size:,} bytes); download it "
                         "again") from None
    if size != needed:
        raise ValueError(f"{file} is cut short: {size:,} of {needed:,} bytes are there; download "
                         "it again")
    return numbers


def check_room(folder: Path, memory: int | None = None, half: bool = False) -> None:
    """Raises ValueError where the weights do not fit into the memory that is free, with numbers:
    2 or 4 bytes a weight, however they are stored.
    """
    weights = sum(check_whole_file(file) for part, pattern in WEIGHTS.items()
                  for file in whole_weights(folder / part, pattern))
    needed = weights * (2 if half else 4) * ROOM
    free = free_memory() if memory is None else memory
    if free is not None and needed > free:
        more = "" if half else "; half=True halves it"
        raise ValueError(f"{folder} needs about {needed / 1e9:.1f} GB of memory and "
                         f"{free / 1e9:.1f} GB are free{more}; close other programs, or use a "
                         "larger machine")


def check_disk(needed: int, folder: Path, what: str) -> None:
    """Raises ValueError where a download does not fit on the disk, with the numbers."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if (free := shutil.disk_usage(there).free) < 1.05 * needed:
        raise ValueError(f"{what} takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free in "
                         f"{there}; make room, or set HF_HOME to a larger disk")


def free_memory() -> int | None:
    """Bytes that programs may still use; None where the system does not say (then nothing is
    refused).
    """
    if sys.platform == "linux":
        told = Path("/proc/meminfo").read_text(encoding="utf-8")
        if found := re.search(r"MemAvailable: +(\d+) kB", told):
            return 1024 * int(found[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
