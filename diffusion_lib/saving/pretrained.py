"""Any trained model by its name or its path: shipped ones, your own runs, diffusers' folders."""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.autoencoder import Autoencoder
from ..core.cpu_kernels import quicken
from ..core.diffusion import GaussianDiffusion
from ..core.text import TextUNet
from ..core.unet import UNet
from .checkpoint import load_checkpoint, load_weights, newest_checkpoint, read_state
from .diffusers_format import is_diffusers_folder, load_diffusers
from .eight_bits import unpack
from .files import sha256
from .latents import fingerprint_of
from .text_format import holds_text_unet, load_text_unet

WEIGHTS = Path(__file__).parents[1] / "weights"


class Pretrained(NamedTuple):
    """A model ready to sample from."""

    model: nn.Module  # eval mode, float32
    diffusion: GaussianDiffusion
    info: dict  # its card (shipped) or its checkpoint's state

    @property
    def autoencoder(self) -> Autoencoder | None:
        """Of a model that draws latents; `sample` decodes by it."""
        return getattr(self.model, "autoencoder", None)


def load_model(
    checkpoint: str | Path, which: str = "ema", autoencoder: str | Path | None = None
) -> Pretrained:
    """Any trained model by its path or its name.

    checkpoint: a run folder (its newest), a step_… folder or a weights file in it, a folder in
    diffusers' format, or a shipped model's name. which: the weights of a checkpoint, "ema" (the
    last average), "ema_0", … or "model" (raw); a file named directly decides itself. autoencoder:
    one with the same latents, to decode by in place of its own (a name or a path). Raises
    FileNotFoundError if there is nothing there, ValueError for a foreign or damaged file.
    """
    loaded = _load_model(checkpoint, which, autoencoder)
    if autoencoder is not None and loaded.autoencoder is None:
        raise ValueError(f"{checkpoint} draws no latents, so it takes no autoencoder; leave it out")
    return loaded


def _load_model(checkpoint: str | Path, which: str, autoencoder: str | Path | None) -> Pretrained:
    path = Path(checkpoint)
    if not path.exists() and str(checkpoint) in shipped_models():
        return load_pretrained(str(checkpoint), autoencoder)
    check_path(path)
    if path.is_file():
        which = path.stem if path.suffix == ".safetensors" else which
        path = path.parent
    if holds_text_unet(path):
        return _ready(*load_text_unet(path), {"source": str(checkpoint)})
    if is_diffusers_folder(path):
        return _ready(*load_diffusers(path), {"source": str(checkpoint)})
    path, state = _opened(path)
    check_draws(state, checkpoint)
    if missing := [part for part in ("model", "diffusion") if part not in state]:
        raise ValueError(f"{path / 'state.json'} does not tell its {' and '.join(missing)}; "
                         "use a checkpoint that Trainer.save() wrote")
    weights = _weights(path, state, which)
    return _rebuild(state["model"], state["diffusion"], weights, path, state, autoencoder)


def _opened(path: Path) -> tuple[Path, dict]:
    """(folder, state) of a checkpoint, of a run's newest. Raises as `load_model`."""
    check_path(path)
    folder = path if (path / "state.json").exists() else newest_checkpoint(path) or path
    return folder, read_state(folder)


def _weights(path: Path, state: dict, which: str) -> dict[str, Tensor]:
    if which == "ema":
        stems = [Path(name).stem for name in state["files"] if name.startswith("ema_")]
        which = max(stems, key=lambda stem: int(stem.removeprefix("ema_")), default="model")
    return load_checkpoint(path, [which])[1][which]


def load_autoencoder(checkpoint: str | Path) -> Autoencoder:
    """A trained autoencoder by its run folder, a checkpoint in it, or the name of a shipped one.

    `card` holds its card or its checkpoint's state, `source` where it came from. Raises
    FileNotFoundError if there is nothing there, ValueError for what is no autoencoder.
    """
    path = Path(checkpoint)
    if not path.exists() and str(checkpoint) in shipped_models():
        card, weights = _shipped(str(checkpoint))
    else:
        path, card = _opened(path)
        weights = _weights(path, card, "ema")
    if "latent_channels" not in card.get("model", {}):
        raise ValueError(f"{checkpoint} is no autoencoder; train one with --config "
                         "catfaces_autoencoder, or give a shipped one's name")
    model = Autoencoder(**card["model"])
    load_weights(model, {key: value.float() for key, value in weights.items()}, checkpoint)
    quicken(model.eval().requires_grad_(False))
    model.card = card
    model.source = {"name": str(checkpoint), "sha256": fingerprint_of(model)}
    return model


def is_autoencoder(checkpoint: str | Path) -> bool:
    """Whether a name or a path is that of an autoencoder; False for what cannot be read."""
    path = Path(checkpoint)
    try:
        if not path.exists() and str(checkpoint) in shipped_models():
            card = json.loads((WEIGHTS / f"{checkpoint}.json").read_text(encoding="utf-8"))
        else:
            card = _opened(path)[1]
    except (ValueError, OSError):
        return False
    return "latent_channels" in card.get("model", {})


