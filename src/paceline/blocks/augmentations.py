"""Random changes of batches of pictures, as functions of (pictures [B, C, H, W], stream); every picture has its own draws.

They serve as hook `Hooks.augment`: ``Hooks(augment=inputs_only(compose(flip(), crop(4))))`` or, for several views,
``Hooks(augment=views(compose(resized_crop(), jitter()), 2))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.hooks import Augment

__all__ = [
    "Augmentation",
    "alike",
    "compose",
    "crop",
    "cutout",
    "flip",
    "grey",
    "inputs_only",
    "jitter",
    "noise",
    "one_of",
    "resized_crop",
    "tilt",
    "views",
    "warp",
]

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(pictures [B, C, H, W], stream on the CPU) -> pictures of the same shape."""


def _uniform(x: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return one number for each picture, shape [B, 1, 1, 1]."""
    return (low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator)).to(x)


def compose(*parts: Augmentation) -> Augmentation:
    """Return the augmentations one after another."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        for part in parts:
            x = part(x, generator)
        return x

    return apply


def inputs_only(change: Augmentation) -> Augment:
    """Return the hook that changes a batch's inputs and leaves the targets as they are."""
    return lambda x, y, generator: (change(x, generator), y)


def views(change: Augmentation, count: int = 2) -> Augment:
    """Return the hook that replaces the inputs by a tuple of `count` independent views of them."""

    def apply(x: Any, y: Any, generator: torch.Generator) -> tuple[Any, Any]:
        return tuple(change(x, generator) for _ in range(count)), y

    return apply


def one_of(*parts: Augmentation) -> Augmentation:
    """Return an augmentation that applies one of several, drawn for each batch."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        return parts[int(torch.randint(len(parts), (), generator=generator))](x, generator)

    return apply


def alike(change: Augmentation) -> Augmentation:
    """Return the augmentation with the same draws for all pictures of a batch, and of other batches with an equal stream."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        return change(x.reshape(1, -1, *x.shape[2:]), generator).reshape(x.shape)

    return apply


def flip(share: float = 0.5) -> Augmentation:
    """Mirror pictures left to right with probability `share`."""
    return lambda x, generator: torch.where(_uniform(x, generator) < share, x.flip(3), x)


def grey(share: float = 0.2) -> Augmentation:
    """Replace all channels by their mean with probability `share`."""
    return lambda x, generator: torch.where(_uniform(x, generator) < share, x.mean(1, keepdim=True), x)


def noise(deviation: float) -> Augmentation:
    """Add normal noise."""
    return lambda x, generator: x + deviation * torch.randn(x.shape, generator=generator).to(x)


def jitter(brightness: float = 0.4, contrast: float = 0.4) -> Augmentation:
    """Add up to `brightness` times the deviation of a picture, and scale its contrast by 1 - `contrast` to 1 + `contrast`."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        shift = _uniform(x, generator, -brightness, brightness) * deviation
        return (x - mean) * _uniform(x, generator, 1 - contrast, 1 + contrast) + mean + shift

    return apply


def crop(margin: int) -> Augmentation:
    """Shift pictures by up to `margin` pixels in each direction; what enters repeats the border."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = x.shape
        shift = torch.randint(-margin, margin + 1, (2, batch, 1), generator=generator).to(x.device)
        rows = (torch.arange(height, device=x.device) + shift[0]).clamp(0, height - 1)
        columns = (torch.arange(width, device=x.device) + shift[1]).clamp(0, width - 1)
        which = torch.arange(batch, device=x.device)
        return x.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return apply


def cutout(share: float = 0.5, fill: float = 0.0) -> Augmentation:
    """Fill a square of `share` of the side at a random place."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        inside = torch.ones_like(x[:, :1], dtype=torch.bool)
        for dim in (2, 3):
            side = x.shape[dim]
            size = round(share * side)
            start = (_uniform(x, generator) * (side - size + 1)).floor()
            place = torch.arange(side, device=x.device).view([-1 if d == dim else 1 for d in range(4)])
            inside = inside & (place >= start) & (place < start + size)
        return torch.where(inside, fill, x)

    return apply


def warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Return pictures sampled at transformed coordinates (bilinear, borders repeated).

    Args:
        x: shape [B, C, H, W].
        matrices: shape [B, 2, 3]: from coordinates of the result (x, y, 1), in -1..1, to those of the source.
    """
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def tilt(degrees: float = 30.0, shift: float = 0.0, shear: float = 0.0) -> Augmentation:
    """Rotate, shift (by a share of half the side) and shear pictures at random, up to the given amounts."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        angle, across, down, skew = (
            _uniform(x, generator, -most, most).flatten() for most in (math.radians(degrees), shift, shift, shear)
        )
        top = torch.stack([angle.cos(), skew - angle.sin(), across], 1)
        return warp(x, torch.stack([top, torch.stack([angle.sin(), angle.cos(), down], 1)], 1))

    return apply


def resized_crop(low: float = 0.32, high: float = 1.0) -> Augmentation:
    """Enlarge a random part of `low` to `high` of the area to the whole picture."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        size = _uniform(x, generator, low, high).flatten().sqrt()
        across, down = ((2 * _uniform(x, generator).flatten() - 1) * (1 - size) for _ in range(2))
        zero = torch.zeros_like(size)
        return warp(x, torch.stack([torch.stack([size, zero, across], 1), torch.stack([zero, size, down], 1)], 1))

    return apply
