"""The command line: `python -m diffusion_lib train | sample | evaluate | export`.

    python -m diffusion_lib train --config toycats32 [--data folder:PATH] [--steps N] [--out DIR]
                                  [--resume] [--PART.NAME VALUE …] [--print_config]
    python -m diffusion_lib sample CHECKPOINT --n 64 [--steps 50] [--out DIR] [--grid FILE.png]
    python -m diffusion_lib sample toytext32 --prompt "a white cat on blue" --guidance 3 --out DIR
    python -m diffusion_lib evaluate CHECKPOINT --data folder:PATH [--n 1000] [--json FILE]
    python -m diffusion_lib export CHECKPOINT --to diffusers --out DIR [--class CAT]

Exit code 0 on success, 2 with one line on standard error for wrong input, 1 with one line for
anything else. What needs torch is imported where it is used (`lib` does so), so --help is quick.
"""

import argparse
import importlib.util
import itertools
import json
import sys
import tempfile
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

lib = sys.modules[__package__]  # its flat names are loaded when they are first used

# -- the flags: name, default (a type, or (type, names) of several values: there is none; ...: must
# be given), what it is for ------------------------------------------------------------------------

CHECKPOINT = ("checkpoint", str, "run folder, a file in it, a diffusers folder, or a shipped model")
CLASS = ("--class", str, "class to ask for, its name or number (class-conditional models)")
AUTOENCODER = ("--autoencoder", str, "another to decode by, with the same latents (the one it was "
               "trained with)")
DRAWING = (
    CHECKPOINT, CLASS,
    ("--prompt", str, "caption to ask for (networks that read; toytext32)"),
    ("--also", str, "a second caption to ask for at once: both pushes are added up"),
    ("--negative-prompt", str, "caption to be guided away from, in place of none"),
    ("--seed", 0, "seed of the first picture; the others follow"),
    ("--spacing", float, "above 1: timesteps closer together where little noise is left (what its "
     "card says; 1)"),
    ("--guidance", float, "guidance scale: 0 ignores class or prompt, 1 asks, more insists"),
    ("--guidance-interval", (int, "A", "B"), "guide only where A <= t < B (A included, B not; the "
     "code's t, from 0, nearly clean, to T-1, noise; what its card says; everywhere); elsewhere "
     "the class is asked for plainly"),
    ("--autoguidance", str, "a worse model to be guided away from (its guide's name; none: not)"),
    ("--perturbed-attention", float, "share, 0 to 1, of the push that leads away from a copy of "
     "the guide whose pixels look at nobody but themselves (what its card says; 0)"),
    AUTOENCODER,
    ("--batch-size", 64, "pictures drawn at once"),
    ("--device", "auto", "auto, cpu, mps, cuda or cuda:N"),
)
SHORT = (  # settings of train with flags of their own
    ("--data", str, "toycats, cifar10[:cat,dog], oxford_cats or folder:PATH (the config's)"),
    ("--init", str, "checkpoint whose weights it starts from, where they fit (fine-tuning)"),
    ("--autoencoder", str, "autoencoder in whose latents it trains: a name or a run folder"),
    ("--exclude", str, "drawn cats to leave out, as '[{fur: white, ears: folded}]'"),
    ("--steps", int, "optimiser steps of the whole run"),
    ("--seed", int, "of the weights it starts from and of all that is drawn"),
    ("--batch-size", int, "pictures a step, over all devices"),
    ("--learning-rate", float, "at its highest"),
    ("--sample-every", int, "steps between grids of samples in the run folder"),
)
FLAGS = {
    "train": (
        *SHORT,
        ("--config", ..., "a config that ships (toycats32) or the path of a .yaml file"),
        ("--out", str, "run folder (runs/CONFIG)"),
        ("--resume", False, "go on from the run folder's newest checkpoint"),
        ("--allow-changes", False, "resume with other pictures or settings than it began with"),
        ("--print_config --print-config", False, "print the whole config, and train nothing"),
    ),
    "sample": (
        *DRAWING,
        ("--sampler", str, "ddim, ddpm, dpm_solver_pp, heun or sde_dpm_solver_pp (what the model's "
         "card says; ddim)"),
        ("--steps", int, "network evaluations a picture, about (what its card says; 50)"),
        ("--n", 64, "number of pictures"),
        ("--out", str, "folder for one PNG a sample, named by its seed"),
        ("--grid", str, "one PNG with all samples"),
        ("--animation", str, ".gif or .webp: the first batch on its way from noise to pictures"),
        ("--columns", int, "pictures in a row of the grid (as many as there are rows)"),
        ("--scale", 1, "screen pixels per picture pixel in the grid"),
    ),
    "evaluate": (
        *DRAWING,
        ("--sampler", str, "ddim, ddpm, dpm_solver_pp, heun or sde_dpm_solver_pp (what its card "
         "says; dpm_solver_pp)"),
        ("--steps", int, "network evaluations a picture, about (what its card says; 20)"),
        ("--data", ..., "real pictures: folder:PATH, another source, or reference:cats32"),
        ("--held-out", str, "others (#held_out beside #train, test/ beside train/)"),
        ("--n", 1000, "number of samples"),
        ("--features", str, "classifier (shipped), catface, inception, clip, or a path "
         "(classifier; a reference's own)"),
        ("--judge", str, "path of the classifier that says what is a cat (the shipped one)"),
        ("--called", "cat", "the class that samples should show"),
        ("--json", str, "write the measures here as well"),
    ),
    "export": (
        CHECKPOINT, CLASS,
        AUTOENCODER,
        ("--to", "diffusers", "diffusers: a folder"),
        ("--out", ..., "the folder to write"),
    ),
}
USUAL = {"sample": ("ddim", 50), "evaluate": ("dpm_solver_pp", 20)}  # where no card says
FRAMES = 30  # of an animation, at most, beside the finished pictures
TRACEBACK = ("--traceback", False, "show where in the code an error arose")


