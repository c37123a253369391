"""AFA-CS as published (Yang et al., "Anarchic Federated Learning", ICML 2022): the server stores each client's last gradient.

    y_i <- G_i for i in M_t;   x <- x - eta * (1/M) sum over ALL clients of y_i

`AfaCs` computes the same mean from sums only, because each client stores its own y_i. The table also allows expiry:
without it, a client that left for good affects every later step through its last gradient. With `expire`, its y_i is
removed after that number of steps, and the mean is over the remaining clients.

The server sees every client's rescaled gradient and stores the last one. A client stores its gradient until it is
uploaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import Queue, advance, collected, first
from paceline.methods.asynchronous.afl import AfaCd, AnarchicState


@node
class TableState(AnarchicState):
    """The model, the queue of running jobs, and for each client (step of arrival, last gradient)."""

    table: dict[int, tuple[int, Params]]


@dataclass(frozen=True)
class AfaCsTable(AfaCd[TableState]):
    """AFA-CS with the table on the server. The first step waits for all running jobs.

    Args:
        expire: steps after which the gradient of a client that has not returned is removed; None never removes one and
            counts clients that never returned as y = 0.
    """

    headline: ClassVar[str] = "the rate of AFA-CD without its residual error when clients return unequally often"
    reveals: ClassVar[str] = "every client's rescaled gradient"
    sum_only: ClassVar[str] = "afacs"

    expire: NonNegative[int] | None = None

    def init(self, fed: Federation) -> TableState:
        """Start with an empty table."""
        return TableState(params=fed.init_params(), queue=Queue(), table={})

    def round(self, fed: Federation, state: TableState) -> TableState:
        """Wait for m returns, store them in the table, and step along its mean."""
        count = self.returns if state.table else None
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, count))
        queue = self.pause(fed, queue, arrived)
        replies = collected(fed, lambda: fed.each(self.give, None, over=[job.client for job in arrived]))
        if replies is None:
            return replace(state, queue=queue)
        table = state.table | {c: (queue.fired, reply.gradient) for c, reply in replies.items() if reply.weight}
        if self.expire is not None:
            table = {c: entry for c, entry in table.items() if queue.fired - entry[0] <= self.expire}
        total = state.params.zeros()
        for client in sorted(table):
            total = total + table[client][1]
        gradient = total / (fed.num_clients if self.expire is None else len(table))
        news = [reply for reply in replies.values() if reply.weight] or list(replies.values())
        mean = Update(way=sum(r.way for r in news) / len(news), statistics=sum(r.statistics for r in news) / len(news))
        return TableState(params=self.step(state.params, gradient, mean), queue=queue, table=table)

    @on_client(each=True, collects=True)
    def give(self, client: Client, message: Any) -> Update:
        """Upload G."""
        return super().give(client, message)
