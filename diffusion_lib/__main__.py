"""The command line: `python -m diffusion_lib train | sample | evaluate | export`.

    python -m diffusion_lib train --config toycats32 [--data folder:PATH] [--steps N] [--seed 0] [--out DIR] [--resume]
                                  [--PART.NAME VALUE …] [--print_config]
    python -m diffusion_lib sample CHECKPOINT --n 64 --seed 0 [--sampler ddim] [--steps 50] [--out DIR] [--grid FILE.png]
    python -m diffusion_lib evaluate CHECKPOINT --data folder:PATH [--n 1000] [--json FILE]
    python -m diffusion_lib export CHECKPOINT --to diffusers --out DIR [--class CAT]

Exit code 0 on success, 2 with one line on standard error for wrong input, 1 with one line for anything else.
"""

import argparse
import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image
from torch import Tensor

from .core.guidance import guided
from .core.samplers import SAMPLERS, Step
from .core.samplers import sample as draw_samples
from .core.unet import UNet
from .data.folders import shown
from .data.sources import ImageData, load_data, to_uint8
from .saving.pretrained import Pretrained, load_model, start_from
from .training.callbacks import SampleGrid
from .training.config import RunConfig, as_yaml, did_you_mean, override, read_config, resolve
from .training.device import pick_device
from .training.run_folder import CsvLog
from .training.trainer import Trainer

SHORT = ("steps", "seed", "batch_size", "learning_rate", "sample_every")  # train's settings with flags of their own


# -- train ------------------------------------------------------------------------------------------


def settings(arguments: argparse.Namespace) -> RunConfig:
    """The config file, with what the command line changes in it. Raises ValueError for what does not exist."""
    config = read_config(arguments.config)
    for name in ("data", "init", *SHORT):
        if (value := getattr(arguments, name)) is not None:
            config = override(config, f"train.{name}" if name in SHORT else name, value)
    for setting, value in arguments.changes:
        config = override(config, setting, value)
    return resolve(config, arguments.config)


def train(arguments: argparse.Namespace) -> None:
    """Train a model as a config says, command-line flags winning over it."""
    config = settings(arguments)
    if arguments.print_config:
        print(as_yaml(config), end="")
        return
    diffusion = config.diffusion.build()
    torch.manual_seed(config.train.seed)  # the weights the network starts from
    model = UNet(**config.model.model_dump())
    out = Path(arguments.out or f"runs/{Path(arguments.config).stem}")
    check_folder(out, "--out")
    if not arguments.resume and any((out / "checkpoints").glob("step_*")):
        raise FileExistsError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    if config.init and not arguments.resume:
        new = start_from(model, load_model(config.init).model)
        left = f", all but {len(new)} (first: {new[0]})" if new else ""
        print(f"starting from the weights of {shown(config.init)}{left}", flush=True)
    data = load_data(config.data, model.image_size, channels=model.in_channels)
    names = class_names(data, model)
    notes = {"config.yaml": (f"# classes: {names}\n" if names else "") + as_yaml(config)}
    if data.skipped:
        notes["skipped.txt"] = "\n".join(data.skipped) + "\n"
    grid = SampleGrid(config.train.sample_every)
    trainer = Trainer(model, diffusion, data, config.train, out=out, callbacks=[grid], notes=notes)
    trainer.origin = config.model_dump(mode="json")
    if arguments.resume:
        trainer.resume(allow_changes=arguments.allow_changes)
    if not trainer.ranks.rank:
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{len(data.images):,} pictures of {shown(trainer.data_name)}; {size:.1f}M weights; "
              f"{trainer.ranks.count} x {trainer.device.type}, {trainer.precision}; "
              f"step {trainer.step:,} to {config.train.steps:,}; writing {shown(out)}", flush=True)
        if names:
            print(f"classes: {names}", flush=True)
    trainer.fit()
    if not trainer.ranks.rank and importlib.util.find_spec("matplotlib"):  # drawing is an extra
        plot_log(out)


def class_names(data: ImageData, model: UNet) -> str:
    """"0 cat, 1 dog", or "" for a network without classes. Warns where it has more classes than the data."""
    if not model.num_classes:
        return ""
    if len(data.classes) != model.num_classes:
        warnings.warn(f"the network has {model.num_classes} classes, {data.name} has {len(data.classes)}; "
                      f"--model.num_classes {len(data.classes)} makes them equal", stacklevel=2)
    return ", ".join(f"{i} {name}" for i, name in enumerate(data.classes))


