"""Saving and loading without losing anything: a checkpoint is a folder that exists whole or not at all.

    step_00002000/
        model.safetensors  ema_0.safetensors  ema_1.safetensors     weights
        optimizer.pt                                                loaded with weights_only=True: numbers, never code
        state.json                                                  step, configs, and the size and sha256 of each file

It is written to a temporary folder, flushed to the disk, and renamed: a crash or a full disk in between leaves the
checkpoint before it untouched. Shipped models are single float16 files with a card, registered here by their sha256.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .diffusion import GaussianDiffusion
from .ops import keep_memory
from .unet import UNet

FORMAT = 1
WEIGHTS = Path(__file__).parent / "weights"


class Pretrained(NamedTuple):
    """A model ready to sample from."""

    model: nn.Module  # eval mode, float32
    diffusion: GaussianDiffusion
    info: dict  # its card (shipped) or its checkpoint's state


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk now."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and needs none flushed for a rename to last
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy(parent: Path) -> None:
    """Clear away what a save left in `parent` when it failed or was killed: half a checkpoint, or one being replaced.

    Only one run writes to a folder (runs.RunLock), so nothing here is in use by another process.
    """
    for path in sorted(parent.glob(".*.*")):
        if match := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            if match[2] == "old" and not (parent / match[1]).exists():
                os.replace(path, parent / match[1])  # killed between the two renames below
            else:
                shutil.rmtree(path, ignore_errors=True)


def save_checkpoint(folder: Path | str, weights: dict[str, nn.Module], optimizer: dict, state: dict) -> Path:
    """Write a checkpoint folder, whole or not at all.

    folder: where it will be (replaced if there). weights: name -> module. optimizer: a state_dict. state: anything JSON
    can hold. Returns the folder. Raises OSError in one line, the checkpoint that was there still intact, when the
    disk is full or read-only.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _tidy(folder.parent)
        temporary.mkdir(parents=True)
        for name, module in weights.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, **state, "files": files}), encoding="utf-8")
        for path in temporary.iterdir():
            _fsync(path)
        if folder.exists():  # saving the same step again: the new one is whole before the old one goes
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.replace(folder, old)
        os.replace(temporary, folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"could not save the checkpoint {folder} ({reason}); free some disk space or choose another --out; "
                      "the checkpoints already there are whole") from error
    finally:
        _tidy(folder.parent)
    return folder


def load_checkpoint(folder: Path | str, names: Iterable[str] | None = None) -> tuple[dict, dict[str, dict], dict | None]:
    """Read a checkpoint folder after checking each file's size and sha256.

    names: which weights to read; None reads all, and the optimizer. Returns (state, {name: state_dict}, optimizer or None).
    Raises FileNotFoundError for a folder that is no checkpoint, ValueError for a foreign, truncated or changed one.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no checkpoint at {folder}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files, version = state["files"], state["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not a checkpoint of this library (no readable state.json in it); "
                         "give a run folder, a step_… folder in it, or the name of a shipped model") from error
    if version != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {version}, this version of the library reads {FORMAT}; update it")
    wanted = sorted({*files, "optimizer.pt"}) if names is None else [f"{name}.safetensors" for name in names]
    for name in wanted:
        path = folder / name
        if not path.exists() or name not in files:
            raise ValueError(f"{folder} is broken: {name} is missing; use the checkpoint before it")
        if path.stat().st_size != files[name]["bytes"] or sha256(path) != files[name]["sha256"]:
            raise ValueError(f"{path} is truncated or was changed (its sha256 differs from state.json's); use the checkpoint before it")
    weights = {name.removesuffix(".safetensors"): load_file(folder / name) for name in wanted if name.endswith(".safetensors")}
    optimizer = None
    if names is None:
        try:
            optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{folder / 'optimizer.pt'} holds something else than numbers and was refused: it could run code; "
                             "use a checkpoint that this library wrote") from error
    return state, weights, optimizer


def newest_checkpoint(run: Path | str) -> Path | None:
    """The latest step_… folder of a run, or None."""
    folders = {path.name: path for path in Path(run).glob("checkpoints/step_*")}
    for old in Path(run).glob("checkpoints/.step_*.old"):  # whole, but killed while being replaced: see save_checkpoint
        folders.setdefault(old.name[1:].split(".")[0], old)
    return folders[max(folders)] if folders else None


def load_weights(model: nn.Module, weights: dict, source: object) -> None:
    """Copy a state_dict into a model. Raises ValueError that names what differs, instead of PyTorch's pages."""
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    differing = [f"{k} {tuple(weights[k].shape)} here {tuple(own[k].shape)}" for k in sorted(own.keys() & weights.keys())
                 if own[k].shape != weights[k].shape]
    if missing or foreign or differing:
        parts = [f"{len(group)} {word} (first: {group[0]})" for word, group in
                 (("missing", missing), ("unknown", foreign), ("of another shape", differing)) if group]
        raise ValueError(f"{source} belongs to another architecture: weights {', '.join(parts)}; build the model from its own config")
    model.load_state_dict(weights)


