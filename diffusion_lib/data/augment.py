"""Augmentation that does not leak: pictures are moved, turned and scaled, and the network is told how (Karras et al. 2022, appendix F.2).

A few thousand pictures are soon known by heart. Changed ones are new, but a network that learns from turned cats draws turned
cats. So it is told, beside the time, what was done to each picture; when it draws, it is told "nothing", and draws upright ones.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOVES = 5  # numbers that tell what was done to a picture: shifts right and down, size, cosine - 1 and sine of the turn


def draw_moves(count: int, generator: torch.Generator) -> Tensor:
    """(count, 8) random numbers: four normal ones (how much), four uniform ones (whether at all), for one picture a row."""
    return torch.cat([torch.randn((count, 4), generator=generator), torch.rand((count, 4), generator=generator)], dim=1)


def augment(pictures: Tensor, moves: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Shift (by about 1/8 of the width), scale (by about 15 %) and turn (by about 15 degrees), each with probability `chance`.

    pictures (B, C, H, W), moves (B, 8) from `draw_moves`. Returns the changed pictures, their outside mirrored in, and what to tell the
    network, (B, MOVES): zeros where nothing was done.
    """
    right, down, size, turn = (moves[:, :4] * (moves[:, 4:] < chance)).unbind(1)
    right, down, scale, angle = right / 8, down / 8, 2 ** (0.2 * size), turn * math.radians(15)
    cos, sin = angle.cos(), angle.sin()
    # grid_sample asks where each new pixel comes from: the change backwards, in units of half a width
    shift = torch.stack([-2 * right, -2 * down], dim=1)[:, :, None]
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], dim=1) / scale[:, None, None]
    grid = F.affine_grid(torch.cat([back, back @ shift], dim=2), list(pictures.shape), align_corners=False)
    changed = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    told = torch.stack([right, down, scale.log2(), cos - 1, sin], dim=1)
    return torch.where((told == 0).all(dim=1)[:, None, None, None], pictures, changed), told
