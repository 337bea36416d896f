"""Forward and backward of our UNet against diffusers.UNet2DModel with the same weights, alternating
in one run.

    python tests/benchmarks/unet_step.py [--channels 32] [--batch 64] [--threads 2] [--rounds 5]

Prints images per second (the median over the rounds) and the ratio ours / diffusers (the median of
the rounds' own
ratios, so that another program's load falls on both). channels_last is what training may choose by
its probe.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from diffusion_lib.core.unet import UNet
from diffusion_lib.saving.diffusers_format import to_diffusers_unet


def seconds(network: nn.Module, x: Tensor, t: Tensor, bf16: bool) -> float:
    """One forward and backward pass."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        output = network(x, t)
        output = output if isinstance(output, Tensor) else output.sample
    (output.float() - x).square().mean().backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    ours = UNet(image_size=arguments.size, channels=arguments.channels)
    # the zeros that it starts with could be cheaper than numbers
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    theirs = to_diffusers_unet(ours).to(arguments.device)
    ours = ours.to(arguments.device)
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=arguments.device)
    t = torch.randint(0, 1000, (arguments.batch,), device=arguments.device)
    with torch.no_grad():
        difference = (ours(x[:4], t[:4]) - theirs(x[:4], t[:4]).sample).abs().max().item()
    weights = sum(p.numel() for p in ours.parameters())
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads; "
        f"{arguments.size} px, {arguments.channels} channels, {weights / 1e6:.1f} M weights, "
        f"batch {arguments.batch}; largest difference of the outputs {difference:.1e}"
    )
    print(f"{'':24}{'ours':>12}{'diffusers':>12}{'ratio':>8}")
    for layout, memory_format in (
        ("", torch.contiguous_format),
        (" channels_last", torch.channels_last),
    ):
        ours, theirs, x = (item.to(memory_format=memory_format) for item in (ours, theirs, x))
        for bf16 in (False, True):
            times: list[tuple[float, float]] = []
            for i in range(arguments.rounds + 1):
                pair = (ours, theirs) if i % 2 else (theirs, ours)  # who goes first changes too
                measured = [seconds(network, x, t, bf16) for network in pair]
                times.append(tuple(measured if i % 2 else reversed(measured)))
            del times[0]  # warming up
            mine, other = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(b / a for a, b in times)
            print(f"{('bf16 autocast' if bf16 else 'float32') + layout:24}"
                  f"{arguments.batch / mine:9.1f}/s {arguments.batch / other:10.1f}/s {ratio:7.2f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
