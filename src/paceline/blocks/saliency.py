"""Importance of single parameters from exploration of the loss surface: sums of squared displacements, scaled by tensor."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paceline.core.params import Params

__all__ = ["SaliencyScale", "quantile_mask", "scaled_saliency"]

SaliencyScale = Literal["minmax", "robust"]


def scaled_saliency(displacement: Params, scale: SaliencyScale = "minmax", unit_mean: bool = False) -> Params:
    """Return the guidance of each parameter, scaled within its tensor; 1 for running statistics and where all are equal.

    Args:
        displacement: mean over clients of the squared displacement of each parameter, [d].
        scale: ``minmax``: (D - min) / (max - min); ``robust``: (D - median) / (third - first quartile), which may be negative.
        unit_mean: divide by the mean of the tensor.
    """
    found = displacement.zeros() + 1.0
    for entry in displacement.layout.entries:
        if entry.kind != "param":
            continue
        values = displacement[entry.name].double()
        low, high = (values.min(), values.max()) if scale == "minmax" else _quartiles(values)
        if high > low:
            middle = low if scale == "minmax" else _quantile(values, 0.5)
            guide = (values - middle) / (high - low)
            mean = guide.mean()
            found[entry.name].copy_(guide / mean if unit_mean and mean > 0 else guide)
    return found


def quantile_mask(guidance: Params, share: float, names: Collection[str] | None = None, floor: float = 0.0) -> Params:
    """Return 1 for parameters above the quantile `share` of all parameters' guidance, else 0; 1 for running statistics.

    Args:
        guidance: [d].
        share: fraction of parameters to be masked, by linear interpolation between them.
        names: tensors of which values are masked, and whose values form the quantile; all by default. One whose values are all equal
            gives no reason to prefer any, and is not masked.
        floor: least share of survivors in each tensor, those with the highest guidance.
    """
    mask = guidance.zeros() + 1.0
    entries = [e for e in guidance.layout.entries if e.kind == "param" and (names is None or e.name in names)]
    if not share or not entries:
        return mask
    threshold = _quantile(torch.cat([guidance[e.name].reshape(-1) for e in entries]).double(), share)
    for entry in entries:
        values = guidance[entry.name].reshape(-1).double()
        if values.min() < values.max():
            kept = values > threshold
            best = values.argsort(descending=True, stable=True)[: math.ceil(floor * len(values))]
            kept[best] = True
            mask[entry.name].copy_(kept.view(entry.shape))
    return mask


def _quartiles(values: Tensor) -> tuple[Tensor, Tensor]:
    return _quantile(values, 0.25), _quantile(values, 0.75)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return the linearly interpolated quantile; `torch.quantile` refuses large tensors."""
    return torch.as_tensor(np.quantile(values.cpu().numpy(), share), dtype=values.dtype, device=values.device)
