"""The command line, called as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import diffusion_lib
from diffusion_lib import (
    GaussianDiffusion,
    ImageData,
    TrainConfig,
    Trainer,
    UNet,
    cosine_beta_schedule,
    load_model,
)
from diffusion_lib.__main__ import main, parser, plot_log, settle_sampler
from diffusion_lib.training.run_folder import RunLock

ROOT = Path(__file__).parents[1]
TINY = """
data: folder:{data}
diffusion: {{schedule: cosine, T: 50, prediction: v}}
model: {{image_size: 8, channels: 8, channel_mults: [1, 2], attention: [false, true]}}
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
    works("train", "--config", config, "--out", out, "--sample-every", "3")
    capsys.readouterr()
    return out


def works(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


def fails(capsys: pytest.CaptureFixture, *arguments: object, code: int = 2) -> str:
    """Run, expect the exit code and one line on standard error; returns the line."""
    assert main([str(a) for a in arguments]) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def test_train_writes_checkpoints_log_and_grids(run: Path) -> None:
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step_00000003",
                                                                         "step_00000006"]
    rows = (run / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *"123456"]
    assert [p.name for p in sorted((run / "samples").iterdir())] == [
        "step_00000003.png", "step_00000006.png"]
    assert Image.open(run / "loss.png").width > 300


def test_sample_names_pictures_by_their_seed(run: Path, tmp_path: Path) -> None:
    out, grid = tmp_path / "out", tmp_path / "grid.png"
    works("sample", run, "--n", "5", "--seed", "7", "--steps", "4", "--out", out, "--grid", grid)
    assert sorted(p.name for p in out.iterdir()) == [f"{seed:05d}.png" for seed in range(7, 12)]
    assert Image.open(out / "00007.png").size == (8, 8) and grid.exists()
    again = tmp_path / "again"
    works("sample", run, "--n", "2", "--seed", "10", "--steps", "4", "--out", again)
    both = [torch.tensor(list(Image.open(folder / "00010.png").tobytes()), dtype=torch.int16)
            for folder in (out, again)]
    assert (both[0] - both[1]).abs().max() <= 2  # the same seed is the same picture in any batch