def plot_log(run: Path) -> None:
    """The loss of a run's log.csv, as loss.png beside it."""
    from .lessons.plots import plot_curves, running_mean

    log = CsvLog.read(run / "log.csv")
    steps, losses = ([float(row[column]) for row in log] for column in ("step", "loss"))
    curve = plot_curves({"loss": (steps, running_mean(losses, 50))}, xlabel="training step", logy=True,
                        ylabel="loss (mean of the last 50 rows of log.csv)")
    curve.savefig(run / "loss.png", dpi=100)


# -- sample, evaluate, export -----------------------------------------------------------------------


def draw(arguments: argparse.Namespace, trained: Pretrained, guidance: float | None,
         on_step: Callable[[Step, int], None] | None = None) -> Tensor:
    """`--n` pictures, uint8 (n, C, H, W), consecutive seeds from `--seed` on. guidance: None draws without a class."""
    for flag, number in (("--n", arguments.n), ("--batch-size", arguments.batch_size)):
        if number < 1:
            raise ValueError(f"{flag} must be at least 1, not {number}")
    network = trained.model.to(pick_device(arguments.device))
    label = class_number(arguments.label, trained)
    if label is not None and guidance is not None:
        network = guided(network, label, guidance)
    elif label is None and arguments.guidance != 1.0:
        raise ValueError(f"--guidance {arguments.guidance} needs --class K: there is nothing else to be guided to")
    return to_uint8(draw_samples(
        network, trained.diffusion, arguments.n, sampler=arguments.sampler, steps=arguments.steps,
        seed=arguments.seed, batch_size=arguments.batch_size, spacing=arguments.spacing, on_step=on_step,
        progress=sys.stderr.isatty()))


def class_number(asked: str | None, trained: Pretrained) -> int | None:
    """The class that `--class` means: a number, or a name that the model knows. Raises ValueError that lists them."""
    if asked is None:
        return None
    if asked.isdecimal():
        return int(asked)
    names = trained.info.get("data", {}).get("classes") or []
    if asked not in names:
        count = trained.model.num_classes
        known = ", ".join(names) if names else f"no names; give a number, 0 to {count - 1}" if count else "no classes"
        raise ValueError(f"there is no class {asked!r}{did_you_mean(asked, names) if names else f': the model has {known}'}")
    return names.index(asked)


def sample(arguments: argparse.Namespace) -> None:
    """Draw pictures, one a seed."""
    from .data.pictures import image_grid
    from .saving.picture_files import ANIMATIONS, GRIDS, animate, check_name, save_grid

    if not (arguments.out or arguments.grid or arguments.animation):
        raise ValueError("nothing to write: give --out DIR for one PNG a sample, --grid FILE.png for all in one, "
                         "or --animation FILE.gif")
    for flag, path, endings in (("--grid", arguments.grid, GRIDS), ("--animation", arguments.animation, ANIMATIONS)):
        if path:
            check_file(check_name(path, endings), flag)
    if arguments.out:
        check_folder(Path(arguments.out), "--out")
    for flag, number in (("--columns", arguments.columns), ("--scale", arguments.scale)):
        if number is not None and number < 1:
            raise ValueError(f"{flag} must be at least 1, not {number}")
    frames = []

    def keep(step: Step, first_seed: int) -> None:
        if arguments.animation and first_seed == arguments.seed:
            frames.append(to_uint8(step.x_t.cpu().clamp(-1, 1)))

    pictures = draw(arguments, load_model(arguments.checkpoint), arguments.guidance, keep)
    if arguments.out:
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
        for seed, picture in enumerate(pictures, arguments.seed):
            pixels = picture.permute(1, 2, 0).squeeze(2) if len(picture) == 1 else picture.permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(Path(arguments.out) / f"{seed:05d}.png")
    if arguments.grid:
        save_grid(pictures, arguments.grid, arguments.columns, arguments.scale)
    if arguments.animation:
        animate([image_grid(frame, arguments.columns) for frame in frames], arguments.animation, scale=arguments.scale)
    written = " and ".join(shown(p) for p in (arguments.out, arguments.grid, arguments.animation) if p)
    print(f"{arguments.n} pictures, seeds {arguments.seed} to {arguments.seed + arguments.n - 1}, "
          f"{arguments.sampler}, {arguments.steps} steps: {written}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure samples of a model against real pictures."""
    from .measuring.classifier import CLASSES, load_classifier
    from .measuring.report import Reference, real_pictures
    from .measuring.report import evaluate as measure

    if arguments.n < 20:
        raise ValueError(f"--n is {arguments.n}; intervals need at least 20 samples, better 1,000")
    if arguments.called not in CLASSES:
        raise ValueError(f"--called {arguments.called!r}: the classifier knows {', '.join(CLASSES)}")
    if arguments.json:
        check_file(Path(arguments.json), "--json")
    judge, wanted = load_classifier(*filter(None, [arguments.judge])), CLASSES.index(arguments.called)
    trained = load_model(arguments.checkpoint)
    if arguments.data.startswith("reference:"):
        reference = Reference.load(arguments.data.removeprefix("reference:"))
    else:
        model = trained.model
        real = real_pictures(arguments.data, arguments.held_out, model.image_size, model.in_channels)
        reference = Reference.of(*real, name=arguments.data, features=arguments.features, judge=judge, label=wanted)
    samples = draw(arguments, trained, arguments.guidance)
    control = draw(arguments, trained, None) if arguments.label is not None else None
    measures = measure(samples, reference, n=arguments.n, judge=judge, label=wanted, control=control)
    if arguments.json:  # before the words: nothing computed is lost
        told = {name: getattr(arguments, name) for name in ("checkpoint", "sampler", "steps", "spacing", "seed")}
        told |= {"reference": reference.name, "features": reference.features, "judge": judge.card,
                 "controls": reference.verdicts, "measures": [measure._asdict() for measure in measures]}
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.n} samples of {shown(arguments.checkpoint)}, seeds from {arguments.seed}, {arguments.sampler}, "
          f"{arguments.steps} steps; reference {shown(reference.name)}: {len(reference.train)} pictures, "
          f"{len(reference.held_out)} held out; features: {reference.features}")
    print(*measures, sep="\n")


