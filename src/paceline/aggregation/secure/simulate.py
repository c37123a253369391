"""One secure sum with all parties in one process: for tests, cost measurements, and as a readable protocol reference."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import Session, sizes
from paceline.core.errors import ConfigError, QuorumError

__all__ = ["STEPS", "Costs", "arithmetic_sum", "new_session", "secure_sum"]

STEPS = ("advertise", "share", "masked", "consistency", "unmask")
"""Protocol steps of a client, in order."""


@dataclass
class Costs:
    """Cost of a sum: seconds of the first surviving client and of the server, bytes of that client."""

    client_seconds: float = 0.0
    server_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    opened: list[tuple[Segment, Words]] = field(default_factory=list)


def new_session(clients: Collection[int], config: SecureConfig, round: int = 1, attempt: int = 0, tell_bytes: int = 64) -> Session:
    """Return a new session; k and t follow from the cohort's size.

    Args:
        clients: ids of the cohort.
        config: options of secure aggregation.
        round: round of the run.
        attempt: attempt within the round.
        tell_bytes: padded size in bytes of a record for the neighbours.

    Raises:
        QuorumError: the cohort is too small for the threshold.
        ConfigError: the options do not fit the cohort otherwise.
    """
    ordered = tuple(sorted(clients))
    k, t = sizes(len(ordered), config)
    if t > k:
        raise QuorumError(f"secure sum, round {round}: {len(ordered)} clients are too few for a threshold of {t}")
    session = Session(secrets.token_bytes(32), round, attempt, ordered, k, t, config, tell_bytes)
    if faults := session.faults():
        raise ConfigError("secure aggregation: " + "; ".join(faults))
    return session


def arithmetic_sum(
    vectors: Mapping[int, list[tuple[Segment, Words]]], drop: Mapping[int, str] | None = None
) -> tuple[list[Words], list[int]]:
    """Return what `secure_sum` opens and the survivors, by modular sums alone: no keys, no masks, no protection.

    Args:
        vectors: segments and words of each client.
        drop: as in `secure_sum`; vectors of clients that leave after ``masked`` count.

    Raises:
        QuorumError: all clients dropped out.
    """
    alive = [c for c in sorted(vectors) if (drop or {}).get(c) not in STEPS[:3]]
    if not alive:
        raise QuorumError("no client is left to sum over")
    out = []
    for place, (segment, first) in enumerate(vectors[alive[0]]):
        total = first.copy()
        for client in alive[1:]:
            np.add(total, vectors[client][place][1], out=total)
        out.append(total & total.dtype.type(segment.mask))
    return out, alive


def secure_sum(
    vectors: Mapping[int, list[tuple[Segment, Words]]],
    config: SecureConfig | None = None,
    drop: Mapping[int, str] | None = None,
    quorum: int = 1,
) -> tuple[list[Words], list[int], Costs]:
    """Run the whole protocol in this process; return (opened segments, survivors, costs).

    Args:
        vectors: segments and words of each client.
        config: options of secure aggregation.
        drop: by client, the step before which it drops out: ``advertise``, ``share``, ``masked``,
            ``consistency`` or ``unmask``.
        quorum: smallest number of survivors.

    Raises:
        QuorumError: too few clients are left.

    Example:
        >>> segment = Segment("main", 2, 32)
        >>> vectors = {c: [(segment, np.array([c, 1], dtype=segment.dtype))] for c in range(4)}
        >>> opened, survivors, _ = secure_sum(vectors)
        >>> opened[0].tolist(), survivors
        ([6, 4], [0, 1, 2, 3])
    """
    config = config or SecureConfig()
    gone = dict(drop or {})
    session = new_session(vectors, config)
    identities = {c: IdentityKey.generate() for c in vectors}
    directory = {c: key.public for c, key in identities.items()}
    clients = {c: SecureClient(c, session, identities[c], directory) for c in vectors}
    server, costs = SecureServer(session, directory, quorum), Costs()
    watched = next((c for c in sorted(vectors) if c not in gone), None)

    def here(client: int, step: str) -> bool:
        return client not in gone or STEPS.index(gone[client]) > STEPS.index(step)

    started = time.perf_counter()
    own = 0.0  # seconds of all clients; the rest of the wall time is the server's

    def timed(client: int, answer: object) -> float:
        nonlocal own
        spent = time.perf_counter() - began
        own += spent
        if client == watched:
            costs.client_seconds += spent
        return spent

    for c, machine in clients.items():
        if here(c, "advertise"):
            began = time.perf_counter()
            message = machine.advertise()
            timed(c, message)
            server.add_advert(c, message)
    hashes, adverts = server.directory_for()
    for c in adverts:
        if here(c, "share"):
            began = time.perf_counter()
            message = clients[c].share(hashes, adverts[c])
            timed(c, message)
            if c == watched:
                costs.bytes_up += 128 + sum(len(s) + len(message["told"][v]) + 8 for v, s in message["sealed"].items())
                costs.bytes_down += 40 * len(hashes) + 136 * len(adverts[c])
            server.add_shares(c, message)
    for c, mail in server.mail_for().items():
        if here(c, "masked"):
            began = time.perf_counter()
            clients[c].receive(mail["sealed"], mail["told"])
            message = clients[c].masked([(s, w.copy()) for s, w in vectors[c]])
            timed(c, message)
            if c == watched:
                costs.bytes_down += sum(len(s) + len(mail["told"][v]) + 8 for v, s in mail["sealed"].items())
                costs.bytes_up += sum(len(p) for p in message["segments"]) + 64
            server.add_masked(c, message)
    alive = server.alive()
    for c in alive:
        if here(c, "consistency"):
            began = time.perf_counter()
            message = clients[c].consistency(alive)
            timed(c, message)
            server.add_signature(c, message)
    for c, signatures in server.signatures_for().items():
        if here(c, "unmask"):
            began = time.perf_counter()
            message = clients[c].unmask(signatures)
            timed(c, message)
            if c == watched:
                costs.bytes_down += 8 * len(alive) + 72 * len(signatures)
                costs.bytes_up += 64 + 40 * (len(message["self"]) + len(message["keys"]))
            server.add_unmasking(c, message)
    costs.opened = server.open()
    costs.server_seconds = time.perf_counter() - started - own
    return [w for _, w in costs.opened], alive, costs
