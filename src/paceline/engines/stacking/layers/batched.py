"""Computation on the stacked tensors behind the values of ``torch.func.vmap``.

Under ``vmap`` a module sees one client's tensors. Where all clients are better computed at once, such as in a recurrent
layer with its many small operations, `together` passes the stacked tensors [K, ...] to a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from paceline.engines.stacking.hooks import Unstackable

__all__ = ["is_differentiated", "together"]

_functorch = torch._C._functorch


def is_differentiated(*values: Any) -> bool:
    """Return whether a value is within ``torch.func.grad``, so that its stacked tensor must not be used."""
    return any(isinstance(v, Tensor) and _functorch.is_gradtrackingtensor(v) for v in values)


def together(call: Callable[..., Any], slot: Tensor, *values: Any) -> Any:
    """Return ``call(*values)`` with the tensors of all clients, shapes [K, ...]; its results become one client's again.

    Args:
        call: function of stacked tensors; autograd differentiates it.
        slot: one client's position in the stack: a value that always differs between clients.
        *values: tensors of one client, which are stacked (copies of a shared tensor are not made), and other values.

    Raises:
        Unstackable: within a `torch.func.grad` that differentiates a value, or a further ``vmap``.
    """
    if any(is_differentiated(v) and v.requires_grad for v in values):
        raise Unstackable("a layer whose gradient is asked for within a hook")
    return _Together.apply(call, slot, *values)  # type: ignore[no-untyped-call]


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(call: Any, slot: Tensor, *values: Any) -> Any:
        raise NotImplementedError("layers are computed together only within vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NotImplementedError("not differentiated within torch.func.grad")

    @staticmethod
    def vmap(info: Any, dims: Any, call: Any, slot: Tensor, *values: Any) -> Any:
        if dims[1] is None:
            raise Unstackable("it calls torch.func.vmap itself")
        size = info.batch_size

        def first(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)

        stacked = [first(value, dim) for value, dim in zip(values, dims[2:], strict=True)]
        out = call(*stacked)
        return out, tree_map(lambda _: 0, out)
