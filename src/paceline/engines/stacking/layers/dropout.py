"""Dropout and other draws, from each stacked client's own stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.stacked import is_stacked
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.layers.batched import together

if TYPE_CHECKING:
    from paceline.engines.stacking.layers.mode import Handler, StackedLayers

__all__ = ["DRAWS", "dropped"]

_AFFINE = (F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout)
"""Kinds of dropout that add a constant as well, ``x * scale + shift``; the others only scale."""


def dropped(layers: StackedLayers, x: Tensor, p: float) -> Tensor:
    """Return the stack's values [K, ...] with dropout, the masks drawn from the clients' streams."""
    return x * _noise(layers, F.dropout, x.detach(), p)[0] if p else x


def _dropout(
    layers: StackedLayers,
    func: Any,
    x: Tensor,
    p: float = 0.5,
    training: bool | None = None,
    *,
    inplace: bool = False,
    **other: Any,
) -> Any:
    """Scale by the noise that ``func`` draws for each client: the values at which it maps ones."""
    training = other.pop("train", training)
    if training is None:
        training = func not in _AFFINE
    if not training or not p:
        return func(x, p, training)
    scale, shift = together(lambda stacked: _noise(layers, func, stacked, p), layers.slot, x.detach())
    if inplace:
        return x.mul_(scale) if func not in _AFFINE else x.mul_(scale).add_(shift)
    return x * scale if func not in _AFFINE else x * scale + shift


def _noise(layers: StackedLayers, func: Any, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each client's dropout, drawn in the order of memory in which `x`, shape [K, ...], lies."""
    affine = func in _AFFINE

    def one(place: int) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(x[place])
        if not affine:
            return func(ones, p, True), ones[:0]
        at_one, at_zero = layers.streams.repeat(lambda: func(ones, p, True), lambda: func(torch.zeros_like(ones), p, True))
        return at_one - at_zero, at_zero

    with torch.no_grad():
        drawn = layers.streams.draw(layers.clients, one)
        scales = torch.stack([scale for scale, _ in drawn])
        return scales, torch.stack([shift for _, shift in drawn])


def _each(layers: StackedLayers, func: Any, *args: Any, **options: Any) -> Any:
    """Call ``func`` once for each client, on its own tensors and with its own stream."""
    if any(is_stacked(value) for value in options.values()):
        raise Unstackable(f"{func.__name__} draws random numbers with tensors as named arguments")
    if options.get("generator") is not None:
        raise Unstackable(f"{func.__name__} draws from a generator of the module's own")
    options.pop("inplace", None)
    if func not in _DIFFERENTIABLE:
        args = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)

    def call(*stacked: Any) -> Tensor:
        def one(place: int) -> Any:
            return func(*(s[place] if isinstance(s, Tensor) else s for s in stacked), **options)

        return torch.stack(layers.streams.draw(layers.clients, one))

    return together(call, layers.slot, *args)


def _in_place(layers: StackedLayers, func: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """Fill one client's tensor after the other."""
    if any(is_stacked(value) for value in (*args, *options.values())):
        raise Unstackable(f"Tensor.{func.__name__} with parameters that differ between clients")
    if not is_stacked(x):
        raise Unstackable(f"Tensor.{func.__name__} draws into a tensor that all clients share; use torch.rand_like or the like")

    def call(stacked: Tensor) -> Tensor:
        layers.streams.draw(layers.clients, lambda place: func(stacked[place], *args, **options))
        return stacked

    together(call, layers.slot, x.detach())
    return x


_DIFFERENTIABLE = (F.rrelu, torch.rrelu)
"""Functions whose results depend on their arguments' values in a way that has a gradient."""

DRAWS: dict[Any, Handler] = dict.fromkeys(
    (
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        torch.feature_alpha_dropout,
    ),
    _dropout,
)
DRAWS |= dict.fromkeys((torch.rand_like, torch.randn_like, torch.rand, torch.randn, torch.bernoulli, F.rrelu, torch.rrelu), _each)
_FILLS: tuple[Callable[..., Any], ...] = (Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.exponential_)
DRAWS |= dict.fromkeys(_FILLS, _in_place)
