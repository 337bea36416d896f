"""How many questions to the network are enough? Fréchet distance against evaluations for each
sampler, and 1,000 steps of DDPM.

    .venv/bin/python tests/benchmarks/sampler_quality.py [--model cats32] [--n 400] [--ddpm 1000]

Each sampler with evenly spaced timesteps, and the best with a spacing of 1.5 as well. All draw the
same seeds; the distance is to the shipped reference cats32, in the shipped classifier's features.
The last line says how far 20 evaluations of the best are from 1,000 steps of DDPM (aim: 5 %). Also
printed: seconds for 64 samples. 1,000 steps for 400 samples take about an hour on one core.
"""

import argparse
import time

import torch
from tqdm import tqdm

from diffusion_lib import SAMPLERS, last_step, load_model
from diffusion_lib.measuring.classifier import load_classifier
from diffusion_lib.measuring.metrics import Measure, frechet_distance
from diffusion_lib.measuring.report import Reference


def tell(sampler: str, evaluations: int, found: Measure, seconds: float) -> None:
    print(f"{sampler:26s} {evaluations:5d} evaluations   "
          f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})   "
          f"64 in {seconds:5.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare samplers by the Fréchet distance.")
    parser.add_argument("--model", default="cats32")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--ddpm", type=int, default=1000, help="steps of DDPM to compare with")
    arguments = parser.parse_args()
    model, diffusion, _ = load_model(arguments.model)
    reference, network = Reference.load("cats32"), load_classifier()

    def measure(sampler: str, steps: int, spacing: float = 1.0) -> tuple[Measure, float]:
        start, rows = time.perf_counter(), []
        for seeds in tqdm(torch.arange(arguments.n).split(64), desc=f"{sampler} {steps}",
                          disable=None):
            pictures = last_step(SAMPLERS[sampler](diffusion, model, (len(seeds), 3, 32, 32),
                                                   steps=steps, seeds=seeds.tolist(),
                                                   spacing=spacing)).x_t
            rows.append(network.features(pictures))
        seconds = (time.perf_counter() - start) * 64 / arguments.n
        return frechet_distance(torch.cat(rows), reference.train, reference.held_out,
                                n=arguments.n), seconds

    twenty = {}
    for evaluations in (5, 10, 20, 50):
        for sampler, spacing in [*((name, 1.0) for name in SAMPLERS), ("dpm_solver_pp", 1.5)]:
            steps = evaluations
            if sampler == "heun":  # asks twice a step, once in the last
                steps = (evaluations + 1) // 2
            found, seconds = measure(sampler, steps, spacing)
            name = sampler if spacing == 1 else f"{sampler}, spacing {spacing}"
            tell(name, evaluations, found, seconds)
            if evaluations == 20:
                twenty[name] = found
    goal, seconds = measure("ddpm", arguments.ddpm)
    best = min(twenty, key=lambda name: twenty[name].value)
    tell("ddpm", arguments.ddpm, goal, seconds)
    print(f"20 evaluations of {best} read {twenty[best].value / goal.value - 1:+.1%} against it; "
          f"real cats at n = {arguments.n}: {goal.floor:.4f}")


if __name__ == "__main__":
    main()
