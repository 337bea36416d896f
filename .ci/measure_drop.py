"""Which share of the labels should be hidden in training? Train notebook 08's program with some
rates and write what its third exercise tells: diffusion_lib/weights/tables/drop.json.

    python .ci/measure_drop.py --seeds 3        one thread; about eight minutes

The program itself stands in the notebook; here it is trained for fewer steps, all rates equally
many. A seed fixes the first weights. A table half done is gone on with.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from notebook_program import missing, program, table_of
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import ToyCats, read_attributes, to_float
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS

TABLE = WEIGHTS / "tables/drop.json"
RATES, STEPS = (0.0, 0.02, 0.1, 0.5), 400
DRAWN, FRESH = 64, 256  # samples of a kind; drawings that no run saw


def own_program() -> dict[str, Any]:
    return program("08", "own-program-08", "network = train(")


@torch.no_grad()
def error(names: dict[str, Any], network: nn.Module, asked: bool) -> float:
    """Mean squared error of x̂_0 on fresh drawings at t = 100, 200 … 900, told their fur or not."""
    drawings = ToyCats(size=16, n=FRESH, seed=1)
    x_0, fur = to_float(drawings.images), drawings.attributes[:, 0]
    labels = fur if asked else torch.full_like(fur, names["NONE"])
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for step in range(100, 1000, 100):
        t = torch.full((FRESH,), step)
        signal, rest = names["alpha_bar"][t].sqrt(), (1 - names["alpha_bar"][t]).sqrt()
        x_t = signal * x_0 + rest * noise
        errors.append((signal * x_t - rest * network(x_t, t, labels) - x_0).square().mean().item())
    return float(f"{statistics.mean(errors):.4g}")


def judged(names: dict[str, Any], network: nn.Module) -> dict[str, float]:
    """What the network answers with and without a class, and what its samples for white show."""
    found: dict[str, float] = {
        "told": error(names, network, True), "not_told": error(names, network, False)}
    white = names["FURS"].index("white")
    for scale in (1, 3):
        x = names["sample"](network, white, n=DRAWN, scale=scale)
        seen = read_attributes(x)
        found[f"white_{scale}"] = int((seen.attributes[:, 0] == white).sum())
        found[f"left_over_{scale}"] = round(seen.distance.mean().item(), 4)
        found[f"edge_{scale}"] = round((x.abs() > 0.99).float().mean().item(), 4)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TABLE)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = own_program()
    setting = {"steps": STEPS, "drawn": DRAWN, "fresh": FRESH}
    table = table_of(a.out, setting, RATES)
    for rate, seed, runs in missing(table, a.seeds):
        network = names["train"](drop=float(rate), steps=STEPS, seed=seed)
        runs[str(seed)] = judged(names, network)
        print(rate, seed, runs[str(seed)], flush=True)
        with whole(a.out) as path:
            path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
