"""Local training only: each client trains its own network and nothing is shared. The baseline of every method.

The server sees the summed training loss and how many clients trained. A client stores its network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import State, on_client
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.methods.personalisation.ownmodels import OwnModels


@dataclass(frozen=True)
class LocalOnly(OwnModels):
    """Local training without federation."""

    headline: ClassVar[str] = "a baseline: the accuracy of clients without a federation"
    reveals: ClassVar[str] = "summed losses"

    def check(self, fed: Federation) -> list[str]:
        """Require nothing of the models: they are neither split nor compared."""
        return self.lost(fed)

    def round(self, fed: Federation, state: State) -> State:
        """Train a cohort; nothing is aggregated but the loss."""
        fed.mean(self.train, None, over=fed.sample())
        return state

    @on_client
    def train(self, client: Client, message: Tree) -> Update:
        """Train the client's own network; return the loss."""
        model, params = self.own(client)
        trained = client.sgd(params, model=model, **self.local(client))
        self.keep(client, trained.params)
        return Update(loss=float(trained.loss), weight=1)
