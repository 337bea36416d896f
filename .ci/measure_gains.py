"""Measure what each change of notebook 04's program gains at equal time, and write what the
notebook reads: diffusion_lib/weights/tables/gains.json.

    python .ci/measure_gains.py --seconds 40 --seeds 4       one thread; a quarter of an hour

The program itself stands in the notebook; here its network, loss and sampler are taken from there.
One thing is changed at a time. First the processor time of a step is measured for each variant,
then each gets as many steps as fit into the same time. A table half done is gone on with.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from notebook_program import program
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import ToyCats, read_attributes, to_float
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS
from diffusion_lib.training.optimizer import Muon

TABLE = WEIGHTS / "tables/gains.json"
VARIANTS = ("plain", "epsilon", "min_snr", "ema", "muon")
RATE, BATCH, GAMMA, HALF_LIFE = 4e-3, 32, 5.0, 0.05  # half-life: a share of the run
DRAWN, FRESH = 64, 128  # samples read; drawings that no run saw


def own_program() -> dict[str, Any]:
    return program("04", "own-program", "torch.manual_seed(0)")


def rates(alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()


class SaysV(nn.Module):
    """A network asked for ε, translated, so that the program's sampler can use it."""

    def __init__(self, network: nn.Module, alpha_bar: Tensor) -> None:
        super().__init__()
        self.network, self.alpha_bar = network, alpha_bar

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        signal, noise = rates(self.alpha_bar, t)
        return (self.network(x, t) - noise * x) / signal


def loss_of(
    variant: str, names: dict, network: nn.Module, x_0: Tensor, t: Tensor, noise: Tensor,
) -> Tensor:
    """The program's loss, with the variant's one change."""
    if variant not in ("epsilon", "min_snr"):
        return names["loss_of"](network, x_0, t, noise)
    signal, rest = rates(names["alpha_bar"], t)
    said = network(signal * x_0 + rest * noise, t)
    if variant == "epsilon":
        return (said - noise).square().mean()
    snr = (signal / rest) ** 2
    weight = snr.clamp(max=GAMMA) / (snr + 1)  # Hang et al. 2023, for v
    return (weight * (said - (signal * noise - rest * x_0)).square()).mean()


def optimizers(variant: str, network: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the inner weights and AdamW for the rest."""
    if variant != "muon":
        return [torch.optim.AdamW(network.parameters(), lr=RATE)]
    ends = {id(network.first.weight), id(network.last.weight)}
    inner = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in ends]
    taken = {id(p) for p in inner}
    rest = [p for p in network.parameters() if id(p) not in taken]
    return [Muon(inner, RATE), torch.optim.AdamW(rest, lr=RATE)]


def learning_rates(steps: int) -> list[float]:
    """The program's schedule, step by step."""
    one = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    rise = max(0.05, 2 / steps)  # two steps at least: OneCycleLR cannot rise in one
    schedule = torch.optim.lr_scheduler.OneCycleLR(one, RATE, max(steps, 2), pct_start=rise)
    found = []
    for _ in range(steps):
        found.append(one.param_groups[0]["lr"])
        one.step()
        schedule.step()
    return found


def train(variant: str, names: dict, seed: int, steps: int) -> tuple[nn.Module, float]:
    """(network, processor seconds) of one run."""
    torch.manual_seed(seed)
    network = names["SmallUNet"]()
    cats = to_float(ToyCats(size=16, n=2048).images)
    both, average = optimizers(variant, network), [p.detach().clone() for p in network.parameters()]
    keep, start = 0.5 ** (1 / max(1.0, HALF_LIFE * steps)), time.process_time()
    for rate in learning_rates(steps):
        x_0 = cats[torch.randint(len(cats), (BATCH,))]
        t, noise = torch.randint(names["T"], (BATCH,)), torch.randn_like(x_0)
        loss = loss_of(variant, names, network, x_0, t, noise)
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if variant == "ema":
            torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 1 - keep)
    seconds = time.process_time() - start
    if variant == "ema":
        with torch.no_grad():
            for p, mean in zip(network.parameters(), average, strict=True):
                p.copy_(mean)
    return (SaysV(network, names["alpha_bar"]) if variant == "epsilon" else network), seconds


@torch.no_grad()
def judged(names: dict, network: nn.Module) -> dict[str, float]:
    """What the reader cannot explain in 64 samples, their mean left-over; and the error of x̂_0 on
    fresh drawings at t = 100, 200 … 900.
    """
    fresh = to_float(ToyCats(size=16, n=FRESH, seed=1).images)
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for step in range(100, 1000, 100):
        t = torch.full((FRESH,), step)
        signal, rest = rates(names["alpha_bar"], t)
        x_t = signal * fresh + rest * noise
        errors.append((signal * x_t - rest * network(x_t, t) - fresh).square().mean().item())
    seen = read_attributes(names["sample"](network, DRAWN, steps=25))
    return {"left_over": round(seen.distance.mean().item(), 4),
            "error": float(f"{statistics.mean(errors):.4g}")}


def seconds_a_step(names: dict, few: int = 15) -> dict[str, float]:
    """Processor seconds of a step, the median of three short runs that take turns."""
    rounds = [{v: train(v, names, 0, few)[1] / few for v in VARIANTS} for _ in range(3)]
    return {v: statistics.median(r[v] for r in rounds) for v in VARIANTS}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=TABLE)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = own_program()
    table = json.loads(a.out.read_text(encoding="utf-8")) if a.out.exists() else {}
    if table.get("seconds") != a.seconds:
        each = seconds_a_step(names)
        rows = {v: {"seconds_a_step": float(f"{s:.3g}"), "steps": max(1, int(a.seconds / s)),
                    "runs": {}} for v, s in each.items()}
        table = {"seconds": a.seconds, "drawn": DRAWN, "fresh": FRESH, "rows": rows}
    for seed in range(a.seeds):  # all variants of a seed, then the next: half a table compares too
        for variant, row in table["rows"].items():
            if str(seed) in row["runs"]:
                continue
            network, seconds = train(variant, names, seed, row["steps"])
            row["runs"][str(seed)] = judged(names, network) | {"seconds": round(seconds, 1)}
            print(variant, seed, row["steps"], row["runs"][str(seed)], flush=True)
            a.out.parent.mkdir(exist_ok=True)
            with whole(a.out) as path:
                path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
