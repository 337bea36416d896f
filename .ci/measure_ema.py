"""The length of a run's average, chosen afterwards (Karras et al. 2024, section 3.2 and algorithm 3
of its appendix): averages of any length, put together from the kept ones, and measured.

    python .ci/measure_ema.py runs/catfaces128 --data folder:data/catfaces128#train --n 500
    python .ci/ship.py runs/catfaces128 catfaces128 --half-life 0.1     ship that one

Our averages weigh the weights of step t by t^γ, γ = ln 2 / half_life - 1 (core/ema.py). Every kept
checkpoint holds a few of them, and the wanted one is the sum of all of these that comes closest to
t^γ up to the last step. What was measured goes to RUN/ema.json.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from measure_moments import Measures, short
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import load_model
from diffusion_lib.saving.checkpoint import newest_checkpoint, read_state
from diffusion_lib.saving.files import whole

HALF_LIVES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


class Average(NamedTuple):
    """One that a run kept: its half-life as a share of the run, and its last step."""

    half_life: float
    step: int

    @property
    def gamma(self) -> float:
        return math.log(2) / self.half_life - 1


def overlap(a: Average, b: Average) -> float:
    """∫ p_a(t) p_b(t) dt of two profiles p(t) = (γ + 1) t^γ / T^(γ + 1) on 0 … T."""
    first = min(a.step, b.step)  # above it one of the two is zero
    powers = (a.gamma + 1) * math.log(first / a.step) + (b.gamma + 1) * math.log(first / b.step)
    return math.exp(powers) * (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1) / first


def shares(kept: list[Average], wanted: Average) -> Tensor:
    """How much of each kept average makes the wanted one, by least squares (N,); their sum is
    close to 1, some are negative.
    """
    products = torch.tensor([[overlap(a, b) for b in kept] for a in kept], dtype=torch.float64)
    goal = torch.tensor([overlap(a, wanted) for a in kept], dtype=torch.float64)
    scale = products.diagonal().rsqrt()  # profiles of one size, or rounding decides
    found = torch.linalg.lstsq(products * scale * scale[:, None], (goal * scale)[:, None],
                               driver="gelsd")
    return found.solution[:, 0] * scale


def averages(run: Path) -> dict[Average, Path]:
    """The averages that a run kept, and the file of each."""
    found = {}
    for folder in sorted((run / "checkpoints").glob("step_*")):
        state = read_state(folder)
        for i, half_life in enumerate(state["train"]["ema"]):
            found[Average(half_life, state["step"])] = folder / f"ema_{i}.safetensors"
    return found


def afterwards(run: Path, half_life: float) -> dict[str, Tensor]:
    """The run's weights averaged over that share of it, float32."""
    kept = averages(run)
    parts = shares(list(kept), Average(half_life, max(each.step for each in kept)))
    total: dict[str, Tensor] = {}
    for share, path in zip((parts / parts.sum()).tolist(), kept.values(), strict=True):
        for name, weight in load_file(path).items():
            total[name] = total.get(name, 0) + share * weight.double()
    return {name: weight.float() for name, weight in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default="catface")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--half-lives", type=float, nargs="+", default=HALF_LIVES)
    a = parser.parse_args()
    model, diffusion, _ = load_model(newest_checkpoint(a.run))
    measures, rows = Measures(a.data, a.features, a.n), []
    for half_life in a.half_lives:
        model.load_state_dict(afterwards(a.run, half_life))
        rows.append({"half_life": half_life, "measures": measures(model, diffusion)})
        print(half_life, short(rows[-1]["measures"]), flush=True)
        with whole(a.run / "ema.json") as path:
            told = {"n": a.n, "features": a.features, "rows": rows}
            path.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
