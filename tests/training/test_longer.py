""".ci/measure_longer.py: the reader's own network of notebook 09, trained longer."""

import json
from pathlib import Path

import measure_longer
import pytest
import torch

from diffusion_lib import shipped_table


def test_the_mean_of_the_words_leaves_padding_out() -> None:
    dice = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, 5, 3, generator=dice), torch.randn(2, 4, 3, generator=dice)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    read = measure_longer.mean_of_words(q, v, v, mask)
    assert read.shape == q.shape
    for pixel in range(5):
        assert torch.allclose(read[0, pixel], v[0, :2].mean(0))
        assert torch.allclose(read[1, pixel], v[1].mean(0))


def test_each_kind_reads_in_its_own_way_and_a_table_half_done_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, int, str]] = []

    def program() -> dict:
        names: dict = {"cats": None, "cat_tokens": None}
        exec("def attend(): return 'chosen'\n"
             "class Read:\n    def forward(self): return attend()", names)
        names["train"] = lambda cats, tokens, steps, seed: trained.append(
            (steps, seed, names["Read"]().forward()))
        return names

    monkeypatch.setattr(measure_longer, "mean_of_words", lambda: "mean")
    monkeypatch.setattr(measure_longer, "own_program", program)
    monkeypatch.setattr(measure_longer, "counted", lambda names, network: {"seen_2": 1})
    out = tmp_path / "longer.json"
    measure_longer.main(["--seeds", "1", "--out", str(out)])
    assert trained == [(1000, 0, "chosen"), (5000, 0, "chosen"), (5000, 0, "mean")]
    measure_longer.main(["--seeds", "2", "--out", str(out)])
    assert trained[3:] == [(1000, 1, "chosen"), (5000, 1, "chosen"), (5000, 1, "mean")]
    runs = json.loads(out.read_text())["runs"]
    assert all(set(of_kind) == {"0", "1"} for of_kind in runs.values())


def test_the_shipped_table_says_what_notebook_09_says() -> None:
    runs = shipped_table("longer")["runs"]
    assert {kind: len(found) for kind, found in runs.items()} == {
        "1000": 3, "5000": 3, "5000 mean": 2}

    def right(kind: str) -> list[int]:
        return [run["withheld_2_whole"] for run in runs[kind].values()]

    assert sum(right("5000")) / 135 > 0.7 > 0.2 > sum(right("1000")) / 135
    assert min(right("5000")) <= min(right("5000 mean")) <= max(right("5000"))
    assert all(run["seen_2_whole"] == 45 for run in runs["5000"].values())
    assert all(run["withheld_2"] >= 44 for run in runs["1000"].values())
