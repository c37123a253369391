"""Drop stragglers: a round deadline at the arrival time of the slowest non-straggler.

The simplest baseline: fast, but biased, because the data of slow clients is lost. The server measures arrival times in
the first rounds; afterwards it closes a round at T*, the (1 - phi) quantile of the arrival times, and later clients are
ordinary dropouts (also in secure aggregation).
The server sees sums and the arrival time of each reply. Clients store no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State
from paceline.core.tree import node
from paceline.methods.optimisation.fedavg import FedAvg


@node
class DeadlineState(State):
    """The model, and each client's last observed arrival time, in seconds."""

    times: dict[int, float]
    rounds: int


@dataclass(frozen=True)
class DropStragglers(FedAvg[DeadlineState]):
    """FedAvg that does not wait for the slowest `straggler_share` of the clients.

    Args:
        straggler_share: phi, the share of clients that may be late.
        slack: factor on T* for the deadline.
        warmup: initial rounds that wait for all clients, to measure times.
    """

    family: ClassVar[str] = "stragglers"
    paper: ClassVar[str] = "baseline of CLIP, arXiv 2510.16694"
    headline: ClassVar[str] = "a baseline: as fast as the non-stragglers, but biased, because the data of slow clients is lost"
    reveals: ClassVar[str] = "sums of updates, arrival times"

    straggler_share: Share = 0.2
    slack: Positive[float] = 1.05
    warmup: NonNegative[int] = 2

    def init(self, fed: Federation) -> DeadlineState:
        """Start with no arrival times."""
        return DeadlineState(params=fed.init_params(), times={}, rounds=0)

    def round(self, fed: Federation, state: DeadlineState) -> DeadlineState:
        """Average the updates that arrive before the deadline."""
        cohort = fed.sample()
        mean = fed.mean(self.train, state.params, over=cohort, deadline=self.deadline(state, cohort))
        return DeadlineState(
            params=state.params + self.server_lr * mean.delta,
            times=state.times | fed.last.arrived if mean.weight else {},  # those in time had no samples: measure anew
            rounds=state.rounds + 1,
        )

    def deadline(self, state: DeadlineState, cohort: list[int]) -> float | None:
        """Return a cohort's deadline in seconds, from the known arrival times; None during the warm-up."""
        times = sorted(state.times[c] for c in cohort if c in state.times)
        if state.rounds < self.warmup or not times:
            return None
        return self.slack * times[max(math.ceil((1 - self.straggler_share) * len(times)) - 1, 0)]
