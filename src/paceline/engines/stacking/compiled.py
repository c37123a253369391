"""The stacked gradient as one compiled function.

The step is traced into a graph of tensor operations first, through ``vmap``, autograd and the layers' faster forms, so that
``torch.compile`` sees no Python code of models, losses or hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from paceline.core.columns import Samples, columns, map_tree
from paceline.core.params import Params
from paceline.engines.stacking.fixed import FixedStack

__all__ = ["CompiledGradients"]


class CompiledGradients:
    """Computes a stack's gradients by a compiled function, one for each shape of a step.

    Args:
        stack: the stack, without a `direction` hook, which computes gradients itself.
    """

    def __init__(self, stack: FixedStack) -> None:
        self.stack = stack
        self._plain: Callable[[], list[Tensor]] = stack._gradients
        self._known: dict[Any, Callable[..., list[Tensor]]] = {}

    def install(self) -> None:
        """Let the stack compute its gradients by this object."""
        self.stack.fresh = self.stack._fresh = False  # one form of the first step and the others
        self.stack.__dict__["_gradients"] = self

    def __call__(self) -> list[Tensor]:
        """Return the gradient of each tensor, shapes [active, ...]; add the losses to the stack's totals."""
        stack = self.stack
        weights = stack.batches.weights[stack.step]
        batch = [part for tree in (stack.x, stack.y) for _, part in columns(tree)]
        given = [stack.at.vector[: stack.active], *batch, *([] if weights is None else [weights]), *stack._loss.stacked]
        key = (weights is None, tuple(stack.batches.sizes[stack.step]), tuple((t.shape, t.stride(), t.dtype) for t in given))
        if key not in self._known:
            self._known[key] = self._compile(given, weights is not None)
        with torch.no_grad(), torch.autocast(stack.at.vector.device.type, enabled=False):
            losses, *gradients = self._known[key](*given)
        stack.totals[: stack.active] += losses
        return gradients

    def _compile(self, given: list[Tensor], weighted: bool) -> Callable[..., list[Tensor]]:
        traced = make_fx(lambda *tensors: self._traced(list(tensors), weighted))(*given)
        compiled: Callable[..., list[Tensor]] = torch.compile(traced, dynamic=False)
        return compiled

    def _traced(self, given: list[Tensor], weighted: bool) -> list[Tensor]:
        """Return losses and gradients, computed by the stack itself from the tensors of the trace."""
        stack, step = self.stack, self.stack.step
        before = (stack.at, stack.x, stack.y, stack.totals, stack.batches.weights[step], stack._loss.stacked, stack.active)
        try:
            place, rest = given[0], given[1:]
            stack.at = Params(place, stack.at.layout)
            stack.x, rest = _filled(stack.x, rest)
            stack.y, rest = _filled(stack.y, rest)
            if weighted:
                stack.batches.weights[step], rest = rest[0], rest[1:]
            stack._loss.stacked = rest
            stack.totals = torch.zeros(stack.active, device=place.device)
            gradients = self._plain()
            return [stack.totals, *gradients]
        finally:
            stack.at, stack.x, stack.y, stack.totals, stack.batches.weights[step], stack._loss.stacked, stack.active = before


def _filled(tree: Samples, tensors: list[Tensor]) -> tuple[Samples, list[Tensor]]:
    """Return a tree with tensors in place of its own, and those that are left."""
    left = iter(tensors)
    filled = map_tree(lambda _: next(left), tree)
    return filled, list(left)
