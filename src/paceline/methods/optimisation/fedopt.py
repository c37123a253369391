"""FedOpt (Reddi et al., "Adaptive Federated Optimization", ICLR 2021): an optimiser on the server.

With D the mean update and element-wise arithmetic:
    m <- beta1 m + (1 - beta1) D            (momentum: m <- beta1 m + D)
    adam: v <- beta2 v + (1 - beta2) D^2    yogi: v <- v - (1 - beta2) D^2 sign(v - D^2)
    adagrad: v <- v + D^2
    w <- w + eta m / (sqrt(v) + tau)        (momentum: w <- w + eta m)
beta1 is 0 for adagrad and 0.9 for the others.

The server sees the same as in FedAvg and stores m and v. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.methods.optimisation.fedavg import FedAvg


@node
class FedOptState(State):
    """The model, and the first and second moments of the mean update."""

    m: Params
    v: Params


@dataclass(frozen=True)
class FedOpt(FedAvg[FedOptState]):
    """Server-side Adam, Yogi, AdaGrad or momentum.

    Args:
        optimizer: the server's update rule.
        server_lr: eta; the paper's tuned values lie between 0.001 and 1.
        beta1: decay rate of m; None is the paper's, 0 for adagrad and 0.9 for the others.
        beta2: decay rate of v.
        tau: adaptivity constant; v starts at tau^2.
    """

    paper: ClassVar[str] = "Reddi et al., ICLR 2021"
    headline: ClassVar[str] = "adaptive servers converge on non-convex losses with heterogeneous clients, far better than FedAvg"

    optimizer: Literal["adam", "yogi", "adagrad", "momentum"] = "adam"
    server_lr: NonNegative[float] = 0.01
    beta1: Share | None = None
    beta2: Share = 0.99
    tau: Positive[float] = 1e-3

    def init(self, fed: Federation) -> FedOptState:
        """Start with m = 0 and v = tau^2."""
        params = fed.init_params()
        return FedOptState(params=params, m=params.zeros(), v=params.zeros() + self.tau**2)

    def round(self, fed: Federation, state: FedOptState) -> FedOptState:
        """Pass the mean update to the server's optimiser as its negative gradient."""
        delta = fed.mean(self.train, state.params, over=fed.sample()).delta
        beta1 = (0.0 if self.optimizer == "adagrad" else 0.9) if self.beta1 is None else self.beta1
        if self.optimizer == "momentum":
            m = beta1 * state.m + delta
            return FedOptState(params=state.params + self.server_lr * m, m=m, v=state.v)
        m = beta1 * state.m + (1 - beta1) * delta
        square = delta**2
        match self.optimizer:
            case "adam":
                v = self.beta2 * state.v + (1 - self.beta2) * square
            case "yogi":
                v = state.v - (1 - self.beta2) * square * (state.v - square).map(torch.sign)
            case "adagrad":
                v = state.v + square
        return FedOptState(params=state.params + self.server_lr * m / (v.map(torch.sqrt) + self.tau), m=m, v=v)
