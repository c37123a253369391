"""How a reply crosses: what a client makes of it, and how the server takes it in.

Sums are formed by the server as replies come, one model's memory however many they are. A plain reply crosses
as it is (the server may see it) and is checked and added there, so that no client can put anything into the
sum that the checks did not pass. Replies of different shapes are kept apart, in at most `SHAPES` sums, and
the most common shape wins: one client with nonsense, even the first, cannot push the others out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.aggregation.fixed_point import FixedPoint
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
    """Return a channel as a tree, for the clients. Raises `EngineError` for one that cannot cross."""
    match channel:
        case Each():
            return {"kind": "each"}
        case FixedPoint():
            return {"kind": "sum"}
        case Held(goes_up):
            return {"kind": "held", "goes_up": goes_up}
        case Modular(codec):
            facts = {"config": dataclasses.asdict(codec.config), "clients": codec.clients, "bounds": dict(codec.bounds)}
            return {"kind": "modular", **facts}
    raise EngineError(f"replies through a {type(channel).__name__} cannot cross a network yet; use plain or secure")


def client_channel(facts: Mapping[str, Any]) -> Channel:
    """Return the client's end of a described channel. Raises `WireError` for one that is not known."""
    match facts:
        case {"kind": "each" | "sum"}:
            return Each()
        case {"kind": "held", "goes_up": bool(goes_up)}:
            return Held(goes_up)
        case {"kind": "modular", "config": dict(config), "clients": int(clients), "bounds": dict(bounds)}:
            return _Encoder(Codec(SecureConfig(**config), clients, bounds))
    raise WireError("a call names a channel that is not known here; upgrade paceline")


@dataclass(frozen=True)
class _Encoder:
    """The client's end of `secure-arithmetic`: encodes and packs its own reply."""

    codec: Codec

    def open(self) -> Any:
        """Return a sink that adds up nothing."""
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
    """The server's end: takes replies one by one; lets each through."""

    sums = False

    def add(self, client: int, reply: Tree) -> Any:
        """Take a reply; return what goes on singly. Raises one of our errors for a reply that is refused."""
        return reply

    def finish(self) -> tuple[Any, dict[int, str]]:
        """Return the partial sum, or None, and the clients that are not in it, and why."""
        return None, {}


@dataclass
class _Sums(Intake):
    """Adds up, apart for each shape."""

    channel: Any
    shapes: dict[str, tuple[Any, list[int]]] = field(default_factory=dict)
    sums = True

    def add(self, client: int, reply: Tree) -> Any:
        shape = self.shape(reply)
        fresh = shape not in self.shapes
        if fresh and len(self.shapes) == SHAPES:
            raise AggregationError(f"client {client} returned a reply of another shape than the others")
        total, clients = self.shapes.get(shape) or (self.channel.open(), [])
        self.put(total, client, reply)
        clients.append(client)
        if fresh:
            self.shapes[shape] = (total, clients)

    def finish(self) -> tuple[Any, dict[int, str]]:
        if not self.shapes:
            return self.channel.open().partial(), {}
        best = max(self.shapes, key=lambda s: len(self.shapes[s][1]))
        why = "AggregationError: its reply has another shape than most"
        lost = {c: why for shape, (_, clients) in self.shapes.items() if shape != best for c in clients}
        return self.shapes[best][0].partial(), lost

    def shape(self, reply: Tree) -> str:
        """Return a text that is equal for replies that can be added."""
        terms = Terms.of(reply)
        return terms.same + repr([t.numel() for t in terms.tensors]) + repr([t.numel() for t in terms.denominators])

    def put(self, total: Any, client: int, reply: Tree) -> None:
        """Add a reply to a sum."""
        total.add(client, reply, int)


class _ModularSums(_Sums):
    """Adds packed words; lengths must follow from the shape."""

    def shape(self, reply: Tree) -> str:
        match reply:
            case {"shape": dict(shape), "segments": [*_]}:
                return repr(shape)
        raise AggregationError("a reply is not made of a shape and segments")

    def put(self, total: Any, client: int, reply: Tree) -> None:
        codec: Codec = self.channel.codec
        segments, packed = codec.segments(reply["shape"]), as_bytes(reply["segments"])
        if len(segments) != len(packed) or not all(isinstance(data, memoryview) for data in packed):
            raise AggregationError(f"client {client} sent segments that do not fit their shape")
        one = ModularSum(codec)
        one.shape, one.clients = reply["shape"], [client]
        one.sums = [(s, unpack(data, s)) for s, data in zip(segments, packed, strict=True)]
        total.merge(one)


def intake(channel: Channel) -> Intake:
    """Return the server's end of a channel."""
    match channel:
        case FixedPoint():
            return _Sums(channel)
        case Modular():
            return _ModularSums(channel)
    return Intake()
