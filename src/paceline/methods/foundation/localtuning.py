"""Tuning on a client's own data alone: the baseline of federated instruction tuning.

The server sees the weighted sum of training losses. A client keeps its own theta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import State, on_client
from paceline.core.params import Params
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.methods.foundation.fedit import FedIT


@dataclass(frozen=True)
class LocalTuning(FedIT):
    """FedIT without the average: each client goes on with its own factors, and is judged by them."""

    headline: ClassVar[str] = "a baseline: a pretrained model tuned on one client's instructions alone"
    reveals: ClassVar[str] = "summed losses"
    sends_model: ClassVar[bool] = False
    keeps: ClassVar[str] = "its own theta"

    def round(self, fed: Federation, state: State) -> State:
        """Let a cohort tune."""
        fed.mean(self.train, state.params, over=fed.sample())
        return state

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Go on from the own factors, at first from the common ones; return the loss alone."""
        local = client.sgd(self.personal_model(client, message), **self.local(client))
        client.memory["theta"] = local.params
        return Update(loss=local.loss, weight=client.num_samples)

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Return the own factors."""
        own: Params = client.memory.get("theta", message)
        return own