class Parser(argparse.ArgumentParser):
    """argparse, whose own complaints are one line as well."""

    def error(self, message: str) -> NoReturn:
        """Instead of a page of usage: what is wrong, and where to look."""
        raise ValueError(f"{message}; {self.prog} --help lists what there is")


def parser() -> argparse.ArgumentParser:
    """All flags of all commands."""
    top = Parser(prog="python -m diffusion_lib",
                 description="Train diffusion models and draw with them.")
    commands = top.add_subparsers(required=True, metavar="train | sample | evaluate | export")
    for run in (train, sample, evaluate, export):
        p = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        for name, value, told in (*FLAGS[run.__name__], TRACEBACK):
            if value is False:
                how: dict = {"action": "store_true"}
            elif value is ...:
                how = {"required": True}
            elif isinstance(value, type):
                how = {"type": value}
            elif isinstance(value, tuple):
                how = {"type": value[0], "nargs": len(value) - 1, "metavar": value[1:]}
            else:
                how = {"type": type(value), "default": value}
            p.add_argument(*name.split(), help=told, **how)
        p.set_defaults(run=run, command=p)
        if run is train:
            p.epilog = ("Any other setting: --PART.NAME VALUE, as in --model.channels 48 or "
                        "--train.weighting min_snr; --print_config shows all.")
    return top


