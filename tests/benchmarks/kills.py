"""Kill a training run with kill −9 at random moments, saves included, and go on each time: does it
end as if nothing had happened?

    .venv/bin/python tests/benchmarks/kills.py [--kills 100] [--seed 0]

Each process is a fork that resumes from the run folder and trains on, saving after every step; it
dies after a random time. The last one may finish. Its weights, averages and optimiser must equal,
bit for bit, those of a run that nobody killed. Linux, macOS.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffusion_lib import (
    GaussianDiffusion,
    ToyCats,
    TrainConfig,
    Trainer,
    UNet,
    cosine_beta_schedule,
)
from diffusion_lib.saving.checkpoint import load_checkpoint, newest_checkpoint


def make_trainer(out: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    model = UNet(
        image_size=16, channels=8, channel_mults=(1, 2), attention=(False, True), dropout=0.0
    )
    settings = TrainConfig(
        steps=steps, batch_size=4, warmup=2, save_every=1, log_every=1, precision="float32",
        device="cpu",
    )
    return Trainer(
        model, GaussianDiffusion(cosine_beta_schedule(100)), ToyCats(size=16, n=32), settings,
        out=out,
    )


def go_on(out: Path, steps: int) -> None:
    """What each process does: resume if there is something, then train to the end."""
    trainer = make_trainer(out, steps)
    if newest_checkpoint(out):
        trainer.resume()
    trainer.fit()


def fork(out: Path, steps: int) -> int:
    """Start a process that trains; returns its number. It says nothing and ends with code 0 if it
    got to the end.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        go_on(out, steps)
        code = 0
    finally:
        os._exit(code)


def run(kills: int, folder: Path, seed: int = 0) -> dict[str, int | bool]:
    """Kill `kills` times, finish, compare. Raises AssertionError if a process failed by itself or
    never got on.
    """
    torch.set_num_threads(1)  # a fork has one thread only
    steps, moments = 4 * kills, random.Random(seed)
    whole, killed, halves, reached = folder / "whole", folder / "killed", 0, []
    assert os.waitpid(fork(whole, steps), 0)[1] == 0, "the undisturbed run failed"
    for number in range(kills):
        pid, before = fork(killed, steps), newest_checkpoint(killed)
        deadline = time.monotonic() + 60
        # it has loaded, and saved once more
        while newest_checkpoint(killed) == before and time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise AssertionError(f"process {number + 1} ended by itself before it was killed")
            time.sleep(0.0005)
        time.sleep(moments.random() * 0.03)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        halves += any(path.name.startswith(".") for path in (killed / "checkpoints").iterdir())
        state, _, _ = load_checkpoint(newest_checkpoint(killed))  # checks every file's sha256
        reached.append(state["step"])
    assert os.waitpid(fork(killed, steps), 0)[1] == 0, "the last process failed"
    ends = [load_checkpoint(newest_checkpoint(out)) for out in (whole, killed)]
    (state, weights, optimizer), (other_state, other_weights, other_optimizer) = ends
    same = state["step"] == other_state["step"] == steps
    same &= all(
        torch.equal(value, other_weights[name][key])
        for name in weights
        for key, value in weights[name].items()
    )
    same &= all(
        torch.equal(value, other_optimizer["state"][i][key])
        for i, moments in optimizer["state"].items()
        for key, value in moments.items()
    )
    return {
        "kills": kills, "kills during a save": halves,
        "steps when killed first and last": (reached[0], reached[-1]), "steps": steps,
        "ends bit for bit as the run that nobody killed": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kill a training run at random moments and go on each time."
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.kills, Path(folder), arguments.seed)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if result["ends bit for bit as the run that nobody killed"] else 1


if __name__ == "__main__":
    sys.exit(main())
