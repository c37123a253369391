"""Sums over parts of a model without protection: each client receives and sends the segments of its tier.

`declare` returns a client's tier, `run` runs the method's function on the part of the model that the client received.
Secure aggregation has client functions of its own, which check what they receive; the tiers are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.aggregation.tiers import TierRules, Tiers
from paceline.core.client import Client
from paceline.core.declarations import ClientFunction, Nesting
from paceline.core.engine import Channel, Each, Sink, Summed, SumRequest
from paceline.core.errors import PlanError, ProtocolError, QuorumError
from paceline.core.failures import Declined
from paceline.core.federation import Federation
from paceline.core.generators import nested
from paceline.core.method import on_client
from paceline.core.nested import PartialModel, SegmentedModel, Segmenter, received, segment_of, settled, split_reply
from paceline.core.protocol import ProtocolContext
from paceline.core.tree import Tree
from paceline.core.update import Update

__all__ = [
    "ByTier",
    "NestedClient",
    "TierSums",
    "assigned",
    "declared_tier",
    "message_of",
    "own_part",
    "partial_sums",
    "segmented",
    "tier_of",
    "together",
]


def segmented(fed: Federation, request: SumRequest) -> SegmentedModel:
    """Return the model of a request, cut into segments.

    Raises:
        PlanError: the message is not a `PartialModel`.
    """
    assert request.declared.nested is not None
    if not isinstance(request.message, PartialModel):
        raise PlanError([f"the message of {request.function!r} must be a PartialModel, because the function is declared as nested"])
    return SegmentedModel.of(request.message, fed.engine.services[Segmenter], request.declared.nested)


def message_of(function: str, head: Tree) -> dict[str, Tree]:
    """Return what all clients receive."""
    return {"function": function, "head": head}


def own_part(model: SegmentedModel, tiers: Tiers, client: int) -> dict[str, Tree]:
    """Return what one client receives: its tiers, and the segments that it owns."""
    return {"owned": tiers.owned[client], "wanted": tiers.wanted[client], "parts": model.share(tiers.owned[client])}


def declared_tier(me: ProtocolContext, declared: ClientFunction) -> int:
    """Return the tier that a client declares in this round."""
    nesting, noted = _nesting(declared), me.client.memory.mark()
    try:
        with nested(0, me.client.device):
            wanted = nesting.tier(float(me.invoke(me.client, nesting.fraction, None)))
    except Declined:
        me.client.memory.reset(noted)
        raise
    return settled(me.client.memory, wanted, me.client.round, nesting)


def assigned(client: Client, declared: ClientFunction, head: Any, parts: Any, owned: int, wanted: int) -> PartialModel:
    """Return the model that a client received in part, after the checks of `received`."""
    nesting = _nesting(declared)
    if not isinstance(head, dict) or not {"order", "hashes", "model"} <= set(head):
        raise ProtocolError("the server sent no order of the units, or no hashes of the model")
    places = client.services[Segmenter].places(head["order"], nesting)
    return received(head, parts, owned, nesting.fractions[max(owned, wanted)], places, client.model.layout)


def _nesting(declared: ClientFunction) -> Nesting:
    if declared.nested is None:
        raise ProtocolError("the server requested a part of a model for a function that needs the whole one")
    return declared.nested


class NestedClient:
    """Client functions for sums over parts of a model, without protection."""

    @on_client(each=True)
    def declare(self, me: ProtocolContext, message: str) -> int:
        """Return this client's tier for the named function."""
        return declared_tier(me, _function(me, message))

    @on_client
    def run(self, me: ProtocolContext, message: dict[str, Any]) -> Update:
        """Run the method's function on the received part; return its reply, split into the segments of this client's tier."""
        common, own = message["all"], message["own"]
        function, head, owned = common["function"], common["head"], own["owned"]
        declared, client = _function(me, function), me.client
        model = assigned(client, declared, head, own["parts"], owned, own["wanted"])
        with nested(0, client.device):
            reply = me.invoke(client, function, model)
        return split_reply(reply, client.services[Segmenter].places(head["order"], _nesting(declared)), owned)


def _function(me: ProtocolContext, name: str) -> ClientFunction:
    if name not in me.functions:
        raise ProtocolError(f"method.{name} is not a client function of this client's method")
    return me.functions[name]


@dataclass(frozen=True)
class ByTier:
    """Channel that sums the replies of each tier separately.

    Args:
        channel: channel of one tier.
    """

    channel: Channel

    def open(self) -> Sink:
        """Return an empty sum."""
        return _TierSink(self.channel)


