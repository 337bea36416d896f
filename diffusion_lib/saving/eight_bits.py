"""Weights at a byte each, for models that ship: whole numbers from -127 to 127, one scale a row.

A row is what makes one output (the weight's first dimension); its scale is its largest weight over
127. Rounding moves no weight by more than half a scale. Vectors (biases, norms) stay float16: they
are few. Half the size of float16; a model's card tells what it was measured with.
"""

import torch
from torch import Tensor

SCALE = ".scale"  # beside the name of a weight


def pack(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float weights of two or more dimensions -> int8 and a float32 scale a row; other float
    weights -> float16; whole numbers stay.
    """
    packed = {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            packed[name] = weight
        elif weight.ndim < 2:
            packed[name] = weight.half().contiguous()
        else:
            rows = weight.float().flatten(1)
            scale = rows.abs().amax(dim=1) / 127
            whole = (rows / scale.clamp(min=1e-30)[:, None]).round()
            packed[name] = whole.to(torch.int8).view(weight.shape)
            packed[name + SCALE] = scale
    return packed


def unpack(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` made -> float32 weights; anything else stays as it is."""
    return {
        name: weight.float() * weights[name + SCALE].view(-1, *[1] * (weight.ndim - 1))
        if name + SCALE in weights else weight
        for name, weight in weights.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in weights)
    }