def start_from(model: nn.Module, other: nn.Module) -> list[str]:
    """Fine-tuning: copy those weights of `other` into `model` that have the same name and shape. Returns the names of those left new.

    A network for pixels becomes one for patches (patch_size): the first convolution sees the mean of each patch, the last one answers
    the same for all its pixels. Raises ValueError if less than half of the network fits.
    """
    own, theirs, new = model.state_dict(), other.state_dict(), []
    for name, weight in own.items():
        there = theirs.get(name)
        if there is not None and there.shape != weight.shape and (times := len(weight.flatten()) // len(there.flatten())) > 1:
            if name == "conv_in.weight":
                there = there.repeat_interleave(times, dim=1) / times
            elif name.startswith("conv_out."):
                there = there.repeat_interleave(times, dim=0)
        if there is None or there.shape != weight.shape:
            new.append(name)
        else:
            weight.copy_(there)
    fits = 1 - sum(own[name].numel() for name in new) / sum(weight.numel() for weight in own.values())
    if fits < 0.5:
        raise ValueError(f"only {fits:.0%} of this network's weights have their like in the one to start from; "
                         f"make it like that one: {other.config}")
    return new


def _rebuild(config: dict, diffusion: dict, weights: dict, source: object, info: dict) -> Pretrained:
    try:
        model = UNet(**config)
    except TypeError as error:
        raise ValueError(f"{source} describes a network that this version cannot build ({error}); update the library") from error
    load_weights(model, {key: value.float() for key, value in weights.items()}, source)
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # a sixth faster on a CPU, see ops.py
    keep_memory()                                                                   # and an eighth more, sampling 64 cats
    return Pretrained(model, GaussianDiffusion.from_state_dict(diffusion), info)


def load_model(checkpoint: str | Path, which: str = "ema_1") -> Pretrained:
    """The model in a checkpoint: a run folder (its newest), a step_… folder or a file in it, or a shipped model's name.

    which: the weights to take, "ema_1" (the long average, the default), "ema_0" or "model" (raw); ignored for shipped models. A file
    `ema_0.safetensors` named directly decides itself. Raises FileNotFoundError if there is nothing there and ValueError for a foreign
    or damaged file.
    """
    path = Path(checkpoint)
    if not path.exists():
        if str(checkpoint) in shipped_models():
            return load_pretrained(str(checkpoint))
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}: give a run folder, a file in it, or a shipped model's name "
                                f"({', '.join(shipped_models()) or 'none is shipped'})")
    if path.is_file():
        if path.suffix != ".safetensors" and path.name not in ("state.json", "optimizer.pt"):
            raise ValueError(f"{path} is not a checkpoint of this library; give a run folder or a .safetensors file in it")
        which = path.stem if path.suffix == ".safetensors" else which
        path = path.parent
    if not (path / "state.json").exists():
        path = newest_checkpoint(path) or path
    state, weights, _ = load_checkpoint(path, [which])
    if missing := [part for part in ("model", "diffusion") if part not in state]:
        raise ValueError(f"{path / 'state.json'} does not tell its {' and '.join(missing)}; use a checkpoint that Trainer.save() wrote")
    return _rebuild(state["model"], state["diffusion"], weights[which], path, state)


# -- shipped models --------------------------------------------------------------------------------------------------

def _register() -> dict[str, str]:
    """Name -> sha256 of every shipped weight file (weights/register.json)."""
    path = WEIGHTS / "register.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shipped_models() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(_register())


def load_pretrained(name: str) -> Pretrained:
    """A model that ships with the library, checked against the register; `.info` is its card.

    Raises ValueError for an unknown name (listing the known ones) or a file that differs from the register.
    """
    register = _register()
    if name not in register:
        raise ValueError(f"no shipped model is called {name!r}; there are {', '.join(sorted(register)) or 'none'}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists() or sha256(path) != register[name]:
        raise ValueError(f"{path} is missing or differs from the register; install the library again")
    card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return _rebuild(card["model"], card["diffusion"], load_file(path), path, card)


def ship(name: str, pretrained: Pretrained, card: dict) -> Path:
    """Add a model to the shipped ones: float16 weights, a card (JSON), and its sha256 in the register."""
    path = WEIGHTS / f"{name}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in pretrained.model.state_dict().items()}, path)
    full = {**card, "model": pretrained.model.config, "diffusion": pretrained.diffusion.state_dict()}
    text = re.sub(r"\[[^\[\]{}]*\]", lambda row: " ".join(row[0].split()), json.dumps(full, indent=1))  # rows of numbers in one line
    (WEIGHTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    register = {**_register(), name: sha256(path)}
    (WEIGHTS / "register.json").write_text(json.dumps(register, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