class _TierSink(Sink):
    def __init__(self, channel: Channel) -> None:
        self._channel, self._sizes = channel, channel.open()
        self._sinks: dict[int, Sink] = {}

    def size(self, reply: Tree) -> int:
        return self._sizes.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Any:
        return self._sinks.setdefault(tier_of(reply), self._channel.open()).add(client, reply, seed)

    def add_all(self, entries: Sequence[tuple[int, Tree, Callable[[], int]]]) -> list[Any]:
        values: list[Any] = [None] * len(entries)
        tiers = [tier_of(reply) for _, reply, _ in entries]
        for tier in dict.fromkeys(tiers):
            mine = [place for place, other in enumerate(tiers) if other == tier]
            sink = self._sinks.setdefault(tier, self._channel.open())
            for place, value in zip(mine, sink.add_all([entries[place] for place in mine]), strict=True):
                values[place] = value
        return values

    def partial(self) -> TierSums:
        return TierSums({tier: sink.partial() for tier, sink in self._sinks.items()})


class TierSums(dict[int, Any]):
    """Partial sums by tier."""

    def merge(self, other: Mapping[int, Any]) -> None:
        """Add the partial sums of other clients."""
        for tier, total in other.items():
            if tier in self:
                self[tier].merge(total)
            else:
                self[tier] = total


def tier_of(reply: Tree) -> int:
    """Return the tier of a reply, or of its encoded form: the smallest number of a segment in it."""
    match reply:
        case Update():
            names = list(reply.fields)
        case {"shape": {"plan": [*rows]}}:
            names = [str(row[0]) for row in rows if isinstance(row, list) and row]
        case _:
            names = []
    return min((part for name in names if (part := segment_of(name)[1]) is not None), default=0)


def partial_sums(
    fed: Federation,
    request: SumRequest,
    channel: Channel,
    peers: Mapping[int, Mapping[int, Tree]],
    cohort: Sequence[int],
    rules: TierRules,
    complete: bool,
) -> tuple[SegmentedModel, list[Any]]:
    """Run a nested function; return the segmented model and the partial sums of each tier, beginning with the largest model.

    Args:
        fed: the running federation.
        request: the requested sum.
        channel: channel of one tier.
        peers: records published by other clients, by receiving client.
        cohort: clients that do not sit out; the others have a tier.
        rules: rules for the tiers.
        complete: every client is a neighbour of every other one.

    Raises:
        QuorumError: no client returned a reply, or the rules cannot be met.
    """
    nesting = _nesting(request.declared)
    model, count = segmented(fed, request), len(nesting.fractions)
    answers, _ = fed.call("declare", request.function, request.cohort, Each(), program="nested")
    wanted = {r.client: r.value for r in answers if r.dropped is None and type(r.value) is int and 0 <= r.value < count}
    there = sorted(wanted.keys() & set(cohort))
    if not there:
        raise fed.too_few(f"round {fed.round}: no client declared a tier for {request.function!r}")
    near = {c: wanted.keys() - {c} for c in wanted} if complete else None
    tiers = Tiers.of(wanted, range(count), count, rules, near)
    _, partials = fed.call(
        "run",
        message_of(request.function, model.head),
        there,
        ByTier(channel),
        program="nested",
        deadline=request.deadline,
        each_message={c: own_part(model, tiers, c) for c in wanted},
        peers=peers,
        stream=fed.stream(f"method.{request.function}"),
    )
    groups = TierSums()
    for partial in partials:
        groups.merge(partial)
    if not groups:
        raise QuorumError(f"round {fed.round}: no client returned a reply that can be summed")
    return model, [groups[tier] for tier in sorted(groups)]


def together(parts: Sequence[Summed]) -> Summed:
    """Add sums over disjoint clients. Sums of tensors are exact if float64 represents each of them exactly."""
    first, others = parts[0], parts[1:]
    tensors, denominators = list(first.tensors), list(first.denominators)
    scalars, notes = list(first.scalars), dict(first.notes)
    for part in others:
        tensors = [a + b for a, b in zip(tensors, part.tensors, strict=True)]
        denominators = [a + b for a, b in zip(denominators, part.denominators, strict=True)]
        scalars = [a + b for a, b in zip(scalars, part.scalars, strict=True)]
        notes = {name: notes.get(name, 0.0) + part.notes.get(name, 0.0) for name in (notes | part.notes)}
    survivors = tuple(sorted(c for part in parts for c in part.survivors))
    return dataclasses.replace(first, tensors=tensors, scalars=scalars, denominators=denominators, survivors=survivors, notes=notes)
