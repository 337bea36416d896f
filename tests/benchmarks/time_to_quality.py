"""How good after so many minutes? Our engine and recipe, diffusers' with its training example's
defaults, and the original student's.

    .venv/bin/python tests/benchmarks/time_to_quality.py --minutes 10 --n 200        (with
    data/cifar10 unpacked)

The contenders train in turn, a slice of time each, on the same cores and the same 5,000 cats at 32
px, until each has had its minutes; ours runs twice, with the whole time and with three tenths of
it, each with its own learning-rate curve. Then each draws n pictures with 20 evaluations of
DPM-Solver++. Printed for each: pictures seen, share called cat, mean probability, Fréchet distance,
its floor.

* ours: the config cats32.
* diffusers: UNet2DModel and settings of its example train_unconditional.py (six levels of 128 to
512 channels, batch 16, AdamW 1e-4
  with betas 0.95 and 0.999, 500 steps of warm-up, linear schedule, noise prediction, no average of
  the weights).
* original: no normalisation, the time told in the bottleneck only, noise prediction with a linear
schedule, Adam, no average.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from diffusion_lib import (
    GaussianDiffusion,
    Trainer,
    UNet,
    dpm_solver_pp,
    last_step,
    linear_beta_schedule,
    load_data,
    to_float,
)
from diffusion_lib.core.unet import TimeEmbedding
from diffusion_lib.data.sources import in_batches
from diffusion_lib.measuring.classifier import load_classifier
from diffusion_lib.measuring.metrics import class_share, frechet_distance
from diffusion_lib.measuring.report import CAT, Reference
from diffusion_lib.training.config import override, read_config, resolve


class Ours:
    """The Trainer with a config; its whole learning-rate curve fits into `seconds`."""

    def __init__(self, data: object, seconds: float, config: str = "cats32"):
        self.seconds, self.data = seconds, data
        probe = self.trainer(config, 10**6)
        for count in (3, 10):
            start = time.perf_counter()
            for _ in range(count):
                probe.train_step()
        self.steps = int(seconds * 10 / (time.perf_counter() - start))
        self.run = self.trainer(config, self.steps)

    def trainer(self, config: str, steps: int) -> Trainer:
        made = resolve(override(read_config(config), "train.steps", steps), config)
        torch.manual_seed(0)
        trainer = Trainer(
            UNet(**made.model.model_dump()), made.diffusion.build(), self.data, made.train
        )
        trainer.model.train()
        return trainer

    def step(self) -> int:
        self.run.train_step()
        return self.run.config.batch_size

    def done(self) -> bool:
        return self.run.step >= self.steps

    def network(self) -> tuple[GaussianDiffusion, nn.Module]:
        return self.run.diffusion, self.run.ema_model


class Plain:
    """A loop as most examples have it: noise prediction, linear schedule, one optimizer, raw
    weights.
    """

    def __init__(
        self, data: object, network: nn.Module, optimizer: torch.optim.Optimizer, batch: int,
        warmup: int, flip: bool,
    ):
        self.images, self.net, self.optimizer, self.batch, self.warmup, self.flip = (
            data.images, network, optimizer, batch, warmup, flip,
        )
        self.rate, self.count = optimizer.param_groups[0]["lr"], 0
        self.diffusion = GaussianDiffusion(linear_beta_schedule(1000))
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> int:
        self.count += 1
        self.optimizer.param_groups[0]["lr"] = self.rate * min(1, self.count / max(self.warmup, 1))
        x_0 = to_float(
            self.images[torch.randint(len(self.images), (self.batch,), generator=self.generator)]
        )
        if self.flip:
            x_0 = torch.where(
                torch.rand(self.batch, generator=self.generator)[:, None, None, None] < 0.5,
                x_0.flip(-1), x_0,
            )
        t, noise = (
            torch.randint(1000, (self.batch,), generator=self.generator),
            torch.randn(x_0.shape, generator=self.generator),
        )
        loss = (self.net(self.diffusion.q_sample(x_0, t, noise), t) - noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return self.batch

    def done(self) -> bool:
        return False

    def network(self) -> tuple[GaussianDiffusion, nn.Module]:
        return self.diffusion, self.net.eval()


class Original(nn.Module):
    """A plain convolutional U-Net without normalisation that hears of the time only in its
    bottleneck.
    """

    def __init__(self, widths: tuple[int, int, int] = (64, 128, 256)):
        super().__init__()
        a, b, c = widths

        def two(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(),
                nn.Conv2d(c_out, c_out, 3, padding=1), nn.ReLU(),
            )

        self.down1, self.down2, self.middle = two(3, a), two(a, b), two(b, c)
        self.time, self.to_middle = TimeEmbedding(64), nn.Linear(256, b)
        self.up2, self.up1, self.end = two(c + b, b), two(b + a, a), nn.Conv2d(a, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        low = self.middle(
            nn.functional.max_pool2d(two, 2) + self.to_middle(self.time(t))[:, :, None, None]
        )
        two = self.up2(torch.cat([nn.functional.interpolate(low, scale_factor=2.0), two], dim=1))
        return self.end(
            self.up1(torch.cat([nn.functional.interpolate(two, scale_factor=2.0), one], dim=1))
        )


def diffusers_example() -> nn.Module:
    import diffusers

    class Answer(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = diffusers.UNet2DModel(
                sample_size=32, in_channels=3, out_channels=3, layers_per_block=2,
                block_out_channels=(128, 128, 256, 256, 512, 512),
                down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
            )

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.unet(x, t).sample

    return Answer()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to quality of three recipes.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--data", default="folder:data/cifar10/train/cat")
    parser.add_argument("--judge", help="path of the independent classifier (the shipped one)")
    arguments = parser.parse_args()
    data, seconds, judge = (
        load_data(arguments.data, 32), 60 * arguments.minutes,
        load_classifier(*filter(None, [arguments.judge])),
    )
    torch.manual_seed(0)
    theirs, original = diffusers_example(), Original()
    contenders = {
        "ours": (seconds, Ours(data, seconds)),
        "ours, 3/10 of the time": (0.3 * seconds, Ours(data, 0.3 * seconds)),
        "diffusers' example": (
            seconds,
            Plain(
                data,
                theirs,
                torch.optim.AdamW(
                    theirs.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
                ),
                batch=16,
                warmup=500,
                flip=False,
            ),
        ),
        "original recipe": (
            seconds,
            Plain(
                data, original, torch.optim.Adam(original.parameters(), lr=1e-3), 64, warmup=0,
                flip=True,
            ),
        ),
    }
    spent, seen = dict.fromkeys(contenders, 0.0), dict.fromkeys(contenders, 0)
    while open_ones := [
        name for name, (limit, one) in contenders.items() if spent[name] < limit and not one.done()
    ]:
        for name in open_ones:  # a slice of up to 20 seconds each
            limit, one = contenders[name]
            start = time.perf_counter()
            while (now := time.perf_counter() - start) < min(
                20, limit - spent[name]
            ) and not one.done():
                seen[name] += one.step()
            spent[name] += now
    reference, network = Reference.load("cats32"), load_classifier()
    print(
        f"{torch.get_num_threads()} threads; {arguments.n} samples each, 20 evaluations of "
        f"DPM-Solver++; judge {arguments.judge or 'shipped'}; real cats are called cat "
        f"{reference.verdicts['held-out pictures'][0]:.0%} by the shipped classifier"
    )
    for name, (_, one) in contenders.items():
        diffusion, model = one.network()
        with torch.no_grad():
            parts = [
                last_step(
                    dpm_solver_pp(
                        diffusion, model, (len(seeds), 3, 32, 32), steps=20, seeds=seeds.tolist()
                    )
                ).x_t
                for seeds in torch.arange(arguments.n).split(50)
            ]
        samples = torch.cat(parts)
        share, probability, _ = class_share(
            in_batches(lambda x: judge(x).softmax(1), samples), CAT, "cat", n=arguments.n
        )
        far = frechet_distance(
            in_batches(network.features, samples), reference.train, reference.held_out,
            n=arguments.n,
        )
        print(
            f"{name:24s} {spent[name] / 60:5.1f} min {seen[name]:9,} pictures seen   "
            f"called cat {share.value:4.0%}   probability {probability.value:.2f}   "
            f"Fréchet {far.value:7.2f} (real cats {far.floor:.2f})"
        )


if __name__ == "__main__":
    main()
