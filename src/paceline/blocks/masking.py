"""Masks of patches for self-supervised learning: what is shown is one rectangle, cyclically shifted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cyclic_mask", "cyclic_masks"]

_ASPECT = 0.3


def cyclic_mask(grid: tuple[int, int], count: int, stream: torch.Generator, roll: bool = True) -> Tensor:
    """Return a mask of patches, shape [T] (bool), of which exactly `count` are hidden.

    The others form a rectangle of random aspect at a random place (its last row may be incomplete), which is then shifted on both
    axes, with wrap-around, so that every patch is hidden equally often.

    Args:
        grid: rows and columns of patches.
        count: hidden patches.
        stream: random stream on the CPU.
        roll: shift the rectangle.
    """
    rows, columns = grid
    cells = rows * columns
    if count <= 0 or count >= cells:
        return torch.full((cells,), count > 0)
    shown, draws = cells - count, torch.rand(5, generator=stream).tolist()
    aspect = math.exp((2 * draws[0] - 1) * -math.log(_ASPECT))
    height = min(rows, math.ceil(math.sqrt(shown * aspect)))
    width = min(columns, max(math.ceil(math.sqrt(shown / aspect)), math.ceil(shown / height)))
    height = max(height, math.ceil(shown / width))
    top, left = int(draws[1] * (rows - height + 1)), int(draws[2] * (columns - width + 1))
    place = torch.arange(shown)
    visible = torch.zeros(rows, columns, dtype=torch.bool)
    visible[top + place // width, left + place % width] = True
    if roll:
        visible = visible.roll((int(draws[3] * rows), int(draws[4] * columns)), (0, 1))
    return ~visible.flatten()


def cyclic_masks(
    crops: int, grid: tuple[int, int], stream: torch.Generator, low: float = 0.1, high: float = 0.65, share: float = 0.5
) -> Tensor:
    """Return the masks of crops, shape [crops, T] (bool): a share of them is masked, with ratios spread from `low` to `high`.

    At least one patch of each crop is shown.
    """
    cells, chosen = grid[0] * grid[1], round(share * crops)
    found = torch.zeros(crops, cells, dtype=torch.bool)
    edges = torch.linspace(low, high, chosen + 1).tolist()
    ratios = torch.rand(chosen, generator=stream).tolist()
    for i, place in enumerate(torch.randperm(crops, generator=stream)[:chosen].tolist()):
        ratio = edges[i] + (edges[i + 1] - edges[i]) * ratios[i]
        found[place] = cyclic_mask(grid, min(int(cells * ratio), cells - 1), stream)
    return found
