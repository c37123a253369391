"""Inputs of a module's layers: the space on which their weights act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["layer_inputs", "reading_layers"]


def reading_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and (ungrouped) 2-d convolutional layers, by the name of their weight."""
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            found[f"{name}.weight" if name else "weight"] = layer
    return found


@contextmanager
def layer_inputs(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Context manager: collect the inputs of each layer while the module runs, as rows [m, d] by weight name.

    A weight, flattened to [outputs, d], acts on these rows: samples (or positions) of a linear layer, unfolded patches of
    a convolution. Clear the dict between batches.
    """
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        seen.setdefault(name, []).append(_rows(layer, given[0].detach().float()))

    handles = [
        layer.register_forward_pre_hook(lambda layer, given, name=name: keep(name, layer, given))
        for name, layer in reading_layers(module).items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])
