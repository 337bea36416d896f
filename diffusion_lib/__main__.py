"""The command line: `python -m diffusion_lib train | sample | export`.

    python -m diffusion_lib train --config toycats32 [--data folder:PATH] [--steps N] [--seed 0] [--out DIR] [--resume]
    python -m diffusion_lib sample CHECKPOINT --n 64 --seed 0 [--sampler ddim] [--steps 50] [--out DIR] [--grid FILE.png]
    python -m diffusion_lib export CHECKPOINT --to diffusers --out DIR [--class K]

Exit code 0 on success, 2 with one line on standard error for wrong input, 1 with one line for anything else.
"""

import argparse
import importlib.util
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from PIL import Image
from tqdm.auto import tqdm

from .checkpoint import Pretrained, load_model, ship
from .data import load_data, to_uint8
from .diffusion import GaussianDiffusion
from .runs import CsvLog, pick_device
from .samplers import SAMPLERS, ddim, guided, last_step
from .schedules import make_betas
from .training import TrainConfig, Trainer
from .unet import UNet

CONFIGS = Path(__file__).parent / "configs"


class SampleGrid:
    """A callback: a grid of the same 64 seeds in the run folder every `every` steps, drawn from the averaged weights."""

    def __init__(self, every: int, count: int = 64, steps: int = 20) -> None:
        self.every, self.count, self.steps = every, count, steps

    def __call__(self, trainer: Trainer) -> None:
        if trainer.step % self.every and trainer.step != trainer.config.steps:
            return
        from .plots import save_grid

        model = trainer.ema_model
        shape = (self.count, *trainer.images.shape[1:])
        if getattr(model, "num_classes", None):
            model = guided(model, torch.arange(self.count) % model.num_classes, 1.0)
        pictures = last_step(ddim(trainer.diffusion, model, shape, steps=self.steps)).x_t
        save_grid(pictures, trainer.out / "samples" / f"step_{trainer.step:08d}.png")


def read_config(name: str) -> dict:
    """A config by its name (one that ships) or its path: {"data", "diffusion", "model", "train"}."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no config {name!r}; known are {known}, or give the path of a .yaml file")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error}); compare configs/toycats32.yaml") from error
    parts = {"data", "diffusion", "model", "train"}
    if not isinstance(config, dict) or set(config) != parts:
        found = ", ".join(map(str, config)) if isinstance(config, dict) else repr(config)
        raise ValueError(f"{path} must hold the parts {', '.join(sorted(parts))}, not {found}")
    return config


def train(arguments: argparse.Namespace) -> None:
    """Train a model as a config says, command-line flags winning over it."""
    config = read_config(arguments.config)
    flags = {name: getattr(arguments, name) for name in ("steps", "seed", "batch_size", "learning_rate")}
    settings = {**config["train"], **{name: value for name, value in flags.items() if value is not None}}
    process = dict(config["diffusion"])
    try:
        train_config = TrainConfig(**settings)
        zero_terminal_snr = process.pop("zero_terminal_snr", False)
        betas = make_betas(process.pop("schedule"), process.pop("T"), zero_terminal_snr=zero_terminal_snr)
        diffusion = GaussianDiffusion(betas, **process)
        torch.manual_seed(train_config.seed)  # the weights the network starts from
        model = UNet(**config["model"])
    except KeyError as error:
        raise ValueError(f"config {arguments.config}: the part diffusion lacks {error}; compare configs/toycats32.yaml") from error
    except TypeError as error:  # a misspelt key in the file
        raise ValueError(f"config {arguments.config}: {error}") from error
    out = Path(arguments.out or f"runs/{Path(arguments.config).stem}")
    if not arguments.resume and any((out / "checkpoints").glob("step_*")):
        raise FileExistsError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    data = load_data(arguments.data or config["data"], model.image_size)
    trainer = Trainer(model, diffusion, data, train_config, out=out, callbacks=[SampleGrid(arguments.sample_every)])
    if arguments.resume:
        trainer.resume()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{len(data.images):,} pictures of {trainer.data_name}; {size:.1f}M weights; {trainer.device.type}, {trainer.precision}; "
          f"step {trainer.step:,} to {train_config.steps:,}; writing {out}", flush=True)
    trainer.fit()
    if importlib.util.find_spec("matplotlib"):  # drawing is an extra: a bare install trains without it
        from .plots import plot_curves, running_mean

        log = CsvLog.read(out / "log.csv")
        steps, losses = ([float(row[column]) for row in log] for column in ("step", "loss"))
        curve = plot_curves({"loss": (steps, running_mean(losses, 50))}, xlabel="training step", logy=True,
                            ylabel="loss (mean of the last 50 rows of log.csv)")
        curve.savefig(out / "loss.png", dpi=100)


def sample(arguments: argparse.Namespace) -> None:
    """Draw pictures, one a seed."""
    from .plots import save_grid

    if arguments.n < 1:
        raise ValueError(f"--n must be at least 1, not {arguments.n}")
    if not (arguments.out or arguments.grid):
        raise ValueError("nothing to write: give --out DIR for one PNG a sample, --grid FILE.png for all in one, or both")
    model, diffusion, _ = load_model(arguments.checkpoint)
    device = pick_device(arguments.device)
    model = model.to(device)
    shape, network = (model.in_channels, model.image_size, model.image_size), model
    if arguments.label is not None:
        network = guided(model, arguments.label, arguments.guidance)
    elif arguments.guidance != 1.0:
        raise ValueError(f"--guidance {arguments.guidance} needs --class K: there is nothing else to be guided to")
    seeds = range(arguments.seed, arguments.seed + arguments.n)
    pictures = []
    for start in tqdm(range(0, arguments.n, arguments.batch_size), desc="sampling", unit="batch", disable=None):
        some = seeds[start : start + arguments.batch_size]
        sampler = SAMPLERS[arguments.sampler](diffusion, network, (len(some), *shape), steps=arguments.steps, seeds=some)
        pictures.append(to_uint8(last_step(sampler).x_t.cpu()))
    if arguments.out:
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
        for seed, picture in zip(seeds, torch.cat(pictures), strict=True):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(Path(arguments.out) / f"{seed:05d}.png")
    if arguments.grid:
        save_grid(torch.cat(pictures), arguments.grid, arguments.columns, arguments.scale)
    print(f"{arguments.n} pictures, seeds {seeds[0]} to {seeds[-1]}, {arguments.sampler}, {arguments.steps} steps: "
          f"{' and '.join(str(p) for p in (arguments.out, arguments.grid) if p)}")


def export(arguments: argparse.Namespace) -> None:
    """Write a model in diffusers' format, or add it to the models that ship with the library."""
    from .interchange import save_diffusers

    model, diffusion, state = load_model(arguments.checkpoint)
    if arguments.to == "shipped":
        print(f"written to {ship(arguments.out, Pretrained(model, diffusion, state), card(arguments.checkpoint, state))}")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save_diffusers(model, diffusion, arguments.out, label=arguments.label)
    for warning in caught:
        print(warning.message)
    print(f"written to {arguments.out}")


