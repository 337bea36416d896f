"""Where in t should a guide push, and how hard? Each plan draws the same seeds.

    python .ci/measure_push.py catfaces128 catfaces128_guide --data folder:data/catfaces128#train \
        --n 192 --plans 1:0-1000:2 1.8:0-500:2 2.6:550-1000:2.5 --json push.json

A plan is SCALE:FIRST-END:SPACING, guided where FIRST ≤ t < END; scale 1 is not guided. With :SHARE
behind it that much of the push leads away from the guide with perturbed attention. Beside what
`evaluate` measures it tells how alike the two eyes of an aligned face are: the greatest correlation
of the left one's place with the mirrored (or plain) place of the right one, moved by up to nine
pixels; `more` says by how much it beats the first plan, the same seeds pair by pair. Nobody trained
this measure, but it is only a number: two equally spoilt eyes please it, a winking cat does not.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import autoguided, load_model, perturbed_attention, sample, to_float
from diffusion_lib.data.sources import in_batches, to_uint8
from diffusion_lib.measuring import catface, metrics
from diffusion_lib.measuring.report import feature_network, real_pictures
from diffusion_lib.saving.files import whole

# Where most eyes lie in pictures of 128 px, half the side of their place, and how far it may move
ROW, LEFT, RIGHT, HALF, FAR = 63, 44, 84, 11, 9


def correlations(small: Tensor, large: Tensor) -> Tensor:
    """Of a patch (C, h, w) with every patch of its size in another (C, H, W)."""
    patches = F.unfold(large[None], small.shape[1:])[0].T
    patches, one = patches - patches.mean(1, keepdim=True), small.flatten() - small.mean()
    return patches @ one / (patches.norm(dim=1) * one.norm() + 1e-6)


def eyes_alike(pictures: Tensor) -> Tensor:
    """One number a picture (N,), 1 for the same twice; pictures uint8 (N, 3, 128, 128)."""
    rows = slice(ROW - HALF, ROW + HALF), slice(ROW - HALF - FAR, ROW + HALF + FAR)
    found = []
    for picture in pictures.float():
        left = picture[:, rows[0], LEFT - HALF : LEFT + HALF]
        right = picture[:, rows[1], RIGHT - HALF - FAR : RIGHT + HALF + FAR]
        both = correlations(left, right), correlations(left, right.flip(2))
        found.append(torch.cat(both).max())
    return torch.stack(found)


def alike(found: Tensor) -> list[float]:
    """[mean, two standard errors] of numbers (N,), rounded."""
    return [round(float(found.mean()), 3), round(2 * float(found.std()) / len(found) ** 0.5, 3)]


def plans_parser(description: str, n: int) -> argparse.ArgumentParser:
    """What a program that compares plans asks for; n samples a plan."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("guide")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out")
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--plans", nargs="+", required=True)
    parser.add_argument("--json", required=True)
    return parser


def main() -> None:
    parser = plans_parser(__doc__, n=192)
    parser.add_argument("--steps", type=int, default=25)
    a = parser.parse_args()
    trained, worse = load_model(a.model), load_model(a.guide)
    train, held_out, _ = real_pictures(a.data, a.held_out, 128)
    network = feature_network("catface")
    real = in_batches(network, train), in_batches(network, held_out)
    told = {"n": a.n, "steps": a.steps, "photographs": alike(eyes_alike(held_out)), "rows": []}
    if trained.autoencoder:
        code = trained.autoencoder
        with torch.inference_mode():
            kept = [code.decode(code.encode(rows)) for rows in to_float(held_out).split(32)]
        told["encoded and decoded"] = alike(eyes_alike(to_uint8(torch.cat(kept).clamp(-1, 1))))
    first_plan = None
    for plan in a.plans:
        scale, where, spacing, share = (*plan.split(":"), "0")[:4]
        first, end = map(int, where.split("-"))
        bad = perturbed_attention(worse.model, float(share)) if float(share) else worse.model
        model = trained.model if float(scale) == 1 else autoguided(
            trained.model, bad, float(scale), interval=(first, end))
        drawn = to_uint8(sample(model, trained.diffusion, a.n, sampler="ddpm", steps=a.steps,
                                spacing=float(spacing), batch_size=32).clamp(-1, 1))
        rows, eyes = in_batches(network, drawn), eyes_alike(drawn)
        first_plan = eyes if first_plan is None else first_plan
        distance = metrics.frechet_distance(rows, *real, n=a.n)
        precision, recall = metrics.precision_recall(rows, *real, n=a.n)
        told["floor"] = round(distance.floor, 4)
        told["rows"].append({
            "scale": float(scale), "first": first, "end": end, "spacing": float(spacing),
            "perturbed": float(share),
            "eyes": alike(eyes), "more": alike(eyes - first_plan),  # the same seeds, pair by pair
            "frechet": round(distance.value, 4),
            "precision": round(precision.value, 2), "recall": round(recall.value, 2),
            "face": round(catface.face_share(drawn, n=a.n, floor=0, note="").value, 3)})
        print(told["rows"][-1], flush=True)
        with whole(a.json) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
