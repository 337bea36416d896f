"""Measure the five arms of notebook 06 and write what it reads: weights/tables/arms.json and grids
in weights/progress, both in diffusion_lib.

    python .ci/measure_arms.py runs --n 500        needs data/ and runs/arm_classes32 and so on
    python .ci/measure_arms.py runs --arms latents128      one more row in the table there is

The last one is notebook 10's: faces128 once more, as latents, at equal multiply-adds.

Draws n consecutive seeds of each arm and compares them with photographs of their own kind by every
measure, in two kinds of features. Next to them the same for 32 px samples enlarged to 128 px, and
for as many photographs that no arm saw, also upside down. Only numbers and grids of samples are
kept, no photographs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from measure_guidance import draw, short
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import Reference, evaluate, load_classifier, load_data, load_model
from diffusion_lib.data.pictures import image_grid
from diffusion_lib.data.sources import in_batches, to_uint8
from diffusion_lib.measuring.metrics import Measure, class_share, power_spectrum
from diffusion_lib.measuring.report import CAT, real_pictures, said, shuffled
from diffusion_lib.saving.checkpoint import newest_checkpoint, read_state
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS
from diffusion_lib.training.run_folder import CsvLog

TABLE, GRIDS = WEIGHTS / "tables/arms.json", WEIGHTS / "progress"
ARMS = {  # arm -> the data it learnt from
    "classes32": "folder:data/cifar10/train",
    "cats32": "folder:data/cifar10/train/cat",
    "resized128": "folder:data/cifar10/train/cat",
    "whole128": "folder:data/cats128_more#train",
    "faces128": "folder:data/catfaces128#train",
    "latents128": "folder:data/catfaces128#train",
}
OTHER_TARGET = "faces128_v"  # its grids only: trained with --diffusion.prediction v
SHOWN = 8  # seeds in a grid
MEASURES = {  # as `evaluate` names them -> as the table does
    "Fréchet distance": "frechet", "kernel distance": "kernel", "precision": "precision",
    "recall": "recall", "nearest training picture (features)": "nearest",
}


def enlarged(pictures: Tensor) -> Tensor:
    """uint8 pictures (N, 3, 32, 32) at 128 px, by any picture program's way."""
    def larger(x: Tensor) -> Tensor:
        return to_uint8(F.interpolate(x, (128, 128), mode="bicubic").clamp(-1, 1))
    return in_batches(larger, pictures)


def photographs(arm: str) -> tuple[Tensor, Tensor]:
    """(trained on, held out), uint8, of an arm's kind; of the ten classes equally many of each."""
    size = int(arm[-3:].lstrip("s")) if arm.endswith("128") else 32
    if arm != "classes32":
        return real_pictures(ARMS[arm], None, size)[:2]
    parts = []
    for part, each in (("train", 1000), ("test", 100)):
        data = load_data(f"folder:data/cifar10/{part}", 32)
        rows = [torch.nonzero(data.labels == k).flatten()[:each] for k in range(10)]
        parts.append(data.images[torch.cat(rows)])
    return parts[0], shuffled(parts[1])


def told(measure: Measure) -> list[float | None]:
    """[value, low, high, what photographs get]."""
    return short(measure.value, measure.low, measure.high, measure.floor)


def opinions(pictures: Tensor, judges: dict[str, nn.Module],
             n: int) -> dict[str, list[float | None]]:
    """What each classifier says of the first n pictures."""
    found = {}
    for name, judge in judges.items():
        shares = class_share(said(judge, pictures[:n]), CAT, "cat", n=n)
        for what, share in zip(("called cat", "probability", "surely"), shares, strict=True):
            found[f"{what} ({name})"] = told(share)
    return found


def row(pictures: Tensor, references: dict[str, Reference], judges: dict[str, nn.Module],
        n: int) -> dict:
    """Every measure of n pictures (uint8) against photographs of their kind."""
    found = {}
    for kind, reference in references.items():
        for m in evaluate(pictures, reference, n=n):
            if m.name in MEASURES:
                found[f"{MEASURES[m.name]} ({kind})"] = told(m)
            elif m.name == "share with a cat's face" or m.name.startswith("power spectrum"):
                found["face" if "face" in m.name else "spectrum_db"] = told(m)
    found |= opinions(pictures, judges, n)
    spectrum = power_spectrum(pictures[:n])
    return {"n": n, "size": pictures.shape[-1], "measures": found,
            "spectrum": [round(float(x), 2) for x in spectrum]}


