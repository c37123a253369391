"""APFL (Deng et al., "Adaptive Personalized Federated Learning", arXiv 2003.13461).

    each local step, on one batch:  m = alpha v + (1 - alpha) w
        v <- v - lr alpha g(m);   w <- w - lr g(w)
    first step of a round:          alpha <- clip(alpha - lr <v - w, g(m)>, 0, 1)
    server:                         w_t <- mean(w_u);   personal model: alpha v + (1 - alpha) w_t

The server sees sums of updates. A client stores v and alpha; one that never took part uses the global model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from paceline.blocks.running import weights
from paceline.core.client import Client, Hooks
from paceline.core.method import Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class APFL(FedAvg):
    """Mixtures of a global and a local model; each client learns its own share of the local one.

    Args:
        alpha: initial share of the local model.
        adaptive: learn the share; False leaves it as it is.
        steps: local steps; they take the place of `epochs`. Momentum does not last from one step to the next.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "Deng et al., arXiv 2003.13461"
    headline: ClassVar[str] = "a mixture of local and global model generalises better than either, with a learnt share"
    client_state: ClassVar[str] = "a local model and its share of the mixture"
    alpha: Share = 0.5
    adaptive: bool = True
    steps: Positive[int] = 10

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the global and the local model side by side; return the change of the global one, equally weighted."""
        own, at, loss = client.memory.get("own", message), message, 0.0
        alpha = client.memory.get("alpha", message.vector.new_tensor(self.alpha))
        options = self.local(client) | {"steps": 1}
        for step in range(self.steps if client.num_samples else 0):
            batch = f"step {step}"  # the same for both
            along = client.sgd(own, **options, hooks=mixed(alpha, at), batches=batch).params - own  # -lr g(m)
            if self.adaptive and step == 0:
                alpha = (alpha + weights(own - at).dot(along)).clamp(0.0, 1.0)
            own = own + alpha * along
            local = client.sgd(at, **options, batches=batch)
            at, loss = local.params, local.loss
        if client.num_samples:
            client.memory["own"], client.memory["alpha"] = own, alpha
        return Update(delta=at - message, loss=loss, weight=min(client.num_samples, 1))

    def personal_model(self, client: Client, message: Params) -> Params:
        """Return the mixture."""
        alpha = client.memory.get("alpha", 0.0)
        mixture: Params = alpha * client.memory.get("own", message) + (1 - alpha) * message
        return mixture


def mixed(alpha: Tensor, other: Params) -> Hooks:
    """Return hooks that take the gradient at the mixture of the trained model and another one."""
    return Hooks(direction=lambda gradient, at: gradient(alpha * at + (1 - alpha) * other))
