"""A run's settings: checked, wrong ones told in one line, changed by commands, printed whole."""

import math
from typing import get_args

import pytest
import yaml

from diffusion_lib import Autoencoder, UNet
from diffusion_lib.__main__ import main
from diffusion_lib.core.losses import WEIGHTINGS
from diffusion_lib.core.schedules import SCHEDULES
from diffusion_lib.saving.diffusers_format import to_diffusers_unet
from diffusion_lib.training.config import (
    CONFIGS,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    as_yaml,
    override,
    read_config,
    resolve,
)

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def fails(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main([*arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_the_experiments_are_there() -> None:
    assert {"toycats32", "cifar10_32", "cats32", "catfaces128"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_that_ships_builds_its_run(name: str) -> None:
    config = resolve(read_config(name), name)
    if config.kind == "autoencoder":
        assert Autoencoder(**config.model.model_dump()).latent_shape == (4, 16, 16)
        return
    assert config.diffusion.build().T == config.diffusion.T
    assert config.train.batch_size % 16 == 0  # shared evenly by 1, 2, 4, 8, 16 devices
    model = UNet(**config.model.model_dump())
    if config.model.patch_size == 1 and config.model.num_classes is None:
        to_diffusers_unet(model)
    largest = 11e6 if config.autoencoder else 3e6  # 11 MB at a byte each, 6 MB as float16
    assert sum(p.numel() for p in model.parameters()) < largest


def test_a_config_printed_is_the_same_config(capsys: pytest.CaptureFixture, tmp_path) -> None:
    for name in NAMES:
        path = tmp_path / f"{name}.yaml"
        assert main(["train", "--config", name, "--print_config"]) == 0
        path.write_text(capsys.readouterr().out, encoding="utf-8")
        assert resolve(read_config(str(path)), name) == resolve(read_config(name), name)
    assert not (tmp_path / "runs").exists()


def test_every_setting_can_be_changed_on_the_command_line(capsys: pytest.CaptureFixture) -> None:
    """Each number one more, each list and text as it is: printed back as it was given."""
    whole = RunConfig().model_dump(mode="json", exclude={"kind"})  # a kind is a config of its own
    for part, values in whole.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            setting = f"{part}.{name}" if name else part
            new = not value if isinstance(value, bool) else value + 1 if isinstance(value,
                                                                                    int) else value
            text = (
                new
                if isinstance(new, str)
                else "null"
                if new is None
                else yaml.safe_dump(new, default_flow_style=True).removesuffix("\n...\n").strip()
            )
            flags = ["--data", text] if setting == "data" else [f"--{setting}", text]
            assert main(["train", "--config", "toycats32", *flags, "--print_config"]) == 0, setting
            printed = yaml.safe_load(capsys.readouterr().out)
            assert (printed[part][name] if name else printed[part]) == new, setting


@pytest.mark.parametrize("flags, setting, value", [
    (["--train.learning_rate", "1e-3"], "learning_rate", 0.001),  # which YAML takes for text
    (["--train.learning_rate=2e-4"], "learning_rate", 0.0002),
    (["--steps", "7"], "steps", 7), (["--batch-size", "8"], "batch_size", 8),
    (["--train.ema", "[0.02, 0.1]"], "ema", [0.02, 0.1]),
    (["--train.flip", "false"], "flip", False),
    (["--steps", "7", "--train.steps", "9"], "steps", 9),
])
def test_ways_to_write_a_change(capsys: pytest.CaptureFixture, flags: list, setting: str,
                                value: object) -> None:
    assert main(["train", "--config", "toycats32", *flags, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"][setting] == value


@pytest.mark.parametrize("flags, expected", [
    (["--train.stpes", "5"], "did you mean 'train.steps'"),
    (["--trian.steps", "5"], "did you mean 'train.steps'"),
    (["--model.chanels", "5"], "did you mean 'model.channels'"),
    (["--stepps", "5"], "did you mean '--steps'"),
    (["--train.steps"], "needs a value"),
    (["--train.steps", "0"], "steps must be a whole number, at least 1, not 0"),
    (["--seed", "1" * 23], "seed must be a whole number, at least 0 and below 2**63, not 111"),
    (["--train.steps", "many"], "not 'many'"), (["--train.learning_rate", "nan"], "above 0"),
    (["--train.flip", "7"], "true or false"),
    (["--train.weighting", "snr"], "weighting must be 'uniform' or 'min_snr', not 'snr'"),
    (["--model.image_size", "big"], "image_size"), (["loose"], "'loose'"),
])
def test_wrong_flags_are_told_in_one_line_with_the_nearest_right_one(capsys: pytest.CaptureFixture,
                                                                     flags: list,
                                                                     expected: str) -> None:
    assert expected in fails(capsys, "train", "--config", "toycats32", *flags, "--print_config")


def test_a_misspelt_config_name_and_part(capsys: pytest.CaptureFixture, tmp_path) -> None:
    assert "did you mean 'toycats32'" in fails(capsys, "train", "--config", "toycat32")
    path = tmp_path / "mine.yaml"
    for text, expected in (("modle: {}", "did you mean 'model'"), ("train: 7", "must be settings"),
                           ("[1]", "must hold the parts"),
                           ("train: {steps: 1.5}", "not 1.5"),
                           ("train: {learning_rate: 1e-3}", "1.0e-3"),
                           ("train: {batchsize: 4}", "did you mean 'batch_size'"),
                           ("data: 7", "data must be")):
        path.write_text(text)
        line = fails(capsys, "train", "--config", str(path))
        assert expected in line and "mine.yaml" in line


def test_flags_of_other_commands_take_no_settings(capsys: pytest.CaptureFixture) -> None:
    assert "'--train.steps'" in fails(capsys, "sample", "toycats32", "--train.steps", "5")


def test_the_model_part_is_what_unet_takes() -> None:
    assert UNet(**ModelConfig().model_dump()).config == UNet().config


def test_settings_are_frozen_and_strict() -> None:
    config = TrainConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3
    for wrong in ("5", 5.0, True, None, math.nan):
        with pytest.raises(ValueError, match="steps must be a whole number"):
            TrainConfig(steps=wrong)


def test_every_schedule_and_weighting_is_allowed() -> None:
    assert get_args(DiffusionConfig.model_fields["schedule"].annotation) == tuple(SCHEDULES)
    assert get_args(TrainConfig.model_fields["weighting"].annotation) == WEIGHTINGS


def test_override_leaves_the_original_alone() -> None:
    config = {"train": {"steps": 5}}
    assert override(config, "train.steps",
                    "6") == {"train": {"steps": 6}} and config == {"train": {"steps": 5}}
    assert "steps: 2000" in as_yaml(RunConfig())
