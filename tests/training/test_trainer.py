"""The Trainer: what it refuses, what it draws, that stopping costs nothing, and that it learns."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_lib import (
    GaussianDiffusion,
    SampleGrid,
    ToyCats,
    TrainConfig,
    Trainer,
    UNet,
    UNetConfig,
    cosine_beta_schedule,
    load_pretrained,
    noise_prediction_loss,
    to_float,
)
from diffusion_lib.data.sources import ImageData, load_data
from diffusion_lib.saving.checkpoint import load_checkpoint, newest_checkpoint
from diffusion_lib.training.run_folder import CsvLog
from diffusion_lib.training.trainer import FREE

ROOT = Path(__file__).parents[2]
T = 20


def tiny_unet(seed: int = 0, **changes: object) -> UNet:
    torch.manual_seed(seed)
    settings = {
        "image_size": 8, "channels": 8, "channel_mults": (1, 2), "attention": (False, True),
        "blocks_per_level": 1, **changes,
    }
    return UNet(**settings)


def diffusion(prediction: str = "epsilon") -> GaussianDiffusion:
    return GaussianDiffusion(cosine_beta_schedule(T), prediction)


def config(**changes: object) -> TrainConfig:
    settings = {
        "steps": 6, "batch_size": 4, "warmup": 2, "log_every": 1, "save_every": 3,
        "precision": "float32", "device": "cpu",
    }
    return TrainConfig(**{**settings, **changes})


@pytest.fixture
def trainer(toy_images: torch.Tensor):
    """trainer(**settings): a new Trainer of the tiny network on the twelve pictures."""

    def make(
        model: nn.Module | None = None, data: object = None, *, out: Path | None = None,
        callbacks: tuple = (), notes: dict[str, str] | None = None, **changes: object,
    ) -> Trainer:
        model, data = tiny_unet() if model is None else model, toy_images if data is None else data
        return Trainer(
            model, diffusion(), data, config(**changes), out=out, callbacks=callbacks, notes=notes
        )

    return make


class NotANumber(nn.Module):
    """A network of one weight whose answer is not a number at the steps (counted from 1) in `bad`.
    """

    def __init__(self, bad: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bad, self.calls = nn.Parameter(torch.tensor(0.5)), bad, 0
        self.config, self.in_channels, self.image_size = UNetConfig(), 3, 8

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.weight * x * (math.nan if self.calls in self.bad else 1.0)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, remedy",
    [
        ("steps", 0, "at least 1"),
        ("steps", -5, "at least 1"),
        ("steps", 2.5, "whole number"),
        ("steps", "10", "whole number"),
        ("steps", True, "whole number"),
        ("steps", math.inf, "whole number"),
        ("steps", None, "whole number"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", 1.5, "whole number"),
        ("warmup", -1, "at least 0"),
        ("warmup", 0.1, "whole number"),
        ("save_every", 0, "at least 1"),
        ("keep_checkpoints", 0, "at least 1"),
        ("log_every", 0, "at least 1"),
        ("max_nonfinite_steps", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 0.5, "whole number"),
        ("learning_rate", 0, "above 0"),
        ("learning_rate", -0.1, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        # what YAML makes of 1e-3
        ("learning_rate", math.inf, "above 0"),
        ("learning_rate", "1e-3", "1.0e-3"),
        ("grad_clip", 0, "above 0"),
        ("grad_clip", math.nan, "above 0"),
        ("gamma", 0, "above 0"),
        ("gamma", math.inf, "above 0"),
        ("weight_decay", -1, "at least 0"),
        ("weight_decay", math.nan, "at least 0"),
        ("label_drop", -0.1, "between 0 and 1"),
        ("label_drop", 1.1, "between 0 and 1"),
        ("label_drop", "a tenth", "number"),
        ("final_learning_rate", 2, "between 0 and 1"),
        ("final_learning_rate", math.nan, "between 0 and 1"),
        ("weighting", "snr", "min_snr"),
        ("focus", (0.2, 0.2, 0.8), "top, left, bottom and right"),
        ("focus", (0.2, 0.2, 0.8, 1.2), "shares of the picture"),
        ("focus_weight", 0, "above 0"),
        ("precision", "float16", "bf16"),
        ("ema", (0.01, 1.0), "between 0 and 1"),
        ("ema", (0.0, 0.1), "between 0 and 1"),
        ("ema", (), "between 0 and 1"),
        ("ema", 0.05, "between 0 and 1"),
        ("ema", ("0.1",), "between 0 and 1"),
    ],
)
def test_impossible_settings(name: str, value: object, remedy: str, refuses) -> None:
    with refuses(ValueError, name, str(value), remedy):
        config(**{name: value})


def test_settings_from_a_file_are_the_same_settings() -> None:
    assert config(ema=[0.1, 0.2]) == config(ema=(0.1, 0.2))
    with pytest.raises(ValueError, match="frozen"):
        config().steps = 3


@pytest.mark.parametrize(
    "make, found",
    [
        (lambda x: to_float(x), "torch.float32"),
        (lambda x: to_float(x) * math.nan, "torch.float32"), (lambda x: x.long(), "torch.int64"),
        (lambda x: x[0], "(3, 8, 8)"), (lambda x: x[:0], "(0, 3, 8, 8)"),
        (lambda x: ImageData(x.numpy()), "ndarray"),
    ],
)
def test_pictures_that_are_no_uint8_batch(
    trainer, toy_images: torch.Tensor, make, found: str, refuses
) -> None:
    with refuses(ValueError, found, "uint8 tensor (N, C, H, W)", "to_uint8"):
        trainer(data=make(toy_images))


@pytest.mark.parametrize(
    "make, found",
    [
        (lambda x: x[:, :1], "(1, 8, 8)"), (lambda x: x[:, :, :4], "(3, 4, 8)"),
        (lambda x: x.repeat(1, 1, 2, 2), "(3, 16, 16)"),
    ],
)
def test_pictures_of_another_size_than_the_network(
    trainer, toy_images: torch.Tensor, make, found: str, refuses
) -> None:
    with refuses(ValueError, found, "(3, 8, 8)", "load the data at the network's size"):
        trainer(data=make(toy_images))


@pytest.mark.parametrize(
    "labels",
    [
        None, torch.arange(12), torch.arange(12) - 1, torch.arange(11) % 3,
        torch.zeros(12, 1).long(), torch.zeros(12),
    ],
    ids=["none", "too high", "negative", "too few", "two columns", "float"],
)
def test_labels_that_do_not_fit_the_classes(
    trainer, toy_images: torch.Tensor, labels: torch.Tensor | None, refuses
) -> None:
    with refuses(ValueError, "3 classes", "0 … 2"):
        trainer(model=tiny_unet(num_classes=3), data=ImageData(toy_images, labels))


def test_a_device_that_is_not_there(trainer, refuses) -> None:
    with refuses(ValueError, "'abacus'", "auto"):
        trainer(device="abacus")


# -- what a step draws -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 5, 12, 30])
def test_every_picture_once_an_epoch_and_each_epoch_in_a_new_order(
    trainer, batch_size: int
) -> None:
    t = trainer(batch_size=batch_size)
    rows = torch.cat([t.batches.draw(step).index for step in range(60)])
    epochs = rows[: len(rows) // 12 * 12].reshape(-1, 12)
    assert len(epochs) >= 20 and (epochs.sort(dim=1).values == torch.arange(12)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_draw_depends_on_seed_and_step_alone(trainer) -> None:
    forwards, backwards = trainer(), trainer(model=tiny_unet(seed=3))
    draws = [forwards.batches.draw(step) for step in range(10)]
    torch.manual_seed(99)  # the global generator plays no part
    for step in (9, 0, 5, 4, 8):
        assert same(backwards.batches.draw(step), draws[step])
    for name in ("index", "t", "noise"):
        assert not torch.equal(getattr(draws[0], name), getattr(draws[1], name))
    other = trainer(seed=1)
    assert not torch.equal(other.batches.draw(0).noise, draws[0].noise) and not torch.equal(
        other.batches.draw(1).noise, draws[0].noise
    )
    assert not torch.equal(
        torch.cat([other.batches.draw(s).index for s in range(3)]),
        torch.cat([d.index for d in draws[:3]]),
    )
    assert not any(torch.equal(draws[i].noise, draws[j].noise) for i in range(10) for j in range(i))


def test_timesteps_cover_both_ends_evenly_and_noise_is_normal(trainer) -> None:
    t = trainer(batch_size=64)
    draws = [t.batches.draw(step) for step in range(60)]
    counts = torch.bincount(torch.cat([d.t for d in draws]), minlength=T)
    # 192 each on average: 0.7 is 4 standard deviations
    assert len(counts) == T and counts.min() > 0.7 * counts.float().mean()
    assert counts[0] > 0 and counts[T - 1] > 0
    apart = torch.stack(
        [d.t.sort().values.diff() for d in map(trainer(batch_size=4).batches.draw, range(60))]
    )
    assert (T // 4 - 1 <= apart).all() and (apart <= T // 4 + 1).all()  # within each batch, too
    noise = torch.stack([d.noise for d in draws])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    for name, share in (("flip", 0.5), ("drop", 0.1)):
        assert abs(torch.stack([getattr(d, name) for d in draws]).float().mean() - share) < 0.03


class Compiled(nn.Module):
    """As torch.compile returns it: the network under another name, which must not get into
    checkpoints.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self._orig_mod(*arguments)


