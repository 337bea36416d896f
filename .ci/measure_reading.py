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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import ToyCats, load_autoencoder, to_uint8
from diffusion_lib.data.sources import in_batches
from diffusion_lib.measuring.prompts import agreement
from diffusion_lib.measuring.reconstruction import psnr
from diffusion_lib.saving.files import whole

SEED = 1_000  # trainings draw from 0


def main(run: Path, n: int) -> None:
    """Measure, write, print."""
    autoencoder = load_autoencoder(run)
    cats = ToyCats(autoencoder.image_size, n, SEED)
    decoded = to_uint8(in_batches(autoencoder, cats.images, 32))
    drawn = agreement(cats.images, cats.attributes)
    measures = [psnr(decoded, cats.images)]
    for each, floor in zip(agreement(decoded, cats.attributes), drawn, strict=True):
        measures.append(each._replace(floor=floor.value))
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
