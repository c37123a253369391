"""Anarchic federated learning (Yang et al., ICML 2022): clients decide when they take part and how many steps they do.

A client pulls the current x, takes K steps of its own choice from it, and returns the rescaled sum

    G_i = (1/K) sum_{k<K} grad f_i(x_k) = (x - x_K) / (lr K),

so that neither a long nor a short effort biases the model. The server waits for m returns, M_t, and steps:

    AFA-CD (cross-device): x <- x - eta * (1/m) sum_{i in M_t} G_i
    AFA-CS (cross-silo):   y_i <- G_i for i in M_t;   x <- x - eta * (1/M) sum over ALL clients of y_i

CD removes the bias of effort; clients that come often still count more. CS removes that too, by the last G of everybody.

Here y_i stays with the client, which returns G_i - y_i: the server sees sums only. A difference that is lost
on its way would bias the mean for good. So the server says, with each hand-over, which round's difference of
each client was the last to land, and the client takes the difference to that one. `AfaCsTable` is the
published form, with the table at the server. The formulas are recalled from the paper, not read from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import TypeVar

from paceline.core.client import SGD, Client
from paceline.core.errors import CheckpointError, EmptyClientError
from paceline.core.federation import Federation
from paceline.core.method import Method, State, on_client
from paceline.core.params import Params
from paceline.core.random import numpy_rng
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import ClientJob, Queue, advance, first


@node
class AnarchicState(State):
    """The model, and who is at work."""

    queue: Queue


A = TypeVar("A", bound=AnarchicState, default=AnarchicState)


@dataclass(frozen=True)
class AfaCd(Method[A]):
    """AFA-CD: a step along the mean of every m returns.

    Args:
        lr: client learning rate; None takes the task's.
        server_lr: eta, the factor of G; None takes the arrivals' mean of K lr, the length of their own ways.
        returns: m; where fewer clients are at work, all of them.
        least_steps, most_steps: K is drawn evenly from these by each client, anew each time.
        batch_size: local batch size; None takes the task's.
        idle: mean seconds for which a client pauses between two jobs, exponentially distributed.
        skew: client i's pauses are exp(-skew * i / (N - 1)) times as long: the higher, the more often it comes.
    """

    family: ClassVar[str] = "asynchronous"
    paper: ClassVar[str] = "Yang et al., ICML 2022"
    headline: ClassVar[str] = "the best known rate of ordinary federated learning, with linear speed-up in clients and local steps"
    reveals: ClassVar[str] = "sums of rescaled gradients, and when each client begins and is done"
    keeps: ClassVar[str] = "its gradient until it is handed over"

    lr: float | None = None
    server_lr: float | None = None
    returns: int = 10
    least_steps: int = 1
    most_steps: int = 10
    batch_size: int | None = None
    idle: float = 0.0
    skew: float = 0.0

    def init(self, fed: Federation) -> Any:
        """Start with nobody at work."""
        return AnarchicState(params=fed.init_params(), queue=Queue())

    def check(self, fed: Federation) -> list[str]:
        """A sum of one or two replies hides little, and no steps give no gradient."""
        least = 1 if fed.aggregation.sees_each else 3
        misfits = [f"returns={self.returns} is too small; take at least {least}"] if self.returns < least else []
        if not 1 <= self.least_steps <= self.most_steps:
            misfits.append(f"least_steps={self.least_steps}, most_steps={self.most_steps}; take 1 <= least <= most")
        return misfits

    def round(self, fed: Federation, state: A) -> A:
        """Wait for m returns, and step along their mean."""
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, self.returns))
        mean = fed.mean(self.give, None, over=[job.client for job in arrived])
        return replace(state, params=self.step(state.params, mean.gradient, mean), queue=self.pause(fed, queue, arrived))

    def step(self, params: Params, gradient: Params, mean: Update) -> Params:
        """Step along a gradient; running statistics are those of the arrivals."""
        rate = mean.way if self.server_lr is None else self.server_lr
        params = params - rate * gradient
        params.vector[params.layout.num_params :] = mean.statistics
        return params

    def pause(self, fed: Federation, queue: Queue, arrived: Sequence[ClientJob]) -> Queue:
        """Let those who returned pause."""
        if not self.idle:
            return queue
        last = max(fed.num_clients - 1, 1)
        means = {job.client: self.idle * math.exp(-self.skew * job.client / last) for job in arrived}
        return queue.rest({c: mean * numpy_rng(fed.seed, "pause", c, fed.round).exponential() for c, mean in means.items()})

    def effort(self, client: Client) -> int:
        """Return K, the client's own choice for this job."""
        return int(torch.randint(self.least_steps, self.most_steps + 1, (), generator=client.stream("effort")))

    @on_client
    def train(self, client: Client, message: Params) -> dict[str, Any]:
        """Take K steps of plain SGD; keep the rescaled sum of their gradients."""
        lr = client.problem.lr if self.lr is None else self.lr
        local = client.sgd(message, optimizer=SGD(lr), steps=self.effort(client), batch_size=self.batch_size)
        if not local.steps:
            raise EmptyClientError("this client has no samples, and so no gradient; partition without empty clients")
        way = lr * local.steps
        gradient, statistics = (message - local.params) / way, local.params.vector[message.layout.num_params :]
        return {"gradient": gradient, "way": way, "statistics": statistics}

    @on_client(held=True, bounds={"gradient": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Any) -> Update:
        """Hand G over."""
        own = client.take()
        return Update(gradient=own["gradient"], way=own["way"], statistics=own["statistics"], weight=1)


@node
class SiloState(AnarchicState):
    """The model, who is at work, the mean of all y_i, and the round in which each client's last difference landed."""

    mean: Params
    landed: dict[int, int]


@dataclass(frozen=True)
class AfaCs(AfaCd[SiloState]):
    """AFA-CS: a step along the mean of everybody's last return. The first step waits for all who are at work.

    Clients that never returned count as y = 0, so let the cohort be the population.
    """

    headline: ClassVar[str] = "the rate of AFA-CD without its lasting error where some clients arrive more often than others"
    reveals: ClassVar[str] = "sums of changes of rescaled gradients, and when each client begins and is done"
    keeps: ClassVar[str] = "its last two gradients (twice the model size)"
    names_clients: ClassVar[bool] = True

    def init(self, fed: Federation) -> SiloState:
        """Start with a mean of zero."""
        params = fed.init_params()
        return SiloState(params=params, queue=Queue(), mean=params.zeros(), landed={})

    def round(self, fed: Federation, state: SiloState) -> SiloState:
        """Wait for m returns, and step along the mean of all clients' last ones."""
        count = self.returns if state.landed else None
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, count))
        who = [job.client for job in arrived]
        change = fed.mean(self.give, {c: state.landed.get(c, 0) for c in who}, over=who)
        mean = state.mean + (change.weight / fed.num_clients) * change.gradient
        return SiloState(
            params=self.step(state.params, mean, change),
            queue=self.pause(fed, queue, arrived),
            mean=mean,
            landed=state.landed | dict.fromkeys(fed.last.arrived, fed.round),
        )

    @on_client(held=True, bounds={"gradient": 4.0, "statistics": 100.0})
    def give(self, client: Client, message: Mapping[int, int]) -> Update:
        """Hand over the difference of G to the last one that landed."""
        own, memory = client.take(), client.memory
        landed, known = message[client.id], [memory.get("sent"), memory.get("base")]
        base = next((y for y in known if y is not None and y["round"] == landed), None)
        if landed and base is None:
            raise CheckpointError(
                f"client {client.id}: the server counts a gradient of round {landed} that is not known here; start anew"
            )
        memory["base"], memory["sent"] = base, {"round": client.round, "gradient": own["gradient"]}
        change = own["gradient"] if base is None else own["gradient"] - base["gradient"]
        return Update(gradient=change, way=own["way"], statistics=own["statistics"], weight=1)
