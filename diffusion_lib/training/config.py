"""A run's settings, checked by pydantic: what a config file holds, and what commands change in it.

A wrong value, an unknown or misspelt name: each is one line that says what was meant or allowed.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..core.autoencoder import AutoencoderConfig
from ..core.diffusion import GaussianDiffusion
from ..core.schedules import make_betas
from ..core.text import TextConfig
from ..core.unet import UNetConfig

CONFIGS = Path(__file__).parents[1] / "configs"
RENAMED = {"patience": "max_nonfinite_steps", "keep": "keep_checkpoints"}  # old name -> name

Count = Annotated[int, Field(ge=1, lt=2**63, description="a whole number, at least 1")]
Whole = Annotated[int, Field(ge=0, lt=2**63, description="a whole number, at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, at least 0")]
Share = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False, description="a number between 0 and 1")]
HalfLife = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
# a kind of error of pydantic -> what is allowed, in our words
TOLD = {"bool_type": "true or false", "string_type": "a text",
        "model_type": "settings, as {name: value}"}


class Settings(BaseModel):
    """Named values that cannot change. Raises ValueError, one line, for a wrong name or value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        for name, value in list(values.items()):  # YAML and JSON hand over lists
            values[RENAMED.get(name, name)] = tuple(value) if isinstance(value, list) else value
        try:
            super().__init__(**{name: values[name] for name in values if name not in RENAMED})
        except ValidationError as error:
            raise ValueError(explain(error, type(self), values)) from None


def explain(error: ValidationError, kind: type[BaseModel], given: dict[str, Any]) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # a part of the settings has said it all
        return str(first["ctx"]["error"])
    name, value = str(first["loc"][0]), first["input"]
    if len(first["loc"]) > 1:  # one entry of a list: tell the whole list
        value = given.get(name, value)
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{did_you_mean(name, kind.model_fields)}"
    text = isinstance(value, str) and number(value) is not None
    hint = "; YAML takes 1e-3 for text, write 1.0e-3" if text else ""
    ours = kind.model_fields[name].description or TOLD.get(first["type"])
    allowed = ours or first["msg"].removeprefix("Input should be ")
    if first["type"] == "less_than" and "whole" in allowed:
        allowed += " and below 2**63"
    return f"{name} must be {allowed}, not {value!r}{hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
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
    """Settings of a run, saved in every checkpoint. Raises ValueError for an impossible value."""

    steps: Count = 2000  # optimiser steps of the whole run
    batch_size: Count = 64  # pictures a step, over all devices
    accumulate: Count = 1  # slices of a batch, one after the other: less memory, same step
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: fewer steps to the same loss
    learning_rate: Positive = 1e-3  # at its highest
    warmup: Whole = 100  # steps during which the learning rate grows from 0
    final_learning_rate: Share = 0.02  # share of it that is left after the cosine decay
    weight_decay: Weight = 0.0
    grad_clip: Positive = 1.0  # largest norm of the gradient
    weighting: Literal["uniform", "min_snr"] = "uniform"  # of the loss
    gamma: Positive = 5.0  # of min_snr: no t counts more than one with this SNR
    # a box in which errors count focus_weight times as much, such as the eyes of aligned faces
    focus: tuple[Share, Share, Share, Share] = Field(default=(0.0, 0.0, 1.0, 1.0), description=(
        "top, left, bottom and right of a box, shares of the picture, as (0.3, 0.2, 0.6, 0.8)"))
    focus_weight: Positive = 1.0
    # share of labels replaced by "no class", of captions by the empty one (for guidance)
    label_drop: Share = 0.1
    # share of drawn cats' captions that lose some of their attributes (training/captions.py)
    attribute_drop: Share = 0.0
    balanced: bool = False  # every class equally often, however many pictures it has
    flip: bool = True  # mirror every other picture
    augment: Share = 0.0  # chance of each change of augment.py; needs model.augment_dim 5
    ema: tuple[HalfLife, ...] = Field(default=(0.05,), min_length=1, description=(
        "half-lives between 0 and 1, shares of the run so far, as (0.05,); the last one draws"))
    seed: Whole = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: what a short probe prefers
    compile: bool = False  # torch.compile: pays on a GPU, in long runs
    device: str = "auto"  # or cpu, mps, cuda, cuda:N
    save_every: Count = 500  # steps between checkpoints (only if the run has a folder)
    keep_checkpoints: Count = 2  # the newest
    log_every: Count = 10  # steps between rows of log.csv
    sample_every: Count = 1000  # steps between grids of samples in the run folder
    max_nonfinite_steps: Count = 10  # NaN or infinite ones in a row end the run


class DiffusionConfig(Settings):
    """The noising process by name."""

    schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    T: Count = 1000
    prediction: Literal["epsilon", "x0", "v"] = "v"
    snr_factor: Positive = 1.0  # of the SNR at every t; 1/k² for pictures k times as wide
    zero_terminal_snr: bool = False

    def build(self) -> GaussianDiffusion:
        """The process. Raises ValueError for settings that contradict each other."""
        settings = self.model_dump(exclude={"prediction"})
        return GaussianDiffusion(make_betas(settings.pop("schedule"), **settings), self.prediction)


def fields_of(settings: type) -> dict[str, Any]:
    """A frozen dataclass's fields, as pydantic wants them."""
    found = {}
    for field in dataclasses.fields(settings):
        kind: Any = field.type
        found[field.name] = kind | None if field.default is None else kind, field.default
    return found


