"""Per-FedAvg (Fallah et al., "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic Meta-Learning
Approach", NeurIPS 2020).

    each local step, on batches D, D', D'':   v = w - alpha g(w; D)
    first order:    w <- w - lr g(v; D')
    Hessian-free:   w <- w - lr (h - alpha (g(w + delta h; D'') - g(w - delta h; D'')) / (2 delta)),   h = g(v; D')
    server:         w_t <- mean(w_u);   personal model: one step of size alpha from w_t

The server sees sums of updates. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from paceline.blocks.running import weights, with_statistics
from paceline.core.client import SGD, Client, Hooks
from paceline.core.hooks import Direction
from paceline.core.method import Positive, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class PerFedAvg(FedAvg):
    """A global model from which one step on a client's data leads to a good personal model.

    Args:
        alpha: step size of the adaptation.
        steps: local meta-steps; they take the place of `epochs`.
        order: ``first`` drops the Hessian (FO), ``hessian-free`` approximates its product by a difference (HF).
        delta: distance of this difference.
        personal_steps: steps of a client's adaptation before use.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "Fallah et al., NeurIPS 2020"
    headline: ClassVar[str] = "an initial model that adapts to a client in one step; convergence for non-convex losses"
    lr: Positive[float] | None = None
    alpha: Positive[float] = 0.01
    steps: Positive[int] = 10
    order: Literal["first", "hessian-free"] = "first"
    delta: Positive[float] = 0.001
    personal_steps: Positive[int] = 1

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Take the meta-steps; return the change. Clients with samples are weighted equally."""
        at, loss, lr = message, 0.0, client.problem.lr if self.lr is None else self.lr
        once = self.local(client) | {"steps": 1}
        for _ in range(self.steps):
            adapted = self.adapted(client, at, 1)
            outer = client.sgd(adapted, **once)
            step = weights(outer.params - adapted)
            if self.order == "hessian-free":
                shift = (self.delta / lr) * step  # -delta h
                across = Hooks(direction=difference(shift, self.delta))
                product = client.sgd(at, **once | {"optimizer": SGD(1.0)}, hooks=across).params - at  # H h
                step = step + (lr * self.alpha) * weights(product)
            at, loss = with_statistics(at + step, outer.params), outer.loss
        return Update(delta=at - message, loss=loss, weight=min(client.num_samples, 1))

    def adapted(self, client: Client, start: Params, steps: int) -> Params:
        """Return a model after steps of size alpha on the client's data."""
        return client.sgd(start, **self.local(client) | {"optimizer": SGD(self.alpha), "steps": steps}).params

    def personal_model(self, client: Client, message: Params) -> Params:
        """Adapt the global model to the client."""
        return self.adapted(client, message, self.personal_steps)


def difference(shift: Params, delta: float) -> Direction:
    """Return the central difference of gradients at w along `shift`, divided by 2 `delta`."""
    return lambda gradient, w: (gradient(w + shift) - gradient(w - shift)) / (2 * delta)
