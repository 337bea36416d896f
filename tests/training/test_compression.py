""".ci/measure_compression.py: notebook 10's autoencoder with several channels; a table can be gone
on with."""

import json
from pathlib import Path

import measure_compression
import pytest
import torch

from diffusion_lib import ToyCats, progress_grids, shipped_table, to_float


def test_perfect_reconstructions_have_every_attribute() -> None:
    drawings = ToyCats(32, n=20, seed=1)
    perfect = measure_compression.judged(to_float(drawings.images), drawings)
    kinds = ("fur", "pattern", "eyes", "ears", "background", "all")
    assert all(perfect[kind] == 20 for kind in kinds) and perfect["psnr"] > 60
    grey = measure_compression.judged(torch.zeros(20, 3, 32, 32), drawings)
    assert grey["all"] == 0 and grey["psnr"] < 15


def test_the_notebooks_program_takes_every_number_of_channels() -> None:
    names = measure_compression.own_program()
    for channels in (1, 16):
        encoder, decoder = names["train"](c=channels, steps=2)
        back = measure_compression.there_and_back(encoder, decoder, torch.zeros(2, 3, 32, 32))
        assert encoder(torch.zeros(1, 3, 32, 32))[0].shape == (1, channels, 8, 8)
        assert back.shape == (2, 3, 32, 32)


def test_a_table_half_done_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []

    def train(c: int, steps: int, seed: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        trained.append((c, seed))
        return Same(), torch.nn.Identity()

    monkeypatch.setattr(measure_compression, "own_program", lambda: {"train": train})
    monkeypatch.setattr(measure_compression, "fresh", lambda: ToyCats(32, n=8, seed=1))
    out = ["--out", str(tmp_path / "table.json"), "--grids", str(tmp_path)]
    measure_compression.main(["--seeds", "1", *out])
    trained.clear()
    measure_compression.main(["--seeds", "2", *out])
    assert trained == [(channels, 1) for channels in measure_compression.CHANNELS]
    runs = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert all(set(of_width) == {"0", "1"} for of_width in runs.values())
    assert (tmp_path / "compression_04.webp").exists()


def test_the_shipped_table_says_what_notebook_10_says() -> None:
    table = shipped_table("compression")
    eyes, psnr = ([[run[what] for run in runs.values()] for runs in table["runs"].values()]
                  for what in ("eyes", "psnr"))
    assert [len(runs) for runs in eyes] == [2] * len(measure_compression.CHANNELS)
    for i in range(2):  # from 1 to 4 channels each doubling helps, beyond the trainings' spread
        assert max(eyes[i]) < min(eyes[i + 1]) and max(psnr[i]) < min(psnr[i + 1])
    assert max(eyes[2]) < min(eyes[3]) and max(psnr[2]) < min(psnr[3])
    assert min(eyes[4]) < max(eyes[3])  # from 8 to 16 nothing is seen
    assert set(progress_grids("compression")) == set(measure_compression.CHANNELS)


class Same(torch.nn.Module):
    """An encoder that keeps everything."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.zeros_like(x)
