"""Any trained model by its name or its path: shipped ones, your own runs, diffusers' folders."""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.cpu_kernels import quicken
from ..core.diffusion import GaussianDiffusion
from ..core.unet import UNet
from .checkpoint import load_checkpoint, load_weights, newest_checkpoint, read_state
from .diffusers_format import is_diffusers_folder, load_diffusers
from .files import sha256

WEIGHTS = Path(__file__).parents[1] / "weights"


class Pretrained(NamedTuple):
    """A model ready to sample from."""

    model: nn.Module  # eval mode, float32
    diffusion: GaussianDiffusion
    info: dict  # its card (shipped) or its checkpoint's state


def load_model(checkpoint: str | Path, which: str = "ema") -> Pretrained:
    """Any trained model by its path or its name.

    checkpoint: a run folder (its newest), a step_… folder or a weights file in it, a folder in
    diffusers' format, or a shipped model's name. which: the weights of a checkpoint, "ema" (the
    last average), "ema_0", … or "model" (raw); a file named directly decides itself. Raises
    FileNotFoundError if there is nothing there, ValueError for a foreign or damaged file.
    """
    path = Path(checkpoint)
    if not path.exists() and str(checkpoint) in shipped_models():
        return load_pretrained(str(checkpoint))
    check_path(path)
    if path.is_file():
        which = path.stem if path.suffix == ".safetensors" else which
        path = path.parent
    if is_diffusers_folder(path):
        model, diffusion = load_diffusers(path)
        return _ready(model, diffusion, {"source": str(checkpoint)})
    if not (path / "state.json").exists():
        path = newest_checkpoint(path) or path
    state = read_state(path)
    if missing := [part for part in ("model", "diffusion") if part not in state]:
        raise ValueError(f"{path / 'state.json'} does not tell its {' and '.join(missing)}; "
                         "use a checkpoint that Trainer.save() wrote")
    if which == "ema":
        stems = sorted(Path(name).stem for name in state["files"] if name.startswith("ema_"))
        which = stems[-1] if stems else "model"
    weights = load_checkpoint(path, [which])[1][which]
    return _rebuild(state["model"], state["diffusion"], weights, path, state)


def check_path(path: Path) -> None:
    """Raises FileNotFoundError or ValueError where a path holds no model that could be loaded."""
    if not path.exists():
        shipped = ", ".join(shipped_models()) or "none is shipped"
        raise FileNotFoundError(f"there is no checkpoint {path}: give a run folder, a file in it, "
                                f"or a shipped model's name ({shipped})")
    if path.is_file() and path.suffix != ".safetensors" \
            and path.name not in ("state.json", "optimizer.pt"):
        raise ValueError(f"{path} is not a checkpoint of this library; give a run folder or a "
                         ".safetensors file in it")
    if (path / "config.yaml").exists() and newest_checkpoint(path) is None:
        raise FileNotFoundError(f"{path} is a run without a checkpoint yet: wait for its first "
                                "(train.save_every says when)")


def _rebuild(
    config: dict, diffusion: dict, weights: dict[str, Tensor], source: object, info: dict
) -> Pretrained:
    try:
        model = UNet(**config)
    except TypeError as error:
        raise ValueError(f"{source} describes a network that this version cannot build ({error}); "
                         "update the library") from error
    load_weights(model, {key: value.float() for key, value in weights.items()}, source)
    return _ready(model, GaussianDiffusion.from_state_dict(diffusion), info)


def _ready(model: UNet, diffusion: GaussianDiffusion, info: dict) -> Pretrained:
    return Pretrained(quicken(model.eval().requires_grad_(False)), diffusion, info)


# -- fine-tuning -----------------------------------------------------------------------------------


def start_from(model: nn.Module, other: nn.Module) -> list[str]:
    """Fine-tuning: copy those weights of `other` into `model` that have the same name and shape.

    Returns the names of those left new. A network for pixels becomes one for patches (patch_size):
    the first convolution sees the mean of each patch, the last one answers the same for all its
    pixels. Raises ValueError if less than half of the network fits.
    """
    own, theirs, new = model.state_dict(), other.state_dict(), []
    for name, weight in own.items():
        there = theirs.get(name)
        times = 1 if there is None else weight.numel() // there.numel()
        if times > 1 and name == "conv_in.weight":
            there = there.repeat_interleave(times, dim=1) / times
        elif times > 1 and name.startswith("conv_out."):
            there = there.repeat_interleave(times, dim=0)
        if there is None or there.shape != weight.shape:
            new.append(name)
        else:
            weight.copy_(there)
    total = sum(weight.numel() for weight in own.values())
    if (fits := 1 - sum(own[name].numel() for name in new) / total) < 0.5:
        raise ValueError(f"only {fits:.0%} of this network's weights have their like in the one to "
                         f"start from; make it like that one: {other.config}")
    return new


# -- what ships with the library -------------------------------------------------------------------


def register() -> dict[str, str]:
    """Name -> sha256 of every shipped weight file (weights/register.json)."""
    path = WEIGHTS / "register.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shipped_models() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(register())


def load_pretrained(name: str) -> Pretrained:
    """A model that ships with the library, checked against the register; `.info` is its card.

    Raises ValueError for an unknown name (listing the known ones) or a file that differs.
    """
    known = register()
    if name not in known:
        raise ValueError(f"no shipped model is called {name!r}; "
                         f"there are {', '.join(sorted(known)) or 'none'}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists() or sha256(path) != known[name]:
        raise ValueError(f"{path} is missing or differs from the register; "
                         "install the library again")
    card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return _rebuild(card["model"], card["diffusion"], load_file(path), path, card)


def progress_grids(name: str) -> dict[int, Image.Image]:
    """Sixteen seeds at moments of a shipped model's training: epoch -> grid (.ci/make_progress.py).

    Raises FileNotFoundError, listing the models there are.
    """
    files = sorted((WEIGHTS / "progress").glob("*.webp"))
    found = [path for path in files if path.stem.rpartition("_")[0] == name]
    if not found:
        known = ", ".join(sorted({path.stem.rpartition("_")[0] for path in files})) or "none"
        raise FileNotFoundError(f"there are no grids of {name}'s training; there are {known}'s")
    return {int(path.stem.rpartition("_")[2]): Image.open(path).convert("RGB") for path in found}
