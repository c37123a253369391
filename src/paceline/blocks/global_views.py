"""Views for self-distillation: two global ones and several local crops of each sample, and the patches that are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.blocks.augmentations import Augmentation, compose, flip, jitter, noise, resized_crop
from paceline.blocks.masking import cyclic_masks
from paceline.core.hooks import Augment

__all__ = ["multi_crop"]

_LOCAL_SIDE = 98 / 224
"""Side of a local crop, as a share of a global one's."""


def multi_crop(shape: Sequence[int], crops: int, patch: int | None, mirrored: bool = True) -> Augment:
    """Return the hook that replaces inputs by (global views [B, 2, ...], local views [B, crops, ...], hidden patches [B, 2, T]).

    Pictures are cropped and jittered, other inputs get noise, and lose a half of their values in local views. Local crops are smaller
    where a network with patches takes any size; otherwise they are enlarged. Without patches, there is no third tensor.

    Args:
        shape: of a sample.
        crops: number of local views.
        patch: side of a patch, for networks with patches.
        mirrored: whether pictures may be mirrored.
    """
    pictures = len(shape) == 3
    if pictures:
        parts = [flip()] if mirrored else []
        large: Augmentation = compose(resized_crop(0.32, 1.0), *parts, jitter())
        small: Augmentation = compose(resized_crop(0.05, 0.32), *parts, jitter())
    else:
        large, small = noise(0.2), _halved
    side = None if patch is None else tuple(max(1, round(_LOCAL_SIDE * n / patch)) * patch for n in shape[1:])

    def augment(x: Tensor, y: Any, stream: torch.Generator) -> tuple[Any, Any]:
        views = torch.stack([large(x, stream) for _ in range(2)], 1)
        local = [small(x, stream) for _ in range(crops)]
        if side is not None:
            local = [F.interpolate(view, size=side, mode="bilinear", antialias=True) for view in local]
        found = (views, torch.stack(local, 1))
        if patch is None:
            return found, y
        grid = (shape[1] // patch, shape[2] // patch)
        hidden = cyclic_masks(2 * len(x), grid, stream).view(2, len(x), -1).transpose(0, 1)
        return (*found, hidden.to(x.device)), y

    return augment


def _halved(x: Tensor, stream: torch.Generator) -> Tensor:
    """Add noise, and set about half of the values to 0."""
    kept = torch.rand(x.shape, generator=stream) < 0.5
    return torch.where(kept.to(x.device), x + 0.2 * torch.randn(x.shape, generator=stream).to(x), 0.0)
