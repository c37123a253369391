"""FedStale as published (Rodio and Neglia, "FedStale: leveraging stale client updates in federated learning", ECAI 2024).

    fresh = sum over S of alpha_u/p_u D_u;   stale = sum over all of alpha_u h_u - sum over S of alpha_u/p_u h_u
    w <- w + eta (fresh + beta stale);   h_u <- D_u for those in S

`FedStale` makes the same steps from sums. The server sees every client's update, stores the last one of each, and tracks
their participation intervals. Clients store no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.participation.fedstale import FedStale
from paceline.methods.participation.rates import Asked, Intervals

__all__ = ["FedStaleTable", "StaleTableState", "stale_step"]


def stale_step(fresh: Mapping[int, Any], table: Mapping[int, Any], inverse: Mapping[int, float], beta: float, zero: Any) -> Any:
    """Return fresh + beta stale.

    Args:
        fresh: (alpha, D) of the participants, by client.
        table: (alpha, h) of all past participants, before this round.
        inverse: 1 / p of the participants.
        beta: weight of the stale part; with 0 it is not computed.
        zero: a zero vector.
    """
    step, stale = zero, zero
    for client in sorted(fresh):
        alpha, delta = fresh[client]
        step = step + (alpha * inverse[client]) * delta
    if not beta:
        return step
    for client in sorted(table):
        alpha, old = table[client]
        stale = stale + (alpha * (1.0 - inverse.get(client, 0.0))) * old
    return step + beta * stale


@node
class StaleTableState:
    """The model, each client's (N alpha, h) and intervals, and the mean number of samples if `importance` needs it."""

    params: Params
    table: dict[int, tuple[float, Params]] = field(default_factory=dict)
    intervals: dict[int, Intervals] = field(default_factory=dict)
    samples: float | None = None


@dataclass(frozen=True)
class FedStaleTable(FedStale):
    """FedStale with all updates stored on the server."""

    reveals: ClassVar[str] = "every client's update"
    client_state: ClassVar[str] = "nothing"
    sum_only: ClassVar[str] = "fedstale"

    def init(self, fed: Federation) -> StaleTableState:
        """Start with an empty table."""
        return StaleTableState(params=fed.init_params())

    def remembered(self, state: StaleTableState) -> Params:
        """Return N sum of alpha h."""
        total: Params = stale_step({}, state.table, {}, 1.0, state.params.zeros())
        return total

    def learn(self, fed: Federation, state: StaleTableState, cohort: list[int]) -> StaleTableState:
        """Train the cohort and step."""
        asked = Asked(params=state.params, samples=state.samples)
        replies = fed.each(self.train, asked, over=cohort)
        seen = {c: state.intervals.get(c, Intervals()).before(fed.round, self.cutoff) for c in replies}
        inverse = {c: 1.0 / fed.fleet.rate(c) if self.known_rates else seen[c].weight for c in replies}
        fresh = {c: (reply.share, reply.delta) for c, reply in replies.items()}
        step = stale_step(fresh, state.table, inverse, self.beta, state.params.zeros())
        news = [reply.fields["statistics"] for reply in replies.values() if reply.fields.get("trained")]
        mean = Update(**({"statistics": sum(news) / len(news)} if news else {}))
        return StaleTableState(
            params=averaged(state.params + (self.server_lr / fed.num_clients) * step, mean),
            table=state.table | fresh,
            intervals=state.intervals | {c: intervals.after(fed.round) for c, intervals in seen.items()},
            samples=state.samples,
        )

    @on_client(each=True)
    def train(self, client: Client, message: Asked) -> Update:
        """Train; return the change and this client's importance."""
        local = self.sgd(client, message.params)
        delta = weights(local.params - message.params)
        return Update(delta=delta, share=self.share(client, message), loss=local.loss, **statistics(local))
