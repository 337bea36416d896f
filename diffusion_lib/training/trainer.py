"""The training loop: noise some pictures, ask the network for the noise, step, remember the average
of the weights.
"""

import dataclasses
import functools
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core.autoencoder import Autoencoder
from ..core.cpu_kernels import quicken
from ..core.diffusion import GaussianDiffusion
from ..core.ema import EMA
from ..core.losses import noise_prediction_loss
from ..core.transformer import Text
from ..data.augment import MOVES, augment
from ..data.sources import check_fit, to_float
from ..saving.checkpoint import load_checkpoint, load_weights, newest_checkpoint, save_checkpoint
from ..saving.files import fingerprint
from .batches import Batch, Batches, seed_of
from .captions import check_captions, told
from .config import LossConfig, TrainConfig
from .device import probe_autocast
from .distributed import Ranks
from .meter import Meter
from .optimizer import make_optimizer
from .run_folder import CsvLog, RunLock, stop_on_signals

# settings that may differ when a run is resumed: where and how fast it computes, what it writes,
# but not what it computes
FREE = {
    "device", "precision", "compile", "accumulate", "save_every", "keep_checkpoints", "log_every",
    "sample_every", "max_nonfinite_steps",
}


class Trainer:
    """Trains `model` on `data`.

    model: a network `model(x_t, t, condition=None)`, trained in place (one that was frozen is
    thawed). data: uint8 pictures (N, C, H, W), or anything that has them as `.images` (and classes
    (N,) as `.labels`). out: a folder for checkpoints and log.csv; None keeps everything in memory.
    data of float16 is latents (saving/latents.py): then `autoencoder` says whose, and draws them.
    callbacks: called as `callback(trainer)` after every step, and after saving; an error in one is
    a warning. notes: name -> text of files that the run folder gets once it is this run's; an
    empty text removes an older one.

    `ema_model` is what to sample from, `losses` the loss of every step of this session, `step` the
    steps done. Raises ValueError for data that does not fit the model.
    """

    free = FREE

    def __init__(
        self, model: nn.Module, diffusion: GaussianDiffusion | None, data: Any,
        config: TrainConfig | None = None, *, out: str | Path | None = None,
        callbacks: Sequence[Callable[["Trainer"], None]] = (),
        notes: Mapping[str, str] | None = None, autoencoder: Autoencoder | None = None,
    ) -> None:
        self.config = config = TrainConfig() if config is None else config
        self.diffusion, self.callbacks, self.out = (
            diffusion, list(callbacks), None if out is None else Path(out),
        )
        self.notes, self.autoencoder = dict(notes or {}), autoencoder
        images = data if isinstance(data, Tensor) else data.images
        labels: Any = None if isinstance(data, Tensor) else getattr(data, "labels", None)
        check_fit(images, labels, model)
        self.captions: Sequence[str] = getattr(data, "captions", ())
        self.attributes: Tensor | None = getattr(data, "attributes", None)
        self.reads = hasattr(model, "read")
        check_captions(self.captions, self.attributes, self.reads, config.attribute_drop,
                       len(images), getattr(data, "no_captions", ""))
        if self.reads:  # each can be read: refused now, not after an hour
            model.read(sorted(set(self.captions)))
        self.ranks = Ranks(config.device)
        check_run(config, model, self.ranks.count, images.shape[-2:], images.is_floating_point())
        self.device = self.ranks.device
        self.precision = (
            probe_autocast(self.device) if config.precision == "auto" else config.precision
        )
        self.images = images.to(self.device)  # resident: no worker can be faster
        self.places = focus_map(config, images.shape[-2:], self.device)
        self.labels = labels.to(self.device) if getattr(model, "num_classes", None) else None
        self.told = told_of(self.labels, self.captions if self.reads else (), self.attributes)
        self.data_name, self.classes = (
            getattr(data, "name", type(data).__name__), list(getattr(data, "classes", ())),
        )
        T, noise_shape = diffusion.T if diffusion else 1, self.noise_shape(model, images)
        self.batches = Batches(config, T, noise_shape, len(images), labels)
        # torch's own dice, which no checkpoint keeps: set anew each step
        self.drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.model = model.to(self.device)  # what is saved and averaged
        if not any(weight.requires_grad for weight in model.parameters()):
            model.requires_grad_(True)                                    # a loaded one
        if self.device.type == "cpu":
            quicken(self.model)
        network = self.ranks.wrap(self.model)  # what is called: the same weights
        self.network = torch.compile(network) if config.compile else network
        self.emas = [EMA(model, half_life) for half_life in config.ema]
        self.optimizer = make_optimizer(
            config.optimizer,
            model,
            config.learning_rate,
            config.weight_decay,
            # one pass over the weights, not ten
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.meter = Meter(T, self.ranks)
        self.step, self.saved = 0, -1  # saved: the step of the last checkpoint
        self.losses: list[float] = []
        self.origin: dict | None = None  # the whole config, kept in checkpoints

    @staticmethod
    def noise_shape(model: nn.Module, images: Tensor) -> Sequence[int]:
        """(C, H, W) of the noise of one picture."""
        return images.shape[1:]

    @property
    def ema_model(self) -> nn.Module:
        """The last average of config.ema, in eval mode: sample from this one."""
        return self.emas[-1].model

    # -- a step -----------------------------------------------------------------------------------

    # DDPM algorithm 1
    def train_step(self) -> float:
        """One step: draw, noise, predict, compare, descend, average. Returns the loss.

        Every process draws the whole batch and takes its rows, in `accumulate` slices: their mean
        is the batch's. A step whose loss or gradient is not a finite number changes nothing.
        """
        batch, slices = self.batches.draw(self.step), self.config.accumulate
        if self.drops:
            torch.manual_seed(seed_of(self.config.seed, 3, self.step, self.ranks.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for i, part in enumerate(batch.slices(self.ranks.rank, self.ranks.count, slices)):
            with self.ranks.no_sync(self.network, i < slices - 1):
                losses = self.loss(part)  # noise, predict, compare
                (losses.mean() / slices).backward()
            self.meter.add(part.t, losses)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        loss = self.meter.read(norm)
        self.step += 1
        if self.meter.in_a_row == 0:
            self.optimizer.step()
            for ema in self.emas:
                ema.update(self.model, self.step)
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Losses (B,) of the pictures of a batch, or of a slice of it."""
        x_0, network, wanted = self.pictures(batch), self.network, self.wanted(batch)
        diffusion: Any = self.diffusion
        if getattr(self.model, "augment_dim", 0):
            x_0, told = augment(x_0, batch.moves.to(self.device), self.config.augment)
            network = functools.partial(network, augment=told)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            return noise_prediction_loss(
                diffusion, network, x_0, batch.t, batch.noise.to(self.device), wanted,
                weighting=self.config.weighting, gamma=self.config.gamma, places=self.places,
                reduction="none",
            )

    def wanted(self, batch: Batch) -> Tensor | Text | None:
        """What the network is told: labels (B,), or a Text of B captions; some are forgotten."""
        model: Any = self.model
        if self.reads:
            return model.read(told(batch, self.captions, self.attributes,
                                   self.config.attribute_drop))
        if self.labels is None:
            return None
        labels = self.labels[batch.index.to(self.device)]
        return labels.masked_fill(batch.drop.to(self.device), model.num_classes)

    def pictures(self, batch: Batch) -> Tensor:
        """(B, C, H, W), floats in [-1, 1], some of them mirrored; or latents, which are not: their
        pictures were, before they were encoded.
        """
        rows = self.images[batch.index.to(self.device)]
        if rows.is_floating_point():
            return rows.float()
        x_0 = to_float(rows)
        if not self.config.flip:
            return x_0
        return torch.where(batch.flip.to(self.device)[:, None, None, None], x_0.flip(-1), x_0)

    def learning_rate(self, step: int) -> float:
        """Warm-up, then half a cosine down: a function of the step (counted from 0) and nothing
        else.
        """
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        progress = min((step - c.warmup) / max(c.steps - c.warmup, 1), 1)
        return c.learning_rate * (
            c.final_learning_rate
            + (1 - c.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
        )

    # -- the loop ---------------------------------------------------------------------------------

    def fit(self, steps: int | None = None) -> "Trainer":
        """Train until `config.steps` steps are done, or for `steps` more. Returns the trainer.

        Interrupted (Ctrl-C, JupyterLab's stop button, SIGTERM), it finishes the step in hand, saves
        if it has a folder, says how to go on, and returns. Raises RuntimeError if the loss stays
        NaN, or if another run uses the folder.
        """
        if steps is not None and steps < 1:
            raise ValueError(
                f"steps must be at least 1, not {steps}; leave it out to train to the end"
            )
        end = self.config.steps if steps is None else min(self.step + steps, self.config.steps)
        if self.out is None or self.ranks.rank:  # only the first process writes
            return self._loop(end, None)
        with RunLock(self.out):
            last = newest_checkpoint(self.out)
            # ours would be the older ones, which are deleted first
            if last and last.name > f"step_{self.step:08d}":
                raise FileExistsError(
                    f"{self.out} already holds a run up to {last.name}; go on with it by resume(), "
                    "or choose another out"
                )
            for name, text in self.notes.items():
                if text:
                    (self.out / name).write_text(text, encoding="utf-8")
                else:
                    (self.out / name).unlink(missing_ok=True)
            with CsvLog(self.out / "log.csv", self.step) as log:
                return self._loop(end, log)

    def _loop(self, end: int, log: CsvLog | None) -> "Trainer":
        self.model.train()
        start, first, stopped = time.perf_counter(), self.step, False
        # a notebook's queue of messages holds about 1,000: do not flood it
        bar = tqdm(
            total=end, initial=first, desc="training", unit="step", disable=self.ranks.rank > 0,
            leave=log is not None, mininterval=1,
        )
        with stop_on_signals() as stop, bar:
            while self.step < end and not stopped:
                self.losses.append(self.train_step())
                self._check_finite()
                seconds = time.perf_counter() - start
                speed = (self.step - first) * self.config.batch_size / seconds
                bar.update()
                bar.set_postfix(
                    loss=f"{fmean(self.losses[-50:]):.4f}", images_per_s=f"{speed:.0f}",
                    refresh=False,
                )
                self._record(log, speed, seconds, last=self.step == end)
                self._call_back()
                if stopped := self.ranks.any(bool(stop)):
                    self._record(log, speed, seconds, last=True)
        self.model.eval()
        if stopped and self.step < end and not self.ranks.rank:
            how = f"the same command with --resume, out={self.out}" if self.out else "trainer.fit()"
            print(
                f"stopped at step {self.step} of {end}; the model is kept, and {how} goes on from "
                "here"
            )
        return self

    def _record(self, log: CsvLog | None, speed: float, seconds: float, last: bool) -> None:
        """After a step: its row in the log and its checkpoint, where they are due and not there
        yet.
        """
        if log is None:
            return
        if (self.step % self.config.log_every == 0 or last) and log.last != self.step:
            quarters = {f"loss_q{i}": value for i, value in enumerate(self.meter.quarters, 1)}
            log.write(
                step=self.step, loss=self.losses[-1],
                learning_rate=self.learning_rate(self.step - 1),
                gradient_norm=self.meter.gradient_norm, images_per_second=speed,
                seconds=log.seconds_before + seconds, **quarters,
            )
        # what precedes a bad step may be bad, too: it does not push out what is good
        due = self.step % self.config.save_every == 0 and not self.meter.in_a_row
        if (due or last) and self.saved != self.step:
            self.save()

    def _call_back(self) -> None:
        """What is for show comes after saving, and never costs a run."""
        for callback in [] if self.ranks.rank else self.callbacks:
            try:
                callback(self)
            except Exception as error:
                name = getattr(callback, "__name__", type(callback).__name__)
                told = " ".join(str(error).split())
                warnings.warn(
                    f"the callback {name} failed at step {self.step} ({type(error).__name__}: "
                    f"{told}); "
                    "the training goes on",
                    stacklevel=3,
                )

    def _check_finite(self) -> None:
        """Raises RuntimeError where too many steps in a row were not finite."""
        if self.meter.in_a_row >= self.config.max_nonfinite_steps:
            last = newest_checkpoint(self.out) if self.out else None
            raise RuntimeError(
                f"the loss was not a finite number for {self.meter.in_a_row} steps in a row (step "
                f"{self.step}, "
                f"loss {self.losses[-1]}); "
                + (f"the last checkpoint is {last}: go on from it with a lower "
                   "--train.learning_rate, --resume and --allow-changes; where that fails, remove "
                   "it, and the one before it is taken" if last else
                   "lower learning_rate; no checkpoint was saved")
            )

    # -- checkpoints -------------------------------------------------------------------------------

    def _weights(self) -> dict[str, nn.Module]:
        return {"model": self.model, **{f"ema_{i}": ema.model for i, ema in enumerate(self.emas)}}

    def described(self) -> dict[str, dict]:
        """What a run is besides its data and its settings of training: kept in checkpoints, and
        not to be changed on resume.
        """
        told = {"model": dataclasses.asdict(self.model.config)}
        if self.diffusion:
            told["diffusion"] = self.diffusion.state_dict()
        if self.autoencoder is not None:
            told["autoencoder"] = dict(self.autoencoder.source)
        return told

    def folder(self) -> Path:
        """The run folder. Raises ValueError for a run that has none."""
        if self.out is None:
            raise ValueError("this run has no folder to write to; make it with Trainer(…, out=DIR)")
        return self.out

    def optimizer_state(self) -> dict:
        """What is saved of the optimizer."""
        return self.optimizer.state_dict()

    def carried_over(self, optimizer: dict, same: bool) -> dict:
        """What goes on of a saved optimizer's state: nothing of one that shall change."""
        return optimizer if same else {}

    def load_more(self, weights: dict[str, dict], optimizer: dict, folder: object) -> None:
        """On resume: the optimizer's state, and what a subclass adds."""
        if optimizer:
            self.optimizer.load_state_dict(optimizer)

    def save(self, name: str | None = None) -> Path:
        """Write a checkpoint of this step, then drop all but the newest `keep_checkpoints`; one
        with a name stays.
        """
        data = {
            "name": self.data_name, "images": len(self.images), "sha256": fingerprint(self.images),
            "classes": self.classes, "told": self.told,
        }
        state = {
            "step": self.step, "config": self.origin, **self.described(), "data": data,
            "train": self.config.model_dump(mode="json"), "precision": self.precision,
        }
        folder = self.folder() / "checkpoints" / (name or f"step_{self.step:08d}")
        save_checkpoint(folder, self._weights(), self.optimizer_state(), state)
        self.saved = self.step if name is None else self.saved
        for old in sorted(folder.parent.glob("step_*"))[: -self.config.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def resume(
        self, checkpoint: str | Path | None = None, *, allow_changes: bool = False
    ) -> "Trainer":
        """Continue from a checkpoint folder, or from the run folder's newest. Returns the trainer.

        allow_changes: other pictures and other settings of the training are wanted, so the run is
        no longer the one that was begun. Raises FileNotFoundError if there is no checkpoint,
        ValueError if it belongs to another network or diffusion, or, unless changes are allowed, to
        other pictures or settings, naming what differs.
        """
        folder = newest_checkpoint(self.out) if checkpoint is None and self.out else checkpoint
        if folder is None:
            raise FileNotFoundError(
                f"there is no checkpoint in {self.out} to resume from; "
                "leave --resume out to start anew"
            )
        state, weights, optimizer = load_checkpoint(folder)
        # begun when settings had other names, or were fewer
        for part, settings in (("train", TrainConfig), ("loss", LossConfig)):
            if part in state:
                state[part] = settings(**state[part]).model_dump(mode="json")
        kept = average_files(state["train"]["ema"], self.config.ema)
        if self.config.steps < state["step"]:
            raise ValueError(f"{folder} is past step {self.config.steps}, where this run shall "
                             f"end; set train.steps to {state['step']} or more")
        self._check_same_run(state, folder, allow_changes)
        load_weights(self.model, weights["model"], folder)
        for ema, name in zip(self.emas, kept, strict=True):
            load_weights(ema.model, weights[name], folder)
        same = state["train"]["optimizer"] == self.config.optimizer
        self.load_more(weights, self.carried_over(optimizer or {}, same), folder)
        self.step = state["step"]
        if self.config.precision == "auto":  # else what is asked for wins
            self.precision = state["precision"]
        return self

    def _check_same_run(self, state: dict, folder: object, allow_changes: bool) -> None:
        free = self.free | {"ema"}  # an average no longer wanted may go; see average_files
        now = {
            **self.described(),
            "data": {"pictures": fingerprint(self.images), "labels or captions": self.told},
            "train": self.config.model_dump(mode="json", exclude=free),
        }
        for part, value in json.loads(json.dumps(now)).items():  # as a checkpoint holds it
            saved = state.get(part, {})
            if part == "data":  # older checkpoints do not say what was told of the pictures
                saved = {"pictures": saved["sha256"],
                         "labels or captions": saved.get("told", self.told)}
            if part == "autoencoder":  # its name may change, and how it paints; its latents not
                value, saved = ({"sha256": each.get("sha256")} for each in (value, saved))
            names = sorted(value.keys() | saved.keys() - free)
            differing = [k for k in names if value.get(k) != saved.get(k)]
            changeable = part in ("data", "train", "loss")
            if differing and not (allow_changes and changeable):
                told = [
                    f"{k} was {saved.get(k)!r}, now {value.get(k)!r}" if part == "train" else k
                    for k in differing
                ]
                remedy = ", or say that they shall change (--allow-changes)" if changeable else ""
                raise ValueError(
                    f"{folder} was trained with another {part} ({', '.join(told)} differ); "
                    f"resume with the settings it was started with{remedy}"
                )


def check_run(config: TrainConfig, model: nn.Module, processes: int, size: Sequence[int],
              latents: bool) -> None:
    """Raises ValueError for settings that this network, this number of processes, or pictures (or
    latents) of `size` (H, W) cannot be trained with.
    """
    if config.augment and latents:
        raise ValueError(f"augment is {config.augment}, but a latent that is shifted or turned "
                         "is not the latent of such a picture; it is for pixels, set it to 0")
    focus_map(config, size, torch.device("cpu"))
    dim = getattr(model, "augment_dim", None)
    if config.augment and dim is None:
        raise ValueError(f"augment is {config.augment}, but it is for networks that draw; set it "
                         "to 0")
    if dim not in (None, 0, MOVES) or config.augment and dim != MOVES:
        raise ValueError(f"augment is {config.augment}, and the model's augment_dim {dim}; a "
                         f"network that is told of it needs augment_dim {MOVES}, others 0")
    if config.augment and config.focus_weight != 1:
        raise ValueError("focus is a place in the picture, and augment moves pictures about; leave "
                         "one of them out")
    if config.batch_size % (slices := processes * config.accumulate):
        raise ValueError(
            f"a batch_size of {config.batch_size} cannot be shared evenly by {processes} "
            "processes with "
            f"accumulate {config.accumulate}; make it a multiple of {slices}"
        )


def told_of(labels: Tensor | None, captions: Sequence[str], attributes: Tensor | None) -> str:
    """sha256 of what a network is told of its pictures; "" if nothing."""
    parts = [fingerprint(rows) for rows in (labels, attributes) if rows is not None]
    words = json.dumps([*parts, *captions])
    return sha256(words.encode()).hexdigest() if parts or captions else ""


def focus_map(config: TrainConfig, size: Sequence[int], device: torch.device) -> Tensor | None:
    """Weights (H, W) of mean 1 of the places of a picture; None where all count the same. Raises
    ValueError for a box that holds no pixel.
    """
    if config.focus_weight == 1:
        return None
    top, left, bottom, right = (round(share * size[i % 2]) for i, share in enumerate(config.focus))
    if not (top < bottom and left < right):
        raise ValueError(f"focus {config.focus} (top, left, bottom, right) holds no pixel of "
                         f"{size[0]} x {size[1]}; make it larger")
    places = torch.ones(*size)
    places[top:bottom, left:right] = config.focus_weight
    return (places / places.mean()).to(device)


def average_files(saved: Sequence[float], wanted: Sequence[float]) -> list[str]:
    """The files of a checkpoint with `saved` half-lives that hold the `wanted` ones. Raises
    ValueError if one is not there.
    """
    missing = [half_life for half_life in wanted if half_life not in saved]
    if missing:
        raise ValueError(
            f"the checkpoint holds averages with half-lives {list(saved)}, none with {missing[0]}; "
            f"resume with --train.ema as it was"
        )
    return [f"ema_{list(saved).index(half_life)}" for half_life in wanted]
