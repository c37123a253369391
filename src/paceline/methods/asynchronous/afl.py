"""Anarchic federated learning (Yang et al., ICML 2022): clients choose when to participate and how many steps to run.

A client pulls the current x, runs K local steps (its own choice) and returns the rescaled sum of gradients

    G_i = (1/K) sum_{k<K} grad f_i(x_k) = (x - x_K) / (lr K),

so that the number of steps does not bias the model. The server waits for m returns, M_t, and steps:

    AFA-CD (cross-device): x <- x - eta * (1/m) sum_{i in M_t} G_i
    AFA-CS (cross-silo):   y_i <- G_i for i in M_t;   x <- x - eta * (1/M) sum over ALL clients of y_i

AFA-CD removes the bias of unequal K; frequent clients still count more. AFA-CS removes that bias too, because it averages
the last G of every client.

Here the client stores y_i and uploads G_i - y_i: the server sees sums only. A lost difference would bias the mean
permanently. So y_i changes only if the difference is counted. `AfaCsTable` is the published form, with the table on the
server. The formulas were reconstructed from memory, not checked against the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import TypeVar

from paceline.core.client import SGD, Client
from paceline.core.federation import Federation
from paceline.core.method import Finite, Method, NonNegative, Positive, State, on_client
from paceline.core.params import Params
from paceline.core.random import numpy_rng
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Queue, advance, collected, first


@node
class AnarchicState(State):
    """The model and the queue of running jobs."""

    queue: Queue


A = TypeVar("A", bound=AnarchicState, default=AnarchicState)


@dataclass(frozen=True)
class AfaCd(Method[A]):
    """AFA-CD: step along the mean of every m returns.

    Args:
        lr: client learning rate; None uses the task's.
        server_lr: eta, the factor of G; None uses the mean of K lr over the arrivals, the length of their own local updates.
        returns: m; if fewer clients are running, all of them.
        least_steps, most_steps: bounds of K (inclusive); each client draws K uniformly for each job.
        batch_size: local batch size; None uses the task's.
        idle: mean pause of a client between two jobs, in seconds; exponentially distributed.
        skew: the pauses of client i are scaled by exp(-skew * i / (N - 1)): clients with a high index return more often.
    """

    family: ClassVar[str] = "asynchronous"
    paper: ClassVar[str] = "Yang et al., ICML 2022"
    differs: ClassVar[str] = "the formulas were reconstructed from memory, not checked against the paper"
    headline: ClassVar[str] = "matches the best known rate of synchronous FL, with linear speed-up in clients and local steps"
    reveals: ClassVar[str] = "sums of rescaled gradients, start and finish time of each job"
    client_state: ClassVar[str] = "its gradient until upload"

    lr: Positive[float] | None = None
    server_lr: NonNegative[float] | None = None
    returns: Positive[int] = 10
    least_steps: Positive[int] = 1
    most_steps: Positive[int] = 10
    batch_size: Positive[int] | None = None
    idle: NonNegative[float] = 0.0
    skew: Finite = 0.0

    def init(self, fed: Federation) -> Any:
        """Start with an empty job queue."""
        return AnarchicState(params=fed.init_params(), queue=Queue())

    def check(self, fed: Federation) -> list[str]:
        """Reject too few returns (a sum of one or two replies hides little) and an empty range of steps."""
        least = 1 if fed.aggregation.sees_each else 3
        misfits = [f"returns={self.returns} is too small; take at least {least}"] if self.returns < least else []
        if self.most_steps < self.least_steps:
            misfits.append(f"least_steps={self.least_steps}, most_steps={self.most_steps}; take least <= most")
        return misfits

    def round(self, fed: Federation, state: A) -> A:
        """Wait for m returns and step along their mean."""
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, self.returns))
        queue = self.pause(fed, queue, arrived)
        mean = collected(fed, lambda: fed.mean(self.give, None, over=[job.client for job in arrived]))
        return replace(state, queue=queue, params=state.params if mean is None else self.step(state.params, mean.gradient, mean))

    def step(self, params: Params, gradient: Params, mean: Update) -> Params:
        """Step along a gradient; set the running statistics to the mean of the arrivals."""
        rate = mean.way if self.server_lr is None else self.server_lr
        params = params - rate * gradient
        if mean.weight:
            params.vector[params.layout.num_params :] = mean.statistics
        return params

    def pause(self, fed: Federation, queue: Queue, arrived: Sequence[ClientJob]) -> Queue:
        """Schedule a pause for the clients that returned."""
        if not self.idle:
            return queue
        last = max(fed.num_clients - 1, 1)
        means = {job.client: self.idle * math.exp(-self.skew * job.client / last) for job in arrived}
        return queue.rest({c: mean * numpy_rng(fed.seed, "pause", c, fed.round).exponential() for c, mean in means.items()})

    def effort(self, client: Client) -> int:
        """Draw K, the number of local steps of this job."""
        return int(torch.randint(self.least_steps, self.most_steps + 1, (), generator=client.stream("effort")))

    @on_client
    def train(self, client: Client, message: Params) -> dict[str, Any]:
        """Run K steps of plain SGD; hold the rescaled sum of their gradients for `give`."""
        lr = client.problem.lr if self.lr is None else self.lr
        local = client.sgd(message, optimizer=SGD(lr), steps=self.effort(client), batch_size=self.batch_size)
        way = lr * local.steps
        gradient, statistics = (message - local.params) / (way or 1.0), local.params.vector[message.layout.num_params :]
        return {"gradient": gradient, "way": way, "statistics": statistics}

    @on_client(collects=True, bounds={"gradient": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Any) -> Update:
        """Upload G; a client without samples has none, and a weight of 0."""
        own = client.take()
        return Update(gradient=own["gradient"], way=own["way"], statistics=own["statistics"], weight=int(own["way"] > 0))


@node
class SiloState(AnarchicState):
    """The model, the job queue, and the mean of all y_i."""

    mean: Params


@dataclass(frozen=True)
class AfaCs(AfaCd[SiloState]):
    """AFA-CS: step along the mean of every client's last return. The first step waits for all running jobs.

    Clients that never returned count as y = 0, so set the cohort to the whole population.
    """

    headline: ClassVar[str] = "the rate of AFA-CD without its residual error when clients return unequally often"
    reveals: ClassVar[str] = "sums of changes of rescaled gradients, start and finish time of each job"
    client_state: ClassVar[str] = "its last gradient, and the next one until upload (twice the model size)"

    def init(self, fed: Federation) -> SiloState:
        """Start with a mean of zero."""
        params = fed.init_params()
        return SiloState(params=params, queue=Queue(), mean=params.zeros())

    def round(self, fed: Federation, state: SiloState) -> SiloState:
        """Wait for m returns and step along the mean of all clients' last returns."""
        count = self.returns if state.queue.fired else None
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, count))
        queue = self.pause(fed, queue, arrived)
        change = collected(fed, lambda: fed.mean(self.give, None, over=[job.client for job in arrived]))
        if change is None:
            return replace(state, queue=queue)
        mean = state.mean + (change.weight / fed.num_clients) * change.gradient
        return SiloState(params=self.step(state.params, mean, change), queue=queue, mean=mean)

    @on_client(collects=True, bounds={"gradient": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Any) -> Update:
        """Upload the difference between G and the last gradient that the server counts; without samples y_i stays."""
        own, last = client.take(), client.memory.get("last")
        if own["way"] > 0:
            client.memory.stage("last", own["gradient"])
        change = own["gradient"] if last is None else own["gradient"] - last
        return Update(gradient=change, way=own["way"], statistics=own["statistics"], weight=int(own["way"] > 0))
