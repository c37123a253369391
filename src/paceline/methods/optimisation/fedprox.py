"""FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020).

Each client minimises f_u(w) + mu/2 |w - w_t|^2. The server sees the same as in FedAvg. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client, Hooks
from paceline.core.method import NonNegative
from paceline.core.params import Params
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term of strength `mu` that limits drift from the global model."""

    paper: ClassVar[str] = "Li et al., MLSys 2020"
    headline: ClassVar[str] = "more stable than FedAvg: test accuracy 22 % higher on average in highly heterogeneous settings"
    mu: NonNegative[float] = 0.01

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Add the proximal term's gradient."""
        return Hooks(correct=lambda grad, at: grad + self.mu * (at - start))
