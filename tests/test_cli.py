"""The command line, called as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from diffusion_lib.__main__ import main
from diffusion_lib.saving.pretrained import load_model

ROOT = Path(__file__).parents[1]
TINY = """
data: folder:{data}
diffusion: {{schedule: cosine, T: 50, prediction: v}}
model: {{image_size: 8, channels: 8, channel_mults: [1, 2], attention: [false, true], blocks_per_level: 1}}
train: {{steps: 6, batch_size: 4, warmup: 2, log_every: 1, save_every: 3, precision: float32}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(data=tmp_path / "pictures"))
    return path


@pytest.fixture
def run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    out = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(out), "--sample-every", "3"]) == 0
    capsys.readouterr()
    return out


def fails(capsys: pytest.CaptureFixture, *arguments: object, code: int = 2) -> str:
    """Run, expect the exit code and one line on standard error; returns the line."""
    assert main([str(a) for a in arguments]) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def test_train_writes_checkpoints_log_and_grids(run: Path) -> None:
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step_00000003", "step_00000006"]
    assert [row.split(",")[0] for row in (run / "log.csv").read_text().splitlines()] == ["step", *"123456"]
    assert Image.open(run / "samples" / "step_00000003.png").size == Image.open(run / "samples" / "step_00000006.png").size
    assert Image.open(run / "loss.png").width > 300
    assert not (run / ".lock").exists()


