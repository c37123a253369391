"""Exploration of the loss surface before training: how far clients move each parameter when they train alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from paceline.blocks.local_training import LocalTraining
from paceline.blocks.running import weights
from paceline.blocks.saliency import SaliencyScale
from paceline.core.client import AdamW, Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, PositiveShare, S, Share, on_client
from paceline.core.optimizers import SGD, Optimizer
from paceline.core.params import Params
from paceline.core.update import Update

__all__ = ["Exploration"]


@dataclass(frozen=True)
class Exploration(LocalTraining[S]):
    """Base of methods whose clients explore before the first round; squared displacements are averaged over them.

    Args:
        explore_epochs: E_x, passes of the exploration.
        patience: stop exploring if the mean loss has not fallen for this many passes. Below `explore_epochs`, every pass has a
            fresh optimizer.
        explorers: p_x, share of clients that explore.
        scale: of the guidance, see `scaled_saliency`.
        optimizer: of the clients, ``adam`` or ``sgd``.
        lr_decay: factor of lr in each round.
        server_momentum: beta: the server steps along v <- beta v + (1 - beta) * mean update.
    """

    lr: NonNegative[float] | None = 3e-4
    epochs: Positive[int] = 5
    batch_size: Positive[int] | None = 350
    explore_epochs: Positive[int] = 150
    patience: Positive[int] = 150
    explorers: PositiveShare = 1.0
    scale: SaliencyScale = "minmax"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr_decay: PositiveShare = 0.99
    server_momentum: Share = 0.9

    @property
    def follows(self) -> bool:
        """Whether the displacements of each round's cohort are averaged anew, so that clients store their own."""
        return False

    def explored(self, fed: Federation, base: Params) -> Params:
        """Return the mean squared displacement from `base` of the clients that explore, [d]."""
        everyone = fed.available()
        count = max(1, round(self.explorers * len(everyone)))
        mean = fed.mean(self.scout, base, over=fed.sample(count) if count < len(everyone) else everyone)
        displacement: Params = mean.square
        return displacement

    @on_client(bounds={"square": 4.0})
    def scout(self, client: Client, message: Params) -> Update:
        """Explore from the base; return the squared displacement, and store it where later rounds need it."""
        rule, size, at = self.rule(1), self.batch_size, message
        if self.patience >= self.explore_epochs:
            at = client.sgd(message, optimizer=rule, batch_size=size, epochs=self.explore_epochs).params
        else:
            best, waited = math.inf, 0
            for _ in range(self.explore_epochs):
                local = client.sgd(at, optimizer=rule, batch_size=size)
                at, waited = local.params, 0 if local.loss < best else waited + 1
                best = min(best, local.loss)
                if waited >= self.patience:
                    break
        square = weights(at - message) ** 2
        if self.follows:
            client.memory["square"] = square
        return Update(square=square, weight=min(client.num_samples, 1))

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer in the first round."""
        return self.rule(1)

    def rule(self, round: int) -> Optimizer:
        """Return the clients' optimizer in a round."""
        lr = None if self.lr is None else self.lr * self.lr_decay ** (round - 1)
        decay = self.weight_decay
        return AdamW(lr, weight_decay=decay) if self.optimizer == "adam" else SGD(lr, self.momentum, weight_decay=decay)

    def served(self, params: Params, momentum: Params, delta: Params) -> tuple[Params, Params]:
        """Return the model after a step along the server's momentum, and the momentum; running statistics move by all of `delta`."""
        beta = self.server_momentum
        momentum = beta * momentum - (1 - beta) * weights(delta)
        return params - momentum + (delta - weights(delta)), momentum
