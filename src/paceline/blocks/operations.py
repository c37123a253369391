"""Operations on pictures with a level from 0 to 1, one for each picture of a batch: those of AutoAugment, and flip and cutout.

    value = low + level (high - low);  values of geometric operations may change their sign

Pictures are brightness from 0 to 1, shape [B, C, H, W]. Results are those of Pillow's operations on 8-bit pictures up to rounding:
geometric operations copy the nearest pixel, and what enters is black. All functions are pure and draw nothing, so an engine can
stack them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATIONS", "Operation", "chosen_operation", "every_operation", "level_value"]

Operation = Literal[
    "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "auto-contrast", "invert", "equalize", "solarize", "posterize",
    "contrast", "color", "brightness", "sharpness", "cutout", "flip", "identity",
]  # fmt: skip

OPERATIONS: dict[str, tuple[float, float]] = {
    "shear-x": (-0.3, 0.3),
    "shear-y": (-0.3, 0.3),
    "translate-x": (-0.45, 0.45),
    "translate-y": (-0.45, 0.45),
    "rotate": (-30.0, 30.0),
    "auto-contrast": (0.0, 1.0),
    "invert": (0.0, 1.0),
    "equalize": (0.0, 1.0),
    "solarize": (0.0, 256.0),
    "posterize": (4.0, 8.0),
    "contrast": (0.1, 1.9),
    "color": (0.1, 1.9),
    "brightness": (0.1, 1.9),
    "sharpness": (0.1, 1.9),
    "cutout": (0.0, 0.2),
    "flip": (0.0, 1.0),
    "identity": (0.0, 1.0),
}
"""Lowest and highest value: shares of a side, degrees, thresholds, bits, factors."""

_GEOMETRIC = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate", "flip", "identity")
_FILL = (125 / 255, 123 / 255, 114 / 255)
_SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13


def level_value(name: str, level: Tensor) -> Tensor:
    """Return an operation's value at levels from 0 to 1, of any shape; levels outside are clamped.

    Example:
        >>> level_value("rotate", torch.tensor(0.75))
        tensor(15.)
    """
    low, high = OPERATIONS[name]
    value = low + level.clamp(0, 1) * (high - low)
    return value.floor() if name == "posterize" else value


def _matrix(name: str, v: Tensor, height: int, width: int) -> Tensor:
    """Return [a, b, c, d, e, f] for values [B]: the result at (x, y) is the source at (a x + b y + c, d x + e y + f), [B, 6]."""
    one, zero = torch.ones_like(v), torch.zeros_like(v)
    if name == "shear-x":
        rows = [one, v, zero, zero, one, zero]
    elif name == "shear-y":
        rows = [one, zero, zero, v, one, zero]
    elif name == "translate-x":
        rows = [one, zero, v * width, zero, one, zero]
    elif name == "translate-y":
        rows = [one, zero, zero, zero, one, v * height]
    elif name == "rotate":  # counter-clockwise around the centre
        angle, x, y = v * (-math.pi / 180), width / 2, height / 2
        cos, sin = angle.cos(), angle.sin()
        rows = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    elif name == "flip":
        rows = [-one, zero, one * width, zero, one, zero]
    else:
        rows = [one, zero, zero, zero, one, zero]
    return torch.stack(rows, -1)


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """Return pictures [B, C, H, W] at the nearest source pixels of matrices [B, 6]; black where there is none."""
    height, width = x.shape[-2:]
    down = (torch.arange(height, device=x.device) + 0.5)[:, None].expand(height, width)
    across = (torch.arange(width, device=x.device) + 0.5).expand(height, width)
    a, b, c, d, e, f = (part[:, None, None] for part in matrix.unbind(-1))
    column, row = (a * across + b * down + c).floor(), (d * across + e * down + f).floor()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
    flat = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return torch.where(inside[:, None], flat, 0.0)


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (base + (x - base) * factor).clamp(0, 1)


def _equalized(x: Tensor) -> Tensor:
    """Return pictures whose brightness has an even histogram in each channel, as Pillow's."""
    grey = (x * 255).round().clamp(0, 255).long().flatten(2)
    count = torch.zeros(*grey.shape[:2], 256, device=x.device).scatter_add(2, grey, torch.ones_like(grey, dtype=torch.float32))
    top = grey.amax(2, keepdim=True)
    step = ((grey.shape[2] - count.gather(2, top)) / 255).floor()
    table = ((step / 2).floor() + count.cumsum(2) - count).div(step.clamp(min=1)).floor().clamp(0, 255)
    even = table.gather(2, grey) / 255
    return torch.where(step > 0, even, x.flatten(2)).view(x.shape)


