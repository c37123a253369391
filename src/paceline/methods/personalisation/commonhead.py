"""Shared parts of methods whose server trains one head, common to clients with networks of any architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.blocks.architectures import architectures, frozen
from paceline.core.client import Client, ClientData, Hooks
from paceline.core.federation import Federation
from paceline.core.layout import Layout
from paceline.core.method import NonNegative, State
from paceline.core.params import Params, Resident
from paceline.core.tree import Tree
from paceline.methods.personalisation.ownmodels import OwnModels, clipped
from paceline.models.split import head, head_name, join

__all__ = ["CommonHead", "head_step"]


def head_step(theta: Params, inputs: Tensor, targets: Tensor) -> Params:
    """Return the gradient of sum_i CE(W r_i + b, t_i), with the soft-label cross-entropy -sum_c t_ic log softmax(.)_c.

    Args:
        theta: the head: ``weight`` and, if it has one, ``bias``.
        inputs: r, shape [n, d].
        targets: t, rows that sum to 1, shape [n, C].
    """
    scores = inputs @ theta["weight"].T
    if "bias" in theta:
        scores = scores + theta["bias"]
    error = torch.softmax(scores, 1) - targets
    parts = {"weight": error.T @ inputs} | ({"bias": error.sum(0)} if "bias" in theta else {})
    return join(theta.zeros(), parts)


@dataclass(frozen=True)
class CommonHead(OwnModels):
    """Base of methods that send the server's head to every client, which trains it with its own network.

    Args:
        clip: maximum gradient norm of clients; 0 disables clipping.
        server_lr: the server's step along the head's gradient.
        judge: evaluate the client's network with its ``own`` trained head, or with the ``global`` one.
    """

    needs_classes: ClassVar[bool] = True

    clip: NonNegative[float] = 0.0
    server_lr: NonNegative[float] = 0.01
    judge: Literal["own", "global"] = "own"

    def check(self, fed: Federation) -> list[str]:
        """Require a head that is trained."""
        return super().check(fed) or frozen(fed, self.slug(), ("head",))

    def init(self, fed: Federation) -> State:
        """Start from the head of the first architecture."""
        module = architectures(fed).build(self.models[0] if self.models else "")
        return State(params=Params.of(head(module), Layout.of(head(module))))

    def trained(self, client: Client, theta: Params | None) -> tuple[Resident, Params]:
        """Train the client's network from the common head, or from its own if that is None; store and return it."""
        model, params = self.own(client)
        start = params if theta is None else self.with_head(model, params, theta)
        local = client.sgd(start, model=model, hooks=Hooks(correct=clipped(self.clip)), **self.local(client))
        self.keep(client, local.params)
        return model, local.params

    def with_head(self, model: Resident, params: Params, theta: Params) -> Params:
        """Return a network's parameters with another head."""
        return join(params, {f"{head_name(model.module)}.{name}": value for name, value in theta.items()})

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Evaluate the client's network with the head selected by `judge`."""
        model, params = self.own(client)
        assert isinstance(message, Params)
        return client.evaluate(params if self.judge == "own" else self.with_head(model, params, message), data, model=model)
