"""Measure what guidance does to `cifar10_32` and write what notebook 08 reads:
diffusion_lib/weights/tables/guidance.json.

    python .ci/measure_guidance.py --n 500         needs data/cifar10; half an hour of one core

Draws n consecutive seeds, the ten classes in turn, for each scale of plain guidance and for each
variant of it at the same number of network evaluations, and compares them with the photographs that
the network learnt from; the floor is the distance of as many that no network saw. Only numbers are
kept. Rows that were measured with the same weights and
settings are kept too, so that a run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import autoguided, guided, load_classifier, load_data, load_model, sample
from diffusion_lib.core.samplers import device_of, timesteps_trailing
from diffusion_lib.data.sources import in_batches, to_float
from diffusion_lib.measuring.metrics import frechet_distance, precision_recall, wilson
from diffusion_lib.measuring.report import CAT, said
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS, Pretrained, register
from diffusion_lib.training.device import pick_device, probe_autocast

TABLE = WEIGHTS / "tables/guidance.json"
SCALES = (0, 1, 1.5, 2, 3, 5, 8)
MIDDLE, RESCALE = (200, 800), 0.7
CLASSES, SAMPLER = 10, "dpm_solver_pp"
Row = dict[str, Any]


class Photographs(NamedTuple):
    """What samples are compared with: features and pictures of real ones, classes in turn."""

    train: Tensor  # features (N, F)
    held_out: Tensor  # features (n, F)
    pictures: Tensor  # the held-out ones, floats in [-1, 1]


def photographs(folder: str, judge: nn.Module, only: int | None = None) -> Photographs:
    """The same number of each class, row i of class i % 10; or those of one class."""
    parts = []
    for part in ("train", "test"):
        data = load_data(f"folder:{folder}/{part}", 32)
        wanted = range(CLASSES) if only is None else [only]
        rows = [torch.nonzero(data.labels == k).flatten() for k in wanted]
        least = min(map(len, rows))
        parts.append(data.images[torch.stack([each[:least] for each in rows], dim=1).flatten()])
    train, held_out = (in_batches(judge.features, part) for part in parts)
    return Photographs(train, held_out, to_float(parts[1]))


# -- measures --------------------------------------------------------------------------------------


def mean_of(values: Tensor) -> list[float]:
    """[mean, low, high] of what is never below 0, with two standard errors."""
    mean, error = float(values.mean()), 2 * float(values.std()) / len(values) ** 0.5
    return short(mean, max(mean - error, 0), mean + error)


def short(*numbers: float | None) -> list[float | None]:
    return [None if x is None else float(f"{x:.4g}") for x in numbers]


def spreads(rows: Tensor, labels: Tensor) -> Tensor:
    """Mean distance of two pictures of one class in features, for each class (K,)."""
    found = [torch.pdist(rows[labels == k].double()).mean() for k in labels.unique()]
    return torch.stack(found)


def measured(pictures: Tensor, labels: Tensor, real: Photographs, judge: nn.Module) -> Row:
    """Every measure of pictures (n, 3, 32, 32) in [-1, 1] that were asked for labels (n,)."""
    n, rows = len(pictures), in_batches(judge.features, pictures)
    right = float((said(judge, pictures).argmax(1) == labels).float().mean())
    frechet = frechet_distance(rows, real.train, real.held_out, n=n)
    precision, recall = precision_recall(rows, real.train, real.held_out, n=n)
    real_labels = torch.arange(len(real.held_out)) % len(labels.unique())
    real_spreads = spreads(real.held_out[:n], real_labels[:n])
    clipped = (pictures.abs() > 0.99).flatten(1).float().mean(1)
    colour = pictures.amax(1) - pictures.amin(1)
    return {
        "right": short(right, *wilson(right, n)),
        **{name: short(m.value, m.low, m.high, m.floor) for name, m in
           (("frechet", frechet), ("precision", precision), ("recall", recall))},
        "clipped": mean_of(clipped), "saturation": mean_of(colour.flatten(1).mean(1) / 2),
        "spread": mean_of(spreads(rows, labels) / real_spreads) if len(real_spreads) > 1
        else short(float(spreads(rows, labels) / real_spreads), None, None),
    }


# -- what is drawn ---------------------------------------------------------------------------------


def steps_for(evaluations: int, T: int, interval: tuple[int, int]) -> int:
    """The most steps whose evaluations, two in the interval and one outside, do not go above."""
    def cost(steps: int) -> int:
        inside = [interval[0] <= t < interval[1] for t in timesteps_trailing(T, steps, 1.0)]
        return steps + sum(inside)
    return max(steps for steps in range(1, evaluations + 1) if cost(steps) <= evaluations)


def variants(steps: int, diffusion: Any) -> list[Row]:
    """Name, scale, steps and options of every row of `cifar10_32`."""
    rows: list[Row] = [{"name": "plain", "scale": s, "steps": steps, "options": {}} for s in SCALES]
    rows.append({"name": "more steps", "scale": 1, "steps": 2 * steps, "options": {}})
    for s in (3, 8):
        middle = steps_for(2 * steps, diffusion.T, MIDDLE)
        rows += [
            {"name": "interval", "scale": s, "steps": middle, "options": {"interval": MIDDLE}},
            {"name": "rescaled", "scale": s, "steps": steps, "options": {"rescale": RESCALE}},
            {"name": "projected", "scale": s, "steps": steps, "options": {"apg": diffusion}},
        ]
    return rows


def evaluations(row: Row, T: int) -> int:
    """Network evaluations a picture."""
    first, end = row["options"].get("interval", (0, T))
    inside = sum(first <= t < end for t in timesteps_trailing(T, row["steps"], 1.0))
    return row["steps"] + (inside if row["scale"] not in (0, 1) else 0)


def draw(network: Any, diffusion: Any, n: int, steps: int) -> Tensor:
    device = device_of(network)
    with torch.autocast(device.type, torch.bfloat16, enabled=probe_autocast(device) == "bf16"):
        return sample(network, diffusion, n, sampler=SAMPLER, steps=steps, batch_size=50,
                      progress=sys.stderr.isatty())


def autoguidance(steps: int, n: int, model: Pretrained, device: torch.device) -> list[Row]:
    """`cats32` alone and guided away from `cifar10_32` asked for a cat, which saw fewer cats, at
    equal evaluations.
    """
    other, scale = load_model("cifar10_32"), 2.0  # the usual scale; its card asks for less
    worse = guided(other.model.to(device), other.info["data"]["classes"].index("cat"), 1)
    pushed = autoguided(model.model, worse, scale)
    return [{"name": "cats32", "scale": 1, "steps": 2 * steps, "network": model.model},
            {"name": "cats32 away from cifar10_32", "scale": scale, "steps": steps,
             "network": pushed}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=500, help="samples a row, a multiple of 50")
    parser.add_argument("--steps", type=int, default=20, help="of plain guidance")
    parser.add_argument("--data", default="data/cifar10", help="folder with train/ and test/")
    parser.add_argument("--judge", help="path of another classifier that says what is right")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=TABLE)
    a = parser.parse_args()
    if a.n < 50 or a.n % 50:
        parser.error(f"--n must be a multiple of 50 (ten classes, five folds), not {a.n}")
    judge, device = load_classifier(*filter(None, [a.judge])), pick_device(a.device)
    trained, cats = load_model("cifar10_32"), load_model("cats32")
    real, real_cats = photographs(a.data, judge), photographs(a.data, judge, only=CAT)
    if a.n > len(real.held_out):
        parser.error(f"--n is {a.n}; there are {len(real.held_out)} held-out pictures of all "
                     "classes alike")
    known = register()
    a.out.parent.mkdir(parents=True, exist_ok=True)
    setting = {"n": a.n, "steps": a.steps, "sampler": SAMPLER, "middle": list(MIDDLE),
               "rescale": RESCALE, "judge": judge.card["sha256"][:16],
               "judge_balanced_accuracy": judge.card["balanced_accuracy"],
               "weights": {name: known[name][:16] for name in ("cifar10_32", "cats32")}}
    table: Row = {"setting": setting, "rows": []}
    if a.out.exists() and (old := json.loads(a.out.read_text("utf-8")))["setting"] == setting:
        table = old
    labels, cat_labels = torch.arange(a.n) % CLASSES, torch.full((a.n,), CAT)
    table["real"] = {
        "classes": measured(real.pictures[: a.n], labels, real, judge),
        "cats": measured(real_cats.pictures[: a.n], cat_labels, real_cats, judge)}
    diffusion = trained.diffusion
    trained.model.to(device), cats.model.to(device)
    rows = variants(a.steps, diffusion) + autoguidance(a.steps, a.n, cats, device)
    done = {(row["name"], row["scale"]) for row in table["rows"]}
    for row in rows:
        if (row["name"], row["scale"]) in done:
            continue
        start, network, options = time.perf_counter(), row.pop("network", None), {}
        if network is None:
            options = row.pop("options")
            told = {"evaluations": evaluations(row | {"options": options}, diffusion.T)}
            network = guided(trained.model, labels, row["scale"], **options)
            pictures = draw(network, diffusion, a.n, row["steps"])
            told |= measured(pictures, labels, real, judge)
        else:
            told = {"evaluations": row["steps"] * (2 if row["scale"] != 1 else 1)}
            pictures = draw(network, cats.diffusion, a.n, row["steps"])
            told |= measured(pictures, cat_labels, real_cats, judge)
        table["rows"].append({**row, **told})
        with whole(a.out) as path:
            path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
        print(f"{row['name']} {row['scale']}: {time.perf_counter() - start:.0f} s, right "
              f"{told['right'][0]:.2f}, Fréchet {told['frechet'][0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