class Recorder(nn.Module):
    """A network that remembers what it was shown, and draws nothing."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.weight, self.num_classes, self.config = (
            nn.Parameter(torch.tensor(0.0)), num_classes, UNetConfig(),
        )
        self.seen, self.labels = [], []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        self.labels.append(labels)
        return self.weight * x


@pytest.mark.parametrize("flip", [True, False])
def test_what_the_network_is_shown(trainer, toy_images: torch.Tensor, flip: bool) -> None:
    """The pictures of the draw, mirrored where it says so, noised by the draw's noise at the draw's
    t.
    """
    model = Recorder()
    t = trainer(model=model, flip=flip, steps=5).fit()
    flipped = 0
    for step in range(5):
        batch = t.batches.draw(step)
        x_0 = toy_images[batch.index].double() / 127.5 - 1
        for i in range(4):
            if flip and batch.flip[i]:
                x_0[i] = torch.from_numpy(np.ascontiguousarray(x_0[i].numpy()[:, :, ::-1]))
                flipped += 1
        expected = t.diffusion.q_sample(x_0, batch.t, batch.noise.double())
        assert (model.seen[step].double() - expected).abs().max() < 1e-5
    assert flipped > 0 or not flip
    # it said 0: its error is the noise
    assert t.losses[0] == pytest.approx(float(t.batches.draw(0).noise.square().mean()), rel=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_labels_go_along_and_are_dropped_as_often_as_asked(
    trainer, toy_images: torch.Tensor, drop: float
) -> None:
    model, labels = Recorder(num_classes=3), torch.arange(12) % 3
    t = trainer(
        model=model, data=ImageData(toy_images, labels), label_drop=drop, steps=20, batch_size=12
    ).fit()
    dropped = 0
    for step in range(20):
        batch = t.batches.draw(step)
        expected = labels[batch.index].clone()
        expected[batch.drop] = 3  # the null label is index K
        assert torch.equal(model.labels[step], expected)
        dropped += int(batch.drop.sum())
    assert abs(dropped / 240 - drop) < 0.11


def test_labels_are_left_out_for_a_network_without_classes(
    trainer, toy_images: torch.Tensor
) -> None:
    model = Recorder()
    trainer(model=model, data=ImageData(toy_images, torch.arange(12))).fit(1)
    assert model.labels == [None]


# -- the loop --------------------------------------------------------------------------------------


def test_slices_of_a_batch_train_what_the_whole_batch_trains(trainer, refuses) -> None:
    whole, sliced = (
        trainer(model=tiny_unet(), steps=4).fit(),
        trainer(model=tiny_unet(), steps=4, accumulate=4).fit(),
    )
    assert sliced.losses == pytest.approx(whole.losses, rel=1e-4)
    assert sliced.meter.gradient_norm == pytest.approx(whole.meter.gradient_norm, rel=1e-3)
    assert all(
        (a - b).abs().max() < 1e-4
        for a, b in zip(whole.model.parameters(), sliced.model.parameters(), strict=True)
    )
    with refuses(ValueError, "batch_size of 4", "accumulate 3", "multiple of 3"):
        trainer(accumulate=3)


def test_compiled_weights_keep_their_names_and_what_they_learn(
    trainer, tmp_path: Path, monkeypatch
) -> None:
    """torch.compile takes minutes here, so it only wraps: what matters is that checkpoints know
    nothing of it.
    """
    monkeypatch.setattr(torch, "compile", Compiled)
    plain, compiled = (
        trainer(model=tiny_unet(), steps=3).fit(),
        trainer(model=tiny_unet(), steps=3, compile=True, out=tmp_path).fit(),
    )
    assert type(compiled.network).__name__ == "Compiled" and compiled.losses == plain.losses
    weights = load_checkpoint(newest_checkpoint(tmp_path))[1]
    assert set(weights["model"]) == set(weights["ema_0"]) == set(plain.model.state_dict())
    assert same(everything(plain), everything(compiled))


def test_the_loss_is_told_by_quarters_of_t(trainer) -> None:
    t = trainer(batch_size=12, steps=2)
    batch = t.batches.draw(0)
    t.train_step()
    fresh = trainer(batch_size=12, steps=2)
    with torch.no_grad():
        losses = fresh.loss(batch)
    for quarter, told in enumerate(t.meter.quarters):
        hit = batch.t * 4 // T == quarter
        assert told == pytest.approx(losses[hit].mean().item(), rel=1e-4)


def test_learning_rate_schedule_against_its_formula(trainer) -> None:
    t = trainer(steps=100, warmup=10, learning_rate=0.2, final_learning_rate=0.1)
    for step in range(10):
        assert t.learning_rate(step) == pytest.approx(0.2 * (step + 1) / 10)
    for step in range(10, 101):
        assert t.learning_rate(step) == pytest.approx(
            0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2)
        )
    assert t.learning_rate(100) == pytest.approx(0.02) and t.learning_rate(5000) == pytest.approx(
        0.02
    )
    assert trainer(steps=3, warmup=0, learning_rate=0.2).learning_rate(0) == pytest.approx(0.2)
    assert trainer(steps=3, warmup=50, learning_rate=0.2).learning_rate(2) == pytest.approx(
        0.2 * 3 / 50
    )


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_loss(
    trainer, toy_images: torch.Tensor
) -> None:
    """Three steps, written out again with PyTorch's parts: the same weights, losses and gradient
    norms.
    """
    t = trainer(flip=False, grad_clip=0.05, weight_decay=0.1, learning_rate=0.01)
    model = tiny_unet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        batch = t.batches.draw(step)
        loss = noise_prediction_loss(
            t.diffusion, model, to_float(toy_images[batch.index]), batch.t, batch.noise
        )
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        assert norm > 0.05  # clipping has something to do
        for p in model.parameters():
            p.grad *= min(1.0, 0.05 / (float(norm) + 1e-6))
        optimizer.param_groups[0]["lr"] = t.learning_rate(step)
        optimizer.step()
        assert t.train_step() == pytest.approx(loss.item(), rel=1e-5)
        assert t.meter.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    for mine, theirs in zip(t.model.parameters(), model.parameters(), strict=True):
        # the learning rate is 1e-2: Adam moves every weight by about as much
        assert (mine - theirs).abs().max() < 1e-5


def test_averages_follow_the_weights_and_the_longer_one_is_sampled_from(trainer) -> None:
    t = trainer(ema=(0.1, 0.5))
    copies = [[p.detach().clone() for p in t.model.parameters()] for _ in range(2)]
    for step in range(1, 7):
        t.train_step()
        for copy, share in zip(copies, (0.1, 0.5), strict=True):
            keep = 0.5 ** (1 / (share * step))
            for p, weight in zip(copy, t.model.parameters(), strict=True):
                p.copy_(keep * p + (1 - keep) * weight.detach())
    for ema, copy in zip(t.emas, copies, strict=True):
        assert (
            max(
                (p - q).abs().max().item()
                for p, q in zip(ema.model.parameters(), copy, strict=True)
            )
            < 1e-6
        )
    assert t.ema_model is t.emas[1].model and not t.ema_model.training
    assert not torch.equal(t.emas[0].model.conv_in.weight, t.emas[1].model.conv_in.weight)
    assert not any(p.requires_grad for p in t.ema_model.parameters())


def test_callbacks_are_called_after_every_step(trainer) -> None:
    seen = []
    t = trainer(
        callbacks=(
            lambda trainer: seen.append((trainer.step, len(trainer.losses))),
            lambda trainer: seen.append("second"),
        )
    )
    assert t.fit() is t
    assert seen == [x for step in range(1, 7) for x in ((step, step), "second")]
    assert not t.model.training


def test_dropout_is_on_while_it_trains_and_off_afterwards(trainer) -> None:
    modes = []
    t = trainer(
        callbacks=(
            lambda trainer: modes.append((trainer.model.training, trainer.ema_model.training)),
        )
    )
    t.fit(2).fit(2)
    assert modes == [(True, False)] * 4 and not t.model.training


def test_fit_in_pieces_ends_at_the_configured_step(trainer) -> None:
    t, whole = trainer(), trainer().fit()
    assert [t.fit(2).step, t.fit(3).step, t.fit(3).step, t.fit().step] == [2, 5, 6, 6]
    assert t.losses == whole.losses and same(
        t.model.state_dict().values(), whole.model.state_dict().values()
    )


@pytest.mark.parametrize("steps", [0, -3])
def test_fit_refuses_no_steps(trainer, steps: int, refuses) -> None:
    with refuses(ValueError, "steps must be at least 1", str(steps)):
        trainer().fit(steps)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_it_learns_twelve_pictures(toy_images: torch.Tensor, prediction: str) -> None:
    weighting = "min_snr" if prediction == "v" else "uniform"
    t = Trainer(
        tiny_unet(), diffusion(prediction), toy_images,
        config(steps=70, batch_size=12, learning_rate=1e-2, warmup=5, weighting=weighting),
    ).fit()
    first, last = np.mean(t.losses[:3]), np.mean(t.losses[-10:])
    assert last < 0.5 * first, (first, last)
    assert all(math.isfinite(loss) for loss in t.losses)
    batch = t.batches.draw(10_000)  # the average that one samples from has learnt it too
    x_0 = to_float(toy_images[batch.index])
    with torch.no_grad():
        assert (
            noise_prediction_loss(
                t.diffusion, t.ema_model, x_0, batch.t, batch.noise, weighting=weighting
            )
            < 0.7 * first
        )


def test_the_focus_counts_its_box_more_and_nothing_else(trainer) -> None:
    """The weighted loss is the mean of the squared errors, those in the box thrice, over weights
    of mean 1; the network that would be best is the same.
    """
    plain = trainer()
    batch = plain.batches.draw(0)
    x_0 = to_float(plain.images[batch.index]).where(~batch.flip[:, None, None, None],
                                                    to_float(plain.images[batch.index]).flip(-1))
    with torch.no_grad():
        asked = trainer(focus=(0.25, 0.5, 0.5, 1.0), focus_weight=3.0).loss(batch)
        x_t = plain.diffusion.q_sample(x_0, batch.t, batch.noise)
        square = (plain.model(x_t, batch.t)
                  - plain.diffusion.target(x_0, batch.noise, batch.t)).square()
        assert torch.equal(trainer(focus=(0.25, 0.5, 0.5, 1.0)).loss(batch), plain.loss(batch))
    height, width = square.shape[-2:]
    weights = torch.ones(height, width)
    weights[height // 4 : height // 2, width // 2 :] = 3
    expected = (square.mean(1) * weights).sum((1, 2)) / weights.sum()
    assert torch.allclose(asked, expected, rtol=1e-5)
    assert not torch.allclose(asked, plain.loss(batch), rtol=1e-3)


@pytest.mark.parametrize("focus", [(0.5, 0.2, 0.5, 0.8), (0.6, 0.2, 0.5, 0.8), (0, 0.2, 1, 0.21)])
def test_a_focus_on_nothing(trainer, focus: tuple, refuses) -> None:
    with refuses(ValueError, "holds no pixel", str(focus[3])):
        trainer(focus=focus, focus_weight=2.0)


def test_no_focus_on_pictures_that_are_moved_about(toy_images, refuses) -> None:
    told = config(augment=0.1, focus=(0, 0, 0.5, 0.5), focus_weight=2.0)
    with refuses(ValueError, "focus", "augment"):
        Trainer(tiny_unet(augment_dim=5), diffusion(), toy_images, told)


def test_gamma_decides_which_timesteps_count(trainer) -> None:
    """A low gamma leaves the noisy timesteps as they are and makes the clean ones count less."""
    batch = trainer().batches.draw(0)
    with torch.no_grad():
        high, low = (trainer(weighting="min_snr", gamma=gamma).loss(batch) for gamma in (5.0, 0.1))
    snr = trainer().diffusion.snr(batch.t)
    expected = snr.clamp(max=0.1) / snr.clamp(max=5.0)
    assert (expected < 0.05).any() and (expected == 1).any()
    assert torch.allclose((low / high).double(), expected, rtol=1e-4)


# -- losses that are not numbers -------------------------------------------------------------------


def test_a_nan_step_changes_nothing(trainer) -> None:
    t = trainer(model=NotANumber(range(3, 5)), max_nonfinite_steps=3)
    states = []
    t.callbacks.append(
        lambda trainer: states.append(
            (trainer.model.weight.item(), *(ema.model.weight.item() for ema in trainer.emas))
        )
    )
    t.fit()
    assert [math.isnan(loss) for loss in t.losses] == [False, False, True, True, False, False]
    assert states[1] == states[2] == states[3] and states[4] != states[3] != states[0]
    assert all(math.isfinite(number) for state in states for number in state)


def test_max_nonfinite_steps_counts_steps_in_a_row(trainer) -> None:
    t = trainer(model=NotANumber(range(1, 20, 2)), max_nonfinite_steps=2, steps=20).fit()
    assert sum(map(math.isnan, t.losses)) == 10 and t.step == 20


def test_too_many_nan_steps_end_the_run_naming_the_last_good_checkpoint(
    trainer, tmp_path: Path, refuses
) -> None:
    t = trainer(model=NotANumber(range(5, 100)), max_nonfinite_steps=3, steps=50, out=tmp_path)
    with refuses(
        RuntimeError, "3 steps in a row", "step 7", "lower --train.learning_rate", "step_00000003"
    ):
        t.fit()
    _, weights, _ = load_checkpoint(newest_checkpoint(tmp_path))
    assert all(torch.isfinite(w["weight"]).all() for w in weights.values())
    # step 6 was a bad one, and what precedes a bad one may be bad, too: nothing was saved there
    assert [each.name for each in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000003"]
    with refuses(RuntimeError, "lower learning_rate", "no checkpoint was saved"):
        trainer(model=NotANumber(range(100)), max_nonfinite_steps=2).fit()


# -- stop and go on --------------------------------------------------------------------------------


def everything(t: Trainer) -> list[torch.Tensor]:
    """Weights, both averages and the optimizer's state, as a flat list."""
    optimizer = [
        value for state in t.optimizer.state_dict()["state"].values() for value in state.values()
    ]
    return [
        *t.model.state_dict().values(),
        *(v for ema in t.emas for v in ema.model.state_dict().values()), *optimizer,
    ]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_n_and_n_steps_equal_2n_bit_for_bit(
    trainer, toy_images: torch.Tensor, tmp_path: Path, precision: str
) -> None:
    data = ImageData(toy_images, torch.arange(12) % 3)
    settings = {"precision": precision, "steps": 8, "batch_size": 5, "weight_decay": 0.01}
    whole = trainer(model=tiny_unet(num_classes=3), data=data, **settings).fit()
    first = trainer(
        model=tiny_unet(num_classes=3), data=data, out=tmp_path, save_every=4, **settings
    ).fit(4)
    assert first.step == 4
    torch.manual_seed(1234)  # another process, other random weights to begin with
    second = trainer(
        model=tiny_unet(seed=7, num_classes=3), data=data, out=tmp_path, **settings
    ).resume()
    assert second.step == 4 and same(everything(second), everything(first))
    second.fit()
    assert second.step == whole.step == 8 and second.precision == precision
    assert same(everything(second), everything(whole))
    assert first.losses + second.losses == whole.losses


