"""AFA-CS as published (Yang et al., "Anarchic Federated Learning", ICML 2022): the server keeps everybody's last return.

    y_i <- G_i for i in M_t;   x <- x - eta * (1/M) sum over ALL clients of y_i

`AfaCs` does the same with sums only, as each client keeps its own y_i. The table can do one thing more: forget.
A client that left for good pulls the model with its last gradient for ever; with `expire` its y is dropped
after so many steps, and the mean is taken over the clients that are left.

The server sees every client's rescaled gradient, and keeps the last one. A client keeps its gradient until it
is handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.devices.events import Queue, advance, first
from paceline.methods.asynchronous.afl import AfaCd, AnarchicState


@node
class TableState(AnarchicState):
    """The model, who is at work, and each client's last gradient with the number of the step that it came in."""

    table: dict[int, tuple[int, Params]]


@dataclass(frozen=True)
class AfaCsTable(AfaCd[TableState]):
    """AFA-CS with the table at the server. The first step waits for all who are at work.

    Args:
        expire: steps after which the gradient of a client that does not come back is forgotten; None keeps it, and
            counts clients that never came as y = 0.
    """

    headline: ClassVar[str] = "the rate of AFA-CD without its lasting error where some clients arrive more often than others"
    reveals: ClassVar[str] = "every client's rescaled gradient"
    sum_only: ClassVar[str] = "afacs"

    expire: int | None = None

    def init(self, fed: Federation) -> TableState:
        """Start with an empty table."""
        return TableState(params=fed.init_params(), queue=Queue(), table={})

    def round(self, fed: Federation, state: TableState) -> TableState:
        """Wait for m returns, enter them, and step along the table's mean."""
        count = self.returns if state.table else None
        queue, arrived = advance(fed, state.queue, self.train, state.params, lambda q: first(q, count))
        replies = fed.each(self.give, None, over=[job.client for job in arrived])
        table = state.table | {c: (queue.fired, reply.gradient) for c, reply in replies.items()}
        if self.expire is not None:
            table = {c: entry for c, entry in table.items() if queue.fired - entry[0] <= self.expire}
        total = state.params.zeros()
        for client in sorted(table):
            total = total + table[client][1]
        gradient = total / (fed.num_clients if self.expire is None else len(table))
        news = list(replies.values())
        mean = Update(way=sum(r.way for r in news) / len(news), statistics=sum(r.statistics for r in news) / len(news))
        return TableState(params=self.step(state.params, gradient, mean), queue=self.pause(fed, queue, arrived), table=table)

    @on_client(each=True, held=True)
    def give(self, client: Client, message: Any) -> Update:
        """Hand G over."""
        return super().give(client, message)
