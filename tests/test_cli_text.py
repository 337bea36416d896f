"""The command line with captions, called as a user calls it."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_cli import TINY, config, fails, run, works  # noqa: F401

from diffusion_lib import load_model

READS = """
data: toycats:60
exclude: [{fur: white, ears: folded}]
diffusion: {schedule: cosine, T: 50, prediction: v}
model: {image_size: 16, channels: 8, channel_mults: [1, 2], attention: [false, true],
        cross_attention_dim: 8}
text: {layers: 1, heads: 2}
train: {steps: 4, batch_size: 4, warmup: 2, log_every: 1, save_every: 2, precision: float32,
        flip: false, attribute_drop: 0.4}
"""


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "reads.yaml").write_text(READS)
    works("train", "--config", folder / "reads.yaml", "--out", folder / "run")
    return folder / "run"


def test_a_run_from_captions(reads: Path) -> None:
    assert (reads / "samples/step_00000004.png").exists()
    state = json.loads((reads / "checkpoints/step_00000004/state.json").read_text())
    assert state["config"]["exclude"] == [{"fur": "white", "ears": "folded"}]
    model = load_model(reads).model
    assert model.text_encoder.config.layers == 1 and "stripes" in model.tokenizer.numbers


def test_pictures_of_a_prompt(reads: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, flags in {
        "plain": (), "white": ("--prompt", "a white cat"),
        "more": ("--prompt", "a white cat", "--guidance", "3"),
        "not": ("--prompt", "a white cat", "--guidance", "3", "--negative-prompt", "a grey cat"),
        "two": ("--prompt", "a white cat", "--guidance", "3", "--also", "a cat with round ears"),
        "within": ("--prompt", "a white cat", "--guidance", "3", "--guidance-interval", "0", "20"),
    }.items():
        works("sample", reads, "--n", "2", "--steps", "3", "--grid", tmp_path / f"{name}.png",
              *flags)
        drawn[name] = Image.open(tmp_path / f"{name}.png").tobytes()
    assert len(set(drawn.values())) > 1


def test_agreement_is_measured(reads: Path, tmp_path: Path, capsys) -> None:
    works("evaluate", reads, "--data", "toycats", "--n", "20", "--steps", "2", "--guidance", "2",
          "--json", tmp_path / "report.json")
    told = capsys.readouterr().out
    assert "all five as asked" in told and "n = 20" in told and "guidance 2" in told
    measures = json.loads((tmp_path / "report.json").read_text())["measures"]
    assert [each["n"] for each in measures] == [20] * 7


def test_an_export_comes_back(reads: Path, tmp_path: Path, capsys) -> None:
    works("export", reads, "--out", tmp_path / "out")
    assert "text_encoder" in capsys.readouterr().out
    works("sample", tmp_path / "out", "--n", "1", "--steps", "2", "--prompt", "a white cat",
          "--out", tmp_path / "drawn")


def test_what_cannot_be_asked_is_one_line(reads: Path, tmp_path: Path, capsys) -> None:
    to = ("--n", "1", "--steps", "2", "--out", tmp_path / "x")
    for flags, *said in (
        (("--prompt", "a white tiger"), "'tiger'", "it knows"), (("--prompt", ""), "empty"),
        (("--prompt", " "), "empty"), (("--prompt", "cat " * 20), "20 words", "at most 14"),
        (("--negative-prompt", "a grey cat"), "need a --prompt"),
        (("--guidance", "3"), "need a --prompt"), (("--class", "0"), "no classes"),
        (("--prompt", "a cat", "--negative-prompt", "a grey cat"), "does nothing"),
        (("--prompt", "a cat", "--guidance", "-1"), "0 or more"),
    ):
        line = fails(capsys, "sample", reads, *flags, *to)
        assert all(piece in line for piece in said), line


def test_a_network_that_reads_none(run: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    line = fails(capsys, "sample", run, "--prompt", "a cat", "--n", "1", "--out", tmp_path / "x")
    assert "reads no text" in line and "toytext32" in line


def test_own_captions(config: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    text = config.read_text().replace("attention: [false, true]",
                                      "attention: [false, true], cross_attention_dim: 4")
    config.write_text(text.replace("train:", "text: {heads: 1}\ntrain:"))
    line = fails(capsys, "train", "--config", config, "--out", tmp_path / "own")
    assert "captions.csv" in line
    table = tmp_path / "pictures/captions.csv"
    table.write_text("file,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(6)))
    works("train", "--config", config, "--out", tmp_path / "own", "--steps", "2")
    works("sample", tmp_path / "own", "--prompt", "picture 3", "--n", "1", "--steps", "2",
          "--out", tmp_path / "drawn")