ModelConfig: Any = create_model(
    "ModelConfig", __base__=Settings, __doc__="The network: the fields of UNetConfig.",
    **fields_of(UNetConfig),
)
_TEXT = fields_of(TextConfig)
TextModelConfig: Any = create_model(
    "TextModelConfig", __base__=Settings, __doc__="The text encoder: the fields of TextConfig that "
    "the captions and the network do not decide.",
    **{name: _TEXT[name] for name in ("length", "layers", "heads", "mask_padding")},
)
AutoencoderModelConfig: Any = create_model(
    "AutoencoderModelConfig", __base__=Settings, __doc__="The fields of AutoencoderConfig.",
    **fields_of(AutoencoderConfig),
)


class LossConfig(Settings):
    """What a decoded picture is asked for, beside being like the picture in its pixels."""

    pixels: Literal["l1", "psnr"] = "l1"  # distance of pictures at four sizes, or the PSNR itself
    noise: Weight = 0.1  # spread of what is added to latents, whose own spread is 1
    perceptual: Weight = 0.0  # to be alike in the classifier's features
    adversarial: Weight = 0.0  # to please the critic
    matching: Weight = 0.0  # to be alike in what the critic's layers see
    ripple: Weight = 0.0  # to hold waves of two pixels where the picture does, not elsewhere
    critic_from: Share = 0.5  # share of the run after which the critic plays
    critic_learning_rate: Positive = 5e-4
    decoder_only: bool = False  # a second pass (with init): the latents stay what they are


class RunConfig(Settings):
    """A whole run: `python -m diffusion_lib train --config NAME`."""

    kind: Literal["diffusion"] = "diffusion"
    data: str = "toycats"  # or cifar10[:cat,dog], oxford_cats, folder:PATH
    exclude: tuple[dict[str, str], ...] = Field(
        (), description="drawn cats to leave out, as [{fur: white, ears: folded}]")
    init: str = ""  # a checkpoint or a shipped model's name, to start from
    autoencoder: str = ""  # whose latents to train in: its name or run folder
    diffusion: DiffusionConfig = DiffusionConfig()
    model: ModelConfig = ModelConfig()
    text: TextModelConfig = TextModelConfig()  # of a model.cross_attention_dim
    train: TrainConfig = TrainConfig()


class AutoencoderRun(Settings):
    """The training of an autoencoder: a config that says `kind: autoencoder`."""

    kind: Literal["autoencoder"] = "autoencoder"
    data: str = "toycats"
    init: str = ""
    model: AutoencoderModelConfig = AutoencoderModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()


KINDS: dict[str, Any] = {"diffusion": RunConfig, "autoencoder": AutoencoderRun}


def kind_of(config: dict) -> type[RunConfig] | type[AutoencoderRun]:
    """What a config file describes. Raises ValueError for an unknown kind."""
    if (kind := config.get("kind", "diffusion")) not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind]


def read_config(name: str) -> dict:
    """A config file by its name (one that ships) or its path, as a dictionary, not checked yet.

    Raises FileNotFoundError if there is none, ValueError if it is no YAML.
    """
    named = not name.lower().endswith((".yaml", ".yml"))
    path = CONFIGS / f"{name}.yaml" if named else Path(name)
    if not path.is_file():
        near = did_you_mean(name, sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no config {name!r}{near}; or give a .yaml file's path")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({error}); compare configs/toycats32.yaml") from error
    if not isinstance(config, dict):
        parts = ", ".join(RunConfig.model_fields)
        raise ValueError(f"{path} must hold the parts {parts}, not {config!r}")
    return config


def override(config: dict, setting: str, value: Any) -> dict:
    """A copy of a config with one setting changed: override(config, "train.steps", "2000").

    A text is read as YAML; for a setting that is a text, a path say, it is taken as it stands.
    Raises ValueError for a name that does not exist, with the nearest one that does.
    """
    part, _, name = setting.partition(".")
    name = RENAMED.get(name, name)
    types: dict[str, Any] = {}
    for key, field in kind_of(config).model_fields.items():
        inner = getattr(field.annotation, "model_fields", None) or {"": field}
        types |= {f"{key}.{below}".rstrip("."): each.annotation for below, each in inner.items()}
    if (full := f"{part}.{name}".rstrip(".")) not in types:
        raise ValueError(f"there is no setting --{setting}{did_you_mean(setting, types)}")
    if isinstance(value, str) and types[full] is not str:
        plain = None if value.lstrip("+-").isdecimal() else number(value)  # YAML knows no 1e-3
        try:
            value = yaml.safe_load(value) if plain is None else plain
        except yaml.YAMLError:
            raise ValueError(f"--{setting} {value} is not readable as YAML") from None
    return {**config, part: {**(config.get(part) or {}), name: value} if name else value}


def resolve(config: dict, source: str) -> RunConfig | AutoencoderRun:
    """Check a config and fill in what it leaves out. Raises ValueError, naming file and fault."""
    try:
        return kind_of(config)(**config)
    except (ValueError, TypeError) as error:  # TypeError: YAML has names that are numbers
        told = error if isinstance(error, ValueError) else "a setting's name must be a text"
        raise ValueError(f"config {source}: {told}") from error


def as_yaml(config: Settings) -> str:
    """The whole config as a file that `--config` reads."""
    values = config.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
