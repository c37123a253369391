"""FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017).

    w_{t+1} = w_t + eta * sum_u n_u (w_u - w_t) / sum_u n_u

The server sees the weighted sum of updates and of sample counts. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from paceline.blocks.local_training import LocalTraining
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, P, on_client
from paceline.core.params import Params
from paceline.core.update import Update


@dataclass(frozen=True)
class FedAvg(LocalTraining[P]):
    """Federated averaging; ``FedAvg[MyState]`` is the base of methods whose state extends `State`.

    Args:
        server_lr: eta, the step along the mean update.
    """

    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"
    headline: ClassVar[str] = "10 to 100 times fewer rounds than synchronised SGD, also on unbalanced non-IID data"

    server_lr: NonNegative[float] = 1.0

    def round(self, fed: Federation, state: P) -> P:
        """Average the cohort's updates and step along the mean."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        return replace(state, params=state.params + self.server_lr * mean.delta)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train locally; return the change, weighted by samples."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        return Update(delta=local.params - message, loss=local.loss, weight=client.num_samples)
