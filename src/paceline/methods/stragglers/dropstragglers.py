"""Drop stragglers: a deadline at the time of the slowest client that is no straggler.

The oldest cure: fast, and biased, as the data of the slow clients is lost. The server measures when
replies arrive in the first rounds; from then on it closes a round at T*, the (1 - phi) quantile of the
arrival times, and later clients are ordinary drop-outs (also of secure aggregation).
The server sees sums, and when each reply arrives. A client keeps nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from paceline.core.federation import Federation
from paceline.core.method import State
from paceline.core.tree import node
from paceline.methods.optimisation.fedavg import FedAvg


@node
class DeadlineState(State):
    """The model, and the last arrival time that was seen of each client, in seconds."""

    times: dict[int, float]
    rounds: int


@dataclass(frozen=True)
class DropStragglers(FedAvg[DeadlineState]):
    """FedAvg that does not wait for the slowest `straggler_share` of the clients.

    Args:
        straggler_share: phi, the share of clients that may be late.
        slack: the deadline is T* times this.
        warmup: rounds that wait for all, to measure.
    """

    family: ClassVar[str] = "stragglers"
    paper: ClassVar[str] = "baseline of CLIP, arXiv 2510.16694"
    headline: ClassVar[str] = (
        "a baseline: as fast as the clients that are not slow, and biased, as the data of the slow ones are lost"
    )
    reveals: ClassVar[str] = "sums of updates, arrival times"

    straggler_share: float = 0.2
    slack: float = 1.05
    warmup: int = 2

    def init(self, fed: Federation) -> DeadlineState:
        """Start without any times."""
        return DeadlineState(params=fed.init_params(), times={}, rounds=0)

    def round(self, fed: Federation, state: DeadlineState) -> DeadlineState:
        """Average what arrives in time."""
        cohort = fed.sample()
        mean = fed.mean(self.train, state.params, over=cohort, deadline=self.deadline(state, cohort))
        return DeadlineState(
            params=state.params + self.server_lr * mean.delta,
            times=state.times | fed.last.arrived,
            rounds=state.rounds + 1,
        )

    def deadline(self, state: DeadlineState, cohort: list[int]) -> float | None:
        """Return the deadline for a cohort, from the times that are known of it."""
        times = sorted(state.times[c] for c in cohort if c in state.times)
        if state.rounds < self.warmup or not times:
            return None
        return self.slack * times[max(math.ceil((1 - self.straggler_share) * len(times)) - 1, 0)]
