"""Seconds to save (checked and flushed to the disk) and to load a checkpoint of a
10-million-parameter run.

    .venv/bin/python tests/benchmarks/checkpoint_times.py [--rounds 5]

A checkpoint holds the weights, two averages of them and AdamW's two moments: five times the
parameters, in float32.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from diffusion_lib import (
    GaussianDiffusion,
    ToyCats,
    TrainConfig,
    Trainer,
    UNet,
    cosine_beta_schedule,
    load_model,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time checkpoints.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = UNet(image_size=32, channels=96)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainConfig(steps=10, batch_size=2, device="cpu", precision="float32")
        trainer = Trainer(
            model, GaussianDiffusion(cosine_beta_schedule(1000)), ToyCats(size=32, n=4), settings,
            out=folder,
        )
        trainer.train_step()
        seconds: dict[str, list[float]] = {"save": [], "resume": [], "load for sampling": []}
        for _ in range(rounds):
            for name, action in (
                ("save", trainer.save), ("resume", trainer.resume),
                ("load for sampling", lambda: load_model(folder)),
            ):
                start = time.perf_counter()
                action()
                seconds[name].append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights / 1e6:.1f} million parameters, {size:.0f} MB a checkpoint")
    for name, values in seconds.items():
        print(f"{name:18s} median {statistics.median(values):.2f} s, worst {max(values):.2f} s")


if __name__ == "__main__":
    main()
