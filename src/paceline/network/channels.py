"""Transfer of replies: how a client encodes them and how the server sums them.

The server adds replies to a sum as they arrive, so memory is that of one model regardless of their number. A plain
reply is sent unencrypted (the server may read it) and is checked and added on the server, so that nothing enters the sum
without passing the checks. Replies of different shapes are summed separately, in at most `SHAPES` sums, and the most
common shape is used: one client with an invalid shape, even the first to reply, cannot displace the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.aggregation.fixed_point import FixedPoint
from paceline.aggregation.nested import ByTier, tier_of
from paceline.aggregation.secure.arithmetic import Modular, ModularSum
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.encoding import pack, unpack
from paceline.aggregation.secure.messages import as_bytes, as_tensors
from paceline.core.deferred import Held
from paceline.core.engine import Channel, Each, Sink
from paceline.core.errors import AggregationError, EngineError, WireError
from paceline.core.tree import Tree
from paceline.core.update import Terms

__all__ = ["Intake", "client_channel", "describe", "intake"]

SHAPES = 3


def describe(channel: Channel) -> dict[str, Any]:
    """Encode a channel as a tree for the clients.

    Raises:
        EngineError: the channel cannot be used over a network.
    """
    match channel:
        case Each():
            return {"kind": "each"}
        case FixedPoint():
            return {"kind": "sum"}
        case ByTier(of_one):
            return describe(of_one)
        case Held(goes_up):
            return {"kind": "held", "goes_up": goes_up}
        case Modular(codec):
            facts = {"config": dataclasses.asdict(codec.config), "clients": codec.clients, "bounds": dict(codec.bounds)}
            return {"kind": "modular", **facts}
    raise EngineError(f"a {type(channel).__name__} cannot be sent over a network; use plain or secure aggregation")


def client_channel(facts: Mapping[str, Any]) -> Channel:
    """Return the client's end of a channel encoded by `describe`.

    Raises:
        WireError: unknown channel.
    """
    match facts:
        case {"kind": "each" | "sum"}:
            return Each()
        case {"kind": "held", "goes_up": bool(goes_up)}:
            return Held(goes_up)
        case {"kind": "modular", "config": dict(config), "clients": int(clients), "bounds": dict(bounds)}:
            return _Encoder(Codec(SecureConfig(**config), clients, bounds))
    raise WireError("a call names an unknown channel; upgrade paceline")


@dataclass(frozen=True)
class _Encoder:
    """Client end of `secure-arithmetic`: encodes and packs its own reply."""

    codec: Codec

    def open(self) -> Any:
        """Return a sink that encodes each reply and sums nothing."""
        return _EncoderSink(self.codec)


class _EncoderSink(Sink):
    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def size(self, reply: Tree) -> int:
        return self.codec.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Any:
        total = ModularSum(self.codec)
        total.add(client, reply, seed)
        return {"shape": total.shape, "segments": as_tensors([pack(words, segment) for segment, words in total.sums])}

    def partial(self) -> Any:
        return None


class Intake:
    """Server end of a channel: receives replies one by one. This base class passes each of them on."""

    sums = False

    def add(self, client: int, reply: Tree) -> Any:
        """Receive a reply; return the value to pass on individually, if any.

        Raises:
            PacelineError: the reply is refused.
        """
        return reply

    def finish(self) -> tuple[Any, dict[int, str]]:
        """Return the partial sum, or None, and the clients that are not part of it with the reasons."""
        return None, {}


@dataclass
class _Sums(Intake):
    """Sums replies, separately for each shape."""

    channel: Any
    shapes: dict[str, tuple[Any, list[int]]] = field(default_factory=dict)
    sums = True

    def add(self, client: int, reply: Tree) -> Any:
        shape = self.shape(reply)
        fresh = shape not in self.shapes
        if fresh and len(self.shapes) == SHAPES:
            raise AggregationError(f"client {client} returned a reply of a different structure than the others")
        total, clients = self.shapes.get(shape) or (self.channel.open(), [])
        self.put(total, client, reply)
        clients.append(client)
        if fresh:
            self.shapes[shape] = (total, clients)

    def finish(self) -> tuple[Any, dict[int, str]]:
        if not self.shapes:
            return self.channel.open().partial(), {}
        best = max(self.shapes, key=lambda s: len(self.shapes[s][1]))
        why = "AggregationError: its reply has a different structure than most"
        lost = {c: why for shape, (_, clients) in self.shapes.items() if shape != best for c in clients}
        return self.shapes[best][0].partial(), lost

    def shape(self, reply: Tree) -> str:
        """Return a key that is equal for replies that can be added."""
        terms = Terms.of(reply)
        return terms.same + repr([t.numel() for t in terms.tensors]) + repr([t.numel() for t in terms.denominators])

    def put(self, total: Any, client: int, reply: Tree) -> None:
        """Add a reply to a sum."""
        total.add(client, reply, int)


class _ModularSums(_Sums):
    """Sums packed words; segment lengths must match the declared shape."""

    def shape(self, reply: Tree) -> str:
        match reply:
            case {"shape": dict(shape), "segments": [*_]}:
                return repr(shape)
        raise AggregationError("malformed reply: expected a shape and segments")

    def put(self, total: Any, client: int, reply: Tree) -> None:
        codec: Codec = self.channel.codec
        segments, packed = codec.segments(reply["shape"]), as_bytes(reply["segments"])
        if len(segments) != len(packed) or not all(isinstance(data, memoryview) for data in packed):
            raise AggregationError(f"client {client} sent segments that do not match their shape")
        one = ModularSum(codec)
        one.shape, one.clients = reply["shape"], [client]
        one.sums = [(s, unpack(data, s)) for s, data in zip(segments, packed, strict=True)]
        total.merge(one)


@dataclass
class _TierSums(Intake):
    """Sums the replies of each tier separately."""

    channel: Channel
    tiers: dict[int, Intake] = field(default_factory=dict)
    sums = True

    def add(self, client: int, reply: Tree) -> Any:
        tier = tier_of(reply)
        if tier not in self.tiers:
            self.tiers[tier] = intake(self.channel)
        return self.tiers[tier].add(client, reply)

    def finish(self) -> tuple[Any, dict[int, str]]:
        totals: dict[int, Any] = {}
        lost: dict[int, str] = {}
        for tier, one in self.tiers.items():
            totals[tier], refused = one.finish()
            lost |= refused
        return totals, lost


def intake(channel: Channel) -> Intake:
    """Return the server end of a channel."""
    match channel:
        case FixedPoint():
            return _Sums(channel)
        case Modular():
            return _ModularSums(channel)
        case ByTier(of_one):
            return _TierSums(of_one)
    return Intake()
