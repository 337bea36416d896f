""".ci/measure_compression.py: notebook 10's autoencoder with several channels; a table can be gone
on with."""

import json
from pathlib import Path

import measure_compression
import pytest
import torch

from diffusion_lib import ToyCats, to_float


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


class Same(torch.nn.Module):
    """An encoder that keeps everything."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.zeros_like(x)