@pytest.mark.parametrize(
    "asked, used", [("auto", "bf16"), ("bf16", "bf16"), ("float32", "float32")]
)
def test_on_resume_an_explicit_precision_wins_and_auto_keeps_the_runs(
    trainer, tmp_path: Path, asked: str, used: str
) -> None:
    """"auto" may choose otherwise on the day of the resume; half a run in another precision is
    another run.
    """
    trainer(out=tmp_path, precision="bf16").fit(3)
    again = trainer(out=tmp_path, precision=asked).resume()
    assert again.precision == used and again.fit().step == 6
    assert load_checkpoint(newest_checkpoint(tmp_path))[0]["precision"] == used


def test_settings_that_may_change_take_effect_on_resume(
    trainer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "compile", Compiled)
    trainer(out=tmp_path, steps=12).fit(4)
    free = {
        "accumulate": 2, "save_every": 2, "keep_checkpoints": 3, "log_every": 4, "compile": True,
        "max_nonfinite_steps": 1,
    }
    assert {*free, "device", "precision", "sample_every"} == FREE
    t = trainer(out=tmp_path, steps=12, **free).resume()
    assert (
        type(t.network).__name__ == "Compiled"
        and len(list(t.batches.draw(0).slices(0, 1, t.config.accumulate))) == 2
    )
    t.fit()
    assert sorted(p.name[-2:] for p in (tmp_path / "checkpoints").iterdir()) == ["08", "10", "12"]
    assert [row["step"] for row in CsvLog.read(tmp_path / "log.csv")] == [
        "1", "2", "3", "4", "8", "12",
    ]
    trainer(model=NotANumber(()), out=tmp_path / "nan").fit(2)
    with pytest.raises(RuntimeError, match="1 steps in a row"):
        trainer(
            model=NotANumber(range(9)), out=tmp_path / "nan", max_nonfinite_steps=1
        ).resume().fit()


