"""Plain aggregation: exact sums of unencrypted replies. The server process can read each reply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.aggregation.fixed_point import SUM_BOUND, FixedPoint, Partial, merge
from paceline.aggregation.nested import NestedClient, partial_sums, together
from paceline.aggregation.tiers import TierRules
from paceline.core.engine import Aggregation, Each, Summed, SumRequest
from paceline.core.errors import QuorumError
from paceline.core.failures import DECLINED
from paceline.core.federation import Federation
from paceline.core.nested import joined
from paceline.core.tree import Tree
from paceline.core.update import rebuild

__all__ = ["Plain", "collect_records", "is_record", "mean_of"]


@dataclass(frozen=True)
class Plain(Aggregation):
    """Exact sums of unencrypted replies.

    Args:
        bound: largest |weight x value| of one client's coordinate, see `FixedPoint`.
    """

    bound: float = SUM_BOUND
    name: str = "plain"
    sees_each: bool = True

    @property
    def programs(self) -> dict[str, Any]:
        """Client functions of sums over parts of a model."""
        return {"nested": NestedClient()}

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Call the function on the cohort and return the exact sum of its replies.

        Args:
            fed: the running federation.
            request: function, message, cohort and deadline of the call.

        Raises:
            QuorumError: no client returned a reply that can be summed.
        """
        peers, cohort = collect_records(fed, request)
        if request.declared.nested is not None:
            channel = FixedPoint(len(request.cohort), self.bound, request.declared.limits)
            model, tiers = partial_sums(fed, request, channel, peers, cohort, TierRules(), complete=False)
            return together([joined(_summed(tier, host=True), model.places, model.layout) for tier in tiers])
        _, partials = fed.call(
            request.function,
            request.message,
            cohort,
            FixedPoint(len(request.cohort), self.bound, request.declared.limits),
            deadline=request.deadline,
            peers=peers,
        )
        total = merge(partials)
        if not total.clients:
            raise QuorumError(f"round {fed.round}: no client returned a reply that can be summed")
        return _summed(total)


def _summed(total: Partial, host: bool = False) -> Summed:
    tensors, scalars, denominators = total.values(host)
    return Summed(total.structure, tensors, scalars, denominators, tuple(sorted(total.clients)))


def mean_of(replies: Mapping[int, Tree], bound: float = SUM_BOUND) -> Any:
    """Return what ``fed.mean`` or ``fed.sum`` would return for replies already held by the server, bitwise identical.

    Args:
        replies: reply by client id.
        bound: largest |weight x value| of one client's coordinate.
    """
    sink = FixedPoint(len(replies), bound).open()
    for client, reply in replies.items():
        sink.add(client, reply, int)
    total = sink.partial()
    return rebuild(total.structure, *total.values())


def collect_records(fed: Federation, request: SumRequest) -> tuple[dict[int, dict[int, Tree]], Sequence[int]]:
    """Collect the records that clients publish to their peers, relayed through the server in plain text.

    Returns:
        for each client that published a valid record: the records of the other clients, by id. Empty if the function
        declares no record. And the cohort without the clients that sit out.

    Raises:
        QuorumError: all clients sit out.
    """
    if request.declared.peer_record is None:
        return {}, request.cohort
    receipts, _ = fed.call(request.declared.peer_record, None, request.cohort, Each())
    records: dict[int, Any] = {r.client: r.value for r in receipts if r.dropped is None and is_record(r.value)}
    resting = {r.client for r in receipts if r.dropped == DECLINED}
    if resting.issuperset(request.cohort):
        raise QuorumError(f"round {fed.round}: all clients sit out")
    cohort = [client for client in request.cohort if client not in resting]
    return {client: {p: v for p, v in records.items() if p != client} for client in records}, cohort


def is_record(value: Tree) -> bool:
    """Return whether a value is a valid record for peers: a list of finite numbers."""
    return isinstance(value, list | tuple) and all(type(x) in (int, float) and math.isfinite(x) for x in value)
