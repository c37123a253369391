"""FedAvg, and each client's model is the global one after local training: the plain baseline of personalisation.

The server sees what it sees in FedAvg. A client keeps nothing.
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
    headline: ClassVar[str] = "a baseline: a few local steps turn the global model into one that suits the client"

    def personal_model(self, client: Client, message: Params) -> Params:
        """Train the global model on the client's data, as in a round."""
        return client.sgd(message, **self.local(client), hooks=self.hooks(client, message)).params