def test_an_animation_has_thirty_frames_at_most(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the finished pictures, whatever the number of steps."""
    counted = []
    monkeypatch.setattr(diffusion_lib, "animate", lambda frames, *_, **__: counted.append(frames))
    for steps in (3, 30, 50):
        works("sample", run, "--n", 1, "--steps", steps, "--animation", tmp_path / "way.webp")
    assert [len(frames) for frames in counted] == [4, 31, 26]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpm_solver_pp",
                                     "sde_dpm_solver_pp"])
def test_every_sampler_and_every_way_to_name_a_checkpoint(run: Path, tmp_path: Path,
                                                          sampler: str) -> None:
    for i, name in enumerate([run, run / "checkpoints/step_00000003",
                              run / "checkpoints/step_00000006/ema_0.safetensors"]):
        works("sample", name, "--n", "1", "--sampler", sampler, "--steps", "3", "--out",
              tmp_path / f"o{i}")
    pictures = {(tmp_path / f"o{i}" / "00000.png").read_bytes() for i in range(3)}
    assert len(pictures) > 1  # different weights, different pictures


def test_resume_goes_on_where_it_stopped(config: Path, tmp_path: Path, run: Path) -> None:
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step_00000003").rename(stopped / "checkpoints/step_00000003")
    works("train", "--config", config, "--out", stopped, "--resume")
    for name in ("model", "ema_0"):
        ends = [folder / f"checkpoints/step_00000006/{name}.safetensors"
                for folder in (run, stopped)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_the_config_is_kept_beside_and_inside_checkpoints(run: Path, config: Path,
                                                          capsys: pytest.CaptureFixture) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())
    works("train", "--config", config, "--sample-every", "3", "--print_config")
    assert kept == yaml.safe_load(capsys.readouterr().out)
    for folder in (run / "checkpoints").iterdir():
        assert json.loads((folder / "state.json").read_text())["config"] == kept
    works("train", "--config", run / "config.yaml", "--out", run.parent / "same", "--steps", "3")


def test_resuming_with_other_settings_is_refused_or_said(run: Path, config: Path,
                                                         capsys: pytest.CaptureFixture) -> None:
    assert "--allow-changes" in fails(capsys, "train", "--config", config, "--out", run, "--resume",
                                      "--steps", 9)
    works("train", "--config", config, "--out", run, "--resume", "--steps", "9", "--allow-changes")
    assert (run / "checkpoints/step_00000009").exists()


def test_a_run_starts_from_the_weights_of_another(run: Path, config: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture) -> None:
    """One step of next to no length leaves the weights where they were."""
    out, still = tmp_path / "tuned", ("--train.learning_rate", "1e-12", "--train.warmup", "0")
    works("train", "--config", config, "--init", run, "--steps", "3", "--out", out, *still)
    assert f"starting from the weights of {run}" in capsys.readouterr().out
    before, after = load_model(run).model.state_dict(), load_model(out).model.state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert yaml.safe_load((out / "config.yaml").read_text())["init"] == str(run)
    # going on with it starts from its own newest checkpoint, whatever has become of the other
    again = ["train", "--config", str(config), "--init", str(tmp_path / "gone"), "--steps", "3",
             "--out", str(out), *still, "--resume"]
    works(*again)
    capsys.readouterr()
    assert "gone" in fails(capsys, "train", "--config", config, "--init", tmp_path / "gone",
                           "--out", tmp_path / "third")
    line = fails(capsys, "train", "--config", config, "--init", "toycats32", "--out",
                 tmp_path / "third")
    assert "% of this network's weights" in line and not (tmp_path / "third").exists()


def test_seed_changes_the_run(config: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        works("train", "--config", config, "--out", tmp_path / f"s{seed}", "--seed", seed,
              "--steps", "2")
    weights = [(tmp_path / f"s{s}/checkpoints/step_00000002/model.safetensors").read_bytes()
               for s in (0, 1)]
    assert weights[0] != weights[1]


def test_export_to_diffusers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    diffusers = pytest.importorskip("diffusers")
    works("export", run, "--to", "diffusers", "--out", tmp_path / "exported")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "exported")
    assert pipeline.unet.config.sample_size == 8


def test_shipped_model_is_sampled_by_its_name(tmp_path: Path) -> None:
    works("sample", "toycats32", "--n", "2", "--steps", "2", "--grid", tmp_path / "g.png")
    assert Image.open(tmp_path / "g.png").width > 64


def test_wrong_input_ends_in_one_line_and_code_2(config: Path, run: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    assert "toycats32" in fails(capsys, "train", "--config", "nothing")
    assert "a whole number, at least 1, not 0" in fails(capsys, "train",
                                                                          "--config", config,
                                                                          "--steps", 0, "--out",
                                                                          tmp_path / "a")
    assert "--resume" in fails(capsys, "train", "--config", config, "--out", run)
    assert "no checkpoint" in fails(capsys, "train", "--config", config, "--out", tmp_path / "b",
                                    "--resume")
    assert "nowhere" in fails(capsys, "train", "--config", config, "--data", "folder:nowhere",
                              "--out", tmp_path / "c")
    assert "from 1 to 50" in fails(capsys, "sample", run, "--steps", 51, "--out", tmp_path / "d")
    assert "from 1 to 50" in fails(capsys, "sample", run, "--steps", 0, "--out", tmp_path / "d")
    assert "--n" in fails(capsys, "sample", run, "--n", 0, "--out", tmp_path / "d")
    assert "nothing to write" in fails(capsys, "sample", run)
    assert "toycats32" in fails(capsys, "sample", tmp_path / "missing", "--out", tmp_path / "d")
    assert "not a checkpoint" in fails(capsys, "sample", config.parent / "pictures", "--out",
                                       tmp_path / "d")
    assert "not a checkpoint" in fails(capsys, "sample", config, "--out", tmp_path / "d")
    assert "0 or more, not -1" in fails(capsys, "sample", "cifar10_32", "--class", 0, "--guidance",
                                        -1, "--out", tmp_path / "d")
    assert "no classes" in fails(capsys, "sample", run, "--class", 0, "--steps", 2, "--out",
                                 tmp_path / "d")
    assert "--class" in fails(capsys, "sample", run, "--guidance", 2, "--out", tmp_path / "d")


@pytest.mark.skipif(sys.platform != "linux",
                    reason="where nobody may write, not even an administrator: /sys")
@pytest.mark.parametrize("folder", ["/sys/run", "/sys/kernel"])
def test_a_folder_where_nothing_can_be_written(config: Path, capsys: pytest.CaptureFixture,
                                               folder: str) -> None:
    line = fails(capsys, "train", "--config", config, "--out", folder, code=1)
    assert folder in line and "choose another --out" in line


def test_wrong_settings_in_a_config(config: Path, tmp_path: Path,
                                    capsys: pytest.CaptureFixture) -> None:
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


def test_truncated_checkpoint_is_named(run: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture) -> None:
    weights = run / "checkpoints/step_00000006/ema_0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "truncated" in fails(capsys, "sample", run, "--steps", 2, "--out", tmp_path / "d")


def test_as_a_module_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "diffusion_lib", "sample", "nothing-here", "--out",
                           str(tmp_path / "o")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nothing-here" in done.stderr


# -- what real folders, files and machines do -----------------------------------------------------


def pictures(folder: Path, count: int, mode: str = "RGB") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.effect_noise((9, 9), 80 + i).convert(mode).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["cats #2", "Rome: day 1", "1234", "null", "[a, b]", "Кошки",
                                  "a'b\"c"])
def test_a_path_is_taken_character_by_character(config: Path, tmp_path: Path, monkeypatch, capsys,
                                                name: str) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / name, 9)
    pictures(tmp_path / name.split(" #")[0].split(":")[0], 5)
    there = len(list((tmp_path / name).iterdir()))
    works("train", "--config", config, "--data", f"folder:{name}", "--steps", "1", "--out",
          f"run {name}")
    assert f"{there} pictures of folder:" in capsys.readouterr().out
    saved = tmp_path / f"run {name}" / "config.yaml"
    assert yaml.safe_load(saved.read_text(encoding="utf-8"))["data"] == f"folder:{name}"
    works("train", "--config", saved, "--init", f"run {name}", "--steps", "1", "--out", "again")
    assert f"{there} pictures" in capsys.readouterr().out
    saved = tmp_path / "again/config.yaml"
    assert yaml.safe_load(saved.read_text(encoding="utf-8"))["init"] == f"run {name}"


def test_a_hash_in_a_name_does_not_lose_the_hold_out(config: Path, tmp_path: Path, capsys) -> None:
    pictures(tmp_path / "cats #2", 30)
    for part in ("", "#train", "#held_out"):
        data = f"folder:{tmp_path / 'cats #2'}{part}"
        works("train", "--config", config, "--data", data, "--steps", "1", "--out",
              tmp_path / f"run{part}")
    counts = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()
              if " pictures of " in line]
    assert counts[0] == 30 == counts[1] + counts[2] and counts[2] > 0


@pytest.mark.parametrize("encoding", ["cp1251", "cp932", "ascii"])
def test_words_in_any_code_page_and_results_before_words(run: Path, tmp_path: Path,
                                                         encoding: str) -> None:
    def command(*words: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-m", "diffusion_lib", *map(str, words)], cwd=ROOT,
                              env=environment, capture_output=True)

    real = pictures(tmp_path / "Кошки é", 40)
    report = tmp_path / "new/report.json"
    done = command("evaluate", run, "--data", f"folder:{real}#train", "--n", 20, "--steps", 2,
                   "--json", report)
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text(encoding="utf-8"))
    assert told["measures"][0]["name"] == "Fréchet distance"
    assert b"chet distance" in done.stdout and b"Traceback" not in done.stderr
    done = command("train", "--config", tmp_path / "tiny.yaml", "--data", f"folder:{real}",
                   "--steps", 1, "--out", tmp_path / "Бег")
    assert done.returncode == 0 and b"40 pictures" in done.stdout


@pytest.mark.parametrize("words, told", [
    (["--grid", "x.jpg"], ".png"), (["--animation", "x.mp4"], ".gif"),
    (["--grid", "x.png", "--columns", "0"], "--columns"),
    (["--grid", "x.png", "--scale", "0"], "--scale"), (["--out", "tiny.yaml"], "is a file"),
    (["--grid", "pictures"], "must end in"),
    (["--grid", "tiny.yaml/x.png"], "is a file, not a folder"),
    (["--out", "tiny.yaml/x"], "is a file, not a folder"),
    (["--out", "d", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["--out", "d", "--seed", "1" * 23], "the seed must be"),
    (["--out", "d", "--class", "cat"], "no classes"), (["--out", "d", "--seed", "one"],
                                                       "invalid int value: 'one'"),
    (["--ot", "d"], "did you mean '--out'?"),
])
def test_outputs_are_checked_before_the_drawing(run: Path, tmp_path: Path, monkeypatch, capsys,
                                                words: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(UNet, "forward", None)  # whoever draws fails otherwise
    before = sorted(tmp_path.rglob("*"))
    assert told in fails(capsys, "sample", run, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_refusals_before_the_work(config: Path, run: Path, tmp_path: Path, monkeypatch,
                                        capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "UP.YAML").write_text(config.read_text())
    works("train", "--config", "UP.YAML", "--print_config")
    capsys.readouterr()
    assert "required" in fails(capsys, "train")
    assert "--help" in fails(capsys, "nothing")
    assert "an export makes a new one" in fails(capsys, "export", run, "--out", ".")
    assert "is a folder" in fails(capsys, "evaluate", run, "--data", "reference:cats32", "--json",
                                  "empty")
    for count, words in ((1, "held-out"), (3, "only 3 held-out pictures")):
        pictures(tmp_path / f"held{count}", count)
        assert words in fails(capsys, "evaluate", run, "--data",
                              f"folder:{config.parent / 'pictures'}", "--held-out",
                              f"folder:held{count}", "--n", 20)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("")
    assert "without a checkpoint yet" in fails(capsys, "sample", "begun", "--out", "d")


def test_a_traceback_on_demand(capsys) -> None:
    assert main(["sample", "nobody", "--out", "d", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_grey_in_grey_out(config: Path, tmp_path: Path, capsys) -> None:
    real, run = pictures(tmp_path / "grey", 40, "L"), tmp_path / "run"
    flags = ["--model.in_channels", "1", "--data", f"folder:{real}#train", "--steps", "2"]
    works("train", "--config", config, *flags, "--out", run)
    assert load_model(run).model.config.out_channels == 1
    works("sample", run, "--n", "3", "--steps", "2", "--out", tmp_path / "d", "--grid",
          tmp_path / "g.png")
    assert [Image.open(p).mode for p in sorted((tmp_path / "d").iterdir())] == ["L"] * 3
    works("evaluate", run, "--data", f"folder:{real}#train", "--n", "20", "--steps", "2")
    works("export", run, "--out", tmp_path / "exported")
    works("sample", tmp_path / "exported", "--n", "2", "--steps", "2", "--out", tmp_path / "e")
    assert Image.open(tmp_path / "e/00000.png").mode == "L"


def test_a_grey_autoencoder_is_trained_and_measured(tmp_path: Path, capsys) -> None:
    real = pictures(tmp_path / "grey", 40, "L")
    small = ["--model.in_channels", 1, "--model.image_size", 32, "--model.channels", 8,
             "--model.norm_num_groups", 4, "--batch-size", 4, "--steps", 2]
    works("train", "--config", "catfaces_autoencoder", *small, "--data", f"folder:{real}#train",
          "--out", tmp_path / "run")
    works("evaluate", tmp_path / "run", "--data", f"folder:{real}#train", "--n", 20)
    assert "PSNR" in capsys.readouterr().out


def test_what_latents_cannot_have_is_refused_before_encoding(tmp_path: Path, capsys) -> None:
    real = pictures(tmp_path / "real", 8)
    run = tmp_path / "run"
    train = ["train", "--config", "catfaces128", "--data", f"folder:{real}", "--out", run]
    for setting, said in ((["--train.augment", 0.1], "it is for pixels"),
                          (["--train.batch_size", 8, "--train.accumulate", 3], "shared evenly"),
                          (["--init", "cats32"], "")):
        assert said in fails(capsys, *train, *setting)
        assert not (run / "latents.safetensors").exists()


def test_a_loss_below_zero_is_drawn(tmp_path: Path, capsys) -> None:
    """A PSNR as a loss is negative, which a logarithmic axis cannot show."""
    real = pictures(tmp_path / "real", 8)
    small = ["--model.image_size", 32, "--model.channels", 8, "--model.norm_num_groups", 4,
             "--batch-size", 4, "--steps", 2, "--loss.pixels", "psnr"]
    works("train", "--config", "catfaces_autoencoder", *small, "--data", f"folder:{real}",
          "--out", tmp_path / "run")
    assert (tmp_path / "run/loss.png").exists()
    assert plot_log(tmp_path / "run").axes[0].get_yscale() == "linear"


def test_classes_have_names(config: Path, tmp_path: Path, capsys) -> None:
    data, run = tmp_path / "pets", tmp_path / "run"
    for name in ("cat", "dog"):
        pictures(data / name, 6)
    train = ["train", "--config", str(config), "--data", f"folder:{data}", "--steps", "1"]
    works(*train, "--model.num_classes", "2", "--out", run)
    assert "classes: 0 cat, 1 dog" in capsys.readouterr().out
    assert "# classes: 0 cat, 1 dog" in (run / "config.yaml").read_text()
    assert load_model(run).info["data"]["classes"] == ["cat", "dog"]
    for asked, out in (("dog", "by_name"), ("1", "by_number")):
        works("sample", run, "--n", "1", "--steps", "2", "--class", asked, "--out", tmp_path / out)
    by_name, by_number = (tmp_path / f"{way}/00000.png" for way in ("by_name", "by_number"))
    assert by_name.read_bytes() == by_number.read_bytes()
    assert "no class 'cow'; there are cat, dog" in fails(capsys, "sample", run, "--class", "cow",
                                                         "--out", tmp_path / "d")
    with pytest.warns(UserWarning, match="has 5 classes.*has 2"):
        works(*train, "--model.num_classes", "5", "--out", tmp_path / "five")
    works("sample", "cifar10_32", "--n", "1", "--steps", "1", "--class", "cat", "--out",
          tmp_path / "shipped")


def test_a_second_run_on_a_folder_in_use_changes_nothing(config: Path, run: Path, capsys) -> None:
    before = (run / "config.yaml").read_bytes()
    with RunLock(run):
        assert "another run" in fails(capsys, "train", "--config", config, "--resume",
                                      "--train.save_every", "2", "--out", run, code=1)
    assert (run / "config.yaml").read_bytes() == before


def test_an_explicit_precision_wins_on_resume(config: Path, tmp_path: Path, capsys) -> None:
    words = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    works(*words, "--train.precision", "bf16", "--steps", "6")
    (tmp_path / "run/checkpoints/step_00000006").rename(tmp_path / "away")
    works(*words, "--resume", "--train.precision", "float32")
    assert "float32; step 3" in capsys.readouterr().out
    assert load_model(tmp_path / "run").info["precision"] == "float32"


def test_a_folder_of_diffusers_is_sampled_and_evaluated(run: Path, config: Path,
                                                        tmp_path: Path) -> None:
    works("export", run, "--out", tmp_path / "folder")
    for source, out in ((run, "ours"), (tmp_path / "folder", "theirs")):
        works("sample", source, "--n", "2", "--steps", "3", "--out", tmp_path / out)
    for name in ("00000.png", "00001.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / out / name)).astype(int)
                        for out in ("ours", "theirs"))
        assert abs(ours - theirs).max() <= 1


def test_a_run_with_few_timesteps_draws_its_grids(config: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(config), "--diffusion.T", "10", "--sample-every", "3",
             "--out", str(tmp_path / "run")]
    works(*words)
    assert len(list((tmp_path / "run/samples").iterdir())) == 2


def test_guidance_in_an_interval(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """By a class's name; the whole of t is guidance everywhere, and what cannot be is refused."""
    words = ["cifar10_32", "--n", 1, "--steps", 3, "--class", "cat", "--guidance", 3]

    def drawn(name, *more):
        works("sample", *words, "--out", tmp_path / name, *more)
        return (tmp_path / name / "00000.png").read_bytes()

    everywhere, middle = drawn("a"), drawn("b", "--guidance-interval", 200, 800)
    assert everywhere == drawn("c", "--guidance-interval", 0, 1000) != middle
    for a, b, said in ((800, 200, "turned round; use 200 800"), (300, 300, "is empty"),
                       (1000, 2000, "is empty: the model has timesteps 0 to 999"),
                       (-5, 100, "0 to T-1"), ("x", 3, "invalid int value")):
        assert said in fails(capsys, "sample", *words, "--guidance-interval", a, b,
                             "--out", tmp_path / "d")
    for more in ([], ["--class", "cat"], ["--class", "cat", "--guidance", 1]):
        assert "nothing to be guided by" in fails(
            capsys, "sample", "cifar10_32", *more, "--guidance-interval", 200, 800,
            "--out", tmp_path / "d")


def test_a_class_that_does_not_exist_lists_those_that_do(capsys: pytest.CaptureFixture,
                                                         tmp_path: Path) -> None:
    for asked in ("unicorn", "10", "-1", "3.5"):
        line = fails(capsys, "sample", "cifar10_32", f"--class={asked}", "--out", tmp_path / "d")
        assert f"no class '{asked}'; there are airplane, automobile, bird, cat" in line
    for scale in ("-1", "inf", "nan"):
        assert f"0 or more, not {float(scale)}" in fails(
            capsys, "sample", "cifar10_32", "--class", "cat", f"--guidance={scale}",
            "--out", tmp_path / "d")


def test_labels_that_were_never_dropped_are_asked_for_plainly_only(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = UNet(image_size=8, channels=6, attention=(False, False, False), num_classes=2)
    diffusion = GaussianDiffusion(cosine_beta_schedule(50))
    data = ImageData(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    for name, drop in (("never", 0.0), ("dropped", 0.1)):
        config = TrainConfig(steps=1, label_drop=drop)
        Trainer(model, diffusion, data, config, out=tmp_path / name).save()
    draw = ["--n", 1, "--steps", 2, "--class", 1, "--out", tmp_path / "out"]
    works("sample", tmp_path / "never", *draw)
    works("sample", tmp_path / "dropped", *draw, "--guidance", 3)
    capsys.readouterr()
    for scale in (0, 3):
        line = fails(capsys, "sample", tmp_path / "never", *draw, "--guidance", scale)
        assert "never learnt" in line and "label_drop 0" in line and "scale 1" in line


def test_autoguidance(capsys, tmp_path):
    """By a model's name, with its class; the result lies between and beyond the two."""
    def drawn(name, *more):
        works("sample", "cats32", "--n", 1, "--steps", 2, "--out", tmp_path / name, *more)
        return (tmp_path / name / "00000.png").read_bytes()

    plain, one = drawn("a", "--autoguidance", "none"), drawn("b", "--autoguidance", "cifar10_32",
                                                          "--class", "cat", "--guidance", 1)
    two = drawn("c", "--autoguidance", "cifar10_32", "--class", "cat")
    assert plain == one and plain != two
    card = load_model("cats32").info  # its guide knows classes: it is asked for the card's
    own = card["guide"], card["sampling"]["spacing"]
    told = "--autoguidance", own[0]["name"], "--class", own[0]["class"], "--spacing", own[1]
    assert drawn("e") == drawn("f", *told, "--guidance", own[0]["scale"]) != plain
    assert "another schedule" in fails(capsys, "sample", "cats32", "--autoguidance", "catfaces128",
                                       "--out", tmp_path / "d")
    assert "1 or more, not 0.5" in fails(capsys, "sample", "cats32", "--autoguidance", "cifar10_32",
                                         "--guidance", 0.5, "--out", tmp_path / "d")
    assert "1 or more, not 0.0" in fails(capsys, "sample", "cats32", "--autoguidance", "cifar10_32",
                                         "--guidance", 0, "--out", tmp_path / "d")


def test_attention_is_perturbed_of_any_guide_the_model_itself_included(capsys, tmp_path):
    def drawn(name, *more):
        works("sample", "cifar10_32", "--n", 1, "--steps", 2, "--out", tmp_path / name, *more)
        return (tmp_path / name / "00000.png").read_bytes()

    own = "--autoguidance", "cifar10_32"
    alone, seeing = drawn("a", "--autoguidance", "none"), drawn("b", *own)
    blind, half = (drawn(f"c{s}", *own, "--perturbed-attention", s) for s in (1, 0.5))
    assert alone == seeing and len({alone, half, blind}) == 3
    for share in (1.5, -1, "nan"):
        assert "give a share from 0, none, to 1" in fails(
            capsys, "sample", "cifar10_32", *own, "--out", tmp_path / "d", "--perturbed-attention",
            share)
    assert "is a guide's: name one" in fails(capsys, "sample", "cifar10_32", "--out",
                                             tmp_path / "d", "--perturbed-attention", 1)


def test_a_class_beside_a_guide_where_neither_knows_classes(capsys, tmp_path):
    said = fails(capsys, "sample", "catfaces128", "--class", "dragon", "--autoguidance",
                 "catfaces128_guide", "--out", tmp_path / "d")
    assert "no class 'dragon'; the model has no classes" in said


def test_flags_of_guides_and_models_that_read(capsys, tmp_path):
    words = ["toytext32", "--prompt", "a white cat", "--guidance", 2, "--steps", 2, "--n", 1]
    assert "is a guide's, and a model that reads" in fails(
        capsys, "sample", *words, "--perturbed-attention", 1, "--out", tmp_path / "d")
    found = []
    for i, more in enumerate(([], ["--guidance-interval", 0, 1000], ["--guidance-interval", 0, 5])):
        works("evaluate", "toytext32", "--data", "toycats", "--guidance", 3, "--n", 20,
              "--steps", 2, "--json", tmp_path / f"{i}.json", *more)
        found.append(json.loads((tmp_path / f"{i}.json").read_text())["measures"])
    assert found[0] == found[1] != found[2]
    for flag in (["--features", "catface"], ["--called", "dog"], ["--held-out", "toycats"]):
        assert f"{flag[0]} has no effect here" in fails(capsys, "evaluate", "toytext32", "--data",
                                                        "toycats", "--n", 20, *flag)


def test_a_card_says_how_its_model_draws(capsys, tmp_path):
    """Its guide and its sampler are used unless told otherwise, and `--guidance` alone is the
    guide's scale."""
    card = load_model("catfaces128").info
    own, scale = card["sampling"], card["guide"]["scale"]

    def drawn(name, *more):
        works("sample", "catfaces128", "--n", 1, "--out", tmp_path / name, *more)
        return (tmp_path / name / "00000.png").read_bytes(), capsys.readouterr().out

    few = "--steps", 3
    plain, said = drawn("a", *few)
    assert f"{own['sampler']}, 3 steps" in said
    told = "--sampler", own["sampler"], "--autoguidance", card["guide"]["name"]
    assert plain == drawn("b", *few, *told)[0] == drawn("c", *few, "--guidance", scale)[0]
    more, alone = drawn("d", *few, "--guidance", 3)[0], drawn("e", *few, "--guidance", 1)[0]
    assert more == drawn("f", *few, *told, "--guidance", 3)[0] and len({plain, more, alone}) == 3
    assert alone == drawn("g", *few, "--autoguidance", "none")[0]
    first, end = card["guide"]["interval"]  # guided in here only, unless another is asked for
    assert plain == drawn("i", *few, "--guidance-interval", first, end)[0]
    everywhere = drawn("j", *few, "--guidance-interval", 0, 1000)[0]
    assert everywhere == drawn("k", *few, *told, "--guidance-interval", 0, 1000)[0] != plain
    assert plain == drawn("l", *few, "--perturbed-attention", 0)[0]
    assert plain != drawn("m", *few, "--perturbed-attention", 1)[0]
    assert f"{own['sampler']}, {own['steps']} steps" in drawn("h")[1]
    asked = parser().parse_args(["sample", "catfaces128", "--sampler", "heun"])
    settle_sampler(asked, {**own, "spacing": 1.5})
    # the card's steps and spacing are its sampler's
    assert (asked.sampler, asked.steps, asked.spacing) == ("heun", 50, 1.0)
    asked = parser().parse_args(["sample", "catfaces128"])
    settle_sampler(asked, {**own, "spacing": 1.5})
    assert (asked.sampler, asked.steps, asked.spacing) == (own["sampler"], own["steps"], 1.5)


def test_a_start_that_was_asked_for_something_else_is_warned_of(run, config, tmp_path):
    with pytest.warns(UserWarning, match="was asked for v, this run asks for epsilon"):
        works("train", "--config", config, "--init", run, "--diffusion.prediction", "epsilon",
              "--steps", 1, "--out", tmp_path / "other")


def test_resuming_nothing_reads_no_pictures(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion_lib.load_data", lambda *_, **__: pytest.fail("was read"))
    given = ["train", "--config", config, "--out", tmp_path / "typo", "--resume"]
    assert main([str(each) for each in given]) == 2
    assert "no checkpoint in" in capsys.readouterr().err and not (tmp_path / "typo").exists()


def test_a_decoder_alone_needs_an_encoder_that_has_learnt(tmp_path, capsys):
    given = ["train", "--config", "catfaces_decoder", "--init", "", "--out", tmp_path / "x"]
    assert main([str(each) for each in given]) == 2
    assert "name a trained autoencoder" in capsys.readouterr().err
