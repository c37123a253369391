"""Objectives that clients can only evaluate: no gradients are used, and every evaluation is counted.

Work is counted too: the FLOPs of the objective's torch operations, at least one for each coordinate of the point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import Method, S
from paceline.core.params import Params
from paceline.core.samples import ClientData
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.submodels.flops import counted

__all__ = ["BlackBoxMethod", "Loss", "Objective", "Queries", "coordinates", "directions", "located"]


class Objective(Protocol):
    """Objective of a task whose clients can only evaluate."""

    def value(self, client: Client, x: Tensor) -> float:
        """Return f_i(x) of this client at x, shape [d] (float64)."""


class Loss:
    """The objective of an ordinary task: its loss on the client's data, as a function of the model's weights.

    Args:
        like: a model with the running statistics to use; they are not searched for.
    """

    def __init__(self, like: Params) -> None:
        self.like = like

    def value(self, client: Client, x: Tensor) -> float:
        """Return the mean loss."""
        sums = client.evaluate(located(x, self.like).to(client.device), client.train)
        return float(sums["loss"]) / max(int(sums["count"]), 1)


class Queries:
    """A client's objective with a counter of evaluations.

    Args:
        client: the client.
        like: the server's point as parameters.
    """

    def __init__(self, client: Client, like: Params) -> None:
        self._client = client
        self._objective: Objective = getattr(client.problem, "objective", None) or Loss(like)
        self._cost: float | None = 0.0 if isinstance(self._objective, Loss) else None  # evaluate() counts the work of a loss
        self.count = 0

    def __call__(self, x: Tensor) -> float:
        """Return f_i(x), increment the counter, and add the work to the client's."""
        self.count += 1
        value: float
        if self._cost is None:  # the first query is measured; all cost the same
            value, cost = counted(lambda: self._objective.value(self._client, x))
            self._cost = max(cost, float(len(x)))
        else:
            value = self._objective.value(self._client, x)
        self._client.flops += self._cost
        return value

    def all(self, xs: Tensor) -> Tensor:
        """Return f_i at each of xs [m, d], shape [m] (float64)."""
        return torch.tensor([self(x) for x in xs], dtype=torch.float64)


@dataclass(frozen=True)
class BlackBoxMethod(Method[S]):
    """Base of methods that search for a point: no model is judged, but F(x), the mean of all clients' objectives."""

    family: ClassVar[str] = "blackbox"
    has_model: ClassVar[bool] = False
    vectorizable: ClassVar[bool] = False

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Return f_i(x) as the loss of one sample; this does not count as a query of the method."""
        objective = getattr(client.problem, "objective", None)
        if objective is None:
            assert isinstance(message, Params)
            return client.evaluate(message, data)
        none = torch.zeros(client.problem.num_classes, dtype=torch.int64)
        value = objective.value(client, coordinates(message))
        return {"loss": value, "correct": 0, "count": 1, "class_correct": none, "class_count": none}

    def count_queries(self, fed: Federation, *phases: Update) -> int:
        """Return the queries of a round's phases, of which each reply told a mean of weight 1."""
        return sum(round(p.queries * p.weight) for p in phases)


def coordinates(params: Params) -> Tensor:
    """Return the point to search from, shape [d] (float64): the weights, without running statistics."""
    return params.vector[: params.layout.num_params].double().cpu()


def located(x: Tensor, like: Params) -> Params:
    """Return a point [d] as parameters, with the running statistics of `like`."""
    return Params(torch.cat([x.float().to(like.vector.device), like.vector[like.layout.num_params :]]), like.layout)


def directions(count: int, dim: int, rng: torch.Generator) -> Tensor:
    """Return `count` orthonormal random directions, shape [count, d]; if d is smaller, several such sets."""
    drawn = [
        torch.linalg.qr(torch.randn(dim, min(count, dim), generator=rng, dtype=torch.float64)).Q.T for _ in range(-(-count // dim))
    ]
    return torch.cat(drawn)[:count]
