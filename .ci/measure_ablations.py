"""What does each piece of the U-Net do? Train it without, and write what notebook 03 reads:
diffusion_lib/weights/tables/ablations.json.

    python .ci/measure_ablations.py        three minutes on one core

Five networks and a control, four seeds each. A seed fixes the drawings, timesteps and noise of a
run, so all networks of a seed see the same, and differences are taken pair by pair. The control is
the whole network again with other first weights: what it differs by is chance.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import GaussianDiffusion, ToyCats, UNet, cosine_beta_schedule, to_float
from diffusion_lib.core import unet
from diffusion_lib.core.losses import loss_per_timestep
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS

TABLE = WEIGHTS / "tables" / "ablations.json"
SEEDS, STEPS, BATCH = range(4), 120, 16
TIMESTEPS = (0, 3, 6, 10, *range(25, 1000, 100))  # nearly clean, then evenly spaced


class NoTime(nn.Module):
    """In place of a block's layer for the time: adds nothing."""

    def forward(self, time: Tensor) -> Tensor:
        return torch.zeros(len(time), 1)


def without_skips(network: UNet) -> None:
    """Zeros in place of what is handed across; the widths stay."""
    def blank(width: int) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, time = inputs
            return torch.cat([x[:, :-width], torch.zeros_like(x[:, -width:])], dim=1), time
        return hook

    blocks = [block for level in network.up_blocks for block in level.resnets]
    # channels kept, from the bottom up
    for block, width in zip(blocks, [32, 32, 32, 16, 16, 16], strict=True):
        block.register_forward_pre_hook(blank(width))


def without_time(network: UNet, but: tuple[nn.Module, ...] = ()) -> None:
    """No block is told t, `but` some."""
    for block in network.modules():
        if isinstance(block, unet.ResBlock) and block not in but:
            block.time_emb_proj = NoTime()


def without_norm(network: UNet) -> None:
    """Every GroupNorm taken out."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())


def original(network: UNet) -> None:
    """The student project's choices: the time only in the middle, no normalisation."""
    without_time(network, but=tuple(network.mid_block.resnets))
    without_norm(network)


CHANGES: dict[str, Callable[[UNet], None]] = {
    "ours": lambda network: None, "ours again": lambda network: None,
    "without skips": without_skips, "without time": without_time, "without norm": without_norm,
    "original": original,
}


def errors(name: str, seed: int, process: GaussianDiffusion, cats: Tensor, fresh: Tensor
           ) -> list[float]:
    """Squared error in the noise at each of TIMESTEPS on `fresh`, after one short training."""
    torch.manual_seed(seed + 1000 * (name == "ours again"))
    network = UNet(image_size=16, channels=16, patch_size=2)
    CHANGES[name](network)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / STEPS))
    for _ in range(STEPS):
        clean = cats[torch.randint(0, len(cats), (BATCH,), generator=generator)]
        t = torch.randint(0, process.T, (BATCH,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        loss = (network(process.q_sample(clean, t, noise), t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss_per_timestep(process, network.eval(), fresh, list(TIMESTEPS)).tolist()


def main() -> None:
    process = GaussianDiffusion(cosine_beta_schedule(1000))
    cats = to_float(ToyCats(size=16, n=2048).images)
    fresh = to_float(ToyCats(size=16, n=64, seed=1).images)
    start = time.perf_counter()
    measured: dict[str, list[list[float]]] = {name: [] for name in CHANGES}
    for seed in SEEDS:
        for name in CHANGES:
            found = errors(name, seed, process, cats, fresh)
            measured[name].append([round(error, 4) for error in found])
            print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        table = {"timesteps": TIMESTEPS, "steps": STEPS, "batch": BATCH, "fresh": len(fresh),
                 "made by": "python .ci/measure_ablations.py", "errors": measured}
        with whole(TABLE) as path:
            path.write_text(json.dumps(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
