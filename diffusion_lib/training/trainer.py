"""The training loop: noise some pictures, ask the network for the noise, step, remember the average of the weights.

Everything random is a function of (seed, step): which pictures, which t, which noise, which flips are drawn for step 1,234
by a generator seeded with (seed, 1234). So a resumed run continues as if it had never stopped, with nothing to save.
"""

import functools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core.cpu_kernels import keep_memory
from ..core.diffusion import GaussianDiffusion
from ..core.ema import EMA
from ..core.losses import noise_prediction_loss
from ..data.augment import MOVES, augment, draw_moves
from ..data.sources import check_fit, to_float
from ..saving.checkpoint import load_checkpoint, load_weights, newest_checkpoint, save_checkpoint
from .batches import Batch, seed_of
from .config import TrainConfig
from .device import probe_autocast
from .distributed import Ranks
from .optimizer import make_optimizer
from .run_folder import CsvLog, RunLock, fingerprint, stop_on_signals

# settings that may differ when a run is resumed: where and how fast it computes, what it writes, but not what it computes
FREE = {"device", "precision", "compile", "accumulate", "save_every", "keep_checkpoints", "log_every", "sample_every",
        "max_nonfinite_steps"}


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
        check_fit(images, labels, model)
        if config.augment and getattr(model, "augment_dim", 0) != MOVES:
            raise ValueError(f"augment is {config.augment}, but the network cannot be told of it; set the model's augment_dim to {MOVES}")
        self.ranks = Ranks(config.device)
        self.device, slices = self.ranks.device, self.ranks.count * config.accumulate
        if config.batch_size % slices:
            raise ValueError(f"a batch_size of {config.batch_size} cannot be shared evenly by {self.ranks.count} processes with accumulate "
                             f"{config.accumulate}; make it a multiple of {slices}")
        self.precision = probe_autocast(self.device) if config.precision == "auto" else config.precision
        self.images = images.to(self.device)                              # resident: no worker can be faster
        self.labels = labels.to(self.device) if getattr(model, "num_classes", None) else None
        self.data_name = getattr(data, "name", type(data).__name__)
        self.model = model.to(self.device)                                # what is saved and averaged
        if self.device.type == "cpu":  # up to 1.1 times faster (ops.py); only the order in memory changes
            self.model.to(memory_format=torch.channels_last)
            keep_memory()
        network = self.ranks.wrap(self.model)                             # what is called: the same weights
        self.network = torch.compile(network) if config.compile else network
        self.emas = [EMA(model, half_life) for half_life in config.ema]
        self.optimizer = make_optimizer(config.optimizer, model, config.learning_rate, config.weight_decay,
                                        fused=self.device.type in ("cpu", "cuda"))  # one pass over the weights instead of ten
        self.step, self.losses, self.skipped, self.origin = 0, [], 0, None  # origin: the whole config, kept in checkpoints
        self._order: tuple[int, Tensor] | None = None

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
                generator = torch.Generator().manual_seed(seed_of(self.config.seed, 1, epoch))
                self._order = epoch, torch.randperm(n, generator=generator)
            parts.append(self._order[1][start : start + (step + 1) * b - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def draw(self, step: int) -> Batch:
        """Everything random about a step (counted from 0). Its t are spread evenly, so the loss jumps less (Kingma et al. 2021)."""
        b = self.config.batch_size
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, 0, step))
        spread = (torch.rand((), generator=generator) + torch.arange(b) / b) % 1
        t = (spread * self.diffusion.T).long()                                       # 0 … T-1, both ends included
        noise = torch.randn((b, *self.images.shape[1:]), generator=generator)
        flip, drop = torch.rand((2, b), generator=generator)
        moves = draw_moves(b, generator)
        return Batch(self._indices(step), t, noise, flip < 0.5, drop < self.config.label_drop, moves)

    def learning_rate(self, step: int) -> float:
        """Warm-up, then half a cosine down: a function of the step (counted from 0) and nothing else."""
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        progress = min((step - c.warmup) / max(c.steps - c.warmup, 1), 1)
        return c.learning_rate * (c.final_learning_rate + (1 - c.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Losses (B,) of the pictures of a batch, or of a slice of it."""
        x_0 = to_float(self.images[batch.index.to(self.device)])                     # (B, C, H, W) in [-1, 1]
        if self.config.flip:
            x_0 = torch.where(batch.flip.to(self.device)[:, None, None, None], x_0.flip(-1), x_0)
        network, labels = self.network, None
        if getattr(self.model, "augment_dim", 0):
            x_0, told = augment(x_0, batch.moves.to(self.device), self.config.augment)
            network = functools.partial(network, augment=told)
        if self.labels is not None:
            labels = self.labels[batch.index.to(self.device)].masked_fill(batch.drop.to(self.device), self.model.num_classes)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return noise_prediction_loss(self.diffusion, network, x_0, batch.t, batch.noise.to(self.device), labels,
                                         weighting=self.config.weighting, gamma=self.config.gamma, reduction="none")

    def train_step(self) -> float:
        """One step of DDPM's algorithm 1: draw, noise, predict, descend. Returns the loss.

        Every process draws the whole batch and takes its rows, in `accumulate` slices: their mean is the batch's.
        """
        batch, slices = self.draw(self.step), self.config.accumulate
        rows = self.config.batch_size // (self.ranks.count * slices)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        said = torch.zeros(5, device=self.device)                                    # the mean loss, and the shares of four ranges of t
        for i in range(slices):
            start = (self.ranks.rank * slices + i) * rows
            part = Batch(*(drawn[start : start + rows] for drawn in batch))
            with self.ranks.keep_gradients(self.network, i < slices - 1):
                losses = self.loss(part)
                (losses.mean() / slices).backward()
            said[0] += losses.detach().mean() / slices
            said[1:].index_add_(0, self._quarter(part.t).to(self.device), losses.detach().float() / (rows * slices))
        said = self.ranks.mean(said)
        value, *quarters = said.tolist()
        share = torch.bincount(self._quarter(batch.t), minlength=4) / self.config.batch_size
        self.quarter_losses = [loss / part if part else math.nan for loss, part in zip(quarters, share.tolist(), strict=True)]
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        self.step += 1
        if not (math.isfinite(value) and math.isfinite(self.gradient_norm)):
            self._skip(value)
            return value
        self._bad = 0
        self.optimizer.step()
        for ema in self.emas:
            ema.update(self.model, self.step)
        return value

    def _quarter(self, t: Tensor) -> Tensor:
        return t * 4 // self.diffusion.T

    _bad = 0  # non-finite steps in a row

    def _skip(self, loss: float) -> None:
        """A step whose loss or gradient is not a number changes nothing; too many in a row end the run."""
        self.skipped, self._bad = self.skipped + 1, self._bad + 1
        if self._bad >= self.config.max_nonfinite_steps:
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
        if self.out is None or self.ranks.rank:  # only the first process writes
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
        bar = tqdm(total=end, initial=self.step, desc="training", unit="step", disable=True if self.ranks.rank else None if log else False,
                   leave=log is not None, mininterval=1)  # a notebook's queue of messages holds about 1,000: do not flood it
        stopped = False
        with stop_on_signals() as stop, bar:
            while self.step < end and not stopped:
                loss = self.train_step()
                self.losses.append(loss)
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                speed = (self.step - first) * self.config.batch_size / (time.perf_counter() - start)
                bar.update()
                bar.set_postfix(loss=f"{smooth:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
                if log and (self.step % self.config.log_every == 0 or self.step == end):
                    log.write(step=self.step, loss=loss, learning_rate=self.learning_rate(self.step - 1), gradient_norm=self.gradient_norm,
                              images_per_second=speed, seconds=log.seconds_before + time.perf_counter() - start,
                              **{f"loss_q{i}": value for i, value in enumerate(self.quarter_losses, 1)})
                for callback in [] if self.ranks.rank else self.callbacks:
                    callback(self)
                stopped = self.ranks.any(bool(stop))
                if log and (self.step % self.config.save_every == 0 or self.step == end or stopped):
                    self.save()
        self.model.eval()
        if stopped and self.step < end and not self.ranks.rank:
            how = f"the same command with --resume, out={self.out}" if self.out else "trainer.fit()"
            print(f"stopped at step {self.step} of {end}; the model is kept, and {how} goes on from here")
        return self

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, nn.Module]:
        return {"model": self.model, **{f"ema_{i}": ema.model for i, ema in enumerate(self.emas)}}

    def save(self, name: str | None = None) -> Path:
        """Write a checkpoint of this step into the run folder, then drop all but the newest `keep_checkpoints`; one with a name stays."""
        state = {"step": self.step, "config": self.origin, "model": self.model.config, "diffusion": self.diffusion.state_dict(),
                 "train": self.config.model_dump(mode="json"), "precision": self.precision, "skipped": self.skipped,
                 "data": {"name": self.data_name, "images": len(self.images), "sha256": fingerprint(self.images)}}
        folder = self.out / "checkpoints" / (name or f"step_{self.step:08d}")
        save_checkpoint(folder, self._weights(), self.optimizer.state_dict(), state)
        for old in sorted(folder.parent.glob("step_*"))[: -self.config.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def resume(self, checkpoint: str | Path | None = None, *, allow_changes: bool = False) -> "Trainer":
        """Continue from a checkpoint folder, or from the run folder's newest. Returns the trainer.

        allow_changes: other pictures and other settings of the training are wanted, so the run is no longer the one that
        was begun. Raises FileNotFoundError if there is no checkpoint, ValueError if it belongs to another network or diffusion,
        or, unless changes are allowed, to other pictures or settings, naming what differs.
        """
        folder = newest_checkpoint(self.out) if checkpoint is None and self.out else checkpoint
        if folder is None:
            raise FileNotFoundError(f"there is no checkpoint in {self.out} to resume from; leave --resume out to start anew")
        state, weights, optimizer = load_checkpoint(folder)
        state["train"] = TrainConfig(**state["train"]).model_dump(mode="json")  # a run begun when settings had other names, or were fewer
        now = {"model": self.model.config, "diffusion": self.diffusion.state_dict(), "data": {"pictures": fingerprint(self.images)},
               "train": self.config.model_dump(mode="json", exclude=FREE)}
        for part, value in now.items():
            saved = {k: v for k, v in state[part].items() if k not in FREE} if part != "data" else {"pictures": state[part]["sha256"]}
            differing = [k for k in sorted(value.keys() | saved.keys()) if _plain(value.get(k)) != saved.get(k)]
            if differing and not (allow_changes and part in ("data", "train")):
                told = [f"{k} was {saved.get(k)!r}, now {value.get(k)!r}" if part == "train" else k for k in differing]
                remedy = ", or say that they shall change (--allow-changes)" if part in ("data", "train") else ""
                raise ValueError(f"{folder} was trained with another {part} ({', '.join(told)} differ); "
                                 f"resume with the settings it was started with{remedy}")
        for name, module in self._weights().items():
            load_weights(module, weights[name], folder)
        if state["train"].get("optimizer") == self.config.optimizer:  # else it was said that it shall change: begin with an empty one
            self.optimizer.load_state_dict(optimizer)
        self.step, self.skipped, self.precision = state["step"], state["skipped"], state["precision"]
        return self


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