def _lit(name: str, x: Tensor, v: Tensor, place: Tensor) -> Tensor:
    """Return pictures after an operation on brightness; values [B], centres of cutouts in 0..1, [B, 2]."""
    v = v[:, None, None, None]
    if name == "auto-contrast":
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)
    if name == "invert":
        return 1 - x
    if name == "equalize":
        return _equalized(x)
    if name == "solarize":
        return torch.where(x * 255 < v, x, 1 - x)
    if name == "posterize":
        coarse = 2 ** (8 - v)
        return torch.where(v >= 8, x, (x * 255).round().div(coarse).floor() * coarse / 255)
    if name == "brightness":
        return (x * v).clamp(0, 1)
    if name == "sharpness":
        if min(x.shape[2:]) < 3:
            return x
        soft = F.conv2d(x.flatten(0, 1)[:, None], _SMOOTH.to(x)[None, None]).view(*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2)
        return torch.cat(
            [
                x[:, :, :1],
                torch.cat([x[:, :, 1:-1, :1], _blend(soft, x[:, :, 1:-1, 1:-1], v), x[:, :, 1:-1, -1:]], 3),
                x[:, :, -1:],
            ],
            2,
        )
    if name == "cutout":
        height, width = x.shape[2:]
        down = torch.arange(height, device=x.device)[:, None] + 0.5
        across = torch.arange(width, device=x.device) + 0.5
        rows, columns = (place[:, 0] * height)[:, None, None], (place[:, 1] * width)[:, None, None]
        half = v[:, 0] / 2
        inside = ((down - rows).abs() <= half * height) & ((across - columns).abs() <= half * width)
        fill = x.new_tensor(_FILL if x.shape[1] == 3 else [sum(_FILL) / 3] * x.shape[1])
        return torch.where(inside[:, None], fill[:, None, None], x)
    weights = x.new_tensor([0.299, 0.587, 0.114])[:, None, None] if x.shape[1] == 3 else 1 / x.shape[1]
    grey = (x * weights).sum(1, keepdim=True)
    return _blend(grey if name == "color" else grey.mean((1, 2, 3), keepdim=True), x, v)


def _applied(name: str, x: Tensor, level: Tensor, sign: Tensor, place: Tensor) -> Tensor:
    value = level_value(name, level)
    if name in _GEOMETRIC:
        return _moved(x, _matrix(name, value * sign, *x.shape[-2:]))
    return _lit(name, x, value, place)


def every_operation(x: Tensor, names: Sequence[str], levels: Tensor, sign: Tensor, place: Tensor) -> Tensor:
    """Return each picture after each of J operations, shape [B, J, C, H, W].

    Args:
        x: brightness, shape [B, C, H, W].
        names: names of `OPERATIONS`.
        levels: shape [B, J], from 0 to 1.
        sign: 1 or -1 for geometric operations, shape [B].
        place: centre of a cutout as shares of height and width, shape [B, 2].
    """
    return torch.stack([_applied(name, x, levels[:, j], sign, place) for j, name in enumerate(names)], 1)


def chosen_operation(x: Tensor, names: Sequence[str], which: Tensor, level: Tensor, sign: Tensor, place: Tensor) -> Tensor:
    """Return each picture after its own operation, shape [B, C, H, W]; the arguments are those of `every_operation`, except for:

    Args:
        which: number of the picture's operation in `names`, shape [B].
        level: its level, shape [B].
    """
    matrix, out = _matrix("identity", level, *x.shape[-2:]), x
    for j, name in enumerate(names):
        mine = which == j
        if name in _GEOMETRIC:
            own = _matrix(name, level_value(name, level) * sign, *x.shape[-2:])
            matrix = torch.where(mine[:, None], own, matrix)
        else:
            out = torch.where(mine[:, None, None, None], _lit(name, x, level_value(name, level), place), out)
    return _moved(out, matrix) if any(name in _GEOMETRIC for name in names) else out
