"""A run's settings, typed and checked by pydantic: what a config file holds, and what the command line changes in it.

A wrong value, an unknown or misspelt name, a missing part: each is one line that says what was meant or allowed.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from ..core.diffusion import GaussianDiffusion
from ..core.losses import WEIGHTINGS
from ..core.schedules import SCHEDULES, make_betas
from ..core.unet import UNetConfig

RENAMED = {"patience": "max_nonfinite_steps", "keep": "keep_checkpoints"}  # old name -> name: both are understood
CONFIGS = Path(__file__).parents[1] / "configs"


def whole(default: int, least: int) -> Any:
    """A setting that is a whole number of at least `least`."""
    return Field(default, ge=least, description=f"a whole number, at least {least}")


def positive(default: float) -> Any:
    """A setting that is a finite number above 0."""
    return Field(default, gt=0, allow_inf_nan=False, description="a number above 0")


def share(default: float) -> Any:
    """A setting from 0 to 1."""
    return Field(default, ge=0, le=1, allow_inf_nan=False, description="a number between 0 and 1")


def one_of(default: str, known: tuple[str, ...]) -> Any:
    """A setting that is one of the `known` words."""
    return Field(default, pattern=f"^({'|'.join(known)})$", description=f"one of {', '.join(known)}")


class Settings(BaseModel):
    """Named values that cannot be changed. Raises ValueError, one line, for an unknown name or an impossible value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{RENAMED.get(name, name): value for name, value in values.items()})
        except ValidationError as error:
            raise ValueError(explain(error, type(self))) from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":  # a field's own check has said it all
        return str(first["ctx"]["error"])
    name, value = names[0], first["input"]
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{did_you_mean(name, kind.model_fields)}"
    hint = "; YAML takes 1e-3 for text, write 1.0e-3" if isinstance(value, str) and number(value) is not None else ""
    return f"{name} must be {kind.model_fields[name].description or first['msg']}, not {value!r}{hint}"


