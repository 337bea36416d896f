"""Are the intervals honest? For each distance: does the interval from n samples hold the value that
ten times as many give?

    .venv/bin/python tests/benchmarks/intervals.py [--n 150] [--model cats32]

Ten disjoint sets of n samples of the model, and all of them together; against the shipped reference
cats32. Ends with exit code 1 unless at least 9 of 10 intervals hold the value of all, for every
distance. Below 128 pictures, the number of features, the Fréchet distance's does not (6 to 8 of 10
at n = 100): the library warns there.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lib import dpm_solver_pp, last_step, load_model
from diffusion_lib.data.sources import in_batches
from diffusion_lib.measuring.classifier import load_classifier
from diffusion_lib.measuring.metrics import (
    Measure,
    frechet_distance,
    kernel_distance,
    nearest,
    spectral,
)
from diffusion_lib.measuring.report import Reference


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the intervals of the distances.")
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--model", default="cats32")
    arguments = parser.parse_args()
    n, reference = arguments.n, Reference.load("cats32")
    model, diffusion, _ = load_model(arguments.model)
    pictures = torch.cat([last_step(dpm_solver_pp(diffusion, model, (len(seeds), 3, 32, 32),
                                                  steps=10, seeds=seeds.tolist())).x_t
                          for seeds in tqdm(torch.arange(10 * n).split(100), desc="sampling",
                                            disable=None)])
    rows, real = in_batches(load_classifier().features,
                            pictures), (reference.train, reference.held_out)
    distances: dict[str, tuple[Tensor, Callable[[Tensor, int], Measure]]] = {
        "Fréchet": (rows, lambda x, m: frechet_distance(x, *real, n=m)),
        "kernel": (rows, lambda x, m: kernel_distance(x, *real, n=m)),
        "nearest training picture": (rows, lambda x, m: nearest(x, *real, n=m)),
        "power spectrum": (pictures, lambda x, m: spectral(x, *reference.spectra, n=m)),
    }
    worst = 10
    for name, (x, measure) in distances.items():
        value = measure(x, 10 * n).value
        small = [measure(part, n) for part in x.split(n)]
        held = sum(one.low <= value <= one.high for one in small)
        worst = min(worst, held)
        print(f"{name:26s} {10 * n} samples read {value:.4f}; "
              f"{n} read {min(one.value for one in small):.4f} to "
              f"{max(one.value for one in small):.4f}; {held} of 10 intervals hold it")
    return 0 if worst >= 9 else 1


if __name__ == "__main__":
    sys.exit(main())
