"""Attention, which has no weights of its own: all clients' samples are one batch."""

from __future__ import annotations

import math
import types
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.layers.batched import is_differentiated, together

if TYPE_CHECKING:
    from paceline.engines.stacking.layers.mode import Handler, StackedLayers

__all__ = ["ATTENTION"]


def _attend(
    layers: StackedLayers,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p and query.device.type == "cuda":
        raise Unstackable("the dropout of scaled_dot_product_attention has a stream of its kernel's own on a GPU")
    if dropout_p or is_differentiated(query, key, value, attn_mask):
        return _written_out(layers, query, key, value, attn_mask, dropout_p, **options)  # type: ignore[arg-type]

    def call(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size, rest = query.shape[0], query.shape[1:]
        if mask is not None:
            mask = mask.expand(size, *mask.shape[1:]) if mask.dim() == query.dim() else _widened(mask, query)
            mask = mask.expand(*query.shape[:-1], key.shape[-2]).flatten(0, 1)
        if query.dim() == 3:  # one sequence of each client, without a batch
            out: Tensor = func(query, key, value, mask, **options)
            return out
        out = func(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), mask, **options)
        return out.view(size, rest[0], *out.shape[1:])

    return together(call, layers.slot, query, key, value, attn_mask)


def _widened(mask: Tensor, query: Tensor) -> Tensor:
    """Return a mask [K, ...] with dimensions of size 1 where one client's mask has fewer than the queries."""
    return mask.reshape(mask.shape[0], *[1] * (query.dim() - mask.dim()), *mask.shape[1:])


def _written_out(
    layers: StackedLayers,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Return the attended values in plain products, in the order in which torch draws their dropout on a CPU."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    shares = scores.softmax(-1)
    if dropout:
        shares = layers.call(F.dropout, shares, dropout, True)
    return shares @ value


def _never(*_: Any) -> bool:
    return False


_OPEN = {"has_torch_function": _never, "has_torch_function_unary": _never, "has_torch_function_variadic": _never}


def _opened(func: Any) -> Any:
    """Return a function of ``torch.nn.functional`` whose inner calls are dispatched, instead of itself."""
    opened = types.FunctionType(func.__code__, {**func.__globals__, **_OPEN}, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


_multi_head = _opened(F.multi_head_attention_forward)


def _multi_head_attention(layers: StackedLayers, func: Any, *args: Any, **options: Any) -> Any:
    return layers.call(_multi_head, *args, **options)


ATTENTION: dict[Any, Handler] = {
    F.scaled_dot_product_attention: _attend,
    F.multi_head_attention_forward: _multi_head_attention,
}