def export(arguments: argparse.Namespace) -> None:
    """Write a model in diffusers' format."""
    from .saving.diffusers_format import save_diffusers

    trained = load_model(arguments.checkpoint)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save_diffusers(trained.model, trained.diffusion, arguments.out, label=class_number(arguments.label, trained))
    for warning in caught:
        print(warning.message)
    print(f"written to {shown(arguments.out)}")


# -- what is refused before the work ----------------------------------------------------------------


def check_folder(path: Path, flag: str) -> None:
    """Raises ValueError where a folder cannot be made or written to."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{flag} {shown(path)} is a file, not a folder; choose another name")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{flag} {shown(path)} cannot be made: {shown(there)} is no folder that may be written to")


def check_file(path: Path, flag: str) -> None:
    """Raises ValueError where a file cannot be written."""
    if path.is_dir():
        raise ValueError(f"{flag} {shown(path)} is a folder; give the name of a file")
    check_folder(path.absolute().parent, flag)


# -- the flags ----------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, whose own complaints are one line as well."""

    def error(self, message: str) -> NoReturn:
        """Instead of a page of usage: what is wrong, and where to look."""
        raise ValueError(f"{message}; {self.prog} --help lists what there is")


def drawing(sampler: str, steps: int) -> argparse.ArgumentParser:
    """The flags that sample and evaluate share."""
    p = Parser(add_help=False)
    p.add_argument("checkpoint", help="a run folder, a file in it, or a shipped model (toycats32)")
    p.add_argument("--seed", type=int, default=0, help="seed of the first picture; the others follow")
    p.add_argument("--sampler", choices=sorted(SAMPLERS), default=sampler)
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--spacing", type=float, default=1.0, help="above 1: timesteps closer together where little noise is left (try 1.5)")
    p.add_argument("--class", dest="label", help="class to ask for, its name or number (class-conditional models)")
    p.add_argument("--guidance", type=float, default=1.0, help="guidance scale: 0 ignores the class, 1 asks, more insists")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--device", default="auto")
    return p


