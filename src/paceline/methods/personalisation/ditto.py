"""Ditto (Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021).

    global model: FedAvg;   personal model of each client: v <- v - lr (grad f_u(v) + lam (v - w_t))

The server sees the same as in FedAvg. A client stores its personal model; one that never took part uses the global model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client, Hooks
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and for each client a personal model that is regularised towards the global one.

    Args:
        lam: strength of the regulariser; 0 is local training, large values are the global model.
        personal_epochs: passes over a client's data in which the personal model trains.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "Li et al., ICML 2021"
    headline: ClassVar[str] = "personal models that are more accurate, more robust to attacks and fairer than one global model"
    client_state: ClassVar[str] = "its personal model"
    lam: NonNegative[float] = 0.1
    personal_epochs: Positive[int] = 1

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the global model and the personal one; return the change of the global model."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        near = Hooks(correct=lambda grad, at: grad + self.lam * (at - message))
        options = self.local(client) | {"epochs": self.personal_epochs}
        if client.num_samples:
            client.memory["personal"] = client.sgd(self.personal_model(client, message), **options, hooks=near).params
        return Update(delta=local.params - message, loss=local.loss, weight=client.num_samples)

    def personal_model(self, client: Client, message: Params) -> Params:
        """Return the stored personal model."""
        own: Params = client.memory.get("personal", message)
        return own
