"""FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017).

    w_{t+1} = w_t + eta * sum_u n_u (w_u - w_t) / sum_u n_u

The server sees the weighted sum of updates and of sample counts. A client keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import SGD, Client, Hooks, LocalOptions
from paceline.core.federation import Federation
from paceline.core.method import Method, State, on_client
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params
from paceline.core.update import Update


@dataclass(frozen=True)
class FedAvg(Method):
    """Federated averaging.

    Args:
        lr: client learning rate; None takes the task's.
        epochs: local passes over a client's data.
        batch_size: local batch size; None takes the task's.
        momentum: of the local SGD.
        weight_decay: of the local SGD.
        server_lr: step eta along the mean update.
    """

    family: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"
    headline: ClassVar[str] = "10 to 100 times fewer rounds than synchronised SGD, also on unbalanced non-IID data"

    lr: float | None = None
    epochs: int = 1
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    server_lr: float = 1.0

    def round(self, fed: Federation, state: State) -> State:
        """Average the cohort's updates and step along the mean."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        return State(params=state.params + self.server_lr * mean.delta)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train locally; return the change, weighted by samples."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        return Update(delta=local.params - message, loss=local.loss, weight=client.num_samples)

    def local(self, client: Client) -> LocalOptions:
        """Return the local loop's hyperparameters."""
        return {"optimizer": self.local_optimizer(), "epochs": self.epochs, "batch_size": self.batch_size}

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer."""
        return SGD(self.lr, self.momentum, weight_decay=self.weight_decay)

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return what changes the steps of a local training from `start`; by default nothing does."""
        return Hooks()
