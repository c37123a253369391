"""A resident module as a function of a flat vector."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paceline.core.columns import Samples, spread, widened
from paceline.core.hooks import Objective
from paceline.core.layout import Layout
from paceline.core.params import Resident

__all__ = ["Functional"]

Around = Callable[[dict[str, Tensor]], contextlib.AbstractContextManager[Mapping[str, Tensor]]]


class Functional:
    """A resident module as a function of a flat vector.

    Args:
        model: resident module; called with substituted tensors, its own do not change.
        objective: ``(module, inputs, targets) -> scalar``, or None for the module's outputs.
        around: context of the module's calls: it receives the named tensors, and returns further ones to substitute.
    """

    def __init__(self, model: Resident, objective: Objective | None = None, around: Around | None = None) -> None:
        self.layout: Layout = model.layout
        self.module: nn.Module = _Objective(model.module, objective) if objective else model.module
        self._around, self._prefix = around, "module." if objective else ""
        plain = model.views and model.params.vector.dtype == torch.float32
        self._kinds = None if plain else [_tensor(model.module, e.name).dtype for e in self.layout.entries]
        self._names = [e.name for e in self.layout.entries]
        self._sizes = [e.size for e in self.layout.entries]
        self._shapes = [e.shape for e in self.layout.entries]

    def __call__(self, vector: Tensor, *inputs: Any) -> Any:
        """Return the outputs (or the objective) at the parameters `vector`, shape [d]."""
        return self.at(self.split(vector), *inputs)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector's named tensors, in the layout's order."""
        return [t.view(s) for t, s in zip(torch.split(vector, self._sizes), self._shapes, strict=True)]

    def at(self, tensors: Sequence[Tensor], *inputs: Any) -> Any:
        """Return the same at named tensors, in the layout's order."""
        return self._call(tensors, inputs, {})

    def outputs(self, tensors: Sequence[Tensor], inputs: Samples) -> Any:
        """Return the module's outputs for one input, or those of a tuple or dict."""
        return widened(self._call(tensors, *spread(inputs)))

    def _call(self, tensors: Sequence[Tensor], inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> Any:
        if self._kinds is not None:
            tensors = [tensor.to(kind) for tensor, kind in zip(tensors, self._kinds, strict=True)]
        named: Any = dict(zip(self._names, tensors, strict=True))
        with contextlib.nullcontext({}) if self._around is None else self._around(named) as more:
            named |= more
            if not self._prefix:
                return functional_call(self.module, named, inputs, named_inputs)
            placed = {self._prefix + name: tensor for name, tensor in named.items()}
            return functional_call(self.module, placed, inputs, named_inputs)


def _tensor(module: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(parent), leaf)
    return tensor


class _Objective(nn.Module):
    """Wraps an objective as a module, so that it can be called with substituted tensors."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module, self.objective = module, objective

    def forward(self, x: Any, y: Any) -> Tensor:
        return self.objective(self.module, x, y)