def test_a_run_begun_with_two_averages_and_the_old_names_goes_on(trainer, tmp_path: Path) -> None:
    """As runs were saved before: settings called keep and patience, two averages, the network's
    settings as lists.
    """
    first = trainer(out=tmp_path, ema=(0.01, 0.05)).fit(3)
    path = newest_checkpoint(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    state["train"] |= {
        "keep": state["train"].pop("keep_checkpoints"),
        "patience": state["train"].pop("max_nonfinite_steps"),
    }
    del state["train"]["balanced"], state["data"]["classes"]
    path.write_text(json.dumps({**state, "skipped": 0}))
    one, both = (
        trainer(model=tiny_unet(seed=5), out=tmp_path, ema=ema).resume()
        for ema in ((0.05,), (0.01, 0.05))
    )
    assert same(one.ema_model.parameters(), first.emas[1].model.parameters()) and len(one.emas) == 1
    assert same(everything(both), everything(first))
    with pytest.raises(ValueError, match="none with 0.2"):
        trainer(out=tmp_path, ema=(0.2,)).resume()
    whole = trainer(ema=(0.01, 0.05)).fit()
    assert (
        same(one.fit().ema_model.parameters(), whole.emas[1].model.parameters())
        and first.losses + one.losses == whole.losses
    )


def test_a_loaded_model_can_be_trained_further(toy_images: torch.Tensor) -> None:
    model = load_pretrained("toycats32").model
    before = model.conv_in.weight.clone()
    t = Trainer(
        model, GaussianDiffusion(cosine_beta_schedule(T), "v"), ToyCats(size=32, n=4),
        config(steps=2, batch_size=2),
    ).fit()
    assert not torch.equal(model.conv_in.weight, before) and all(
        math.isfinite(loss) for loss in t.losses
    )


def test_what_was_frozen_on_purpose_stays_frozen(trainer) -> None:
    model = tiny_unet()
    model.conv_in.requires_grad_(False)
    before = model.conv_in.weight.clone()
    assert torch.equal(trainer(model=model).fit().model.conv_in.weight, before)


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_classes_are_drawn_equally_often(
    trainer, toy_images: torch.Tensor, balanced: bool
) -> None:
    labels = torch.tensor([0] * 9 + [1] * 2 + [2])
    t = trainer(
        model=tiny_unet(num_classes=3), data=ImageData(toy_images, labels), balanced=balanced,
        batch_size=60,
    )
    drawn = torch.cat([t.batches.draw(step).index for step in range(20)])
    shares = torch.bincount(labels[drawn], minlength=3) / len(drawn)
    expected = torch.full((3,), 1 / 3) if balanced else torch.bincount(labels) / 12
    assert (shares - expected).abs().max() < 0.05 and len(drawn.unique()) == 12
    assert torch.equal(t.batches.draw(3).index, t.batches.draw(3).index)


def test_what_cannot_be_balanced_is_refused(trainer, toy_images: torch.Tensor) -> None:
    without = ImageData(toy_images, torch.tensor([0, 2] * 6))
    with pytest.raises(ValueError, match="class 1 has no picture"):
        trainer(model=tiny_unet(num_classes=3), data=without, balanced=True)
    with pytest.raises(ValueError, match="no labels"):
        trainer(data=toy_images, balanced=True)


def test_classes_are_balanced_for_a_network_that_is_not_told_them(
    trainer, toy_images: torch.Tensor
) -> None:
    labels = torch.tensor([0] * 10 + [1] * 2)
    t = trainer(data=ImageData(toy_images, labels), balanced=True, batch_size=60)
    drawn = torch.cat([t.batches.draw(step).index for step in range(20)])
    assert 0.4 < labels[drawn].float().mean() < 0.6


def test_dropout_resumes_bit_for_bit(trainer, tmp_path: Path) -> None:
    """Its dice are torch's own, which go on elsewhere between two sessions."""
    def made(out=None):
        return trainer(model=tiny_unet(dropout=0.3), steps=4, out=out)

    whole = made().fit()
    made(tmp_path).fit(2)
    torch.rand(5)
    gone_on = made(tmp_path).resume().fit()
    assert whole.losses[2:] == gone_on.losses
    assert same(whole.model.parameters(), gone_on.model.parameters())


def test_saved_again_and_again_only_the_newest_are_kept(trainer, tmp_path: Path) -> None:
    trainer(out=tmp_path, steps=7, save_every=2, keep_checkpoints=2).fit()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000006", "step_00000007",
    ]
    state, _, _ = load_checkpoint(newest_checkpoint(tmp_path))
    assert (
        state["step"] == 7 and state["train"]["batch_size"] == 4 and state["data"]["images"] == 12
    )
    assert state["precision"] == "float32"


