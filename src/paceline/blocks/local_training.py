"""Local training with SGD and the usual hyperparameters: base of FedAvg and of methods that change other parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import SGD, Client, Hooks, LocalOptions
from paceline.core.errors import ConfigError
from paceline.core.hooks import NO_HOOKS
from paceline.core.method import Method, NonNegative, Positive, S, Share
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params

__all__ = ["LocalTraining"]


@dataclass(frozen=True)
class LocalTraining(Method[S]):
    """Base of methods whose clients train with SGD; a subclass adds state, `round` and client functions.

    Client functions train with ``client.sgd(params, **self.local(client), hooks=self.hooks(client, params))``.

    Args:
        lr: client learning rate; None uses the task's.
        epochs: local passes over a client's data.
        batch_size: local batch size; None uses the task's.
        momentum: momentum of the local SGD.
        weight_decay: weight decay of the local SGD.
    """

    family: ClassVar[str] = "optimisation"

    lr: NonNegative[float] | None = None
    epochs: Positive[int] = 1
    batch_size: Positive[int] | None = None
    momentum: Share = 0.0
    weight_decay: NonNegative[float] = 0.0

    def __post_init__(self) -> None:
        if self.momentum != type(self).momentum and not isinstance(self.local_optimizer(), SGD):
            raise ConfigError(f"{self.slug()}: momentum={self.momentum:g} is for SGD and has no effect on Adam; leave it out")

    def local(self, client: Client) -> LocalOptions:
        """Return the options of `Client.sgd`."""
        return {"optimizer": self.local_optimizer(), "epochs": self.epochs, "batch_size": self.batch_size}

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer."""
        return SGD(self.lr, self.momentum, weight_decay=self.weight_decay)

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return the hooks of a local training from `start`, shape [d]; none by default."""
        return NO_HOOKS
