"""What an autoencoder of drawn cats keeps, read off by measuring/toyreader.py: RUN/report.json.

    python .ci/measure_reading.py runs/toycats64_autoencoder --n 300

Cats of another seed than any training's, so it has seen none. The reader's own score on the cats as
they were drawn is the floor: the most that anything drawn in these latents can reach.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import ToyCats, load_autoencoder, read_attributes, to_uint8, wilson
from diffusion_lib.data.sources import in_batches
from diffusion_lib.data.toycats import ATTRIBUTES
from diffusion_lib.measuring.metrics import Measure
from diffusion_lib.measuring.reconstruction import psnr
from diffusion_lib.saving.files import whole

SEED = 1_000  # trainings draw from 0


def shares(pictures: Tensor, asked: Tensor) -> dict[str, float]:
    """The share of pictures in which each attribute (n, 5) is right, and all of them in a cat."""
    reading = read_attributes(pictures)
    right = reading.attributes == asked
    found = {name: right[:, i].double().mean().item() for i, name in enumerate(ATTRIBUTES)}
    return {**found, "all five": (right.all(1) & reading.is_cat).double().mean().item()}


def main(run: Path, n: int) -> None:
    """Measure, write, print."""
    autoencoder, cats = load_autoencoder(run), ToyCats(load_autoencoder(run).image_size, n, SEED)
    decoded = to_uint8(in_batches(autoencoder, cats.images, 32))
    floors, measures = shares(cats.images, cats.attributes), [psnr(decoded, cats.images)]
    for name, value in shares(decoded, cats.attributes).items():
        measures.append(Measure(f"{name} right", value, *wilson(value, n), n, floors[name]))
    told = {"data": f"ToyCats(size={autoencoder.image_size}, n={n}, seed={SEED})",
            "measures": [each._asdict() for each in measures]}
    with whole(run / "report.json") as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(*measures, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=300)
    a = parser.parse_args()
    with torch.no_grad():
        main(a.run, a.n)
