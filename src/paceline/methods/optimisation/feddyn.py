"""FedDyn (Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021).

    client: minimise f_u(w) - <g_u, w> + alpha/2 |w - w_t|^2;   g_u <- g_u - alpha (w_u - w_t)
    server: h <- h - alpha |S|/N mean(w_u - w_t);   w <- mean(w_u) - h / alpha

The server sees sums of updates and stores h. A client stores its dual g_u, which changes only if its
reply is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Positive, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@node
class FedDynState(State):
    """The model and the server's correction term h."""

    h: Params


@dataclass(frozen=True)
class FedDyn(FedAvg[FedDynState]):
    """Dynamic regularisation: align local optima with the global one; clients are weighted equally.

    Args:
        alpha: strength of the regulariser; the paper uses 0.001 to 0.1.
    """

    paper: ClassVar[str] = "Acar et al., ICLR 2021"
    headline: ClassVar[str] = "fewer rounds to a target than SCAFFOLD and FedProx, at the upload of FedAvg"
    client_state: ClassVar[str] = "dual (model size)"
    unused: ClassVar[tuple[str, ...]] = ("server_lr",)

    alpha: Positive[float] = 0.01

    def init(self, fed: Federation) -> FedDynState:
        """Start with h = 0."""
        params = fed.init_params()
        return FedDynState(params=params, h=params.zeros())

    def round(self, fed: Federation, state: FedDynState) -> FedDynState:
        """Average the models and shift the average by the correction."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        h = state.h - (self.alpha * mean.weight / fed.num_clients) * mean.delta
        return FedDynState(params=state.params + mean.delta - h / self.alpha, h=h)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train on the regularised loss; return the change and store the dual."""
        dual = client.memory.get("dual", message.zeros())
        hooks = Hooks(correct=lambda grad, at: grad - dual + self.alpha * (at - message))
        local = client.sgd(message, **self.local(client), hooks=hooks)
        delta = local.params - message
        client.memory.stage("dual", dual - self.alpha * delta)
        return Update(delta=delta, loss=local.loss, weight=min(local.steps, 1))
