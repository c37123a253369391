"""Construction of a physically smaller module from a full one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.flops import quiet
from paceline.submodels.graph import AxisUnits, UnitGraph

__all__ = ["cut_tensor", "num_groups", "output_shapes", "shrink"]


def cut_tensor(tensor: Tensor, axes: tuple[AxisUnits, ...], masks: Mapping[str, Tensor]) -> Tensor:
    """Return the remaining part of a tensor as a contiguous copy."""
    out = tensor.detach()
    for dim, axis in enumerate(axes):
        if axis.group is not None:
            out = out.index_select(dim, axis.positions(masks).to(out.device))
    return out.clone() if out is tensor or out.data_ptr() == tensor.data_ptr() else out


def num_groups(groups: int, channels: int, kept: int) -> int:
    """Return the number of groups of a GroupNorm after `kept` of its `channels` remain.

    This is the largest number that divides `kept` and leaves every group at least as many channels as before. Statistics
    are therefore never computed over fewer channels than in the full model; instance norm (one channel per group) remains
    instance norm, and layer norm (one group) remains layer norm.

    Example:
        >>> num_groups(groups=4, channels=16, kept=8)
        2
    """
    most = max(1, kept * groups // channels)
    return next(g for g in range(most, 0, -1) if kept % g == 0)


def shrink(module: nn.Module, graph: UnitGraph, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` with dense smaller layers, containing only the units for which `masks` is true."""
    small = copy.deepcopy(module)
    names = {id(t): n for n, t in [*small.named_parameters(), *small.named_buffers()]}
    made: dict[int, Tensor] = {}
    for path, layer in small.named_modules():
        for store in (layer._parameters, layer._buffers):
            for key, tensor in list(store.items()):
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    cut = cut_tensor(tensor, graph.axes[names[id(tensor)]], masks)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(cut, tensor.requires_grad) if is_parameter else cut
                setattr(layer, key, made[id(tensor)])
        _resize(path, layer, graph, masks)
    return small


def _resize(path: str, layer: Any, graph: UnitGraph, masks: Mapping[str, Tensor]) -> None:
    """Update the sizes that a layer stores besides its tensors."""
    match layer:
        case nn.Linear():
            layer.out_features, layer.in_features = tuple(layer.weight.shape)
        case nn.Conv1d() | nn.Conv2d():
            out = layer.weight.shape[0]
            layer.groups = layer.groups * out // layer.out_channels if layer.groups > 1 else 1
            layer.out_channels, layer.in_channels = out, layer.weight.shape[1] * layer.groups
        case nn.Embedding():
            layer.embedding_dim = layer.weight.shape[1]
        case nn.LSTM() | nn.GRU():
            widths = {getattr(layer, f"weight_hh_l{k}").shape[1] for k in range(layer.num_layers)}
            if len(widths) > 1:
                raise SubmodelError(f"the layers of {type(layer).__name__} {path!r} must retain equally many cells, not {widths}")
            layer.hidden_size = widths.pop()
            layer.input_size = getattr(layer, "weight_ih_l0").shape[1]  # noqa: B009
        case nn.PReLU():
            layer.num_parameters = layer.weight.shape[0]
        case nn.GroupNorm() | nn.BatchNorm1d() | nn.BatchNorm2d() | nn.LayerNorm() if path in graph.norms:
            left = tuple(len(axis.positions(masks)) for axis in graph.norms[path])
            if isinstance(layer, nn.LayerNorm):
                layer.normalized_shape = left
            elif isinstance(layer, nn.GroupNorm):
                layer.num_groups = num_groups(layer.num_groups, layer.num_channels, left[0])
                layer.num_channels = left[0]
            else:
                layer.num_features = left[0]
        case _:
            pass


def output_shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of a module's output tensors, without modifying the module."""
    with quiet(module):
        return _shapes(module(*inputs))


def _shapes(out: Any) -> list[tuple[int, ...]]:
    if isinstance(out, Tensor):
        return [tuple(out.shape)]
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, tuple | list) else ()
    return [shape for part in parts for shape in _shapes(part)]
