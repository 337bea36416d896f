"""Own pictures in folders of classes: floors, what was held out, and asking for nothing."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib.__main__ import main
from diffusion_lib.data.folders import held_out
from diffusion_lib.measuring.report import real_pictures

TINY = """
data: folder:{data}
diffusion: {{schedule: cosine, T: 50, prediction: v}}
model:
  {{image_size: 8, channels: 8, channel_mults: [1, 2], attention: [false, false], num_classes: 2}}
train: {{steps: 2, batch_size: 4, precision: float32, label_drop: 0}}
"""


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """40 bright cats and 40 dark dogs, of which eight each are held out."""
    for name, value in (("cat", 200), ("dog", 60)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        names = [f"{name}{i}.png" for i in range(400)]
        kept = [n for n in names if held_out(n)][:8] + [n for n in names if not held_out(n)][:32]
        for each in kept:
            noise = np.random.default_rng(len(each)).integers(-40, 40, (8, 8, 3))
            Image.fromarray((value + noise).astype(np.uint8)).save(tmp_path / "pets" / name / each)
    return tmp_path / "pets"


@pytest.fixture
def run(pets: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(data=pets))
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_the_first_held_out_pictures_are_of_all_classes(pets: Path) -> None:
    found = real_pictures(f"folder:{pets}#train", None, 8)[1]
    again = real_pictures(f"folder:{pets}#train", None, 8)[1]
    assert torch.equal(found, again)
    bright = found.float().mean((1, 2, 3)) > 130
    assert len(found) == 16 and bright.sum() == 8 and 0 < bright[:8].sum() < 8


def test_a_network_that_was_always_told_is_not_asked_for_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    grid = str(tmp_path / "g.png")
    asked = ["sample", str(run), "--n", "2", "--steps", "2", "--grid", grid]
    assert main(asked) == 2
    assert "train.label_drop 0" in (said := capsys.readouterr().err) and "--class K" in said
    assert not Path(grid).exists()
    assert main([*asked, "--class", "cat"]) == 0 and Path(grid).exists()


def test_what_was_trained_on_does_not_count_as_held_out_unseen(
    run: Path, pets: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = ["evaluate", str(run), "--class", "cat", "--n", "20", "--steps", "2", "--data"]
    with pytest.warns(UserWarning, match="may be among them"):
        main([*asked, f"folder:{pets}#train"])
    with pytest.warns(UserWarning, match="may be among them"):
        main([*asked, f"folder:{pets / 'cat'}#train"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*may be among them")
        main([*asked, f"folder:{pets}#train", "--held-out", f"folder:{pets / 'dog'}"])
    assert "no class" not in capsys.readouterr().out
