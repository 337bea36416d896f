"""Saving and loading without losing anything: a checkpoint is a folder that exists whole or not at all.

    step_00002000/
        model.safetensors  ema_0.safetensors  ema_1.safetensors     weights
        optimizer.pt                                                loaded with weights_only=True: numbers, never code
        state.json                                                  step, configs, and the size and sha256 of each file

It is written to a temporary folder, flushed to the disk, and renamed: a crash or a full disk in between leaves the
checkpoint before it untouched. Shipped models are single float16 files with a card, registered here by their sha256.
"""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .files import sha256, tidy, whole

FORMAT = 1


def save_checkpoint(folder: Path | str, weights: dict[str, nn.Module], optimizer: dict, state: dict) -> Path:
    """Write a checkpoint folder, whole or not at all.

    folder: where it will be (replaced if there). weights: name -> module. optimizer: a state_dict. state: anything JSON
    can hold. Returns the folder. Raises OSError in one line, the checkpoint that was there still intact, when the
    disk is full or read-only.
    """
    folder = Path(folder)
    tidy(sorted(folder.parent.glob(".*.*")))  # what a killed run left; only one run writes to a folder (RunLock)
    with whole(folder) as temporary:
        temporary.mkdir()
        for name, module in weights.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(temporary.iterdir())}
        state = {"format": FORMAT, **state, "files": files}
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def read_state(folder: Path | str) -> dict:
    """A checkpoint's state.json. Raises FileNotFoundError where there is no folder, ValueError for a foreign or newer one."""
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no checkpoint at {folder}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = state["format"] if isinstance(state["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not a checkpoint of this library (no readable state.json in it); "
                         "give a run folder, a step_… folder in it, or the name of a shipped model") from error
    if version != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {version}, this version of the library reads {FORMAT}; update it")
    return state


def load_checkpoint(folder: Path | str, names: Iterable[str] | None = None) -> tuple[dict, dict[str, dict], dict | None]:
    """Read a checkpoint folder after checking each file's size and sha256.

    names: which weights to read; None reads all, and the optimizer. Returns (state, {name: state_dict}, optimizer or None).
    Raises FileNotFoundError for a folder that is no checkpoint, ValueError for a foreign, truncated or changed one.
    """
    folder, state = Path(folder), read_state(folder)
    files = state["files"]
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
