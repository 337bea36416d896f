""".ci/measure_ema.py: an average of another length than those kept, against one kept all along."""

import json
from pathlib import Path

import pytest
import torch
from measure_ema import Average, afterwards, overlap, shares
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_lib import EMA

KEPT, STEPS, EVERY = (0.05, 0.1, 0.02), 600, 50


def weights_at(step: int) -> torch.Tensor:
    """A path that wanders, and jitters as trained weights do."""
    jitter = torch.randn(8, generator=torch.Generator().manual_seed(step))
    return torch.linspace(1, 2, 8) * (step / 100) ** 0.5 + 0.3 * jitter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three averages at every fiftieth step, and the answer at half-life 0.15."""
    model = nn.Linear(8, 1, bias=False)
    kept, answer = [EMA(model, h) for h in KEPT], EMA(model, 0.15)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.copy_(weights_at(step))
        for average in (*kept, answer):
            average.update(model, step)
        if step % EVERY == 0:
            folder = tmp_path / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True)
            for i, average in enumerate(kept):
                save_file(average.model.state_dict(), folder / f"ema_{i}.safetensors")
            state = {"format": 1, "files": {}, "step": step, "train": {"ema": list(KEPT)}}
            (folder / "state.json").write_text(json.dumps(state))
    save_file(answer.model.state_dict(), tmp_path / "answer.safetensors")
    return tmp_path


def test_overlap_against_the_integral() -> None:
    a, b = Average(0.05, 400), Average(0.1, 600)
    t = (torch.arange(600_000, dtype=torch.float64) + 0.5) / 1000

    def profile(of: Average) -> torch.Tensor:
        heights = (of.gamma + 1) * (t / of.step) ** of.gamma / of.step
        return torch.where(t <= of.step, heights, 0.0)

    expected = float((profile(a) * profile(b)).sum()) / 1000
    assert overlap(a, b) == overlap(b, a) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("half_life", [0.02, 0.05, 0.1])
def test_a_kept_average_is_made_of_itself(half_life: float) -> None:
    kept = [Average(h, step) for step in range(EVERY, STEPS + 1, EVERY) for h in KEPT]
    wanted = Average(half_life, STEPS)
    found = shares(kept, wanted)
    expected = torch.tensor([float(each == wanted) for each in kept], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-3)


def test_another_length_is_close_to_one_kept_all_along(run: Path) -> None:
    found = afterwards(run, 0.15)["weight"]
    answer = load_file(run / "answer.safetensors")["weight"]
    last = load_file(run / "checkpoints" / f"step_{STEPS:08d}" / "ema_1.safetensors")["weight"]
    near, far = (float((each - answer).abs().max()) for each in (found, last))
    assert near < 0.01 < 0.1 * far
