"""FedAsync (Xie et al., "Asynchronous Federated Optimization", OPT 2020): one update of the model per arrival.

    client: minimise f_i(theta) + rho/2 |theta - theta_{rho_i}|^2 from theta_{rho_i}, the model it received
    server: theta_{n+1} = (1 - a_n) theta_n + a_n theta_i,   a_n = alpha s(t),   t = n - rho_i
    constant: s = 1;   polynomial: s = (t + 1)^-a;   hinge: s = 1 if t <= b, else 1 / (a (t - b) + 1)

Changes in place of models, in the framework of FedFix (Fraboni et al., JMLR 24, 2023), with tau_i the time of one job of
client i, known for running clients from their device profiles:

    theta_{n+1} = theta_n + eta d_i s(t) Delta_i(theta_{rho_i})
    unbiased:  d_i = (sum_j 1/tau_j) tau_i p_i, because client i takes part in a share (1/tau_i) / sum_j 1/tau_j of the steps
    identical: d_i = 1, which favours fast clients and makes a step M times that of d_i = p_i

The server sees every individual model or change: a sum over one client hides nothing, so use FedBuff if replies must be
hidden. A client stores it until it is uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, PositiveShare, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Firing, Queue, first
from paceline.methods.asynchronous.fedfix import FedFix


@dataclass(frozen=True)
class FedAsync(FedFix):
    """Update the model on every arrival. `period`, `unit` and `least` are ignored, with ``mixing`` also `server_lr`.

    Args:
        weigh: ``mixing`` averages models, as published; the others add changes: ``unbiased`` divides by how often each client
            participates, ``identical`` weights all arrivals equally.
        alpha: the mixing weight.
        discount_by: s, the discount of late replies; ``constant`` disables it.
        staleness: a; None is 1/2 for ``polynomial`` (0 if changes are added) and 10 for ``hinge``.
        grace: b of ``hinge``: versions that a reply may be late without discount.
        rho: strength of the proximal term; None is 0.005 with ``mixing``, else 0.
    """

    paper: ClassVar[str] = "Xie et al., OPT 2020; Fraboni et al., JMLR 2023"
    differs: ClassVar[str] = "local SGD has momentum 0.9, as in the experiments of FedFix; the paper takes plain SGD"
    headline: ClassVar[str] = "converges fast and tolerates stale replies, on convex and on a family of non-convex problems"
    reveals: ClassVar[str] = "every client's model or update, start and finish time of each job"
    sum_only: ClassVar[str] = "fedbuff"

    weigh: Literal["mixing", "identical", "unbiased"] = "mixing"
    alpha: PositiveShare = 0.6
    discount_by: Literal["constant", "polynomial", "hinge"] = "polynomial"
    grace: NonNegative[int] = 4
    rho: NonNegative[float] | None = None

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return the time of the first reply; ties fire one after another, in order of client id."""
        return first(queue, 1)

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i, or alpha."""
        jobs = (*queue.jobs, *arrived)
        if self.weigh == "mixing":
            return [self.alpha] * len(arrived)
        if self.weigh == "identical":
            return [float(len(jobs))] * len(arrived)
        rate = sum(1.0 / job.took for job in jobs)
        return [rate * job.took for job in arrived]

    def discount(self, late: int) -> float:
        """Return s(late)."""
        if self.discount_by == "hinge":
            a = 10.0 if self.staleness is None else self.staleness
            return 1.0 if late <= self.grace else 1.0 / (a * (late - self.grace) + 1.0)
        own = 0.5 if self.weigh == "mixing" else 0.0
        a = own if self.staleness is None else self.staleness
        return 1.0 if self.discount_by == "constant" else float((1.0 + late) ** -a)

    def collect(self, fed: Federation, weights: Mapping[int, float]) -> Update:
        """Return the single reply that has arrived."""
        replies = fed.each(self.give, dict(weights), over=list(weights))
        return next(iter(replies.values()))

    def step(self, params: Params, mean: Update, clients: int) -> Params:
        """Mix the arrived model into the current one, or add the arrived change."""
        if self.weigh != "mixing":
            return super().step(params, mean, clients)
        model: Params = mean.model
        share: float = mean.weight
        return params + share * (model - params)

    def local_hooks(self, start: Params) -> Hooks:
        """Return the hooks of a job that starts from `start`: clipping, and the proximal term."""
        rho, clip = (0.005 if self.weigh == "mixing" else 0.0) if self.rho is None else self.rho, super().local_hooks(start).correct
        if not rho:
            return Hooks(correct=clip)
        return Hooks(correct=lambda grad, at: (clip(grad, at) if clip else grad) + rho * (at - start))

    @on_client
    def train(self, client: Client, message: Params) -> dict[str, Any]:
        """Train from the model of the job's start; hold the model or its change for `give`."""
        held = super().train(client, message)
        return {"model": message + held["delta"]} if self.weigh == "mixing" else held

    @on_client(each=True, collects=True)
    def give(self, client: Client, message: Mapping[int, float]) -> Update:
        """Upload the model with the weight a_n (0 without samples), or the change times d_i / p_i."""
        if self.weigh != "mixing":
            return super().give(client, message)
        return Update(model=client.take()["model"], weight=message[client.id] * min(client.num_samples, 1))
