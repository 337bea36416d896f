""".ci/measure_gains.py: one change at a time, at equal time; a table can be gone on with."""

import json
from pathlib import Path

import measure_gains
import pytest
import torch

from diffusion_lib import (
    GaussianDiffusion,
    cosine_beta_schedule,
    noise_prediction_loss,
    shipped_table,
)


@pytest.fixture(scope="module")
def names() -> dict:
    return measure_gains.own_program()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 3, 16, 16, generator=generator)
    return x_0, noise, torch.tensor([0, 50, 200, 500, 800, 950])


def test_a_network_asked_for_the_noise_is_read_as_v(names: dict) -> None:
    x_0, noise, t = batch()
    signal, rest = measure_gains.rates(names["alpha_bar"], t)
    said = measure_gains.SaysV(lambda x, t: noise, names["alpha_bar"])  # type: ignore[arg-type]
    v = signal * noise - rest * x_0
    torch.testing.assert_close(said(signal * x_0 + rest * noise, t), v, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant, prediction, weighting", [
    ("plain", "v", "uniform"), ("epsilon", "epsilon", "uniform"), ("min_snr", "v", "min_snr"),
    ("ema", "v", "uniform"), ("muon", "v", "uniform"),
])
def test_each_loss_is_the_librarys(
    names: dict, variant: str, prediction: str, weighting: str,
) -> None:
    x_0, noise, t = batch()

    def network(x: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
        return x.tanh()

    mine = measure_gains.loss_of(variant, names, network, x_0, t, noise)  # type: ignore[arg-type]
    diffusion = GaussianDiffusion(cosine_beta_schedule(1000), prediction)
    its = noise_prediction_loss(diffusion, network, x_0, t, noise, weighting=weighting)
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_a_table_half_done_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(variant: str, names: dict, seed: int, steps: int) -> tuple[None, float]:
        trained.append((variant, seed, steps))
        return None, 0.1 * steps * (2 if variant == "muon" else 1)

    monkeypatch.setattr(measure_gains, "train", train)
    monkeypatch.setattr(measure_gains, "judged", lambda names, network: {"error": 0.5})
    out = tmp_path / "gains.json"
    measure_gains.main(["--seconds", "4", "--seeds", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert rows["plain"]["steps"] == 40 and rows["muon"]["steps"] == 20  # equal time, not steps
    trained.clear()
    measure_gains.main(["--seconds", "4", "--seeds", "2", "--out", str(out)])
    assert [(variant, seed) for variant, seed, _ in trained] == [
        (variant, 1) for variant in measure_gains.VARIANTS]
    rows = json.loads(out.read_text())["rows"]
    assert all(set(row["runs"]) == {"0", "1"} for row in rows.values())


def test_the_shipped_table_says_what_notebook_04_says() -> None:
    rows = shipped_table("gains")["rows"]
    assert set(rows) == set(measure_gains.VARIANTS)
    assert all(set(row["runs"]) == set("0123") for row in rows.values())

    def change(variant: str, what: str) -> tuple[float, float]:
        """Mean and half of the interval (Student's t, 95 %), against plain with the same seed."""
        apart = torch.tensor([run[what] / rows["plain"]["runs"][seed][what] - 1
                              for seed, run in rows[variant]["runs"].items()])
        return apart.mean().item(), 3.18 * apart.std().item() / 2

    for variant, what, gained in (
        ("min_snr", "left_over", True), ("min_snr", "error", True), ("muon", "left_over", True),
        ("muon", "error", False), ("ema", "left_over", False), ("ema", "error", False),
        ("epsilon", "left_over", False),
    ):
        mean, half = change(variant, what)
        assert (mean + half < 0) == gained, (variant, what, mean, half)
    assert change("epsilon", "error")[0] > 1
