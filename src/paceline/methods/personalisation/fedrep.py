"""FedRep (Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021).

    a client first trains its head on the fixed base, then the base on the fixed head
    base <- mean(base_u);   the head stays on the client

The server sees the sum of updates of the base. A client stores its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client, Hooks, Trained
from paceline.core.method import Positive
from paceline.core.params import Params
from paceline.methods.personalisation.fedper import FedPer


@dataclass(frozen=True)
class FedRep(FedPer):
    """Alternate training of heads and of the shared representation; `epochs` are those of the representation.

    Args:
        head_epochs: passes over a client's data in which its head trains.
    """

    paper: ClassVar[str] = "Collins et al., ICML 2021"
    headline: ClassVar[str] = "linear convergence to the true representation, with near-optimal samples for each client"
    head_epochs: Positive[int] = 10

    def fit(self, client: Client, start: Params) -> Trained:
        """Train the head, then the base."""
        own = self.part(start.layout, client.model.module, own=True)
        heads = start.zeros()
        for name in own.by_name:
            heads[name].fill_(1.0)
        only_head = Hooks(after=lambda at: start + heads * (at - start))
        first = client.sgd(start, **self.local(client) | {"epochs": self.head_epochs}, hooks=only_head).params
        return client.sgd(first, **self.local(client), hooks=Hooks(after=lambda at: at + heads * (first - at)))

    def weight(self, client: Client) -> float:
        """Weight all clients with samples equally."""
        return min(client.num_samples, 1)
