"""Where to compute, and in which number format."""

import functools
import time

import torch
import torch.nn.functional as F


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on: cuda, then mps, then cpu; or the one named. Raises ValueError if it
    is not there.
    """
    available = {
        "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there()))
    kind = name.split(":")[0]
    if kind not in available or not available[kind]():
        raise ValueError(f"device {name!r} is not available here; use 'auto', or one of "
                         f"{', '.join(k for k, there in available.items() if there())}")
    return torch.device(name)


@functools.cache
def probe_autocast(device: torch.device) -> str:
    """"bf16" or "float32", whichever trains faster here, found by trying (about 0.2 s on a CPU).

    A flag of the processor does not tell: with matrix units (AMX) bfloat16 was seen 5 to 8 times
    faster than float32, and 17 times slower on a common laptop.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    # one level's convolution of a small UNet, forward and backward
    images = torch.randn(8, 64, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def seconds(dtype: torch.dtype, repeats: int) -> float:
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                F.conv2d(images, weight, padding=1).float().sum().backward()
            best = min(best, time.perf_counter() - start)
            if best > 0.2:  # already far slower than float32 ever is: no need to look again
                break
        return best

    full, half = seconds(torch.float32, 4), seconds(torch.bfloat16, 4)
    return "bf16" if half < 0.8 * full else "float32"  # a tie goes to the exact one
