"""FedFix (Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
Updates", JMLR 24, 2023), and the server loop that it shares with asynchronous FedAvg and FedBuff.

    theta_{n+1} = theta_n + eta sum_{i in S_n} d_i Delta_i(theta_{rho_i}),   Delta_i(theta) = theta_i^K - theta

S_n are the clients that returned, each with the change to the model that it began on (version rho_i), whatever
the current one is. The others go on undisturbed; those of S_n begin anew on theta_{n+1}. d_i makes up for how
often a client takes part, so that over time each counts by its importance p_i = 1/M, with M clients at work:

    FedFix: a model every period T, S_n is who is there; client i comes every ceil(tau_i / T) steps, so
    d_i = ceil(tau_i / T) p_i, where tau_i is the time from its start to its arrival.

The server sees sums of changes, who is in them, and when they began and arrived. A client keeps the change
that it has not handed over yet; nothing from job to job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from paceline.core.client import SGD, Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Method, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Firing, Queue, advance, every, nanoseconds


@node
class AsyncState:
    """The model, who is at work, and in how many steps each client took part."""

    params: Params
    queue: Queue
    counts: dict[int, int]


@dataclass(frozen=True)
class FedFix(Method[AsyncState]):
    """A new model every fixed period, from whatever has arrived.

    Args:
        lr: client learning rate; None takes the task's.
        steps: local SGD steps K.
        batch_size: local batch size; None takes the task's.
        momentum: of the local SGD, reset at each job.
        max_norm: norm to which gradients are cut; it only stops blow-ups. None cuts nothing.
        server_lr: eta.
        period: T, time between models.
        unit: of the period: the time that the slowest client at work takes, or virtual seconds.
        least: the firing waits, by whole periods, until so many replies are there; None asks for one half of
            the clients at work, and three at least, where aggregation hides replies, and for none otherwise.
        staleness: a; d_i is multiplied by (1 + n - rho_i)^-a. 0 leaves it as it is.
        cap: largest d_i / p_i, against huge weights on old changes; None for no limit.
    """

    family: ClassVar[str] = "asynchronous"
    paper: ClassVar[str] = "Fraboni et al., JMLR 2023"
    headline: ClassVar[str] = "better than synchronous FedAvg, which is slow, and than asynchronous FedAvg, which is unstable"
    reveals: ClassVar[str] = "sums of updates, and when each client begins and is done"
    keeps: ClassVar[str] = "its update until it is handed over"
    names_clients: ClassVar[bool] = True

    lr: float | None = None
    steps: int = 10
    batch_size: int | None = 64
    momentum: float = 0.9
    max_norm: float | None = 1e4
    server_lr: float = 1.0
    period: float = 0.5
    unit: Literal["slowest", "seconds"] = "slowest"
    least: int | None = None
    staleness: float = 0.0
    cap: float | None = None

    def init(self, fed: Federation) -> AsyncState:
        """Start with nobody at work."""
        return AsyncState(params=fed.init_params(), queue=Queue(), counts={})

    def round(self, fed: Federation, state: AsyncState) -> AsyncState:
        """Run until the server fires, and step along what has arrived."""
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: self.fires(fed, q))
        if not arrived:
            return AsyncState(params=state.params, queue=queue, counts=state.counts)
        counts = state.counts | {job.client: state.counts.get(job.client, 0) + 1 for job in arrived}
        clients = len(queue.jobs) + len(arrived)
        weights = {
            job.client: min(d * (queue.fired - job.version) ** -self.staleness, self.cap or d)
            for job, d in zip(arrived, self.weights(queue, arrived, counts), strict=True)
        }
        mean = self.collect(fed, weights)
        params = state.params + (self.server_lr * mean.weight / clients) * mean.delta
        params.vector[params.layout.num_params :] = mean.statistics
        return AsyncState(params=params, queue=queue, counts=counts)

    def collect(self, fed: Federation, weights: Mapping[int, float]) -> Update:
        """Return the mean of what has arrived, weighted by d_i / p_i."""
        return fed.mean(self.give, dict(weights), over=list(weights))

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return when the server fires next."""
        least = self.least
        if least is None:
            least = 0 if fed.aggregation.sees_each else max(3, -(-len(queue.jobs) // 2))
        return every(queue, self._period(queue.jobs), least)

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i of each arrival; `queue` is that after the firing."""
        period = self._period((*queue.jobs, *arrived))
        return [float(-(-job.took // period)) for job in arrived]

    def _period(self, jobs: Sequence[ClientJob]) -> int:
        unit = nanoseconds(1.0) if self.unit == "seconds" else max((job.took for job in jobs), default=nanoseconds(1.0))
        return max(round(self.period * unit), 1)

    @on_client
    def train(self, client: Client, message: Params) -> dict[str, Params | torch.Tensor]:
        """Train on the model of the start; keep the change, and the running statistics as they are."""
        limit = self.max_norm
        local = client.sgd(
            message,
            optimizer=SGD(self.lr, self.momentum),
            hooks=Hooks(correct=None if limit is None else lambda grad, _: grad * (limit / grad.norm()).clamp(max=1.0)),
            steps=self.steps,
            batch_size=self.batch_size,
        )
        return {"delta": local.params - message, "statistics": local.params.vector[message.layout.num_params :]}

    @on_client(held=True, bounds={"delta": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Mapping[int, float]) -> Update:
        """Hand the change over, times d_i / p_i from the server's public table."""
        own = client.take()
        return Update(delta=message[client.id] * own["delta"], statistics=own["statistics"], weight=1)
