"""What `quicken` brings: whole passes of shipped networks, as PyTorch has them and quickened, in
turn in one run.

    .venv/bin/python tests/benchmarks/cpu_kernels.py [--models catfaces128 cats32] [--rounds 5]

Milliseconds of the best round of each. "plain, by pixels" has the channels last, nothing else.
"""

import argparse
import copy
import time

import torch
from torch import Tensor, nn

from diffusion_lib import load_model
from diffusion_lib.core.cpu_kernels import QUICK, quicken

PLAIN = {quick: plain for plain, quick in QUICK.items()}


def plain(network: nn.Module) -> nn.Module:
    """A copy without what quicken put in; channels stay last."""
    network = copy.deepcopy(network)
    for module in network.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return network


def milliseconds(network: nn.Module, given: tuple[Tensor, ...], learns: bool, bf16: bool) -> float:
    """One pass forward, and backward where it learns."""
    start = time.perf_counter()
    with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answer = network(*given)
    if learns:
        answer.float().square().mean().backward()
    elapsed = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    return 1000 * elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["catfaces128", "cats32", "toycats32"])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n"
          f"{'':34}{'plain':>8}{'plain, by pixels':>18}{'quick':>8}")
    for name in asked.models:
        quick = quicken(load_model(name).model).requires_grad_(True)
        config, by_pixels = quick.config, plain(quick)
        networks = plain(quick).to(memory_format=torch.contiguous_format), by_pixels, quick
        for what, pictures, learns, bf16 in (
            ("training, float32", 64, True, False), ("training, bfloat16", 64, True, True),
            ("drawing 16, float32", 16, False, False),
        ):
            x = torch.randn(pictures, config.in_channels, config.image_size, config.image_size)
            given = x, torch.randint(0, 1000, (pictures,))
            if config.num_classes is not None:
                given += (torch.zeros(pictures, dtype=torch.long),)
            best = [float("inf")] * len(networks)
            for _ in range(asked.rounds + 1):
                for i, network in enumerate(networks):
                    best[i] = min(best[i], milliseconds(network, given, learns, bf16))
            print(f"{name + ', ' + what:34}{best[0]:8.0f}{best[1]:18.0f}{best[2]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