def its_autoencoder(
    told: dict, source: object, instead: str | Path | None = None
) -> Autoencoder | None:
    """The autoencoder that a card or a state names, or another with the same latents. Raises
    ValueError, one line, if it is not at hand or its latents are others.
    """
    if not told:
        return None
    name = told["name"] if instead is None else str(instead)
    try:
        found = load_autoencoder(name)
    except FileNotFoundError:
        remedy = ("put its run folder back in that place, or name it (--autoencoder)"
                  if instead is None else "give its run folder, or a shipped one's name")
        raise ValueError(f"{source} draws latents of the autoencoder {name}, which is not there; "
                         f"{remedy}") from None
    if told["sha256"] != found.source["sha256"]:
        raise ValueError(f"{source} draws latents of another autoencoder than {name} is now (its "
                         "weights differ); put back the one it was trained with, or name it "
                         "(--autoencoder)")
    return found


def check_draws(told: dict, name: object) -> None:
    """Raises ValueError for the state or the card of an autoencoder."""
    if "diffusion" not in told and "latent_channels" in told.get("model", {}):
        raise ValueError(f"{name} is an autoencoder: it turns pictures into latents and back, and "
                         f"draws nothing by itself; train a model with --autoencoder {name}")


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
    config: dict, diffusion: dict, weights: dict[str, Tensor], source: object, info: dict,
    instead: str | Path | None = None,
) -> Pretrained:
    try:
        model = TextUNet(**config) if "text" in config else UNet(**config)
    except TypeError as error:
        raise ValueError(f"{source} describes a network that this version cannot build ({error}); "
                         "update the library") from error
    load_weights(model, {key: value.float() for key, value in weights.items()}, source)
    # whether it knows what "no class" or no caption is: guidance asks
    if model.num_classes is not None or isinstance(model, TextUNet):
        object.__setattr__(model, "label_drop", info.get("train", {}).get("label_drop"))
    autoencoder = its_autoencoder(info.get("autoencoder", {}), source, instead)
    return _ready(model, GaussianDiffusion.from_state_dict(diffusion), info, autoencoder)


def _ready(
    model: nn.Module, diffusion: GaussianDiffusion, info: dict,
    autoencoder: Autoencoder | None = None,
) -> Pretrained:
    if autoencoder is not None:
        object.__setattr__(model, "autoencoder", autoencoder)  # beside it, no part of its weights
    return Pretrained(quicken(model.eval().requires_grad_(False)), diffusion, info)


# -- fine-tuning -----------------------------------------------------------------------------------


def start_from(model: nn.Module, other: nn.Module) -> list[str]:
    """Fine-tuning: copy those weights of `other` into `model` that have the same name and shape.

    Returns the names of those left new. A network for pixels becomes one for patches (patch_size):
    the first convolution sees the mean of each patch, the last one answers the same for all its
    pixels. Raises ValueError if less than half of the network fits.
    """
    own, theirs, new, fit = model.state_dict(), other.state_dict(), [], {}
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
            fit[name] = there
    total = sum(weight.numel() for weight in own.values())
    if (fits := 1 - sum(own[name].numel() for name in new) / total) < 0.5:
        raise ValueError(f"only {fits:.0%} of this network's weights have their like in the one to "
                         f"start from; make it like that one: {other.config}")
    for name, there in fit.items():  # only now: a refused network is as it was
        own[name].copy_(there)
    return new


# -- what ships with the library -------------------------------------------------------------------


def register() -> dict[str, str]:
    """Name -> sha256 of every shipped weight file (weights/register.json)."""
    path = WEIGHTS / "register.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shipped_models() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(register())


def load_pretrained(name: str, autoencoder: str | Path | None = None) -> Pretrained:
    """A model that ships with the library, checked against the register; `.info` is its card.

    autoencoder: as in `load_model`. Raises ValueError for an unknown name (listing the known ones)
    or a file that differs.
    """
    card, weights = _shipped(name)
    check_draws(card, name)
    return _rebuild(card["model"], card["diffusion"], weights, f"the shipped {name}", card,
                    autoencoder)


def _shipped(name: str) -> tuple[dict, dict[str, Tensor]]:
    """(card, weights) of a model that ships, checked. Raises ValueError."""
    known = register()
    if name not in known:
        raise ValueError(f"no shipped model is called {name!r}; "
                         f"there are {', '.join(sorted(known)) or 'none'}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists() or sha256(path) != known[name]:
        raise ValueError(f"{path} is missing or differs from the register; "
                         "install the library again")
    card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return card, unpack(load_file(path))


def progress_grids(name: str) -> dict[int, Image.Image]:
    """The same seeds at moments of a training: epoch, or step -> grid (.ci/measure_arms.py).

    Raises FileNotFoundError, listing the models there are.
    """
    files = sorted((WEIGHTS / "progress").glob("*.webp"))
    found = [path for path in files if path.stem.rpartition("_")[0] == name]
    if not found:
        known = ", ".join(sorted({path.stem.rpartition("_")[0] for path in files})) or "none"
        raise FileNotFoundError(f"there are no grids of {name}'s training; there are {known}'s")
    return {int(path.stem.rpartition("_")[2]): Image.open(path).convert("RGB") for path in found}


def shipped_table(name: str) -> dict:
    """What a program in .ci/ measured, for the notebooks to read: weights/tables/NAME.json, or
    NAME.safetensors with a tensor for each name.

    Raises FileNotFoundError, listing the tables there are.
    """
    path = WEIGHTS / "tables" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if path.with_suffix(".safetensors").exists():
        return load_file(path.with_suffix(".safetensors"))
    known = ", ".join(sorted(p.stem for p in path.parent.glob("*.*"))) or "none"
    raise FileNotFoundError(f"there is no table {name!r}; there are {known}")
