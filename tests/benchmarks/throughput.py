"""Images per second of whole training steps: ours, diffusers' UNet2DModel with the same weights,
and denoising_diffusion_pytorch.

    .venv/bin/python tests/benchmarks/throughput.py [--batch 32] [--rounds 5] [--size 32]
    [--channels 64]

A step is forward, backward, clipped gradient, AdamW and one average of the weights. The networks
take turns, so that a noisy machine disturbs all alike; the best round of each counts. (In one
process all profit from `ops.keep_memory`.) "peak" is the share of what large matrix products reach
here in the same number format. denoising_diffusion_pytorch (pip install
denoising-diffusion-pytorch) is left out where it is missing; its Unet is compared at matched
multiply-adds, so by multiply-adds a second. The last part tells what our step spends besides
forward, backward, optimiser.
"""

import argparse
import importlib
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lib import (
    GaussianDiffusion,
    ToyCats,
    TrainConfig,
    Trainer,
    UNet,
    cosine_beta_schedule,
)
from diffusion_lib.saving.diffusers_format import to_diffusers_unet
from diffusion_lib.training.device import pick_device, probe_autocast


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        sync(device)
        start = time.perf_counter()
        a @ b
        sync(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def foreign_step(
    network: nn.Module, answer: Callable, images: torch.Tensor, diffusion: GaussianDiffusion,
    dtype: torch.dtype,
) -> Callable:
    """A step of somebody else's network, written as one would: PyTorch's AdamW, its averaged model,
    autocast.
    """
    device = images.device
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )

    def step() -> None:
        t = torch.randint(0, diffusion.T, (len(images),))
        noise = torch.randn(images.shape).to(device)
        x_t = diffusion.q_sample(images, t, noise)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            said = answer(network, x_t, t.to(device))
        optimizer.zero_grad(set_to_none=True)
        (said.float() - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare whole training steps.")
    for name, default in (("batch", 32), ("rounds", 5), ("size", 32), ("channels", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    device = pick_device()
    dtype = torch.bfloat16 if probe_autocast(device) == "bf16" else torch.float32
    diffusion, cats = (
        GaussianDiffusion(cosine_beta_schedule(1000)), ToyCats(size=arguments.size, n=512),
    )
    model = UNet(image_size=arguments.size, channels=arguments.channels)
    settings = TrainConfig(
        steps=10**6, batch_size=arguments.batch,
        precision="bf16" if dtype == torch.bfloat16 else "float32", ema=(0.05,),
    )
    trainer = Trainer(model, diffusion, cats, settings)
    images = cats.images[: arguments.batch].to(device).float() / 127.5 - 1
    networks = {"ours": (model, lambda network, x, t: network(x, t))}
    networks["diffusers UNet2DModel"] = (
        to_diffusers_unet(model).to(device).train(), lambda network, x, t: network(x, t).sample,
    )
    try:
        # no dependency: installed by whoever wants to compare
        foreign = importlib.import_module("denoising_diffusion_pytorch")
        networks["denoising_diffusion_pytorch"] = (
            foreign.Unet(dim=64, dim_mults=(1, 2, 2)).to(device),
            lambda network, x, t: network(x, t),
        )
    except ImportError:
        print("denoising_diffusion_pytorch is not installed and left out")
    flops, steps = {}, {"ours": trainer.train_step}
    for name, (network, answer) in networks.items():
        with FlopCounterMode(display=False) as counter:
            answer(
                network, images[:1], torch.zeros(1, dtype=torch.long, device=device)
            ).float().mean().backward()
        network.zero_grad(set_to_none=True)
        flops[name] = counter.get_total_flops()
        steps.setdefault(name, foreign_step(network, answer, images, diffusion, dtype))
    # the same function: products that ours saves count as done
    flops["ours"] = flops["diffusers UNet2DModel"]
    best = dict.fromkeys(steps, float("inf"))
    for round_ in range(arguments.rounds + 1):
        for name, step in steps.items():
            sync(device)
            start = time.perf_counter()
            for _ in range(3):
                step()
            sync(device)
            if round_:                                                    # the first warms up
                best[name] = min(best[name], (time.perf_counter() - start) / 3)
    top = peak(device, dtype)
    print(f"{device.type}, {dtype}, {torch.get_num_threads()} threads, batch {arguments.batch}, "
          f"{arguments.size} px; matrix products reach {top / 1e9:.0f} GFLOP/s")
    for name, seconds in best.items():
        speed = flops[name] * arguments.batch / seconds
        per_flop = seconds / best["ours"] * flops["ours"] / flops[name]
        print(f"{name:28s} {arguments.batch / seconds:8.1f} images/s  "
              f"{flops[name] / 1e9:6.2f} GFLOP an image  {speed / 1e9:7.1f} GFLOP/s "
              f"({speed / top:.0%} of the peak)  ours is {per_flop:.2f} times as fast per FLOP")
    besides(trainer)


def besides(trainer: Trainer, count: int = 10) -> None:
    """The share of a step that is neither forward, backward nor optimiser."""
    seconds = {"forward": 0.0, "backward": 0.0, "optimiser": 0.0}

    def timed(name: str, call: Callable) -> Callable:
        def wrapped(*args: object, **kwargs: object) -> object:
            sync(trainer.device)
            start = time.perf_counter()
            result = call(*args, **kwargs)
            sync(trainer.device)
            seconds[name] += time.perf_counter() - start
            return result
        return wrapped

    backward = torch.Tensor.backward
    trainer.network = timed("forward", trainer.network)
    trainer.optimizer.step = timed("optimiser", trainer.optimizer.step)
    torch.Tensor.backward = timed("backward", backward)
    try:
        start = time.perf_counter()
        for _ in range(count):
            trainer.train_step()
        sync(trainer.device)
        whole = time.perf_counter() - start
    finally:
        torch.Tensor.backward = backward
    parts = "  ".join(f"{name} {value / whole:.1%}" for name, value in seconds.items())
    print(f"our step: {parts}  all else {1 - sum(seconds.values()) / whole:.1%}")


if __name__ == "__main__":
    main()