def card(checkpoint: str, state: dict) -> dict:
    """What a shipped model tells about itself: data, settings, work, machine."""
    log = list(CsvLog.read(Path(checkpoint) / "log.csv"))
    settings = {k: v for k, v in state["train"].items() if k not in ("device", "save_every", "keep", "log_every")}
    return {
        "data": state["data"], "schedule": "see diffusion.betas", "train": settings, "precision": state["precision"],
        "steps": state["step"], "images_seen": state["step"] * settings["batch_size"], "seconds": round(float(log[-1]["seconds"])),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "weights": "ema_1 (the long average), stored in float16",
    }


def parser() -> argparse.ArgumentParser:
    """All flags of all commands."""
    top = argparse.ArgumentParser(prog="python -m diffusion_lib", description="Train diffusion models and draw with them.")
    commands = top.add_subparsers(required=True, metavar="train | sample | export")

    p = commands.add_parser("train", help="train a model as a config says")
    p.add_argument("--config", required=True, help="a config that ships (toycats32) or the path of a .yaml file")
    p.add_argument("--data", help="toycats, cifar10[:cat,dog], oxford_cats or folder:PATH; left out, the config's")
    p.add_argument("--steps", type=int, help="optimiser steps of the whole run")
    p.add_argument("--seed", type=int)
    p.add_argument("--batch-size", type=int)
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--out", help="run folder (runs/CONFIG)")
    p.add_argument("--resume", action="store_true", help="go on from the run folder's newest checkpoint")
    p.add_argument("--sample-every", type=int, default=1000, help="steps between grids of samples in the run folder")
    p.set_defaults(run=train)

    p = commands.add_parser("sample", help="draw pictures")
    p.add_argument("checkpoint", help="a run folder, a file in it, or a shipped model (toycats32)")
    p.add_argument("--n", type=int, default=64, help="number of pictures")
    p.add_argument("--seed", type=int, default=0, help="seed of the first picture; the others follow")
    p.add_argument("--sampler", choices=sorted(SAMPLERS), default="ddim")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--class", dest="label", type=int, help="class to ask for (class-conditional models)")
    p.add_argument("--guidance", type=float, default=1.0, help="guidance scale: 0 ignores the class, 1 asks, more insists")
    p.add_argument("--out", help="folder for one PNG a sample, named by its seed")
    p.add_argument("--grid", help="one PNG with all samples")
    p.add_argument("--columns", type=int, help="pictures in a row of the grid (as many as there are rows)")
    p.add_argument("--scale", type=int, default=1, help="screen pixels per picture pixel in the grid")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--device", default="auto")
    p.set_defaults(run=sample)

    p = commands.add_parser("export", help="write a model for diffusers")
    p.add_argument("checkpoint")
    p.add_argument("--to", choices=["diffusers", "shipped"], default="diffusers",
                   help="diffusers: a folder; shipped: into this package, --out being its name")
    p.add_argument("--out", required=True)
    p.add_argument("--class", dest="label", type=int, help="fold this class into the weights")
    p.set_defaults(run=export)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