def did_you_mean(name: str, known: Any) -> str:
    """ "; did you mean 'steps'?", or the list of what there is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def number(text: str) -> float | None:
    """The number that a text says, such as 1e-3, or None."""
    try:
        return float(text)
    except ValueError:
        return None


class TrainConfig(Settings):
    """Settings of a run. Frozen, and saved inside every checkpoint. Raises ValueError for an impossible value."""

    steps: int = whole(2000, 1)  # optimiser steps of the whole run
    batch_size: int = whole(64, 1)  # pictures a step, over all devices
    accumulate: int = whole(1, 1)  # slices of a batch that go through the network one after the other: less memory, same step
    optimizer: str = one_of("adamw", ("adamw", "muon"))  # muon: fewer steps to the same loss, a little more work in each
    learning_rate: float = positive(1e-3)  # at its highest
    warmup: int = whole(100, 0)  # steps during which the learning rate grows from 0
    final_learning_rate: float = share(0.02)  # share of it that is left at the end of the cosine decay
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="a number of at least 0")
    grad_clip: float = positive(1.0)  # largest norm of the gradient
    weighting: str = one_of("uniform", WEIGHTINGS)  # of the loss
    gamma: float = positive(5.0)  # of min_snr: timesteps with a higher SNR count no more than one with this; lower for large pictures
    label_drop: float = share(0.1)  # share of labels replaced by "no class" (for guidance; unused without classes)
    balanced: bool = Field(False, description="true or false")  # every class drawn equally often, however many pictures it has
    flip: bool = Field(True, description="true or false")  # mirror every other picture
    augment: float = share(0.0)  # chance of each change of augment.py, which the network is told (model.augment_dim 5); for few pictures
    ema: tuple[float, ...] = Field((0.05,), description="half-lives between 0 and 1, shares of the run so far, as (0.05,)")
    seed: int = whole(0, 0)
    precision: str = one_of("auto", ("auto", "float32", "bf16"))  # auto: what a short probe finds faster
    compile: bool = Field(False, description="true or false")  # torch.compile: pays on a GPU, in long runs
    device: str = Field("auto", description="auto, cpu, mps, cuda or cuda:N")
    save_every: int = whole(500, 1)  # steps between checkpoints (only if the run has a folder)
    keep_checkpoints: int = whole(2, 1)  # newest checkpoints kept
    log_every: int = whole(10, 1)  # steps between rows of log.csv
    sample_every: int = whole(1000, 1)  # steps between grids of samples in the run folder
    max_nonfinite_steps: int = whole(10, 1)  # non-finite steps in a row before the run stops

    @field_validator("ema", mode="before")
    @classmethod
    def _half_lives(cls, value: Any) -> Any:
        value = tuple(value) if isinstance(value, list) else value  # JSON and YAML hand over lists
        if not isinstance(value, tuple) or not value or not all(type(part) is float and 0 < part < 1 for part in value):
            raise ValueError(f"ema must hold {cls.model_fields['ema'].description}, not {value!r}")
        return value


class DiffusionConfig(Settings):
    """The noising process by name."""

    schedule: str = one_of("cosine", tuple(SCHEDULES))
    T: int = whole(1000, 1)
    prediction: str = one_of("v", ("epsilon", "x0", "v"))
    snr_factor: float = positive(1.0)  # of the signal-to-noise ratio at every t; 1/k² for pictures k times as wide as the schedule's
    zero_terminal_snr: bool = Field(False, description="true or false")

    def build(self) -> GaussianDiffusion:
        """The process itself. Raises ValueError for settings that do not go together (zero terminal SNR with epsilon)."""
        betas = make_betas(self.schedule, self.T, snr_factor=self.snr_factor, zero_terminal_snr=self.zero_terminal_snr)
        return GaussianDiffusion(betas, self.prediction)
class _Lists(Settings):
    """YAML and JSON hand over lists where UNetConfig has tuples."""

    @field_validator("channel_mults", "attention", mode="before", check_fields=False)
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


ModelConfig = create_model(
    "ModelConfig", __base__=_Lists, __doc__="The network: the fields of UNetConfig.",
    **{field.name: (field.type, field.default) for field in dataclasses.fields(UNetConfig)},
)


class RunConfig(Settings):
    """A whole run: `python -m diffusion_lib train --config NAME`."""

    data: str = Field("toycats", description="toycats, cifar10[:cat,dog], oxford_cats or folder:PATH")
    init: str = Field("", description="a checkpoint or the name of a shipped model, whose weights training starts from")
    diffusion: DiffusionConfig = DiffusionConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
PARTS = {name: field.annotation for name, field in RunConfig.model_fields.items()}


def read_config(name: str) -> dict:
    """A config file by its name (one that ships) or its path, as a dictionary of parts, not checked yet.

    Raises FileNotFoundError if there is none, ValueError if it is no YAML.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
        raise FileNotFoundError(f"there is no config {name!r}{did_you_mean(name, known)}; or give the path of a .yaml file")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error}); compare configs/toycats32.yaml") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold the parts {', '.join(PARTS)}, not {config!r}")
    return config


def override(config: dict, setting: str, value: Any) -> dict:
    """A copy of a config with one setting changed: override(config, "train.steps", "2000"). A text is read as YAML.

    Raises ValueError for a name that does not exist, with the nearest one that does.
    """
    part, _, name = setting.partition(".")
    setting = f"{part}.{RENAMED.get(name, name)}" if name else part
    known = [f"{part}.{name}" if hasattr(kind, "model_fields") else part
             for part, kind in PARTS.items() for name in getattr(kind, "model_fields", [""])]
    if setting not in known:
        raise ValueError(f"there is no setting --{setting}{did_you_mean(setting, known)}")
    if isinstance(value, str):
        plain = number(value)
        value = yaml.safe_load(value) if plain is None or value.lstrip("+-").isdecimal() else plain
    part, _, name = setting.partition(".")
    return {**config, part: {**(config.get(part) or {}), name: value} if name else value}


def resolve(config: dict, source: str) -> RunConfig:
    """Check a config and fill in what it leaves out. Raises ValueError that names the file and what is wrong in it."""
    for name in config:
        if name not in PARTS:
            raise ValueError(f"config {source}: there is no part {name!r}{did_you_mean(name, PARTS)}")
    try:
        parts = {}
        for name, value in config.items():
            if not isinstance(PARTS[name], type) or not issubclass(PARTS[name], Settings):
                parts[name] = value
            elif isinstance(value, dict):
                parts[name] = PARTS[name](**value)
            else:
                raise ValueError(f"the part {name} must hold settings, not {value!r}")
        return RunConfig(**parts)
    except ValueError as error:
        raise ValueError(f"config {source}: {error}") from error


def as_yaml(config: RunConfig) -> str:
    """The whole config as a file that `--config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
