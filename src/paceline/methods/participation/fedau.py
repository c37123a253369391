"""FedAU (Wang and Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging", ICLR 2024).

    x <- x + eta/N * sum over participants of omega_u (y_u - x)

with N all clients, and omega_u the mean of the client's participation intervals so far (see `rates`), an estimate of
1 / p_u: FedAvg keeps its objective although rates are unequal and unknown. The paper's baselines are options.

The server sees sums of weighted updates. A client keeps three numbers on its intervals (of the last two times).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The model, when each client's last reply landed, and the mean number of samples where it counts."""

    params: Params
    landed: dict[int, int] = field(default_factory=dict)
    samples: float | None = None


@dataclass(frozen=True)
class FedAu(Rated[FedAuState]):
    """FedAvg that weighs a client's update by the mean interval between its participations.

    Args:
        weigh: "adaptive" is FedAU; "known" takes 1 / p_u from the fleet; "all" does not weigh; "participants" does
            not weigh and divides by the participants in place of N, which is biased towards those who come often.
    """

    paper: ClassVar[str] = "Wang and Ji, ICLR 2024"
    headline: ClassVar[str] = "keeps the objective under unequal, unknown participation with 3 numbers for each client, not a model"
    reveals: ClassVar[str] = "sums of weighted updates"
    keeps: ClassVar[str] = "three numbers"

    weigh: Literal["adaptive", "known", "all", "participants"] = "adaptive"

    @property
    def knows(self) -> bool:
        """Whether rates are known."""
        return self.weigh == "known"

    def init(self, fed: Federation) -> FedAuState:
        """Start without any participation."""
        return FedAuState(params=fed.init_params())

    def round(self, fed: Federation, state: FedAuState) -> FedAuState:
        """Add the participants' weighted updates up, over N."""
        cohort = fed.sample()
        state = self.enrol(fed, state)
        mean = fed.mean(self.train, self.asked(fed, state, cohort), over=cohort)
        share = 1.0 if self.weigh == "participants" else mean.weight / fed.num_clients
        params = averaged(state.params + (self.server_lr * share) * mean.delta, mean)
        landed = state.landed | dict.fromkeys(fed.last.arrived, fed.round) if self.weigh == "adaptive" else {}
        return FedAuState(params=params, landed=landed, samples=state.samples)

    @on_client(bounds={"delta": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: Asked) -> Update:
        """Train; return the change, weighted against how often this client comes."""
        local = self.sgd(client, message.params)
        factor = self.share(client, message) * (self.inverse(client, message) if self.weigh in ("adaptive", "known") else 1.0)
        delta = factor * weights(local.params - message.params)
        return Update(delta=delta, loss=local.loss, **statistics(local.params), weight=1)
