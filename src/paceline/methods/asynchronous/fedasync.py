"""Asynchronous FedAvg in the framework of FedFix (Fraboni et al., JMLR 24, 2023): one update of the model per arrival.

    theta_{n+1} = theta_n + eta d_i Delta_i(theta_{rho_i})
    unbiased:  d_i = (sum_j 1/tau_j) tau_i p_i, because client i takes part in a share (1/tau_i) / sum_j 1/tau_j of the steps
    identical: d_i = 1, which favours fast clients and makes a step M times that of d_i = p_i

tau_i is the time of one job of client i, known for running clients from their device profiles.

The server sees every individual change: a sum over one client hides nothing, so use FedBuff if replies must be
hidden. A client stores its change until it is uploaded.
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
    """Update the model on every arrival. `period`, `unit` and `least` are ignored.

    Args:
        weigh: ``unbiased`` divides by how often each client participates; ``identical`` weights all arrivals equally.
    """

    headline: ClassVar[str] = "fast but unstable; weights inverse to participation preserve the true optimum"
    reveals: ClassVar[str] = "every client's update, start and finish time of each job"
    sum_only: ClassVar[str] = "fedbuff"

    weigh: Literal["identical", "unbiased"] = "unbiased"

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return the time of the first reply; ties fire one after another, in order of client id."""
        return first(queue, 1)

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i."""
        jobs = (*queue.jobs, *arrived)
        if self.weigh == "identical":
            return [float(len(jobs))] * len(arrived)
        rate = sum(1.0 / job.took for job in jobs)
        return [rate * job.took for job in arrived]

    def collect(self, fed: Federation, weights: Mapping[int, float]) -> Update:
        """Return the single change that has arrived."""
        replies = fed.each(self.give, dict(weights), over=list(weights))
        return next(iter(replies.values()))

    @on_client(each=True, collects=True)
    def give(self, client: Client, message: Mapping[int, float]) -> Update:
        """Upload the change times d_i / p_i."""
        return super().give(client, message)