def changes(words: Sequence[str], command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """(setting, value) of each `--PART.NAME VALUE` or `--PART.NAME=VALUE`; ValueError for more."""
    found, words = [], list(words)
    while words:
        word = words.pop(0)
        setting, equals, value = word.removeprefix("--").partition("=")
        is_setting = word.startswith("--") and "." in setting
        if command.get_default("run") is not train or not is_setting:
            from .training.config import did_you_mean

            known = [flag for flag in command._option_string_actions if flag.startswith("--")]
            raise ValueError(f"there is no flag {word!r}{did_you_mean(word, known)}")
        if not equals and not words:
            raise ValueError(f"{word} needs a value")
        found.append((setting, value if equals else words.pop(0)))
    return found


# -- train -----------------------------------------------------------------------------------------


def train(a: Namespace) -> None:
    """Train a model as a config says, command-line flags winning over it."""
    from .saving.checkpoint import newest_checkpoint
    from .training.config import as_yaml

    config = settings(a)
    if a.print_config:
        print(as_yaml(config), end="")
        return
    import torch

    out = Path(a.out or f"runs/{Path(a.config).stem}")
    check_folder(out, "--out")
    if not a.resume and any((out / "checkpoints").glob("step_*")):
        raise FileExistsError(f"{out} already holds a run; add --resume to go on with it, "
                              "or choose another --out")
    if a.resume and newest_checkpoint(out) is None:
        raise FileNotFoundError(f"there is no checkpoint in {out} to resume from; leave --resume "
                                "out to start anew")
    torch.manual_seed(config.train.seed)  # the weights the network starts from
    make = autoencoder_trainer if config.kind == "autoencoder" else diffusion_trainer
    trainer, names = make(config, out, resume=a.resume)
    trainer.origin = config.model_dump(mode="json")
    if a.resume:
        trainer.resume(allow_changes=a.allow_changes)
    if trainer.ranks.rank:
        trainer.fit()
        return
    size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    unit = "latents" if trainer.images.is_floating_point() else "pictures"
    print(f"{len(trainer.images):,} {unit} of {trainer.data_name}; {size:.1f}M weights; "
          f"{trainer.ranks.count} x {trainer.device.type}, {trainer.precision}; "
          f"step {trainer.step:,} to {config.train.steps:,}; writing {out}", flush=True)
    if names:
        print(f"classes: {names}", flush=True)
    trainer.fit()
    if importlib.util.find_spec("matplotlib"):  # drawing is an extra: a bare install trains without
        plot_log(out)


def diffusion_trainer(config: Any, out: Path, resume: bool) -> tuple[Any, str]:
    """(the Trainer of a diffusion model, in pixels or in latents, its classes in words)."""
    from .training.callbacks import SampleGrid
    from .training.distributed import Ranks
    from .training.trainer import check_run

    model: Any = lib.UNet(**config.model.model_dump())
    autoencoder = lib.load_autoencoder(config.autoencoder) if config.autoencoder else None
    if autoencoder:
        check_latents(model, autoencoder)
    shown = autoencoder or model
    data = lib.load_data(config.data, shown.image_size, channels=shown.in_channels,
                         exclude=config.exclude)
    if width := model.config.cross_attention_dim:
        settings = {**config.text.model_dump(), "width": width}
        model = lib.TextUNet(model.config, {"words": lib.words_of(data.captions), **settings})
    model = start(model, config, resume, lambda it: it.model)
    names = class_names(data, model.num_classes)
    if autoencoder:
        ranks = Ranks(config.train.device)
        check_run(config.train, model, ranks.count, autoencoder.latent_shape[1:], latents=True)
        out.mkdir(parents=True, exist_ok=True)
        with ranks.first_one_first():  # it encodes, the others read what it wrote
            data = lib.encode_set(data, autoencoder.to(ranks.device), mirrored=config.train.flip,
                                  file=out / "latents.safetensors", progress=sys.stderr.isatty())
    return lib.Trainer(
        model, config.diffusion.build(), data, config.train, out=out, autoencoder=autoencoder,
        callbacks=[SampleGrid(config.train.sample_every)], notes=notes_of(config, data, names),
    ), names


def autoencoder_trainer(config: Any, out: Path, resume: bool) -> tuple[Any, str]:
    """The same for an autoencoder."""
    from .measuring.metrics import in_colour
    from .training.callbacks import ReconstructionGrid

    if config.loss.decoder_only and not config.init:
        raise ValueError("loss.decoder_only keeps the encoder as it is, and this one would have "
                         "learnt nothing; name a trained autoencoder: --init NAME_OR_RUN")
    model = lib.Autoencoder(**config.model.model_dump())
    start(model, config, resume, None)
    data = lib.load_data(config.data, model.image_size, channels=model.in_channels)
    features: Any = None
    if config.loss.perceptual:
        judge = lib.load_classifier().requires_grad_(False)

        def features(pictures: Any) -> Any:
            return judge.to(pictures.device).maps(in_colour(pictures))

    return lib.AutoencoderTrainer(
        model, None, data, config.train, out=out, loss=config.loss, features=features,
        callbacks=[ReconstructionGrid(config.train.sample_every)], notes=notes_of(config, data),
    ), ""


def start(model: Any, config: Any, resume: bool, part: Callable | None) -> Any:
    """The network, with the weights of `init` where the config has one."""
    from .saving.pretrained import start_from

    if config.init and not resume:
        loaded = lib.load_model(config.init) if part else lib.load_autoencoder(config.init)
        new = start_from(model, part(loaded) if part else loaded)
        if part and (before := loaded.diffusion.prediction) != config.diffusion.prediction:
            warnings.warn(f"{config.init} was asked for {before}, this run asks for "
                          f"{config.diffusion.prediction}: its weights answer another question; "
                          f"--diffusion.prediction {before} keeps it", stacklevel=2)
        left = f", all but {len(new)} (first: {new[0]})" if new else ""
        print(f"starting from the weights of {config.init}{left}", flush=True)
    return model


def notes_of(config: Any, data: Any, names: str = "") -> dict[str, str]:
    """What the run folder says in words."""
    from .training.config import as_yaml

    return {"config.yaml": (f"# classes: {names}\n" if names else "") + as_yaml(config),
            "skipped.txt": "".join(f"{entry}\n" for entry in data.skipped)}


def check_latents(model: Any, autoencoder: Any) -> None:
    """Raises ValueError where a network does not fit an autoencoder's latents."""
    has, wants = (model.in_channels, model.image_size), autoencoder.latent_shape[:2]
    if has != wants:
        raise ValueError(f"the autoencoder's latents have {wants[0]} channels and {wants[1]} px, "
                         f"the network takes {has[0]} and {has[1]}; set model.in_channels "
                         f"{wants[0]} and model.image_size {wants[1]}")


def settings(a: Namespace) -> Any:
    """The RunConfig of a file, with what flags change; ValueError for what does not exist."""
    from .training.config import override, resolve

    config = lib.read_config(a.config)
    for flag, *_ in SHORT:
        name = flag[2:].replace("-", "_")
        if (value := getattr(a, name)) is not None:
            whole_run = name in ("data", "init", "autoencoder", "exclude")
            config = override(config, name if whole_run else f"train.{name}", value)
    for setting, value in a.changes:
        config = override(config, setting, value)
    return resolve(config, a.config)


def class_names(data: Any, count: int | None) -> str:
    """Such as "0 cat, 1 dog"; "" for a network without. Warns where it has more than the data."""
    from .data.folders import shown

    if count and len(data.classes) != count:
        warnings.warn(f"the network has {count} classes, {data.name} has {len(data.classes)}; "
                      f"--model.num_classes {len(data.classes)} makes them equal", stacklevel=2)
    return ", ".join(f"{i} {shown(name)}" for i, name in enumerate(data.classes)) if count else ""


def plot_log(run: Path) -> Any:
    """The loss of a run's log.csv, as loss.png beside it; returns the figure."""
    from .lessons.plots import running_mean
    from .training.run_folder import CsvLog

    log = CsvLog.read(run / "log.csv")
    steps, losses = ([float(row[column]) for row in log] for column in ("step", "loss"))
    curve = lib.plot_curves({"loss": (steps, running_mean(losses, 50))}, xlabel="training step",
                        ylabel="loss (mean of the last 50 rows of log.csv)",
                        logy=min(losses) > 0)  # a loss by PSNR is negative
    curve.savefig(run / "loss.png", dpi=100)
    return curve


# -- sample, evaluate, export ----------------------------------------------------------------------


def sample(a: Namespace) -> None:
    """Draw pictures, one a seed."""
    from .saving.picture_files import ANIMATIONS, GRIDS, check_name
    from .training.device import pick_device

    frames: list[Any] = []
    seen = itertools.count()
    if not (a.out or a.grid or a.animation):
        raise ValueError("nothing to write: give --out DIR for one PNG a sample, "
                         "--grid FILE.png for all in one, or --animation FILE.gif")
    if a.grid:
        check_file(check_name(a.grid, GRIDS), "--grid")
    if a.animation:
        check_file(check_name(a.animation, ANIMATIONS), "--animation")
    if a.out:
        check_folder(Path(a.out), "--out")
    check_counts(a, "columns", "scale")

    def keep(step: Any, first_seed: int) -> None:
        if not a.animation or first_seed != a.seed:
            return
        if next(seen) % -(-a.steps // FRAMES) == 0 or step.t < 0:
            frames.append(lib.to_uint8(decoded(step.x_t).cpu().clamp(-1, 1)))

    trained, network = prepare(a)
    autoencoder = trained.autoencoder
    if autoencoder:
        autoencoder.to(pick_device(a.device))
    decoded = autoencoder.decode if autoencoder else lambda x: x
    pictures = draw(a, network, trained.diffusion, keep)
    if a.out:
        Path(a.out).mkdir(parents=True, exist_ok=True)
        for seed, picture in enumerate(lib.to_pictures(pictures), a.seed):
            picture.save(Path(a.out) / f"{seed:05d}.png")
    if a.grid:
        lib.save_grid(pictures, a.grid, a.columns, a.scale)
    if a.animation:
        grids = [lib.image_grid(frame, a.columns) for frame in frames]
        lib.animate(grids, a.animation, scale=a.scale)
    print(f"{a.n} pictures, seeds {a.seed} to {a.seed + a.n - 1}, {a.sampler}, {a.steps} steps: "
          f"{' and '.join(p for p in (a.out, a.grid, a.animation) if p)}")


def prepare(a: Namespace) -> tuple[Any, Any]:
    """The Pretrained and what asks for a class. Raises ValueError for what cannot be."""
    from .core.samplers import check_sample, timesteps_trailing
    from .training.device import pick_device

    check_counts(a, "n", "batch_size")
    check_sample(a.n, a.batch_size, a.sampler or "ddim", a.seed)
    trained = lib.load_model(a.checkpoint, autoencoder=a.autoencoder)
    settle_sampler(a, trained.info.get("sampling") or {})
    timesteps_trailing(trained.diffusion.T, a.steps, a.spacing)
    interval = interval_of(a, trained)
    if says(a) or hasattr(trained.model, "read"):
        check_prompt(a, trained)
        trained.model.to(pick_device(a.device))
        return trained, prompted(a, trained, interval)
    network, guide = trained.model.to(pick_device(a.device)), guide_of(a, trained)
    asked = getattr(a, "class")
    if guide:  # a class is asked of whichever knows classes
        worse = lib.load_model(guide["name"])
        check_guide(trained, worse, guide["name"])
        if asked is not None and not (trained.model.num_classes or worse.model.num_classes):
            class_number(asked, trained)  # refuses
        worse.model.to(pick_device(a.device))
        if share := guide.get("perturbed"):
            worse = worse._replace(model=lib.perturbed_attention(worse.model, share))
        asked = asked or guide.get("class")
        both = [asked_for(it, asked) if asked and it.model.num_classes else it.model
                for it in (trained, worse)]
        return trained, lib.autoguided(*both, guide["scale"], interval=guide.get("interval"))
    if asked is not None:
        scale = 1.0 if a.guidance is None else a.guidance
        return trained, asked_for(trained, asked, scale, interval=interval)
    check_told(trained)
    if a.guidance not in (None, 1):
        raise ValueError(f"--guidance {a.guidance} needs --class K or --autoguidance MODEL: "
                         "there is nothing else to be guided by")
    return trained, network


def settle_sampler(a: Namespace, card: dict) -> None:
    """Sampler, steps and spacing where they are not asked for: the card's, or what is usual."""
    if a.sampler not in (None, card.get("sampler")):
        card = {}
    sampler, steps = USUAL[a.run.__name__]
    a.sampler = a.sampler or card.get("sampler", sampler)
    a.steps = card.get("steps", steps) if a.steps is None else a.steps
    a.spacing = card.get("spacing", 1.0) if a.spacing is None else a.spacing


def prompted(a: Namespace, trained: Any, interval: tuple[int, int] | None) -> Any:
    """A network that is asked for a caption. To be evaluated with drawn cats, it is asked for
    theirs, one a picture.
    """
    wanted = a.prompt
    if wanted is None and getattr(a, "data", "").startswith("toycats"):
        wanted = asked_cats(a, trained).captions
    if wanted is None:
        check_told(trained)
        return trained.model
    scale = 1.0 if a.guidance is None else a.guidance
    also = [] if a.also is None else [a.also]
    return lib.guided(trained.model, wanted, scale, also=also, negative=a.negative_prompt,
                      interval=interval)


def check_told(trained: Any) -> None:
    """Raises ValueError for a network that is asked for nothing and never was in training."""
    if getattr(trained.model, "label_drop", None) == 0:
        flag = "--prompt TEXT" if hasattr(trained.model, "read") else "--class K"
        raise ValueError("this network was always told what to draw (train.label_drop 0), so its "
                         f"answer to nothing means nothing; give {flag}")


def asked_cats(a: Namespace, trained: Any) -> Any:
    """The `--n` drawn cats whose captions are asked for."""
    from .measuring.prompts import prompts

    config = trained.info.get("config") or {}
    return prompts(a.n, trained.info.get("exclude") or config.get("exclude") or ())


def says(a: Namespace) -> bool:
    """Whether a caption is asked for, in any way."""
    return any(each is not None for each in (a.prompt, a.also, a.negative_prompt))


def check_prompt(a: Namespace, trained: Any) -> None:
    """Raises ValueError for captions and scales that cannot be."""
    if not hasattr(trained.model, "read"):
        raise ValueError(f"{a.checkpoint} reads no text, so it takes no --prompt; "
                         f"{'give --class' if trained.model.num_classes else 'leave it out'}, or "
                         "use a model that reads: toytext32")
    for flag, words in (("--prompt", a.prompt), ("--also", a.also)):
        if words is not None and not words.strip():
            raise ValueError(f"{flag} is empty; say what to draw, or leave it out")
    if getattr(a, "class") is not None or a.autoguidance not in (None, "none"):
        raise ValueError(f"{a.checkpoint} reads text and has no classes or guide: give --prompt "
                         "and --guidance")
    drawn = getattr(a, "data", "").startswith("toycats")
    if a.prompt is None and not drawn and (says(a) or a.guidance not in (None, 1)):
        raise ValueError("--also, --negative-prompt and --guidance need a --prompt")
    if a.perturbed_attention:
        raise ValueError("--perturbed-attention is a guide's, and a model that reads is guided by "
                         "its own answer to no caption; leave it out")
    if a.negative_prompt is not None and a.guidance in (None, 1) and a.also is None:
        raise ValueError("--negative-prompt does nothing at --guidance 1; try --guidance 3")


def guide_of(a: Namespace, trained: Any) -> dict | None:
    """{name, scale, class, interval, perturbed} of the worse model to use: asked for, or on the
    model's card. Raises ValueError for a `--perturbed-attention` that is no share, or has no guide.
    """
    card, perturbed = trained.info.get("guide"), a.perturbed_attention
    if perturbed is not None and not 0 <= perturbed <= 1:
        raise ValueError(f"--perturbed-attention is {perturbed}; give a share from 0, none, to 1")
    asked = {name: value for name, value in (
        ("name", a.autoguidance), ("scale", a.guidance), ("interval", a.guidance_interval),
        ("perturbed", perturbed),
    ) if value is not None}
    if a.autoguidance == "none" or not (a.autoguidance or card):
        if perturbed:
            raise ValueError("--perturbed-attention is a guide's: name one, --autoguidance MODEL "
                             "(the model itself, if you have no other)")
        return None
    if a.autoguidance:
        known = card if card and card["name"] == a.autoguidance else {"scale": 2.0}
        return {**known, **asked}
    if a.guidance == 1 or getattr(a, "class") is not None:
        return None
    return {**card, **asked}


def interval_of(a: Namespace, trained: Any) -> tuple[int, int] | None:
    """What `--guidance-interval` means. Raises ValueError where there is nothing to guide in it."""
    if a.guidance_interval is None:
        return None
    first, end = a.guidance_interval
    captions = hasattr(trained.model, "read") and getattr(a, "data", "").startswith("toycats")
    asked = getattr(a, "class") is not None or a.prompt is not None or captions
    if guide_of(a, trained) is None and (not asked or a.guidance in (None, 1)):
        raise ValueError("--guidance-interval needs --class K or --prompt TEXT and --guidance S "
                         "other than 1, or --autoguidance MODEL: there is nothing to be guided by")
    if first >= trained.diffusion.T:
        raise ValueError(f"--guidance-interval {first} {end} is empty: the model has timesteps 0 "
                         f"to {trained.diffusion.T - 1}")
    return first, end


def check_guide(trained: Any, worse: Any, name: str) -> None:
    """Raises ValueError where two models do not speak of the same noise."""
    ours, theirs = trained.diffusion, worse.diffusion
    same = ours.T == theirs.T and ours.prediction == theirs.prediction \
        and bool((ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6)
    latents = [it.info.get("autoencoder", {}).get("sha256") for it in (trained, worse)]
    if not same or latents[0] != latents[1]:
        raise ValueError(f"{name} was trained with another schedule, prediction or autoencoder; "
                         "a guide must speak of the same noise")


def asked_for(trained: Any, asked: str, scale: float = 1.0, **options: Any) -> Any:
    """A network that is asked for a class, by its number or name."""
    return lib.guided(trained.model, class_number(asked, trained), scale, **options)


def draw(a: Namespace, network: Any, diffusion: Any, on_step: Callable | None = None) -> Any:
    """`--n` pictures, uint8 (n, C, H, W), consecutive seeds from `--seed` on."""
    return lib.to_uint8(lib.sample(
        network, diffusion, a.n, sampler=a.sampler, steps=a.steps, seed=a.seed, spacing=a.spacing,
        batch_size=a.batch_size, on_step=on_step, progress=sys.stderr.isatty()))


def class_number(asked: str | None, trained: Any, none: bool = False) -> int | None:
    """The class that `--class` means, by number or name; with none, K is "no class". Raises
    ValueError that lists the names.
    """
    if asked is None:
        return None
    count, names = trained.model.num_classes, trained.info.get("data", {}).get("classes") or []
    if count and asked in names:
        return names.index(asked)
    if count and asked.isdecimal() and int(asked) < count + none:
        return int(asked)
    known = ", ".join(names) or f"only numbers, 0 to {(count or 0) - 1}"
    there = f"there are {known}" if count else "the model has no classes"
    raise ValueError(f"there is no class {asked!r}; {there}")


def evaluate(a: Namespace) -> None:
    """Measure samples of a model against real pictures."""
    from .measuring.classifier import CLASSES
    from .measuring.report import real_pictures
    from .saving.pretrained import is_autoencoder

    if a.n < 20:
        raise ValueError(f"--n is {a.n}; intervals need at least 20 samples, better 1,000")
    if a.called not in CLASSES:
        raise ValueError(f"--called {a.called!r}: the classifier knows {', '.join(CLASSES)}")
    if a.json:
        check_file(Path(a.json), "--json")
    if is_autoencoder(a.checkpoint):
        evaluate_autoencoder(a)
        return
    judge, wanted = lib.load_classifier(*filter(None, [a.judge])), CLASSES.index(a.called)
    trained, network = prepare(a)
    warn_of_learnt(a, trained.info)
    if hasattr(trained.model, "read") and not says(a) and a.data.startswith("toycats"):
        evaluate_prompts(a, trained, network)
        return
    shown = trained.autoencoder or trained.model
    if a.data.startswith("reference:"):
        reference = stored_reference(a, shown.image_size)
    else:
        real = real_pictures(a.data, a.held_out, shown.image_size, shown.in_channels)
        reference = lib.Reference.of(*real, name=a.data, features=a.features or "classifier",
                                     judge=judge, label=wanted)
    samples, asked = draw(a, network, trained.diffusion), network is not trained.model
    drops = getattr(trained.model, "label_drop", None) != 0  # else nobody taught it "no class"
    control = draw(a, trained.model, trained.diffusion) if asked and drops else None
    measures = lib.evaluate(samples, reference, n=a.n, judge=judge, label=wanted, control=control)
    kept = ("checkpoint", "sampler", "steps", "spacing", "seed", "guidance", "guidance_interval",
            "autoguidance", "autoencoder", "class", "prompt", "negative_prompt", "also",
            "held_out", "called")
    told = {name: getattr(a, name) for name in kept}
    told |= {"guide": guide_of(a, trained), "reference": reference.name,
             "features": reference.features, "judge": judge.card, "controls": reference.verdicts}
    write_json(a, told, measures)
    print(f"{a.n} samples of {a.checkpoint}, seeds from {a.seed}, {a.sampler}, {a.steps} steps; "
          f"reference {reference.name}: {len(reference.train)} pictures, {len(reference.held_out)} "
          f"held out; features: {reference.features}")
    print(*measures, sep="\n")


def warn_of_learnt(a: Namespace, info: dict) -> None:
    """Warns where pictures that would count as held out may have been trained on."""
    learnt = (info.get("data") or {}).get("name", "")
    if a.held_out is None and a.data.startswith("folder:") and a.data.endswith("#train") \
            and learnt.startswith("folder:") and learnt != a.data:
        one, other = (Path(each.removeprefix("folder:").removesuffix("#train")).expanduser()
                      .resolve() for each in (learnt, a.data))
        same = one == other and learnt.endswith("#train")
        if not same and (one.is_relative_to(other) or other.is_relative_to(one)):
            warnings.warn(f"{a.checkpoint} was trained on {learnt}: pictures that {a.data} holds "
                          "out may be among them; give the --data that it was trained on, or "
                          "name others with --held-out", stacklevel=2)


def stored_reference(a: Namespace, size: int) -> Any:
    """What `--data reference:NAME` means. Raises ValueError for what it cannot honour."""
    reference = lib.Reference.load(a.data.removeprefix("reference:"))
    if a.features not in (None, reference.features) or a.held_out is not None:
        raise ValueError(f"{a.data} holds features of {reference.features} and its own held-out "
                         "pictures; leave --features and --held-out out, or name the pictures: "
                         "--data folder:PATH")
    if reference.size != size:
        raise ValueError(f"{a.data} is of pictures of {reference.size} px, {a.checkpoint} draws "
                         f"{size} px; use one of its size, or --data folder:PATH")
    return reference


def evaluate_prompts(a: Namespace, trained: Any, network: Any) -> None:
    """Count how often drawn cats look as their captions asked."""
    from .measuring.prompts import agreement

    flags = {action.dest for action in a.command._actions}
    check_unused(a, "each drawing is compared with its caption, by a reader of drawings; --data "
                 "folder:PATH compares with pictures",
                 flags - {"held_out", "features", "judge", "called"})
    measures = agreement(draw(a, network, trained.diffusion), asked_cats(a, trained).attributes)
    kept = ("checkpoint", "sampler", "steps", "spacing", "seed", "guidance", "guidance_interval")
    write_json(a, {name: getattr(a, name) for name in kept}, measures)
    print(f"{a.n} captions asked of {a.checkpoint}, one picture each, seeds from {a.seed}, "
          f"{a.sampler}, {a.steps} steps, guidance {1.0 if a.guidance is None else a.guidance:g}")
    print(*measures, sep="\n")


def evaluate_autoencoder(a: Namespace) -> None:
    """Measure what an autoencoder keeps of held-out pictures."""
    from .measuring.reconstruction import reconstruction
    from .measuring.report import held_out_of, shuffled

    check_unused(a, "an autoencoder draws nothing by itself", {
        "checkpoint", "data", "held_out", "n", "json", *(["device"] if a.device == "cpu" else [])})
    autoencoder, held_out = lib.load_autoencoder(a.checkpoint), held_out_of(a.data, a.held_out)
    warn_of_learnt(a, autoencoder.card)
    pictures = shuffled(lib.load_data(held_out, autoencoder.image_size,
                                      channels=autoencoder.in_channels).images)
    n = min(a.n, len(pictures))
    measures = reconstruction(autoencoder, pictures, n=n)
    write_json(a, {"checkpoint": a.checkpoint, "data": held_out, "pictures": n}, measures)
    print(f"{a.checkpoint}: {n} pictures of {held_out}, encoded and decoded")
    print(*measures, sep="\n")


def check_unused(a: Namespace, why: str, used: set[str]) -> None:
    """Raises ValueError for a flag that was given and would not be looked at."""
    for action in a.command._actions:
        name = action.dest
        if action.option_strings and name not in used | {"help", "traceback"} and \
                getattr(a, name, action.default) != action.default:
            raise ValueError(f"{action.option_strings[0]} has no effect here: {why}; leave it out")


def write_json(a: Namespace, told: dict, measures: Sequence) -> None:
    """The `--json` file, before any word is printed: nothing computed is lost."""
    from .saving.files import whole

    if a.json:
        told = {**told, "measures": [each._asdict() for each in measures]}
        with whole(a.json) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def export(a: Namespace) -> None:
    """Write a model for diffusers."""
    if a.to != "diffusers":
        raise ValueError(f"--to is diffusers, not {a.to!r}")
    check_folder(Path(a.out), "--out")
    trained = lib.load_model(a.checkpoint, autoencoder=a.autoencoder)
    label = class_number(getattr(a, "class"), trained, none=True)
    if hasattr(trained.model, "read"):
        export_reader(a, trained)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        lib.save_diffusers(trained.model, trained.diffusion, a.out, label=label,
                           autoencoder=trained.autoencoder)
    for warning in caught:
        print(warning.message)
    print(f"written to {a.out}")


def export_reader(a: Namespace, trained: Any) -> None:
    """Write a model that reads: a StableDiffusionPipeline if it draws latents, else its parts."""
    from .saving.text_format import save_text_unet

    model, diffusion, autoencoder = trained.model, trained.diffusion, trained.autoencoder
    if autoencoder is not None:
        lib.save_pipeline(model, diffusion, autoencoder, a.out)
    else:
        save_text_unet(model, diffusion, a.out)
        print("diffusers has no pipeline for pixels from captions: unet, text_encoder, tokenizer "
              "and scheduler were written")
    print(f"written to {a.out}")


# -- what is refused before the work ---------------------------------------------------------------


def check_folder(path: Path, flag: str) -> None:
    """Raises ValueError where a folder cannot be made, OSError where it cannot be written to."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, not a folder; choose another {flag}")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"{flag} {path} cannot be written ({error.strerror}); check the disk and the "
                      f"permissions, or choose another {flag}") from error


def check_file(path: Path, flag: str) -> None:
    """Raises ValueError or OSError where a file cannot be written."""
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; give the name of a file")
    check_folder(path.absolute().parent, flag)


def check_counts(a: Namespace, *names: str) -> None:
    """Raises ValueError for a number of things below 1."""
    for name in names:
        if (number := getattr(a, name)) is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {number}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a letter that a code page lacks must not end the work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, rest = parser().parse_known_args(words)
        arguments.changes = changes(rest, arguments.command)
        arguments.run(arguments)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # no traceback reaches a user who did not ask for it
        if "--traceback" in words:
            traceback.print_exc()
        code, told = explain(error)
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and words for an error: 2 for wrong input, 1 for anything else."""
    if isinstance(error, (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)):
        return 2, str(error)
    if isinstance(error, OSError):  # ours say it all themselves; others have a strerror
        remedy = "check the disk and the permissions, or choose another --out"
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror}; {remedy}" if error.strerror else str(error)
    return 1, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line each
    sys.exit(main())
