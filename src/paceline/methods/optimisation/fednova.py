"""FedNova (Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020).

    d_u = (w_t - w_u) / |a_u|_1;   w_{t+1} = w_t - eta (sum_u p_u |a_u|_1) sum_u p_u d_u,   p_u = n_u / sum n
    |a_u|_1 = number of local steps K, with momentum rho: (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho),
              with a proximal term mu: (1 - (1 - lr mu)^K) / (lr mu)

The server sees the weighted sums of normalised updates and of |a_u|_1. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import Client, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, P, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class FedNova(FedAvg[P]):
    """Normalised averaging: clients that take more steps do not pull the model towards their own optima.

    Args:
        mu: strength of FedProx's proximal term; it excludes momentum.
    """

    paper: ClassVar[str] = "Wang et al., NeurIPS 2020"
    headline: ClassVar[str] = "removes the objective inconsistency of FedAvg under unequal local work, and converges as fast"
    reveals: ClassVar[str] = "sums of normalised updates and of local steps"
    mu: NonNegative[float] = 0.0

    def __post_init__(self) -> None:
        if self.mu and self.momentum:
            raise ConfigError(f"fednova: mu={self.mu:g} and momentum={self.momentum:g}; set one of them to 0")

    def round(self, fed: Federation, state: P) -> P:
        """Average the normalised updates and step along the mean, as far as the mean client went."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        return replace(state, params=averaged(state.params + (self.server_lr * mean.length) * mean.direction, mean))

    @on_client(bounds={"statistics": 100.0})
    def train(self, client: Client, message: Params) -> Update:
        """Train locally; return the change for each unit of the path's length, and this length."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        length = self.length(local.steps, client.problem.lr if self.lr is None else self.lr)
        fields = {"direction": weights(local.params - message) / (length or 1.0), "length": length, "loss": local.loss}
        return Update(**fields, **statistics(local), weight=client.num_samples)

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Add the proximal term's gradient."""
        return Hooks(correct=lambda grad, at: grad + self.mu * (at - start)) if self.mu else super().hooks(client, start)

    def length(self, steps: int, lr: float) -> float:
        """Return |a|_1, the sum of the factors of a client's gradients in its change, in units of `lr`."""
        if self.momentum:
            rho = self.momentum
            return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho) if rho < 1 else steps * (steps + 1) / 2
        return (1 - (1 - lr * self.mu) ** steps) / (lr * self.mu) if lr * self.mu else float(steps)
