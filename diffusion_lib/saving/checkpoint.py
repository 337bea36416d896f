"""Checkpoints: a folder that exists whole or not at all.

    step_00002000/
        model.safetensors  ema_0.safetensors    weights; the last average is the one to sample from
        optimizer.pt                            loaded with weights_only=True: numbers, never code
        state.json                              step, configs, size and sha256 of each file

A crash or a full disk during a save leaves the checkpoint before it untouched (files.whole).
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


def save_checkpoint(
    folder: Path | str, weights: dict[str, nn.Module], optimizer: dict, state: dict
) -> Path:
    """Write a checkpoint folder, whole or not at all, and return it.

    folder: where it will be (replaced if there). weights: name -> module. optimizer: a state_dict.
    state: anything JSON can hold. Raises OSError in one line when the disk is full or read-only.
    """
    folder = Path(folder)
    tidy(sorted(folder.parent.glob(".*.*")))  # left by a killed run; RunLock lets one write
    with whole(folder) as temporary:
        temporary.mkdir()
        for name, module in weights.items():
            tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
                 for file in sorted(temporary.iterdir())}
        state = {"format": FORMAT, **state, "files": files}
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def load_checkpoint(
    folder: Path | str, names: Iterable[str] | None = None
) -> tuple[dict, dict[str, dict], dict | None]:
    """Read a checkpoint folder: (state, {name: state_dict}, optimizer or None).

    names: which weights to read; None reads all, and the optimizer. Raises FileNotFoundError where
    there is no folder, ValueError for a foreign, truncated or changed one.
    """
    folder, state = Path(folder), read_state(folder)
    wanted = [f"{name}.safetensors" for name in names or ()]
    wanted = sorted({*state["files"], "optimizer.pt"}) if names is None else wanted
    for name in wanted:
        check_file(folder / name, state["files"])
    weights = {name.removesuffix(".safetensors"): load_file(folder / name)
               for name in wanted if name.endswith(".safetensors")}
    return state, weights, _load_optimizer(folder / "optimizer.pt") if names is None else None


def _load_optimizer(path: Path) -> dict:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds something else than numbers and was refused: it could run "
                         "code; use a checkpoint that this library wrote") from error


def read_state(folder: Path | str) -> dict:
    """A checkpoint's state.json. Raises as `load_checkpoint`."""
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no checkpoint at {folder}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = state["format"] if isinstance(state["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not a checkpoint of this library (no readable state.json in it); "
            "give a run folder, a step_… folder in it, or the name of a shipped model") from error
    if version != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {version}, this version of the library "
                         f"reads {FORMAT}; update it")
    return state


def check_file(path: Path, files: dict[str, dict]) -> None:
    """Raises ValueError for a file that is missing, or is not the one that was saved."""
    if not path.exists() or path.name not in files:
        raise ValueError(f"{path.parent} is broken: {path.name} is missing; "
                         "use the checkpoint before it (remove this folder, and --resume does)")
    known = files[path.name]
    if path.stat().st_size != known["bytes"] or sha256(path) != known["sha256"]:
        raise ValueError(f"{path} is truncated or was changed (its sha256 differs from "
                         "state.json's); use the checkpoint before it (remove this folder, and "
                         "--resume does)")


def newest_checkpoint(run: Path | str) -> Path | None:
    """The latest step_… folder of a run, or None."""
    folders = {path.name: path for path in Path(run).glob("checkpoints/step_*")}
    for old in Path(run).glob("checkpoints/.step_*.old"):  # whole, killed while being replaced
        folders.setdefault(old.name[1:].split(".")[0], old)
    return folders[max(folders)] if folders else None


def load_weights(model: nn.Module, weights: dict, source: object) -> None:
    """Copy a state_dict into a model. Raises ValueError that names what differs, in one line."""
    own = model.state_dict()
    differing = {
        "missing": sorted(own.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": [f"{k} {tuple(weights[k].shape)} here {tuple(own[k].shape)}"
                             for k in sorted(own.keys() & weights.keys())
                             if own[k].shape != weights[k].shape]}
    if parts := [f"{len(k)} {word} (first: {k[0]})" for word, k in differing.items() if k]:
        raise ValueError(f"{source} belongs to another architecture: weights {', '.join(parts)}; "
                         "build the model from its own config")
    model.load_state_dict(weights)
