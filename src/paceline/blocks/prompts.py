"""A generator of prompts: one descriptor for each client attends to a common basis, and becomes tokens of a frozen transformer.

P_n = softmax(d_n W_Q (P_base W_K)^T / sqrt(l_k)) P_base W_V W_O
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paceline.core.layout import Layout
from paceline.core.params import Params

__all__ = ["PromptGenerator"]


@dataclass(frozen=True)
class PromptGenerator:
    """The shapes of a generator; its weights are `Params`.

    Args:
        tokens: number of prompts K.
        width: of the transformer l; also l_k and l_v.
        heads: number of attention heads, a divisor of `width`.
        descriptor: ``tokens``: d_n has K rows, whose attention is the prompts; ``vector``: it has one, whose attention is added to
            each row of the basis.
        reach: basis and descriptors are drawn from U(-reach, reach).
    """

    tokens: int
    width: int
    heads: int = 1
    descriptor: Literal["tokens", "vector"] = "tokens"
    reach: float = 0.1

    def initial(self, stream: torch.Generator) -> Params:
        """Return random weights: projections as those of linear layers, and the basis."""
        names = ("query", "key", "value", "out")
        layout = Layout.build([*((name, (self.width, self.width), "param") for name in names), ("basis", self._basis, "param")])
        drawn = 2 * torch.rand(layout.size, generator=stream) - 1
        params = Params(drawn / math.sqrt(self.width), layout)
        params["basis"].mul_(self.reach * math.sqrt(self.width))
        return params

    @property
    def _basis(self) -> tuple[int, int]:
        return self.tokens, self.width

    def describe(self, stream: torch.Generator) -> Tensor:
        """Return a client's random descriptor, shape [K, l] or [1, l]."""
        rows = self.tokens if self.descriptor == "tokens" else 1
        return self.reach * (2 * torch.rand(rows, self.width, generator=stream) - 1)

    def __call__(self, weights: Params, descriptor: Tensor) -> Tensor:
        """Return prompts, shape [..., K, l], of descriptors [..., K, l] or [..., 1, l]."""
        basis = weights["basis"]

        def heads(x: Tensor, name: str) -> Tensor:
            projected = x @ weights[name]
            return projected.reshape(*projected.shape[:-1], self.heads, -1).transpose(-2, -3)

        query, key, value = heads(descriptor, "query"), heads(basis, "key"), heads(basis, "value")
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        out: Tensor = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2) @ weights["out"]
        return out if self.descriptor == "tokens" else basis + out

    def pull(self, weights: Params, descriptor: Tensor, change: Tensor) -> tuple[Params, Tensor]:
        """Return the gradients of -<change, P> in the weights and in the descriptor; a step against them moves P along the change.

        Args:
            weights: of the generator.
            descriptor: of one client, or of several, shape [..., K or 1, l].
            change: of their prompts, shape [..., K, l].
        """
        with torch.enable_grad():
            at, own = weights.vector.detach().requires_grad_(), descriptor.detach().requires_grad_()
            value = -(change * self(Params(at, weights.layout), own)).sum()
            one, two = torch.autograd.grad(value, (at, own))
        return Params(one, weights.layout), two
