"""Add a model to those that ship with the library: float16 weights, or a byte each; a card; its
sha256 in the register.

    python .ci/ship.py runs/cats32 cats32
    python .ci/ship.py runs/catfaces_autoencoder catfaces_autoencoder    before the models that
    python .ci/ship.py runs/catfaces128 catfaces128                      draw its latents
    python .ci/ship.py runs/toysd64 toysd64 --bits 8
    python .ci/ship.py runs/decoder catfaces_autoencoder --mix runs/catfaces_autoencoder 0.4
    python .ci/ship.py runs/cats32 cats32 --half-life 0.1

--bits 8: half the size (saving/eight_bits.py). The run may be a shipped model's name, too: its
weights are written anew, its card stays.
--half-life: an average of another length than those the run kept (measure_ema.py).
--mix: four tenths of the weights before a second pass (Wortsman et al. 2022, "Model soups").
"""

import argparse
import dataclasses
import json
import platform
import re
import sys
from pathlib import Path

import torch
from measure_ema import afterwards
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib.saving import pretrained
from diffusion_lib.saving.checkpoint import newest_checkpoint, read_state
from diffusion_lib.saving.eight_bits import pack
from diffusion_lib.saving.files import sha256, whole
from diffusion_lib.training.run_folder import CsvLog


def card(run: Path | str, state: dict, points: int = 60) -> dict:
    """What a shipped model tells about itself: data, settings, work, machine, its thinned log.

    run: the run folder. What lies in it as trials.json (the short trials that chose the settings),
    report.json (what `evaluate --json` wrote), independent.json (the same with --judge or other
    features), terms.json (the data's licence), guide.json (its guide, and the best scale),
    moments.json (measure_moments.py) and ema.json (measure_ema.py) goes in too.
    state: its checkpoint's.
    """
    run = Path(run)
    log = list(CsvLog.read(run / "log.csv"))
    free = ("device", "save_every", "keep_checkpoints", "log_every")
    settings = {k: v for k, v in state["train"].items() if k not in free}
    width = max(len(log) // points, 1)  # the loss jumps: each point is the mean of its rows
    parts = [log[i : i + width] for i in range(0, len(log), width)]
    thinned = {"step": [int(part[-1]["step"]) for part in parts],
               "seconds": [round(float(part[-1]["seconds"])) for part in parts]}
    for name in ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4"):
        values = [[float(row[name]) for row in part if row.get(name) not in (None, "", "nan")]
                  for part in parts]
        thinned[name] = [round(sum(rows) / len(rows), 5) if rows else None for rows in values]
    told = {
        "data": state["data"], "init": (state.get("config") or {}).get("init", ""),
        "train": settings, "precision": state["precision"],
        "steps": state["step"], "images_seen": state["step"] * settings["batch_size"],
        "seconds": round(float(log[-1]["seconds"])),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
                   f"torch {torch.__version__}",
        "weights": "the last average (EMA)", "log": thinned,
    }
    if left_out := (state.get("config") or {}).get("exclude"):
        told["exclude"] = left_out
    if "diffusion" in state:
        told["schedule"] = "see diffusion.betas"
    if "loss" in state:
        told["loss"] = state["loss"]
    for name in ("trials", "report", "independent", "terms", "guide", "sampling", "moments",
                 "ema"):
        if (run / f"{name}.json").exists():
            told[name] = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    return told


def passes(run: Path) -> list[tuple[int, float]]:
    """(pictures seen, seconds) of a run and of the runs that it went on from."""
    state = read_state(newest_checkpoint(run))
    seconds = float(list(CsvLog.read(run / "log.csv"))[-1]["seconds"])
    before = Path((state.get("config") or {}).get("init") or "none")
    own = [(state["step"] * state["train"]["batch_size"], seconds)]
    return own + (passes(before) if (before / "log.csv").exists() else [])


def ship(name: str, model: nn.Module, card: dict, bits: int = 16) -> Path:
    """Add a model to the shipped ones: weights of 16 or 8 bits, a card (JSON), and its sha256 in
    the register.
    """
    path = pretrained.WEIGHTS / f"{name}.safetensors"
    state = model.state_dict()
    halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
    with whole(path) as temporary:
        save_file(pack(state) if bits == 8 else halves, temporary)
    told = card.get("weights", "weights").partition(", stored")[0]
    stored = f"{told}, stored in " + ("float16" if bits == 16 else "8 bits, one scale a row")
    full = {**card, "weights": stored, "model": dataclasses.asdict(model.config)}
    text = json.dumps(full, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda row: " ".join(row[0].split()),
                  text)  # rows of numbers in one line
    register = {**pretrained.register(), name: sha256(path)}
    listed = json.dumps(register, indent=1, sort_keys=True)
    for file, words in ((f"{name}.json", text), ("register.json", listed)):
        with whole(pretrained.WEIGHTS / file) as temporary:
            temporary.write_text(words + "\n", encoding="utf-8")
    return path


def of_run(run: str, mix: list[str] | None, half_life: float | None) -> tuple[nn.Module, dict]:
    """A run's network and what its card says."""
    if pretrained.is_autoencoder(run):
        model = pretrained.load_autoencoder(run)
        if mix:
            other, share = pretrained.load_autoencoder(mix[0]).state_dict(), float(mix[1])
            for weight_name, weight in model.state_dict().items():
                weight.lerp_(other[weight_name], share)
        state = read_state(newest_checkpoint(run))
        more = {"latents": {"mean": model.latent_mean.tolist(), "std": model.latent_std.tolist()}}
        seen, seconds = map(sum, zip(*passes(Path(run)), strict=True))
        more |= {"images_seen": seen, "seconds": round(seconds)}
        if mix:
            more["mixed"] = {"with": mix[0], "share": float(mix[1])}
    else:
        model, diffusion, state = loaded = pretrained.load_model(run)
        more = {"diffusion": diffusion.state_dict()}
        if half_life:
            model.load_state_dict(afterwards(Path(run), half_life))
            more["weights"] = f"an average (EMA) of half-life {half_life}, chosen afterwards"
        if autoencoder := loaded.autoencoder:  # known by the name that it ships under
            known = {pretrained.load_autoencoder(each).source["sha256"]: each
                     for each in pretrained.shipped_models() if pretrained.is_autoencoder(each)}
            mark = autoencoder.source["sha256"]
            if mark not in known:
                sys.exit("its autoencoder does not ship: ship that one first")
            more["autoencoder"] = {"name": known[mark], "sha256": mark}
    return model, {**card(run, state), **more}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage="ship.py RUN NAME [--bits 8] [--half-life SHARE] [--mix RUN SHARE]")
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--bits", type=int, choices=(8, 16), default=16)
    parser.add_argument("--half-life", type=float)
    parser.add_argument("--mix", nargs=2, metavar=("RUN", "SHARE"))
    a = parser.parse_args()
    if a.mix and not pretrained.is_autoencoder(a.run):
        parser.error("--mix is for autoencoders")
    if a.half_life and pretrained.is_autoencoder(a.run):
        parser.error("--half-life is for models that draw")
    if a.run in pretrained.shipped_models():
        shipped = pretrained.load_pretrained(a.run)
        made = shipped.model, shipped.info
    else:
        made = of_run(a.run, a.mix, a.half_life)
    print(f"written to {ship(a.name, *made, bits=a.bits)}")
