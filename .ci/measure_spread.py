"""Do samples differ from one another as much as photographs do? Each plan draws the same seeds.

    python .ci/measure_spread.py catfaces128 catfaces128_guide \
        --data folder:data/catfaces128#train --json spread.json \
        --plans ddpm:25:2.8:600-1000:3 sde_dpm_solver_pp:25:2.8:600-1000:2

A plan is SAMPLER:STEPS:SCALE:FIRST-END:SPACING, guided where FIRST ≤ t < END (scale 1: nowhere).
The spread is the standard deviation of the latents over the pictures (root mean square over places
and channels), over that of as many held-out photographs' latents. Beside it stand what `evaluate`
measures, and how alike the eyes are (measure_push.py).
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure_push import alike, eyes_alike, plans_parser

from diffusion_lib import autoguided, load_model, sample, to_float
from diffusion_lib.data.sources import in_batches, to_uint8
from diffusion_lib.measuring import catface, metrics
from diffusion_lib.measuring.report import feature_network, real_pictures, small
from diffusion_lib.saving.files import whole


class Undecoded(nn.Module):
    """In place of a decoder: hands latents back as they are."""

    def decode(self, z: Tensor) -> Tensor:
        return z


def spread(z: Tensor) -> float:
    """Standard deviation over pictures (N, C, H, W), root mean square over their numbers."""
    return float(z.var(dim=0).mean().sqrt())


def main() -> None:
    parser = plans_parser(__doc__, n=500)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    trained, worse = load_model(a.model), load_model(a.guide)
    code = trained.autoencoder
    train, held_out, _ = real_pictures(a.data, a.held_out, 128)
    judges = {kind: feature_network(kind) for kind in ("catface", "classifier")}
    real = {kind: (in_batches(j, train), in_batches(j, held_out)) for kind, j in judges.items()}
    pixels = small(train), small(held_out)

    def measured(drawn: Tensor) -> dict:
        found = {}
        for kind, judge in judges.items():
            rows = in_batches(judge, drawn)
            d = metrics.frechet_distance(rows, *real[kind], n=a.n)
            precision, recall = metrics.precision_recall(rows, *real[kind], n=a.n)
            found[kind] = {"frechet": [round(v, 4) for v in (d.value, d.low, d.high, d.floor)],
                           "precision": round(precision.value, 3),
                           "recall": round(recall.value, 3)}
        near = metrics.nearest(small(drawn), *pixels, n=a.n, what="pixels")
        found["pixels"] = [round(v, 3) for v in (near.value, near.low, near.high)]
        found["face"] = round(catface.face_share(drawn, n=a.n, floor=0, note="").value, 3)
        found["eyes"] = alike(eyes_alike(drawn))
        return found

    def decoded(z: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([to_uint8(code.decode(x).clamp(-1, 1)) for x in z.split(32)])

    with torch.inference_mode():
        kept = torch.cat([code.encode(x) for x in to_float(held_out[: a.n]).split(32)])
    told = {"n": a.n, "seed": a.seed, "encoded and decoded": measured(decoded(kept)), "rows": []}
    for plan in a.plans:
        sampler, steps, scale, where, spacing = plan.split(":")
        first, end = map(int, where.split("-"))
        model = trained.model if float(scale) == 1 else autoguided(
            trained.model, worse.model, float(scale), interval=(first, end))
        z = sample(model, trained.diffusion, a.n, sampler=sampler, steps=int(steps), seed=a.seed,
                   spacing=float(spacing), batch_size=50, autoencoder=Undecoded())
        row = {"sampler": sampler, "steps": int(steps), "scale": float(scale), "first": first,
               "end": end, "spacing": float(spacing),
               "spread": round(spread(z) / spread(kept), 3), **measured(decoded(z))}
        told["rows"].append(row)
        print(row, flush=True)
        with whole(a.json) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
