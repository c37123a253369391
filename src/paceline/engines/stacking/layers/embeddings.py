"""Embeddings with one table per client: one lookup in the tables of all clients, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.stacked import is_stacked
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.layers.batched import is_differentiated, together

if TYPE_CHECKING:
    from paceline.engines.stacking.layers.mode import Handler, StackedLayers

__all__ = ["EMBEDDINGS"]


def _embedding(
    layers: StackedLayers,
    func: Any,
    rows: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None:
        raise Unstackable("an embedding with max_norm changes its table in the forward pass")
    if not is_stacked(weight) and not is_differentiated(weight):
        return func(rows, weight, padding_idx)  # shared by all clients

    def call(rows: Tensor, weight: Tensor) -> Tensor:
        size, words, width = weight.shape
        offsets = torch.arange(0, size * words, words, device=rows.device).view(-1, *[1] * (rows.dim() - 1))
        return F.embedding(rows + offsets, weight.reshape(-1, width), scale_grad_by_freq=scale_grad_by_freq)

    if not is_differentiated(weight):
        out = together(call, layers.slot, rows, weight)
    elif scale_grad_by_freq:
        raise Unstackable("an embedding with scale_grad_by_freq within a hook that asks for gradients")
    else:
        out = func(rows, weight)
    if padding_idx is None:
        return out
    padding = padding_idx if padding_idx >= 0 else padding_idx + weight.shape[0]
    return torch.where((rows == padding).unsqueeze(-1), out.detach(), out)  # the row of the padding gets no gradient


def _embedding_bag(
    layers: StackedLayers,
    func: Any,
    rows: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    if rows.dim() == 1 and (mode == "max" or offsets is None):
        raise Unstackable("an embedding bag with offsets and the mode max; pass its indices as a matrix")
    vectors = _embedding(layers, F.embedding, rows, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    real = torch.ones_like(rows, dtype=torch.bool)
    if padding_idx is not None:
        real = rows != (padding_idx if padding_idx >= 0 else padding_idx + weight.shape[0])
    share = real.to(vectors.dtype)
    if per_sample_weights is not None:
        share = share * per_sample_weights
    if mode == "max":
        found = vectors.masked_fill(~real.unsqueeze(-1), -torch.inf).max(-2).values
        return torch.where(real.any(-1, keepdim=True), found, 0.0)
    vectors = vectors * share.unsqueeze(-1)
    if rows.dim() == 2:
        total, count = vectors.sum(-2), real.sum(-1, keepdim=True)
    else:
        assert offsets is not None
        bags = offsets.shape[0] - include_last_offset
        bag = torch.searchsorted(offsets[:bags], torch.arange(rows.shape[0], device=rows.device), right=True) - 1
        total = torch.zeros_like(vectors[:1]).expand(bags, -1).index_add(0, bag, vectors)
        count = torch.zeros_like(share[:1]).expand(bags).index_add(0, bag, real.to(vectors.dtype)).unsqueeze(-1)
    return total / count.clamp(min=1) if mode == "mean" else total


EMBEDDINGS: dict[Any, Handler] = {F.embedding: _embedding, F.embedding_bag: _embedding_bag}