def test_sample_names_pictures_by_their_seed(run: Path, tmp_path: Path) -> None:
    out, grid = tmp_path / "out", tmp_path / "grid.png"
    assert main(["sample", str(run), "--n", "5", "--seed", "7", "--steps", "4", "--out", str(out), "--grid", str(grid)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"{seed:05d}.png" for seed in range(7, 12)]
    assert Image.open(out / "00007.png").size == (8, 8) and grid.exists()
    again = tmp_path / "again"
    assert main(["sample", str(run), "--n", "2", "--seed", "10", "--steps", "4", "--out", str(again)]) == 0
    both = [torch.tensor(list(Image.open(folder / "00010.png").tobytes()), dtype=torch.int16) for folder in (out, again)]
    assert (both[0] - both[1]).abs().max() <= 2  # the same seed is the same picture in any batch


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpm_solver_pp"])
def test_every_sampler_and_every_way_to_name_a_checkpoint(run: Path, tmp_path: Path, sampler: str) -> None:
    for i, name in enumerate([run, run / "checkpoints/step_00000003", run / "checkpoints/step_00000006/ema_0.safetensors"]):
        assert main(["sample", str(name), "--n", "1", "--sampler", sampler, "--steps", "3", "--out", str(tmp_path / f"o{i}")]) == 0
    pictures = {(tmp_path / f"o{i}" / "00000.png").read_bytes() for i in range(3)}
    assert len(pictures) > 1  # different weights, different pictures


def test_resume_goes_on_where_it_stopped(config: Path, tmp_path: Path, run: Path) -> None:
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step_00000003").rename(stopped / "checkpoints/step_00000003")
    assert main(["train", "--config", str(config), "--out", str(stopped), "--resume"]) == 0
    for name in ("model", "ema_0"):
        ends = [folder / f"checkpoints/step_00000006/{name}.safetensors" for folder in (run, stopped)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_the_whole_config_is_kept_beside_and_inside_every_checkpoint(run: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert main(["train", "--config", str(config), "--sample-every", "3", "--print_config"]) == 0
    assert kept == yaml.safe_load(capsys.readouterr().out)
    for folder in (run / "checkpoints").iterdir():
        assert json.loads((folder / "state.json").read_text())["config"] == kept
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(run.parent / "same"), "--steps", "3"]) == 0


def test_resuming_with_other_settings_is_refused_or_said_explicitly(run: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert "--allow-changes" in fails(capsys, "train", "--config", config, "--out", run, "--resume", "--steps", 9)
    assert main(["train", "--config", str(config), "--out", str(run), "--resume", "--steps", "9", "--allow-changes"]) == 0
    assert (run / "checkpoints/step_00000009").exists()


def test_a_run_starts_from_the_weights_of_another(run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One step of next to no length leaves the weights where they were."""
    out, still = tmp_path / "tuned", ("--train.learning_rate", "1e-12", "--train.warmup", "0")
    assert main(["train", "--config", str(config), "--init", str(run), "--steps", "3", "--out", str(out), *still]) == 0
    assert f"starting from the weights of {run}" in capsys.readouterr().out
    before, after = load_model(run).model.state_dict(), load_model(out).model.state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert yaml.safe_load((out / "config.yaml").read_text())["init"] == str(run)
    # going on with it starts from its own newest checkpoint, whatever has become of the other
    again = ["train", "--config", str(config), "--init", str(tmp_path / "gone"), "--steps", "3", "--out", str(out), *still, "--resume"]
    assert main(again) == 0
    capsys.readouterr()
    assert "gone" in fails(capsys, "train", "--config", config, "--init", tmp_path / "gone", "--out", tmp_path / "third")
    line = fails(capsys, "train", "--config", config, "--init", "toycats32", "--out", tmp_path / "third")
    assert "% of this network's weights" in line and not (tmp_path / "third").exists()


def test_seed_changes_the_run(config: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert main(["train", "--config", str(config), "--out", str(tmp_path / f"s{seed}"), "--seed", str(seed), "--steps", "2"]) == 0
    weights = [(tmp_path / f"s{s}/checkpoints/step_00000002/model.safetensors").read_bytes() for s in (0, 1)]
    assert weights[0] != weights[1]


def test_export_to_diffusers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    diffusers = pytest.importorskip("diffusers")
    assert main(["export", str(run), "--to", "diffusers", "--out", str(tmp_path / "exported")]) == 0
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "exported")
    assert pipeline.unet.config.sample_size == 8


def test_shipped_model_is_sampled_by_its_name(tmp_path: Path) -> None:
    assert main(["sample", "toycats32", "--n", "2", "--steps", "2", "--grid", str(tmp_path / "g.png")]) == 0
    assert Image.open(tmp_path / "g.png").width > 64


def test_wrong_input_ends_in_one_line_and_code_2(config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "toycats32" in fails(capsys, "train", "--config", "nothing")
    assert "a whole number, at least 1, not 0" in fails(capsys, "train", "--config", config, "--steps", 0, "--out", tmp_path / "a")
    assert "--resume" in fails(capsys, "train", "--config", config, "--out", run)
    assert "no checkpoint" in fails(capsys, "train", "--config", config, "--out", tmp_path / "b", "--resume")
    assert "nowhere" in fails(capsys, "train", "--config", config, "--data", "folder:nowhere", "--out", tmp_path / "c")
    assert "from 1 to 50" in fails(capsys, "sample", run, "--steps", 51, "--out", tmp_path / "d")
    assert "from 1 to 50" in fails(capsys, "sample", run, "--steps", 0, "--out", tmp_path / "d")
    assert "--n" in fails(capsys, "sample", run, "--n", 0, "--out", tmp_path / "d")
    assert "nothing to write" in fails(capsys, "sample", run)
    assert "toycats32" in fails(capsys, "sample", tmp_path / "missing", "--out", tmp_path / "d")
    assert "not a checkpoint" in fails(capsys, "sample", config.parent / "pictures", "--out", tmp_path / "d")
    assert "not a checkpoint" in fails(capsys, "sample", config, "--out", tmp_path / "d")
    assert "0 or more, not -1" in fails(capsys, "sample", "toycats32", "--class", 0, "--guidance", -1, "--out", tmp_path / "d")
    assert "no classes" in fails(capsys, "sample", run, "--class", 0, "--steps", 2, "--out", tmp_path / "d")
    assert "--class" in fails(capsys, "sample", run, "--guidance", 2, "--out", tmp_path / "d")


@pytest.mark.skipif(sys.platform != "linux", reason="where nobody may write, not even an administrator: /sys")
@pytest.mark.parametrize("folder", ["/sys/run", "/sys/kernel"])
def test_a_folder_where_nothing_can_be_written(config: Path, capsys: pytest.CaptureFixture, folder: str) -> None:
    line = fails(capsys, "train", "--config", config, "--out", folder, code=1)
    assert folder in line and "choose another --out" in line


def test_wrong_settings_in_a_config(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for old, new, expected in (
        ("schedule: cosine", "schedule: cosinus", "cosinus"),
        ("T: 50", "T: 0", "not 0"),
        ("schedule: cosine", "schedule: [", "YAML"),
        ("batch_size: 4", "batchsize: 4", "batchsize"),
        ("channels: 8", "chanels: 8", "chanels"),
        ("image_size: 8", "image_size: 9", "9"),
        ("train:", "training:", "train"),
    ):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(config.read_text().replace(old, new, 1))
        assert expected in fails(capsys, "train", "--config", wrong, "--out", tmp_path / "w")


def test_truncated_checkpoint_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = run / "checkpoints/step_00000006/ema_0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "truncated" in fails(capsys, "sample", run, "--steps", 2, "--out", tmp_path / "d")


def test_as_a_module_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "diffusion_lib", "sample", "nothing-here", "--out", str(tmp_path / "o")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nothing-here" in done.stderr