def test_a_named_checkpoint_stays_and_is_loaded_by_its_name(trainer, tmp_path: Path) -> None:
    t = trainer(out=tmp_path, steps=6, save_every=1, keep_checkpoints=1).fit(2)
    named = t.save("early")
    t.fit()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "early", "step_00000006",
    ]
    assert (
        newest_checkpoint(tmp_path).name == "step_00000006"
        and load_checkpoint(named)[0]["step"] == 2
    )
    assert trainer().resume(named).step == 2


def test_a_data_folder_that_vanishes_does_not_matter_once_it_is_read(
    trainer, tmp_path: Path
) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(source / f"{i}.png")
    t = trainer(data=load_data(f"folder:{source}", 8), out=tmp_path / "run").fit(2)
    shutil.rmtree(source)
    assert t.fit().step == 6


def test_the_log_goes_on_too(trainer, tmp_path: Path) -> None:
    whole = trainer(out=tmp_path / "whole").fit()
    trainer(out=tmp_path / "run").fit(5)
    # as after a crash: rows up to 5, the newest checkpoint of step 3
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000005")
    trainer(out=tmp_path / "run").resume().fit()
    rows = [
        [row[column] for column in CsvLog.COLUMNS[:4]]
        for run in ("whole", "run")
        for row in CsvLog.read(tmp_path / run / "log.csv")
    ]
    assert rows[:6] == rows[6:] and [row[0] for row in rows[:6]] == list("123456")
    assert [float(row[1]) for row in rows[:6]] == pytest.approx(whole.losses, rel=1e-5)
    with open(tmp_path / "run/log.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)  # the time of the first part is counted


def test_resume_refuses_what_was_trained_otherwise(
    trainer, toy_images: torch.Tensor, tmp_path: Path, refuses
) -> None:
    with refuses(FileNotFoundError, str(tmp_path), "no checkpoint", "--resume"):
        trainer(out=tmp_path).resume()
    trainer(out=tmp_path).fit(3)
    other = Trainer(tiny_unet(), diffusion("v"), toy_images, config(), out=tmp_path)
    with refuses(ValueError, "another diffusion", "prediction", "the settings it was started with"):
        other.resume()
    with refuses(ValueError, "another model", "channels", "the settings it was started with"):
        trainer(model=tiny_unet(channels=16), out=tmp_path).resume()
    with refuses(ValueError, "another data", "the settings it was started with"):
        trainer(data=255 - toy_images, out=tmp_path).resume()
    with refuses(ValueError, "another train", "batch_size was 4, now 2", "--allow-changes"):
        trainer(batch_size=2, out=tmp_path).resume()
    with refuses(ValueError, "seed was 0, now 1", "learning_rate was"):
        trainer(seed=1, learning_rate=0.5, out=tmp_path).resume()
    assert (
        trainer(batch_size=2, data=255 - toy_images, out=tmp_path).resume(allow_changes=True).step
        == 3
    )
    with refuses(ValueError, "another model"):
        trainer(model=tiny_unet(channels=16), out=tmp_path).resume(allow_changes=True)
    # changes nothing of what is computed
    assert trainer(save_every=1, log_every=2, accumulate=2, out=tmp_path).resume().step == 3
    with refuses(FileNotFoundError, "elsewhere"):
        trainer().resume(tmp_path / "elsewhere")
    # by its folder, and without a run folder
    assert trainer().resume(tmp_path / "checkpoints/step_00000003").step == 3


def test_a_new_run_does_not_write_into_the_folder_of_an_old_one(
    trainer, tmp_path: Path, refuses
) -> None:
    """It would: a new run's step 3 is older than the old run's step 6, so `keep_checkpoints` would
    delete the new checkpoint.
    """
    trainer(out=tmp_path, keep_checkpoints=1).fit()
    with refuses(FileExistsError, str(tmp_path), "step_00000006", "resume"):
        trainer(out=tmp_path, keep_checkpoints=1).fit(3)
    assert newest_checkpoint(tmp_path).name == "step_00000006"
    assert len(CsvLog.read(tmp_path / "log.csv")) == 6


def test_a_second_run_on_one_folder_is_refused(trainer, tmp_path: Path, refuses) -> None:
    errors = []

    def notes(words: str) -> dict[str, str]:
        return {"config.yaml": words}

    def start_another(t: Trainer) -> None:
        if t.step == 1:
            with refuses(RuntimeError, str(tmp_path), "choose another --out"):
                trainer(out=tmp_path, notes=notes("second")).fit()
            errors.append("refused")

    t = trainer(out=tmp_path, callbacks=(start_another,), notes=notes("first")).fit()
    assert errors == ["refused"] and t.step == 6
    assert (tmp_path / "config.yaml").read_text() == "first"  # who is refused changes nothing
    t.fit()


def test_interrupt_finishes_the_step_keeps_the_model_and_says_how_to_go_on(
    trainer, capsys: pytest.CaptureFixture
) -> None:
    whole = trainer().fit()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    # Ctrl-C, or JupyterLab's stop button
    t = trainer(callbacks=(lambda t: t.step == 2 and signal.raise_signal(signal.SIGINT),)).fit()
    assert t.step == 2 and t.losses == whole.losses[:2] and not t.model.training
    out = capsys.readouterr().out
    assert out == "stopped at step 2 of 6; the model is kept, and trainer.fit() goes on from here\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    t.fit()  # as it said
    assert t.losses == whole.losses and same(everything(t), everything(whole))


def test_a_second_interrupt_is_obeyed_at_once(trainer, tmp_path: Path) -> None:
    def twice(t: Trainer) -> None:
        if t.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    t = trainer(out=tmp_path, callbacks=(twice,))
    with pytest.raises(KeyboardInterrupt):
        t.fit()
    assert t.step == 2
    t.callbacks.clear()
    assert t.fit().step == 6


def test_an_error_in_a_callback_is_a_warning_after_saving(trainer, tmp_path: Path) -> None:
    def broken(t: Trainer) -> None:
        assert newest_checkpoint(tmp_path).name == f"step_{t.step:08d}"  # saved first
        raise KeyError("my own mistake")

    with pytest.warns(
        UserWarning, match=r"the callback broken failed at step 2 \(KeyError: 'my own mistake'\)"
    ):
        assert trainer(out=tmp_path, callbacks=(broken,), save_every=1).fit().step == 6


def test_a_grid_of_samples_takes_no_more_steps_than_there_are(
    trainer, tmp_path: Path, recwarn
) -> None:
    t = Trainer(
        tiny_unet(), GaussianDiffusion(cosine_beta_schedule(10)), trainer().images, config(),
        out=tmp_path, callbacks=[SampleGrid(every=3, count=4)],
    ).fit()
    grids = sorted((t.out / "samples").iterdir())
    assert [p.name for p in grids] == [
        "step_00000003.png", "step_00000006.png",
    ] and not recwarn.list
    assert Image.open(grids[0]).size == (22, 22)  # four pictures of 8 px, 2 between


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_trainer import Trainer, config, diffusion, tiny_unet
images = torch.arange(12 * 3 * 64).remainder(251).to(torch.uint8).reshape(12, 3, 8, 8)
started = lambda trainer: trainer.step == 3 and print("training", flush=True)
settings = config(steps=100_000, save_every=100_000)
trainer = Trainer(tiny_unet(), diffusion(), images, settings, out=Path({out!r}),
                  callbacks=[started])
trainer.fit()
print("step", trainer.step, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_sigterm_saves_and_ends_cleanly(tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(ROOT / "tests/training"), out=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == "training\n", child.stderr.read()
        child.terminate()
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    said, step = out.splitlines()
    step = int(step.split()[1])
    assert (
        f"stopped at step {step} of 100000" in said and "--resume" in said and str(tmp_path) in said
    )
    assert (
        newest_checkpoint(tmp_path).name == f"step_{step:08d}"
        and load_checkpoint(newest_checkpoint(tmp_path))[0]["step"] == step
    )
    assert CsvLog.read(tmp_path / "log.csv")[-1]["step"] == str(step)


def test_other_labels_for_the_same_pictures_are_refused_on_resume(trainer, toy_images, tmp_path):
    model = {"num_classes": 2}
    labels = torch.arange(len(toy_images)) % 2

    def of(labels: torch.Tensor) -> Trainer:
        data = ImageData(toy_images, labels)
        return trainer(model=tiny_unet(**model), data=data, out=tmp_path)

    of(labels).fit(3)
    with pytest.raises(ValueError, match="another data .labels or captions differ"):
        of(1 - labels).resume()
    assert of(1 - labels).resume(allow_changes=True).step == of(labels).resume().step == 3
    path = newest_checkpoint(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    del state["data"]["told"]  # as older checkpoints are
    path.write_text(json.dumps(state))
    assert of(1 - labels).resume().step == 3


def test_a_run_that_is_past_its_end_is_refused(trainer, tmp_path):
    trainer(out=tmp_path).fit()
    assert trainer(out=tmp_path).resume().step == 6
    with pytest.raises(ValueError, match="past step 4.*6 or more"):
        trainer(out=tmp_path, steps=4).resume(allow_changes=True)
