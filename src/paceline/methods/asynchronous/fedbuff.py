"""FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022), in the framework
of FedFix (Fraboni et al., JMLR 24, 2023): one update of the model per c arrivals.

    theta_{n+1} = theta_n + eta sum_{i in S_n} d_i Delta_i(theta_{rho_i}),   |S_n| = c
    identical: d_i = (1/c) / sqrt(1 + n - rho_i), as published; it favours fast clients by f_i / sum_j f_j
    unbiased:  d_i = p_i / f_i,  f_i = (steps in which i participated) / (steps so far), at least 1 / (steps so far)

f_i is estimated during the run. With c = 1 this is asynchronous FedAvg, with c = M synchronous FedAvg.

The server sees sums of c changes, their participants, and the start and arrival time of each. A client stores its
change until it is uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from paceline.core.federation import Federation
from paceline.core.method import Positive
from paceline.devices.events import ClientJob, Firing, Queue, first
from paceline.methods.asynchronous.fedfix import FedFix


@dataclass(frozen=True)
class FedBuff(FedFix):
    """Update the model every `buffer` arrivals. `period`, `unit` and `least` are ignored.

    Args:
        buffer: c; if fewer clients are running, all of them.
        weigh: weight arrivals equally (``identical``), or inversely to participation (``unbiased``).
        staleness: a, see `FedFix`; None is 1/2 with ``identical`` and 0 with ``unbiased``, which a discount would bias again.
    """

    paper: ClassVar[str] = "Nguyen et al., AISTATS 2022; Fraboni et al., JMLR 2023"
    differs: ClassVar[str] = "local SGD has momentum 0.9, as in the experiments of FedFix; the paper takes plain SGD"
    headline: ClassVar[str] = "3.3 times as efficient as synchronous training, up to 2.5 times as asynchronous, from sums only"

    buffer: Positive[int] = 10
    weigh: Literal["identical", "unbiased"] = "identical"

    def check(self, fed: Federation) -> list[str]:
        """Reject a small buffer: a sum of one or two replies hides little."""
        least = 1 if fed.aggregation.sees_each else 3
        return [f"buffer={self.buffer} is too small; take at least {least}"] if self.buffer < least else []

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return the time of the c-th reply."""
        return first(queue, self.buffer)

    def discount(self, late: int) -> float:
        """Return the factor on d_i: 1 / sqrt(1 + n - rho_i) by default."""
        own = 0.5 if self.weigh == "identical" else 0.0
        return float((1.0 + late) ** -(own if self.staleness is None else self.staleness))

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i."""
        if self.weigh == "identical":
            return [(len(queue.jobs) + len(arrived)) / len(arrived)] * len(arrived)
        return [queue.fired / max(counts[job.client], 1) for job in arrived]