def parser() -> argparse.ArgumentParser:
    """All flags of all commands."""
    top = Parser(prog="python -m diffusion_lib", description="Train diffusion models and draw with them.")
    commands = top.add_subparsers(required=True, metavar="train | sample | evaluate | export")

    p = commands.add_parser("train", help="train a model as a config says")
    p.add_argument("--config", required=True, help="a config that ships (toycats32) or the path of a .yaml file")
    p.add_argument("--data", help="toycats, cifar10[:cat,dog], oxford_cats or folder:PATH; left out, the config's")
    p.add_argument("--init", metavar="CHECKPOINT", help="start from its weights, where they fit, instead of chance (fine-tuning)")
    p.add_argument("--steps", type=int, help="optimiser steps of the whole run")
    p.add_argument("--seed", type=int)
    p.add_argument("--batch-size", type=int, help="pictures a step, over all devices")
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--sample-every", type=int, help="steps between grids of samples in the run folder")
    p.add_argument("--out", help="run folder (runs/CONFIG)")
    p.add_argument("--resume", action="store_true", help="go on from the run folder's newest checkpoint")
    p.add_argument("--allow-changes", action="store_true", help="resume with other pictures or settings than the run began with")
    p.add_argument("--print_config", "--print-config", action="store_true", help="print the whole config, and train nothing")
    p.epilog = "Any other setting: --PART.NAME VALUE, as in --model.channels 48 or --train.weighting min_snr; --print_config shows all."
    p.set_defaults(run=train, command=p)

    p = commands.add_parser("sample", help="draw pictures", parents=[drawing("ddim", 50)])
    p.add_argument("--n", type=int, default=64, help="number of pictures")
    p.add_argument("--out", help="folder for one PNG a sample, named by its seed")
    p.add_argument("--grid", help="one PNG with all samples")
    p.add_argument("--animation", help=".gif or .webp: the first batch on its way from noise to pictures")
    p.add_argument("--columns", type=int, help="pictures in a row of the grid (as many as there are rows)")
    p.add_argument("--scale", type=int, default=1, help="screen pixels per picture pixel in the grid")
    p.set_defaults(run=sample, command=p)

    p = commands.add_parser("evaluate", help="measure samples against real pictures",
                            parents=[drawing("dpm_solver_pp", 20)])  # a thousand samples: the quickest that is good
    p.add_argument("--data", required=True, help="the real pictures: folder:PATH, another source of train's, or reference:cats32 (shipped)")
    p.add_argument("--held-out", help="real pictures never trained on; left out: #held_out beside #train, test/ beside train/")
    p.add_argument("--n", type=int, default=1000, help="number of samples")
    p.add_argument("--features", default="classifier", help="classifier (shipped), inception, clip, or a classifier's path")
    p.add_argument("--judge", help="path of the classifier that says what is a cat (the shipped one)")
    p.add_argument("--called", default="cat", help="the class that samples should show")
    p.add_argument("--json", help="write the measures here as well")
    p.set_defaults(run=evaluate, command=p)

    p = commands.add_parser("export", help="write a model for diffusers")
    p.add_argument("checkpoint")
    p.add_argument("--to", choices=["diffusers"], default="diffusers", help="diffusers: a folder")
    p.add_argument("--out", required=True)
    p.add_argument("--class", dest="label", help="fold this class, its name or number, into the weights")
    p.set_defaults(run=export, command=p)
    return top


def changes(words: Sequence[str], command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """(setting, value) from `--PART.NAME VALUE` or `--PART.NAME=VALUE`. Raises ValueError for anything else."""
    found, words = [], list(words)
    while words:
        word = words.pop(0)
        setting, equals, value = word.removeprefix("--").partition("=")
        if command.get_default("run") is not train or not word.startswith("--") or "." not in setting:
            raise ValueError(f"there is no flag {word!r}{did_you_mean(word, [f for f in command._option_string_actions if f[:2] == '--'])}")
        if not equals and not words:
            raise ValueError(f"{word} needs a value")
        found.append((setting, value if equals else words.pop(0)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a letter that a code page lacks must not end the work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if show := "--traceback" in argv:
        argv.remove("--traceback")
    try:
        arguments, rest = parser().parse_known_args(argv)
        arguments.changes = changes(rest, arguments.command)
        arguments.run(arguments)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # no traceback reaches a user who did not ask for it
        if show:
            traceback.print_exc()
        code, told = explain(error)
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and words for an error: 2 for wrong input, 1 for anything else."""
    if isinstance(error, (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)):
        return 2, str(error)
    if isinstance(error, OSError):  # saving/files.py says it all itself; others have a strerror
        remedy = "check the disk and the permissions, or choose another --out"
        return 1, f"{error.filename}: {error.strerror}; {remedy}" if error.strerror else str(error)
    return 1, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line each
    sys.exit(main())
