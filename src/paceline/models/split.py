"""Split of a classifier into features and head: the head is the last linear layer, the features are its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from paceline.core.columns import Samples, call
from paceline.core.errors import ConfigError
from paceline.core.layout import Buffers, Layout
from paceline.core.params import Params

__all__ = ["body_layout", "features", "head", "head_name", "join", "penultimate", "scored", "take", "with_second_head"]


def head_name(module: nn.Module) -> str:
    """Return the name of the head: the last layer of a chain, or the module's ``head_name``.

    Raises:
        ConfigError: the module has no linear head.
    """
    own = getattr(module, "head_name", None)
    if isinstance(own, str):
        return own
    if isinstance(module, nn.Sequential) and len(module) and isinstance(module[-1], nn.Linear):
        return str(list(module._modules)[-1])
    raise ConfigError(
        f"{type(module).__name__} cannot be split into features and head; use an nn.Sequential that "
        f"ends in nn.Linear, or define head_name and features(x) on the module"
    )


def head(module: nn.Module) -> nn.Linear:
    """Return the head."""
    return cast(nn.Linear, module.get_submodule(head_name(module)))


def features(module: nn.Module, x: Samples) -> Tensor:
    """Return the input of the head, shape [N, d], float32. May be called in an objective of the local loop."""
    own: Any = getattr(module, "features", None)
    if callable(own) and not isinstance(module, nn.Sequential):
        return cast(Tensor, call(own, x)).float()
    head_name(module)
    for layer in list(cast(nn.Sequential, module))[:-1]:
        x = layer(x)
    return cast(Tensor, x).float()


def scored(module: nn.Module, features: Tensor) -> Tensor:
    """Return the head's scores of features, float32, whatever the dtype of the module."""
    layer = head(module)
    scores: Tensor = layer(features.to(layer.weight.dtype)).float()
    return scores


def penultimate(module: nn.Module, x: Samples) -> Tensor:
    """Return the input of the last layer with weights that a module runs, shape [N, ...], float32; its outputs if there is none.

    Unlike `features` this serves any module, such as one with an output for each pixel. It is not for use in hooks.
    """
    seen: list[Tensor] = []

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        seen[:] = [given[0]]

    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        out = call(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    return (seen[0] if seen else cast(Tensor, out)).float()


def body_layout(module: nn.Module, trainable: Sequence[str] | None = None, buffers: Buffers = "average") -> Layout:
    """Return the layout of everything except the head; the other arguments are those of `Layout.of`."""
    name = f"{head_name(module)}."
    return Layout.of(module, trainable, buffers).part(lambda entry: not entry.name.startswith(name))


def with_second_head(module: nn.Module) -> nn.Module:
    """Add an ``own_weight`` and an ``own_bias`` to the head, drawn like those of a new layer; outputs do not depend on them."""
    layer = head(module)
    second = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.weight.dtype)
    for part, value in list(second.named_parameters()):
        layer.register_parameter(f"own_{part}", value)
    return module


def take(params: Params, layout: Layout) -> Params:
    """Return the part of `params` named by `layout`."""
    return Params(torch.cat([params[e.name].reshape(-1) for e in layout.entries]), layout)


def join(params: Params, named: Mapping[str, Tensor] | Params) -> Params:
    """Return `params` with the named tensors replaced."""
    whole = params.clone()
    for name, value in named.items():
        whole[name].copy_(value)
    return whole
