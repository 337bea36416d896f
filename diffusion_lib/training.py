"""The training loop: noise some pictures, ask the network for the noise, step, remember the average of the weights.

Everything random is a function of (seed, step): which pictures, which t, which noise, which flips are drawn for step 1,234
by a generator seeded with (seed, 1234). So a resumed run continues as if it had never stopped, with nothing to save.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import load_checkpoint, load_weights, newest_checkpoint, save_checkpoint
from .data import to_float
from .diffusion import GaussianDiffusion
from .ema import EMA
from .losses import WEIGHTINGS, noise_prediction_loss
from .runs import CsvLog, RunLock, fingerprint, pick_device, probe_autocast, stop_on_signals


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Frozen, and saved inside every checkpoint. Raises ValueError for an impossible value."""

    steps: int = 2000  # optimiser steps of the whole run
    batch_size: int = 64  # pictures a step
    learning_rate: float = 1e-3  # AdamW's, at its highest
    warmup: int = 100  # steps during which the learning rate grows from 0
    final_learning_rate: float = 0.02  # share of it that is left at the end of the cosine decay
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest norm of the gradient
    weighting: str = "uniform"  # of the loss: "uniform" or "min_snr"
    label_drop: float = 0.1  # share of labels replaced by "no class" (for guidance; unused without classes)
    flip: bool = True  # mirror every other picture
    ema: tuple[float, float] = (0.01, 0.05)  # half-lives of the two weight averages, as shares of the run so far
    seed: int = 0
    precision: str = "auto"  # "float32", "bf16", or "auto": what a short probe finds faster
    device: str = "auto"
    save_every: int = 500  # steps between checkpoints (only if the run has a folder)
    keep: int = 2  # newest checkpoints kept
    log_every: int = 10  # steps between rows of log.csv
    patience: int = 10  # non-finite steps in a row before the run stops

    def __post_init__(self) -> None:
        if isinstance(self.ema, list):
            object.__setattr__(self, "ema", tuple(self.ema))  # JSON and YAML hand over lists
        whole = {"steps": 1, "batch_size": 1, "warmup": 0, "save_every": 1, "keep": 1, "log_every": 1, "patience": 1, "seed": 0}
        for name, least in whole.items():
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} must be {f'at least {least}' if type(value) is int else 'a whole number'}, not {value!r}")
        positive, share = ("above 0", lambda v: 0 < v < math.inf), ("between 0 and 1", lambda v: 0 <= v <= 1)
        rules = {"learning_rate": positive, "grad_clip": positive, "weight_decay": ("at least 0", lambda v: 0 <= v < math.inf),
                 "label_drop": share, "final_learning_rate": share}
        for name, (rule, fits) in rules.items():
            if type(value := getattr(self, name)) not in (int, float) or not fits(value):
                hint = "; YAML takes 1e-3 for text, write 1.0e-3" if isinstance(value, str) else ""
                raise ValueError(f"{name} must be a number {rule}, not {value!r}{hint}")
        if type(self.ema) is not tuple or not self.ema or not all(type(share) is float and 0 < share < 1 for share in self.ema):
            raise ValueError(f"ema must hold half-lives between 0 and 1, shares of the run so far, not {self.ema}; (0.01, 0.05) is usual")
        for name, known in (("weighting", WEIGHTINGS), ("precision", ("auto", "float32", "bf16"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")


class Batch(NamedTuple):
    """What is drawn for one step, all on the CPU."""

    index: Tensor  # (B,) which pictures
    t: Tensor  # (B,) which timesteps
    noise: Tensor  # (B, C, H, W)
    flip: Tensor  # (B,) bool
    drop: Tensor  # (B,) bool, labels to forget


class Trainer:
    """Trains `model` on `data`.

    model: a network `model(x_t, t, labels=None)`, trained in place. data: uint8 pictures (N, C, H, W), or anything that has
    them as `.images` (and classes (N,) as `.labels`). out: a folder for checkpoints and log.csv; None keeps everything
    in memory. callbacks: called as `callback(trainer)` after every step.

    `ema_model` is what to sample from, `losses` the loss of every step of this session, `step` the steps done.
    Raises ValueError for data that does not fit the model.
    """

    def __init__(
        self, model: nn.Module, diffusion: GaussianDiffusion, data: object, config: TrainConfig | None = None, *,
        out: str | Path | None = None, callbacks: Sequence[Callable[["Trainer"], None]] = (),
    ) -> None:
        self.config = config = TrainConfig() if config is None else config
        self.diffusion, self.callbacks, self.out = diffusion, list(callbacks), None if out is None else Path(out)
        images = data if isinstance(data, Tensor) else data.images
        labels = None if isinstance(data, Tensor) else getattr(data, "labels", None)
        self._check(images, labels, model)
        self.device = pick_device(config.device)
        self.precision = probe_autocast(self.device) if config.precision == "auto" else config.precision
        self.images = images.to(self.device)                              # resident: no worker can be faster
        self.labels = labels.to(self.device) if getattr(model, "num_classes", None) else None
        self.data_name = getattr(data, "name", type(data).__name__)
        self.model = model.to(self.device)
        self.emas = [EMA(model, half_life) for half_life in config.ema]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay,
                                           fused=self.device.type in ("cpu", "cuda"))  # one pass over the weights instead of ten
        self.step, self.losses, self.skipped = 0, [], 0
        self._order: tuple[int, Tensor] | None = None

    @staticmethod
    def _check(images: Tensor, labels: Tensor | None, model: nn.Module) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"training pictures must be a uint8 tensor (N, C, H, W) with N of at least 1, not {found}; "
                             "diffusion_lib.to_uint8 makes one of floats in [-1, 1]")
        wanted = (getattr(model, "in_channels", images.shape[1]), *[getattr(model, "image_size", images.shape[2])] * 2)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(f"the pictures are {tuple(images.shape[1:])} (channels, height, width), the network expects {wanted}; "
                             "load the data at the network's size")
        classes = getattr(model, "num_classes", None)
        if classes and (labels is None or labels.shape != (len(images),) or labels.dtype != torch.int64
                        or not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise ValueError(f"the network has {classes} classes, but the data has no labels in 0 … {classes - 1}, int64, one a picture")

    @property
    def ema_model(self) -> nn.Module:
        """The longer average of the weights, in eval mode: sample from this one."""
        return self.emas[-1].model

    # -- what a step draws, a function of (seed, step) -----------------------------------------------------------------

    def _indices(self, step: int) -> Tensor:
        """Rows (B,): every picture once an epoch, each epoch in a new order."""
        n, b = len(self.images), self.config.batch_size
        parts, position = [], step * b
        while position < (step + 1) * b:
            epoch, start = divmod(position, n)
            if self._order is None or self._order[0] != epoch:
                generator = torch.Generator().manual_seed(_seed(self.config.seed, 1, epoch))
                self._order = epoch, torch.randperm(n, generator=generator)
            parts.append(self._order[1][start : start + (step + 1) * b - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def draw(self, step: int) -> Batch:
        """Everything random about a step (counted from 0). Its t are spread evenly, so the loss jumps less (Kingma et al. 2021)."""
        b = self.config.batch_size
        generator = torch.Generator().manual_seed(_seed(self.config.seed, 0, step))
        spread = (torch.rand((), generator=generator) + torch.arange(b) / b) % 1
        t = (spread * self.diffusion.T).long()                                       # 0 … T-1, both ends included
        noise = torch.randn((b, *self.images.shape[1:]), generator=generator)
        flip, drop = torch.rand((2, b), generator=generator)
        return Batch(self._indices(step), t, noise, flip < 0.5, drop < self.config.label_drop)

    def learning_rate(self, step: int) -> float:
        """Warm-up, then half a cosine down: a function of the step (counted from 0) and nothing else."""
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        progress = min((step - c.warmup) / max(c.steps - c.warmup, 1), 1)
        return c.learning_rate * (c.final_learning_rate + (1 - c.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train_step(self) -> float:
        """One step of DDPM's algorithm 1: draw, noise, predict, descend. Returns the loss."""
        batch = self.draw(self.step)
        x_0 = to_float(self.images[batch.index.to(self.device)])                     # (B, C, H, W) in [-1, 1]
        if self.config.flip:
            x_0 = torch.where(batch.flip.to(self.device)[:, None, None, None], x_0.flip(-1), x_0)
        labels = None
        if self.labels is not None:
            labels = self.labels[batch.index.to(self.device)].masked_fill(batch.drop.to(self.device), self.model.num_classes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = noise_prediction_loss(self.diffusion, self.model, x_0, batch.t, batch.noise.to(self.device), labels,
                                         weighting=self.config.weighting)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        self.step += 1
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(self.gradient_norm)):
            self._skip(value)
            return value
        self._bad = 0
        self.optimizer.step()
        for ema in self.emas:
            ema.update(self.model, self.step)
        return value

    _bad = 0  # non-finite steps in a row

    def _skip(self, loss: float) -> None:
        """A step whose loss or gradient is not a number changes nothing; too many in a row end the run."""
        self.skipped, self._bad = self.skipped + 1, self._bad + 1
        if self._bad >= self.config.patience:
            last = newest_checkpoint(self.out) if self.out else None
            raise RuntimeError(f"the loss was not a finite number for {self._bad} steps in a row (step {self.step}, loss {loss}); "
                               f"lower learning_rate; {f'the last good checkpoint is {last}' if last else 'no checkpoint was saved'}")

    def fit(self, steps: int | None = None) -> "Trainer":
        """Train until `config.steps` steps are done, or for `steps` more. Returns the trainer.

        Interrupted (Ctrl-C, JupyterLab's stop button, SIGTERM), it finishes the step in hand, saves if it has a folder,
        says how to go on, and returns. Raises RuntimeError if the loss stays NaN, or if another run uses the folder.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}; leave it out to train to the end")
        end = self.config.steps if steps is None else min(self.step + steps, self.config.steps)
        if self.out is None:
            return self._loop(end, None)
        self.out.mkdir(parents=True, exist_ok=True)
        with RunLock(self.out):
            last = newest_checkpoint(self.out)
            if last and last.name > f"step_{self.step:08d}":  # ours would be the older ones, which `keep` deletes
                raise FileExistsError(f"{self.out} already holds a run up to {last.name}; go on with it by resume(), or choose another out")
            log = CsvLog(self.out / "log.csv", self.step)
            try:
                return self._loop(end, log)
            finally:
                log.close()

    def _loop(self, end: int, log: CsvLog | None) -> "Trainer":
        self.model.train()
        start, first, smooth = time.perf_counter(), self.step, None
        bar = tqdm(total=end, initial=self.step, desc="training", unit="step", disable=None if log else False,
                   leave=log is not None, mininterval=1)  # a notebook's queue of messages holds about 1,000: do not flood it
        with stop_on_signals() as stop, bar:
            while self.step < end and not stop:
                loss = self.train_step()
                self.losses.append(loss)
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                speed = (self.step - first) * self.config.batch_size / (time.perf_counter() - start)
                bar.update()
                bar.set_postfix(loss=f"{smooth:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
                if log and (self.step % self.config.log_every == 0 or self.step == end):
                    log.write(step=self.step, loss=loss, learning_rate=self.learning_rate(self.step - 1), gradient_norm=self.gradient_norm,
                              images_per_second=speed, seconds=log.seconds_before + time.perf_counter() - start)
                for callback in self.callbacks:
                    callback(self)
                if self.out and (self.step % self.config.save_every == 0 or self.step == end or stop):
                    self.save()
        self.model.eval()
        if stop and self.step < end:
            how = f"the same command with --resume, out={self.out}" if self.out else "trainer.fit()"
            print(f"stopped at step {self.step} of {end}; the model is kept, and {how} goes on from here")
        return self

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, nn.Module]:
        return {"model": self.model, **{f"ema_{i}": ema.model for i, ema in enumerate(self.emas)}}

    def save(self) -> Path:
        """Write a checkpoint of this step into the run folder, then drop all but the newest `keep`."""
        state = {"step": self.step, "model": self.model.config, "diffusion": self.diffusion.state_dict(),
                 "train": dataclasses.asdict(self.config), "precision": self.precision, "skipped": self.skipped,
                 "data": {"name": self.data_name, "images": len(self.images), "sha256": fingerprint(self.images)}}
        folder = self.out / "checkpoints" / f"step_{self.step:08d}"
        save_checkpoint(folder, self._weights(), self.optimizer.state_dict(), state)
        for old in sorted(folder.parent.glob("step_*"))[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def resume(self, checkpoint: str | Path | None = None) -> "Trainer":
        """Continue from a checkpoint folder, or from the run folder's newest. Returns the trainer.

        Raises FileNotFoundError if there is none, ValueError if it belongs to another network, diffusion or data set.
        """
        folder = newest_checkpoint(self.out) if checkpoint is None and self.out else checkpoint
        if folder is None:
            raise FileNotFoundError(f"there is no checkpoint in {self.out} to resume from; leave --resume out to start anew")
        state, weights, optimizer = load_checkpoint(folder)
        now = {"model": self.model.config, "diffusion": self.diffusion.state_dict(), "data": {"sha256": fingerprint(self.images)}}
        for part, value in now.items():
            saved = state[part] if part != "data" else {"sha256": state[part]["sha256"]}
            differing = [k for k in sorted(value.keys() | saved.keys()) if _plain(value.get(k)) != saved.get(k)]
            if differing:
                raise ValueError(f"{folder} was trained with another {part} ({', '.join(differing)} differ); "
                                 "resume with the settings it was started with")
        for name, module in self._weights().items():
            load_weights(module, weights[name], folder)
        self.optimizer.load_state_dict(optimizer)
        self.step, self.skipped, self.precision = state["step"], state["skipped"], state["precision"]
        return self


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, without the collisions that adding them would give."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
