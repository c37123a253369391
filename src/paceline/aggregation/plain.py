"""Plain aggregation: the server could see every reply, and forms exact sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.aggregation.fixed_point import SUM_BOUND, FixedPoint, Partial, merge
from paceline.aggregation.secure.messages import is_record
from paceline.core.engine import Each
from paceline.core.errors import QuorumError
from paceline.core.federation import Aggregation, Federation, Summed, SumRequest
from paceline.core.tree import Tree
from paceline.core.update import rebuild

__all__ = ["Plain", "mean_of", "tell"]


@dataclass(frozen=True)
class Plain(Aggregation):
    """Exact sums of plain replies.

    Args:
        bound: largest |weight x value| of a coordinate, see `FixedPoint`.
    """

    bound: float = SUM_BOUND
    name: str = "plain"
    sees_each: bool = True

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Ask the cohort and add its replies up."""
        peers = tell(fed, request)
        _, partials = fed.call(
            request.function,
            request.message,
            request.cohort,
            FixedPoint(len(request.cohort), self.bound),
            deadline=request.deadline,
            peers=peers,
        )
        total = merge(partials)
        if not total.clients:
            raise QuorumError(f"round {fed.round}: no reply came that can be summed")
        tensors, scalars, denominators = total.values()
        return Summed(total.structure, tensors, scalars, denominators, tuple(sorted(total.clients)))


def mean_of(replies: Mapping[int, Tree], bound: float = SUM_BOUND) -> Any:
    """Return what ``fed.mean`` or ``fed.sum`` would return for replies that the server holds, with the same bits."""
    total = Partial(FixedPoint(len(replies), bound).fraction, bound)
    for client, reply in replies.items():
        total.add(client, reply)
    return rebuild(total.structure, *total.values())


def tell(fed: Federation, request: SumRequest) -> dict[int, dict[int, Tree]]:
    """Let clients tell each other their records, through the server, which could read them."""
    if request.declared.tells is None:
        return {}
    receipts, _ = fed.call(request.declared.tells, None, request.cohort, Each())
    told: dict[int, Any] = {r.client: r.value for r in receipts if r.dropped is None and is_record(r.value)}
    return {client: {p: v for p, v in told.items() if p != client} for client in told}
