"""One secure sum with all parties in one process: for tests, cost measurements, and as a readable protocol reference."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import Session, new_session, sends
from paceline.aggregation.secure.steps import STEPS, carry_out
from paceline.aggregation.tiers import Tiers
from paceline.core.errors import QuorumError

__all__ = ["Costs", "arithmetic_sum", "secure_sum"]


@dataclass
class Costs:
    """Cost of a sum: seconds of the first surviving client and of the server, bytes of that client."""

    client_seconds: float = 0.0
    server_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    opened: list[tuple[Segment, Words]] = field(default_factory=list)


def arithmetic_sum(
    vectors: Mapping[int, list[tuple[Segment, Words]]], drop: Mapping[int, str] | None = None, tiers: Tiers | None = None
) -> tuple[list[Words], list[int]]:
    """Return what `secure_sum` opens and the survivors, by modular sums alone: no keys, no masks, no protection.

    Args:
        vectors: segments and words of each client.
        drop: as in `secure_sum`; vectors of clients that leave after ``masked`` count.
        tiers: tiers of the clients, which send the segments of their tier only.

    Raises:
        QuorumError: all clients dropped out.
    """
    alive = [c for c in sorted(vectors) if (drop or {}).get(c) not in STEPS[:3]]
    if not alive:
        raise QuorumError("no client is left in the sum")
    out = []
    for place, (segment, first) in enumerate(vectors[alive[0]]):
        total = np.zeros_like(first)
        for client in alive:
            if sends(tiers, client, segment):
                np.add(total, vectors[client][place][1], out=total)
        out.append(total & total.dtype.type(segment.mask))
    return out, alive


def secure_sum(
    vectors: Mapping[int, list[tuple[Segment, Words]]],
    config: SecureConfig | None = None,
    drop: Mapping[int, str] | None = None,
    quorum: int = 1,
    tiers: Mapping[int, int] | None = None,
    parts: int = 0,
) -> tuple[list[Words], list[int], Costs]:
    """Run the whole protocol in this process; return (opened segments, survivors, costs).

    Args:
        vectors: segments and words of each client.
        config: options of secure aggregation.
        drop: by client, the step before which it drops out: ``advertise``, ``share``, ``masked``,
            ``consistency`` or ``unmask``.
        quorum: smallest number of survivors.
        tiers: tier that each client declares, in a sum over parts of a model.
        parts: number of tiers.

    Raises:
        QuorumError: too few clients are left.

    Example:
        >>> segment = Segment("main", 2, 32)
        >>> vectors = {c: [(segment, np.array([c, 1], dtype=segment.dtype))] for c in range(4)}
        >>> opened, survivors, _ = secure_sum(vectors)
        >>> opened[0].tolist(), survivors
        ([6, 4], [0, 1, 2, 3])
    """
    session = dataclasses.replace(new_session(vectors, config or SecureConfig()), parts=parts, tiers=tuple(range(parts)))
    identities = {c: IdentityKey.generate() for c in vectors}
    directory = {c: key.public for c, key in identities.items()}
    server, parties = SecureServer(session, directory, quorum), _Parties(vectors, session, identities, drop or {}, tiers or {})
    started = time.perf_counter()
    alive = carry_out(server, parties.ask)
    costs = parties.costs
    costs.opened = server.open()
    costs.server_seconds = time.perf_counter() - started - parties.seconds
    return [w for _, w in costs.opened], alive, costs


class _Parties:
    """All clients of a sum in this process; measures the first one that does not drop out."""

    def __init__(
        self,
        vectors: Mapping[int, list[tuple[Segment, Words]]],
        session: Session,
        identities: Mapping[int, IdentityKey],
        dropped: Mapping[int, str],
        tiers: Mapping[int, int],
    ) -> None:
        directory = {c: key.public for c, key in identities.items()}
        self.vectors, self.dropped, self.costs, self.seconds = vectors, dropped, Costs(), 0.0
        self.clients = {c: SecureClient(c, session, identities[c], directory, tier=tiers.get(c, 0)) for c in vectors}
        self.watched = next((c for c in sorted(vectors) if c not in dropped), None)

    def ask(
        self, step: str, common: Any, clients: Sequence[int], take: Callable[[int, Any], Any], own: Mapping[int, Any] | None = None
    ) -> None:
        """Request a step of each client that has not dropped out; see `StepRequest`."""
        for client in clients:
            if client in self.dropped and STEPS.index(self.dropped[client]) <= STEPS.index(step):
                continue
            part = None if own is None else own[client]
            began = time.perf_counter()
            reply = self._answer(step, client, common, part)
            spent = time.perf_counter() - began
            self.seconds += spent
            if client == self.watched:
                self.costs.client_seconds += spent
                self.costs.bytes_down += _size(common) + _size(part)
                self.costs.bytes_up += _size(reply)
            take(client, reply)

    def _answer(self, step: str, client: int, common: Any, own: Any) -> Any:
        machine = self.clients[client]
        match step:
            case "advertise":
                return machine.advertise()
            case "share":
                return machine.share(common["hashes"], own, tiers=common.get("tiers"))
            case "masked":
                machine.receive(own["sealed"], own["told"])
                vector = [(s, w.copy()) for s, w in self.vectors[client] if sends(machine.tiers, client, s)]
                return machine.masked(vector, [s for s, _ in self.vectors[client]])
            case "consistency":
                return machine.consistency(common["alive"])
        return machine.unmask(own)


def _size(message: Any) -> int:
    """Return the size of a message in bytes without framing and names of fields; a number or an id takes 8."""
    match message:
        case bytes() | str():
            return len(message)
        case Mapping():
            return sum((0 if isinstance(key, str) else 8) + _size(value) for key, value in message.items())
        case list() | tuple():
            return sum(map(_size, message))
    return 0 if message is None else 8
