"""Tuning on each client's own data only: the baseline of federated instruction tuning.

The server sees the weighted sum of training losses. A client stores its own theta.
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
    """FedIT without averaging: each client continues from its own factors and is evaluated with them."""

    differs: ClassVar[str] = ""
    headline: ClassVar[str] = "a baseline: a pretrained model tuned on one client's instructions only"
    reveals: ClassVar[str] = "summed losses"
    sends_model: ClassVar[bool] = False
    client_state: ClassVar[str] = "its own theta"
    unused: ClassVar[tuple[str, ...]] = ("server_lr", "monitor")

    def round(self, fed: Federation, state: State) -> State:
        """Train a cohort; the global model does not change."""
        fed.mean(self.train, state.params, over=fed.sample())
        return state

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the client's own factors (initially the common ones); return only the loss."""
        local = client.sgd(self.personal_model(client, message), **self.local(client))
        client.memory["theta"] = local.params
        return Update(loss=local.loss, weight=client.num_samples)

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Return the client's own factors."""
        own: Params = client.memory.get("theta", message)
        return own
