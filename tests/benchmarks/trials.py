"""Short trials before a long training: which settings get furthest in the same time?

    .venv/bin/python tests/benchmarks/trials.py cats32 --seconds 140 --threads 1 ""
    "train.optimizer=adamw train.learning_rate=1e-3"

Each trial is a config that ships with the changes in its text ("" is the config as it is). It
trains for so many seconds, with the learning rate's whole curve in them, and prints the error in v
of the averaged weights on pictures that it never saw, mean over 21 signal-to-noise ratios: lower is
better, whatever the network predicts, however its loss is weighted and its schedule runs. The
ratios are those of the cosine schedule at 32 px, and for larger pictures lower, so that large
shapes are as hidden. Prints a line of JSON for each.
"""

import argparse
import json
import time

import torch

from diffusion_lib import (
    GaussianDiffusion,
    Trainer,
    UNet,
    load_data,
    load_model,
    loss_per_timestep,
    make_betas,
    to_float,
)
from diffusion_lib.measuring.report import real_pictures
from diffusion_lib.saving.pretrained import start_from
from diffusion_lib.training.config import override, read_config, resolve

TIMESTEPS = (10, 30, 60, *range(100, 951, 50))


def build(config: dict, steps: int, data: object) -> Trainer:
    resolved = resolve(override(config, "train.steps", steps), "of the trial")
    torch.manual_seed(resolved.train.seed)
    model = UNet(**resolved.model.model_dump())
    if resolved.init:
        start_from(model, load_model(resolved.init).model)
    trainer = Trainer(model, resolved.diffusion.build(), data, resolved.train)
    trainer.model.train()
    return trainer


def same_ratios(diffusion: GaussianDiffusion, size: int) -> list[int]:
    """The timesteps whose signal-to-noise ratio is nearest to that of TIMESTEPS, as they are at 32
    px.
    """
    wanted = GaussianDiffusion(make_betas("cosine", 1000, snr_factor=(32 / size) ** 2)).snr(
        torch.tensor(TIMESTEPS)
    )
    own = diffusion.snr(torch.arange(diffusion.T))
    return (own.log()[None] - wanted.log()[:, None]).abs().argmin(dim=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare settings by short trainings.")
    parser.add_argument("config")
    parser.add_argument("trials", nargs="+", help='"PART.NAME=VALUE PART.NAME=VALUE …"')
    parser.add_argument("--seconds", type=float, default=140)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for text in arguments.trials:
        config = read_config(arguments.config)
        for change in text.split():
            config = override(config, *change.split("=", 1))
        resolved = resolve(config, "of the trial")
        data = load_data(resolved.data, resolved.model.image_size)
        held_out = to_float(real_pictures(resolved.data, None, resolved.model.image_size)[1][:256])
        probe = build(config, 10**6, data)
        for count in (3, 8):                                            # the first three warm up
            start = time.perf_counter()
            for _ in range(count):
                probe.train_step()
        steps = max(int(arguments.seconds * 8 / (time.perf_counter() - start)), 1)
        trainer, start = build(config, steps, data), time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
        seconds = time.perf_counter() - start
        error = loss_per_timestep(
            trainer.diffusion, trainer.ema_model, held_out,
            same_ratios(trainer.diffusion, resolved.model.image_size), target="v",
        ).mean()
        print(
            json.dumps(
                {
                    "changes": text,
                    "parameters": sum(p.numel() for p in trainer.model.parameters()),
                    "steps": steps,
                    "images_per_second": round(steps * resolved.train.batch_size / seconds, 1),
                    "seconds": round(seconds), "held_out_error_v": round(float(error), 5),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
