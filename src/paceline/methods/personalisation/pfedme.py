"""pFedMe (Dinh et al., "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020).

    each local step, on one batch:  theta ~ argmin f_u(theta) + lam/2 |theta - w|^2   (inner_steps steps of SGD from w)
                                    w <- w - lr lam (w - theta)
    server:                         w_t <- (1 - beta) w_t + beta mean(w_u)

The server sees sums of updates. Clients store no state: a personal model is the theta of the global w, trained on all data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.core.client import SGD, Client, Hooks
from paceline.core.hooks import Gradient
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """Personal models near a global one that minimises the mean Moreau envelope; `server_lr` is the paper's beta.

    Args:
        lam: strength of the regulariser.
        inner_steps: K, steps towards theta for each local step.
        inner_lr: learning rate of these steps.
        personal_epochs: passes over a client's data in which its personal model trains.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "Dinh et al., NeurIPS 2020"
    headline: ClassVar[str] = "decouples personal models from the global one; quadratic speedup for strongly convex losses"
    lr: NonNegative[float] | None = 0.005
    lam: Positive[float] = 15.0
    inner_steps: Positive[int] = 5
    inner_lr: Positive[float] = 0.05
    personal_epochs: Positive[int] = 1

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Follow the envelope's gradient; return the change. Clients with samples are weighted equally."""
        local = client.sgd(message, **self.local(client), hooks=Hooks(direction=self.envelope))
        return Update(delta=local.params - message, loss=local.loss, weight=min(local.steps, 1))

    def envelope(self, gradient: Gradient, at: Params) -> Params:
        """Return lam (w - theta), the gradient of the Moreau envelope at w on this step's batch."""
        theta = at
        for _ in range(self.inner_steps):
            theta = theta - self.inner_lr * (gradient(theta) + self.lam * (theta - at))
        return self.lam * (at - theta)

    def personal_model(self, client: Client, message: Params) -> Params:
        """Train theta from the global model."""
        near = Hooks(correct=lambda grad, at: grad + self.lam * (at - message))
        options = self.local(client) | {"optimizer": SGD(self.inner_lr), "epochs": self.personal_epochs}
        return client.sgd(message, **options, hooks=near).params
