"""FedAU (Wang and Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging", ICLR 2024).

    x <- x + eta/N * sum over participants of omega_u (y_u - x)

with N all clients, and omega_u the mean of the client's participation intervals so far (see `rates`), an estimate of
1 / p_u: the FedAvg objective is preserved although rates are unequal and unknown. The paper's baselines are options.

The server sees sums of weighted updates. A client stores three numbers about its intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.participation.rates import Asked, Rated


@node
class FedAuState:
    """The model, and the mean number of samples if `importance` needs it."""

    params: Params
    samples: float | None = None


@dataclass(frozen=True)
class FedAu(Rated[FedAuState]):
    """FedAvg with updates weighted by the mean interval between a client's participations.

    Args:
        weigh: "adaptive" is FedAU; "known" uses 1 / p_u from the fleet; "all" is unweighted; "participants" is unweighted and
            divides by the number of participants instead of N, which is biased towards frequent participants.
    """

    paper: ClassVar[str] = "Wang and Ji, ICLR 2024"
    headline: ClassVar[str] = "preserves the objective under unequal, unknown participation, with 3 numbers per client, no model"
    reveals: ClassVar[str] = "sums of weighted updates"
    client_state: ClassVar[str] = "three numbers"

    weigh: Literal["adaptive", "known", "all", "participants"] = "adaptive"

    @property
    def known_rates(self) -> bool:
        """Whether the participation rates are known."""
        return self.weigh == "known"

    def init(self, fed: Federation) -> FedAuState:
        """Start with no participations."""
        return FedAuState(params=fed.init_params())

    def round(self, fed: Federation, state: FedAuState) -> FedAuState:
        """Sum the participants' weighted updates and divide by N."""
        cohort = fed.sample()
        state = self.enrol(fed, state)
        mean = fed.mean(self.train, self.asked(fed, state, cohort), over=cohort)
        share = 1.0 if self.weigh == "participants" else mean.weight / fed.num_clients
        params = averaged(state.params + (self.server_lr * share) * mean.delta, mean)
        return FedAuState(params=params, samples=state.samples)

    @on_client(bounds={"delta": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: Asked) -> Update:
        """Train; return the change, weighted by the inverse participation rate."""
        local = self.sgd(client, message.params)
        factor = self.share(client, message) * (self.inverse(client, message) if self.weigh in ("adaptive", "known") else 1.0)
        delta = factor * weights(local.params - message.params)
        return Update(delta=delta, loss=local.loss, **statistics(local), weight=1)