def unseen(train: Tensor, judges: dict[str, nn.Module], n: int) -> dict[str, list[float | None]]:
    """What a judge that saw other cats says of photographs that the arms learnt from: it never saw
    these, but it was trained on the held-out ones.
    """
    some = shuffled(train)[:n]
    return opinions(some, {k: v for k, v in judges.items() if k == "other"}, n)


def drawn(run: Path, n: int) -> tuple[Tensor, float]:
    """(n consecutive seeds of a run, uint8; seconds)."""
    model, diffusion, _ = load_model(run)
    start = time.perf_counter()
    pictures = draw(model, diffusion, n, steps=20)
    return to_uint8(pictures), time.perf_counter() - start


def keep(pictures: Tensor, arm: str, step: int) -> None:
    """A grid, in weights/progress."""
    if pictures.shape[-1] == 32:  # as large as the others; pixels stay pixels
        pictures = pictures.repeat_interleave(4, -1).repeat_interleave(4, -2)
    with whole(GRIDS / f"arm_{arm}_{step:04d}.webp") as path:
        image_grid(pictures, columns=SHOWN).save(path, format="webp", quality=80)


def moments(run: Path, arm: str) -> list[int]:
    """Grids of the same seeds at moments of a training; the steps of them."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    steps = [int(folder.name.removeprefix("step_")) for folder in folders]
    for step, folder in zip(steps, folders, strict=True):
        keep(drawn(folder, SHOWN)[0], arm, step)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--judge", help="path of a classifier that saw other cats: trained on "
                        "the held-out ones (.ci/train_classifier.py)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    a = parser.parse_args()
    if "resized128" in a.arms and "cats32" not in a.arms:
        parser.error("resized128 is measured with cats32, whose samples are enlarged beside it")
    TABLE.parent.mkdir(exist_ok=True)
    judges = {"shipped": load_classifier()}
    if a.judge:
        judges["other"] = load_classifier(a.judge)
    everything = set(a.arms) == set(ARMS)
    rows = {} if everything else json.loads(TABLE.read_text(encoding="utf-8"))
    small = None
    for arm in a.arms:
        data = ARMS[arm]
        train, held_out = photographs(arm)
        references = {kind: Reference.of(train, held_out, name=data, features=kind)
                      for kind in ("classifier", "catface")}
        run = a.runs / f"arm_{arm}"
        pictures, seconds = drawn(run, a.n)
        log = list(CsvLog.read(run / "log.csv"))
        rows[arm] = row(pictures, references, judges, a.n) | {
            "data": data, "photographs": len(train), "seconds_drawing": round(seconds, 1),
            "steps": int(log[-1]["step"]), "minutes": round(float(log[-1]["seconds"]) / 60, 1),
            "pictures_seen": int(log[-1]["step"]) * seen_at_once(run)}
        if arm == "cats32":
            small = pictures
        if arm == "resized128":
            rows["enlarged"] = row(enlarged(small), references, judges, a.n)
        if arm != "latents128":  # 06 shows moments of its five; photographs are those of faces128
            rows[arm]["moments"] = moments(run, arm)
            real = min(a.n, len(held_out))
            rows[f"real_{arm}"] = row(held_out, references, judges, real)
            rows[f"real_{arm}"]["measures"] |= unseen(train, judges, a.n)
        else:
            keep(pictures[:SHOWN], arm, rows[arm]["steps"])
        if arm == "faces128":
            rows["upside_down"] = row(held_out.flip(-2), references, judges, real)
        print(arm, rows[arm]["measures"], flush=True)
        write(rows)
    if "faces128" in a.arms:
        moments(a.runs / f"arm_{OTHER_TARGET}", OTHER_TARGET)


def seen_at_once(run: Path) -> int:
    """Pictures of a training step."""
    return read_state(newest_checkpoint(run))["train"]["batch_size"]


def write(rows: dict) -> None:
    with whole(TABLE) as path:
        path.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
