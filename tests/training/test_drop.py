""".ci/measure_drop.py: notebook 08 with several drop rates; a table can be gone on with."""

import json
from pathlib import Path

import measure_drop
import pytest
import torch

from diffusion_lib import shipped_table


def test_the_errors_are_those_of_the_answers() -> None:
    names = measure_drop.own_program()

    class Knows(torch.nn.Module):
        """Says v for x̂_0 = 0 where a fur is told, and for x̂_0 = x_t / √ᾱ where none is."""

        def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            a = names["alpha_bar"][t]
            signal, noise = a.sqrt(), (1 - a).sqrt()
            return torch.where(
                (labels == names["NONE"])[:, None, None, None], -noise / signal * x,
                signal / noise * x)

    told, not_told = (measure_drop.error(names, Knows(), asked) for asked in (True, False))
    x_0 = measure_drop.to_float(measure_drop.ToyCats(size=16, n=measure_drop.FRESH, seed=1).images)
    assert told == pytest.approx(x_0.square().mean().item(), rel=0.01)
    bars = names["alpha_bar"][100:1000:100].flatten()
    assert not_told == pytest.approx(((1 - bars) / bars).mean().item(), rel=0.05)


def test_a_table_half_done_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[float, int]] = []

    def program() -> dict:
        return {"train": lambda drop, steps, seed: trained.append((drop, seed))}

    monkeypatch.setattr(measure_drop, "own_program", program)
    monkeypatch.setattr(measure_drop, "judged", lambda names, network: {"told": 0.5})
    out = tmp_path / "drop.json"
    measure_drop.main(["--seeds", "1", "--out", str(out)])
    trained.clear()
    measure_drop.main(["--seeds", "2", "--out", str(out)])
    assert trained == [(rate, 1) for rate in measure_drop.RATES]
    runs = json.loads(out.read_text())["runs"]
    assert all(set(of_rate) == {"0", "1"} for of_rate in runs.values())


def test_the_shipped_table_says_what_notebook_08_says() -> None:
    runs = shipped_table("drop")["runs"]
    assert all(len(of_rate) == 3 for of_rate in runs.values())

    def span(rate: float, key: str) -> tuple[float, float]:
        values = [run[key] for run in runs[str(rate)].values()]
        return min(values), max(values)

    assert span(0.0, "not_told")[0] > span(0.1, "not_told")[1] > span(0.5, "not_told")[1]
    assert span(0.5, "told")[0] > span(0.0, "told")[1]  # a hidden label costs
    assert span(0.0, "edge_3")[0] > span(0.1, "edge_3")[1] > span(0.5, "edge_3")[1]
    assert max(span(0.0, "edge_1")[1], span(0.1, "edge_1")[1]) < 0.04
    assert all(60 <= run["white_1"] for of_rate in runs.values() for run in of_rate.values())
