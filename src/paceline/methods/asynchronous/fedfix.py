"""FedFix (Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
Updates", JMLR 24, 2023), and the server loop shared with asynchronous FedAvg and FedBuff.

    theta_{n+1} = theta_n + eta sum_{i in S_n} d_i Delta_i(theta_{rho_i}),   Delta_i(theta) = theta_i^K - theta

S_n is the set of clients that returned, each with the change relative to the model it started from (version rho_i),
which may be older than the current one. The others keep running; those in S_n restart from theta_{n+1}. d_i corrects for
how often a client participates, so that over time each counts with importance p_i = 1/M, with M running clients:

    FedFix: one update every period T, S_n is every reply available; client i returns every ceil(tau_i / T) steps, so
    d_i = ceil(tau_i / T) p_i, where tau_i is the time from its start to its arrival.

The server sees sums of changes, their participants, and the start and arrival time of each. A client stores its
change until it is uploaded, and nothing between jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paceline.blocks.running import averaged, statistics
from paceline.core.client import SGD, Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Firing, Queue, advance, collected, every, nanoseconds


@node
class AsyncState:
    """The model, the queue of running jobs, and the number of steps in which each client participated."""

    params: Params
    queue: Queue
    counts: dict[int, int]


@dataclass(frozen=True)
class FedFix(Method[AsyncState]):
    """Update the model every fixed period, from the replies that have arrived.

    Args:
        lr: client learning rate; None uses the task's.
        steps: local SGD steps K.
        batch_size: local batch size; None uses the task's.
        momentum: of the local SGD, reset for each job.
        max_norm: gradients are clipped to this norm; only guards against divergence. None disables clipping.
        server_lr: eta.
        period: T, the time between updates of the model.
        unit: unit of `period`: the job time of the slowest running client, or virtual seconds.
        least: the update is postponed by whole periods until this many replies arrived; None means half of the running
            clients, and at least three, if the aggregation hides replies, and no minimum otherwise.
        staleness: a; d_i is multiplied by (1 + n - rho_i)^-a. 0 disables the discount; None is the method's own value.
        cap: upper limit of d_i / p_i, against large weights on old changes; None means no limit.
    """

    family: ClassVar[str] = "asynchronous"
    paper: ClassVar[str] = "Fraboni et al., JMLR 2023"
    headline: ClassVar[str] = "outperforms synchronous FedAvg, which is slow, and asynchronous FedAvg, which is unstable"
    reveals: ClassVar[str] = "sums of updates, start and finish time of each job"
    client_state: ClassVar[str] = "its update until upload"
    names_clients: ClassVar[bool] = True

    lr: NonNegative[float] | None = None
    steps: Positive[int] = 10
    batch_size: Positive[int] | None = 64
    momentum: Share = 0.9
    max_norm: Positive[float] | None = 1e4
    server_lr: NonNegative[float] = 1.0
    period: Positive[float] = 0.5
    unit: Literal["slowest", "seconds"] = "slowest"
    least: NonNegative[int] | None = None
    staleness: NonNegative[float] | None = None
    cap: Positive[float] | None = None

    def init(self, fed: Federation) -> AsyncState:
        """Start with an empty job queue."""
        return AsyncState(params=fed.init_params(), queue=Queue(), counts={})

    def round(self, fed: Federation, state: AsyncState) -> AsyncState:
        """Run until the next update is due and step along the changes that have arrived."""
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: self.fires(fed, q))
        if not arrived:
            return AsyncState(params=state.params, queue=queue, counts=state.counts)
        counts = state.counts | {job.client: state.counts.get(job.client, 0) + 1 for job in arrived}
        clients = len(queue.jobs) + len(arrived)
        weights = {
            job.client: min(d * self.discount(queue.fired - 1 - job.version), self.cap or d)
            for job, d in zip(arrived, self.weights(queue, arrived, counts), strict=True)
        }
        mean = collected(fed, lambda: self.collect(fed, weights))
        params = state.params if mean is None else self.step(state.params, mean, clients)
        return AsyncState(params=params, queue=queue, counts=counts)

    def step(self, params: Params, mean: Update, clients: int) -> Params:
        """Return the next model, given the mean of the arrived changes and the number of running clients."""
        return averaged(params + (self.server_lr * mean.weight / clients) * mean.delta, mean)

    def discount(self, late: int) -> float:
        """Return the factor on d_i of a change that is `late` = n - rho_i versions old."""
        return float((1.0 + late) ** -(self.staleness or 0.0))

    def collect(self, fed: Federation, weights: Mapping[int, float]) -> Update:
        """Return the mean of the arrived changes, weighted by d_i / p_i."""
        return fed.mean(self.give, dict(weights), over=list(weights))

    def fires(self, fed: Federation, queue: Queue) -> Firing | None:
        """Return the time of the next update."""
        least = self.least
        if least is None:
            least = 0 if fed.aggregation.sees_each else max(3, -(-len(queue.jobs) // 2))
        return every(queue, self._period(queue.jobs), least)

    def weights(self, queue: Queue, arrived: Sequence[ClientJob], counts: Mapping[int, int]) -> list[float]:
        """Return d_i / p_i of each arrival; `queue` is the state after the firing."""
        period = self._period((*queue.jobs, *arrived))
        return [float(-(-job.took // period)) for job in arrived]

    def _period(self, jobs: Sequence[ClientJob]) -> int:
        unit = nanoseconds(1.0) if self.unit == "seconds" else max((job.took for job in jobs), default=nanoseconds(1.0))
        return max(round(self.period * unit), 1)

    def local_hooks(self, start: Params) -> Hooks:
        """Return the hooks of a job that starts from `start`: clipping."""
        limit = self.max_norm
        return Hooks(correct=None if limit is None else lambda grad, _: grad * (limit / grad.norm()).clamp(max=1.0))

    @on_client
    def train(self, client: Client, message: Params) -> dict[str, Any]:
        """Train from the model of the job's start; hold the change and the unmodified running statistics for `give`."""
        local = client.sgd(
            message,
            optimizer=SGD(self.lr, self.momentum),
            hooks=self.local_hooks(message),
            steps=self.steps,
            batch_size=self.batch_size,
        )
        return {"delta": local.params - message, **statistics(local)}

    @on_client(collects=True, bounds={"delta": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Mapping[int, float]) -> Update:
        """Upload the change times d_i / p_i, read from the server's public table."""
        own = client.take()
        return Update(**own | {"delta": message[client.id] * own["delta"]}, weight=1)
