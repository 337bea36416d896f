"""Augmentation that does not leak (Karras et al. 2022, appendix F.2).

A few thousand pictures are soon known by heart. Moved, turned and scaled ones are new, but who
learns from turned cats draws turned cats. So the network is told, beside the time, what was done to
each picture; when it draws, it is told "nothing", and draws upright ones.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOVES = 5  # what the network is told: shifts right and down, size, cosine - 1 and sine of the turn


def draw_moves(count: int, generator: torch.Generator) -> Tensor:
    """(count, 8), for each picture: four normal numbers (how much), four uniform (whether)."""
    much, whether = (make((count, 4), generator=generator) for make in (torch.randn, torch.rand))
    return torch.cat([much, whether], dim=1)


def augment(pictures: Tensor, moves: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Shift (about 1/8 of the width), scale (15 %) and turn (15°), each with probability `chance`.

    pictures (B, C, H, W), moves (B, 8) from `draw_moves`. Returns the changed pictures, their
    outside mirrored in, and what to tell the network, (B, MOVES): zeros where nothing was done.
    """
    right, down, size, turn = (moves[:, :4] * (moves[:, 4:] < chance)).unbind(1)
    right, down, scale, angle = right / 8, down / 8, 2 ** (0.2 * size), turn * math.radians(15)
    cos, sin = angle.cos(), angle.sin()
    # grid_sample asks where each new pixel comes from: the change backwards, in half widths
    shift = torch.stack([-2 * right, -2 * down], dim=1)[:, :, None]
    turn_back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], dim=1)
    back = turn_back / scale[:, None, None]
    back = torch.cat([back, back @ shift], dim=2)
    grid = F.affine_grid(back, list(pictures.shape), align_corners=False)
    changed = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    told = torch.stack([right, down, scale.log2(), cos - 1, sin], dim=1)
    return torch.where((told == 0).all(dim=1)[:, None, None, None], pictures, changed), told
