"""FedAvg with local fine-tuning of the global model on each client: the simplest baseline of personalisation.

The server sees the same as in FedAvg. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client
from paceline.core.params import Params
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class FineTuned(FedAvg):
    """FedAvg with local fine-tuning before a client uses the model."""

    family: ClassVar[str] = "personalisation"
    headline: ClassVar[str] = "a baseline: local training adapts the global model to each client's data"

    def personal_model(self, client: Client, message: Params) -> Params:
        """Train the global model on the client's data, as in a round."""
        return client.sgd(message, **self.local(client), hooks=self.hooks(client, message)).params
