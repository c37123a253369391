"""Asynchronous FedAvg in the frame of FedFix (Fraboni et al., JMLR 24, 2023): a new model whenever one client returns.

    theta_{n+1} = theta_n + eta d_i Delta_i(theta_{rho_i})
    unbiased:  d_i = (sum_j 1/tau_j) tau_i p_i, as client i takes part in a share (1/tau_i) / sum_j 1/tau_j of the steps
    identical: d_i = 1, which favours fast clients, and is M times the step of the others

tau_i is the time that client i takes for a job, known for those at work from their devices.

The server sees every single change: a sum over one client hides nothing, so take FedBuff where replies must be
hidden. A client keeps nothing once its change is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Firing, Queue, first
from paceline.methods.asynchronous.fedfix import FedFix


@dataclass(frozen=True)
class FedAsync(FedFix):
    """A new model from every arrival. `period`, `unit` and `least` do not matter here.

    Args:
        weigh: against how often each client takes part, or alike.
    """

    headline: ClassVar[str] = "fast but unstable; weights against how often a client takes part keep the optimum where it belongs"
    reveals: ClassVar[str] = "every client's update, and when it began and was done"
    sum_only: ClassVar[str] = "fedbuff"

    weigh: Literal["identical", "unbiased"] = "unbiased"

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return when the first reply is there; ties are fired one after another, by client."""
        return first(queue, 1)

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i."""
        jobs = (*queue.jobs, *arrived)
        if self.weigh == "identical":
            return [float(len(jobs))] * len(arrived)
        rate = sum(1.0 / job.took for job in jobs)
        return [rate * job.took for job in arrived]

    def collect(self, fed: Federation, weights: Mapping[int, float]) -> Update:
        """Return the one change that has arrived."""
        replies = fed.each(self.give, dict(weights), over=list(weights))
        return next(iter(replies.values()))

    @on_client(each=True, held=True)
    def give(self, client: Client, message: Mapping[int, float]) -> Update:
        """Hand the change over, times d_i / p_i."""
        return super().give(client, message)
