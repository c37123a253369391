"""Means of every client's last update: FedVARP and MIFA, the baselines of FedAU and FedStale.

With D_u a participant's update, h_u each client's last one (0 at first) and S the participants:

    FedVARP (Jhunjhunwala et al., UAI 2022):  w <- w + eta (mean over S of (D_u - h_u) + mean over all of h_u)
    MIFA (Gu et al., NeurIPS 2021):           w <- w + eta * mean over all of h_u, after h_u <- D_u for those in S

Both published servers store all h_u. Here each client stores its h_u and sends D_u - h_u: the same steps.
FedVARP assumes equal rates; for unequal ones see FedStale with beta = 1.

The server sees sums of changes and stores the sum of all h_u. A client stores its last update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.participation.rates import Asked, Unequal


@node
class LastState:
    """The model, the sum of all h, and the mean number of samples."""

    params: Params
    total: Params
    samples: float | None = None


@dataclass(frozen=True)
class FedVarp(Unequal[LastState]):
    """Fresh updates without the variance of client sampling."""

    paper: ClassVar[str] = "Jhunjhunwala et al., UAI 2022"
    headline: ClassVar[str] = "removes the variance caused by partial participation of heterogeneous clients"
    reveals: ClassVar[str] = "sums of changes of updates"
    client_state: ClassVar[str] = "its last update (model size)"

    def init(self, fed: Federation) -> LastState:
        """Start with last updates of 0."""
        params = fed.init_params()
        return LastState(params=params, total=params.zeros())

    def round(self, fed: Federation, state: LastState) -> LastState:
        """Collect the participants' changes and step."""
        cohort = fed.sample()
        state = self.enrol(fed, state)
        mean = fed.mean(self.train, self.asked(fed, state, cohort), over=cohort)
        total = state.total + mean.weight * mean.change
        step = self.step(mean, state.total / fed.num_clients, total / fed.num_clients)
        return LastState(
            params=averaged(state.params + self.server_lr * step, mean),
            total=total,
            samples=state.samples,
        )

    def step(self, mean: Update, before: Params, after: Params) -> Params:
        """Return the step, given the mean of all last updates before and after this round."""
        step: Params = mean.change + before
        return step

    @on_client(bounds={"change": 2.0, "statistics": 100.0})
    def train(self, client: Client, message: Asked) -> Update:
        """Train; return the change of this client's update."""
        local, own = self.sgd(client, message.params), client.memory.get("update", message.params.zeros())
        delta = self.share(client, message) * weights(local.params - message.params)
        client.memory.stage("update", delta)
        return Update(change=delta - own, loss=local.loss, **statistics(local), weight=1)


@dataclass(frozen=True)
class Mifa(FedVarp):
    """The mean of every client's last update, fresh or not."""

    paper: ClassVar[str] = "Gu et al., NeurIPS 2021"
    headline: ClassVar[str] = "as fast as full participation for any availability pattern, once all clients have participated"

    def step(self, mean: Update, before: Params, after: Params) -> Params:
        """Return the step, given the mean of all last updates before and after this round."""
        return after
