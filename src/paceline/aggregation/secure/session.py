"""What client and server both derive from a session's public facts: contexts, graph, digests."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.graph import neighbours, parameters, permutation
from paceline.aggregation.secure.keys import AgreementKey, context
from paceline.core.errors import ConfigError, ProtocolError, QuorumError

__all__ = [
    "Session",
    "alive_digest",
    "commitment",
    "graph_of",
    "graph_seed",
    "least_half",
    "masked_digest",
    "near_of",
    "new_session",
    "number",
    "segments_of",
    "segments_table",
    "share_check",
    "share_checks",
    "sizes",
    "usable",
]


@dataclass(frozen=True)
class Session:
    """The public facts of one secure sum.

    Args:
        id: 32 random bytes of the server.
        round: of the run; with `attempt` it may only grow.
        attempt: of the round.
        clients: ids of the cohort, ascending.
        neighbours: k.
        threshold: t.
        config: clip, bits, generator and the like.
        tell_bytes: size to which a record for the neighbours is padded, so that its length says nothing;
            0 where none is told.
        function: the method's client function that is summed.
        trial: attempt at the round from which the random streams are named.
        call: which call of the function in this round, from 1.
        task: `Work.task`, the hash of everything that shapes an answer. As all contexts hold it, signatures and keys of
            clients that were given different tasks do not fit together.
    """

    id: bytes
    round: int
    attempt: int
    clients: tuple[int, ...]
    neighbours: int
    threshold: int
    config: SecureConfig
    tell_bytes: int = 64
    function: str = ""
    trial: int = 0
    call: int = 1
    task: bytes = bytes(32)

    @cached_property
    def _facts(self) -> bytes:
        facts = (self.attempt, self.clients, self.neighbours, self.threshold, self.config, self.tell_bytes)
        task = (self.function, self.trial, self.call, self.task)
        return hashlib.sha256(repr((facts, task)).encode()).digest()

    @property
    def stream(self) -> str:
        """The name of the random streams of the summed function, formed alike on both sides."""
        return f"{self.trial}/method.{self.function}/{self.call}"

    def context(self, role: str) -> bytes:
        """Return what every signature and key derivation of this session starts with."""
        return context(self.id, self.round, role) + self._facts

    def least_half(self, clients: int) -> int:
        """Return `least_half` by this session's options."""
        return least_half(clients, self.config)

    def faults(self) -> list[str]:
        """Return why nobody should take part in such a session; empty where all is well."""
        out = []
        if not isinstance(self.id, bytes) or len(self.id) != 32:
            out.append("its id is not 32 bytes")
        if not isinstance(self.task, bytes) or len(self.task) != 32:
            out.append("the hash of its task is not 32 bytes")
        if min(self.round, self.attempt, self.trial) < 0 or self.call < 1:
            out.append("its round, attempt, trial or call is below the first")
        if list(self.clients) != sorted(set(self.clients)) or len(self.clients) < 2 or self.clients[0] < 0:
            out.append("its cohort is not an ascending list of at least 2 ids")
        elif (self.neighbours, self.threshold) != sizes(len(self.clients), self.config):
            out.append(f"k={self.neighbours}, t={self.threshold} do not follow from its cohort and options")
        if not 1 <= self.threshold <= self.neighbours:
            out.append(f"a threshold of {self.threshold} is impossible with {self.neighbours} neighbours")
        elif self.config.active and 2 * self.threshold <= self.neighbours:
            out.append(
                f"with t={self.threshold} of k={self.neighbours} a lying server could show two halves of the "
                "neighbours different survivors; take t > k/2"
            )
        if self.tell_bytes and not 2 < self.tell_bytes < 2**16:
            out.append(f"records of {self.tell_bytes} bytes are impossible")
        return out

    def plain(self) -> dict[str, Any]:
        """Return the facts as a tree of plain values."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**facts, "clients": list(self.clients), "config": dataclasses.asdict(self.config)}

    @staticmethod
    def from_plain(facts: Mapping[str, Any]) -> Session:
        """Return the session of `plain`; raises `ConfigError` for options that cannot be, `ProtocolError` for what is no session."""
        numbers = [facts.get(name) for name in ("round", "attempt", "neighbours", "threshold", "tell_bytes", "trial", "call")]
        known = {f.name for f in dataclasses.fields(Session)}
        clients, options = facts.get("clients"), facts.get("config")
        if set(facts) != known or not isinstance(clients, list | tuple) or not isinstance(options, Mapping):
            raise ProtocolError(f"a session has {', '.join(sorted(known))}")
        texts = isinstance(facts.get("function"), str) and isinstance(facts.get("task"), bytes)
        unknown = set(options) - {f.name for f in dataclasses.fields(SecureConfig)}
        if not texts or unknown or any(type(n) is not int for n in (*numbers, *clients)):
            raise ProtocolError("a session's facts are of other types than they should be")
        return Session(**{**facts, "clients": tuple(facts["clients"]), "config": SecureConfig(**facts["config"])})


def new_session(clients: Collection[int], config: SecureConfig, round: int = 1, attempt: int = 0, tell_bytes: int = 64) -> Session:
    """Return a fresh session whose k and t follow from the cohort's size.

    Raises `QuorumError` for a cohort that is too small for the threshold, `ConfigError` for other misfits.
    """
    ordered = tuple(sorted(clients))
    k, t = sizes(len(ordered), config)
    if t > k:
        raise QuorumError(f"secure sum, round {round}: {len(ordered)} clients are too few for a threshold of {t}")
    session = Session(secrets.token_bytes(32), round, attempt, ordered, k, t, config, tell_bytes)
    if faults := session.faults():
        raise ConfigError("secure aggregation: " + "; ".join(faults))
    return session


def sizes(clients: int, config: SecureConfig) -> tuple[int, int]:
    """Return (k, t) of a cohort: computed, or as the options say; raises `ConfigError` for an odd ring."""
    computed = parameters(clients, config.gamma, config.delta, config.active, config.sigma, config.eta, config.complete_up_to)
    k = computed.neighbours if config.neighbours is None else min(config.neighbours, max(clients - 1, 1))
    if k % 2 and k < clients - 1:
        raise ConfigError(f"neighbours={k}: on a ring each client has as many on either side; take an even number")
    return k, computed.threshold if config.threshold is None else config.threshold


def least_half(clients: int, config: SecureConfig) -> int:
    """Return the least size of a half of a cohort whose sum was lost; the cohort's own size where it may not be split.

    It may where the graph is complete, where the half can have its threshold, where those who need not have helped to
    open the whole are fewer than those who must help to open a half, and where at least two honest clients of each half
    have helped with the whole: the others, and corrupt clients among those who helped, may be in sums that the server likes.
    """
    half = clients // 2
    if half < 3:
        return clients
    (k, t), (k_half, t_half) = sizes(clients, config), sizes(half, config)
    free, corrupt = clients - t, math.ceil(config.gamma * clients - 1e-9)
    fits = k >= clients - 1 and k_half >= half - 1 and t_half <= k_half and free < t_half and half - free - corrupt >= 2
    return max(config.least(clients), 3) if fits else clients


def number(value: int) -> bytes:
    """Return an id as 8 little-endian bytes."""
    return value.to_bytes(8, "little")


def commitment(session: Session, client: int, secret: bytes) -> bytes:
    """Return the hash by which a client commits to its self-mask's seed."""
    return hashlib.sha256(session.context("commit") + number(client) + secret).digest()


def share_check(session: Session, owner: int, holder: int, kind: int, share: bytes) -> bytes:
    """Return the hash of one of a holder's shares: `kind` is 0 for one of the self-mask, 1 for one of the mask key."""
    return hashlib.sha256(session.context("shares") + number(owner) + number(holder) + bytes([kind]) + share).digest()


def share_checks(session: Session, owner: int, holder: int, shares: Sequence[bytes]) -> bytes:
    """Return the hashes of a holder's shares (of the self-mask, of the mask key), 32 bytes each.

    They travel beside the sealed shares. The holder accuses the owner where they are not of what it opened, and the
    server holds against them what it is given to open a sum: so a wrong share is its holder's, and a wrong secret its owner's.
    """
    return b"".join(share_check(session, owner, holder, kind, share) for kind, share in enumerate(shares))


def graph_seed(session: Session, hashes: Mapping[int, bytes]) -> bytes:
    """Return the seed of the graph, which no single party chose: the hash of all advertised keys."""
    listed = b"".join(number(i) + hashes[i] for i in sorted(hashes))
    return hashlib.sha256(session.context("graph") + listed).digest()


def graph_of(session: Session, hashes: Mapping[int, bytes]) -> dict[int, list[int]]:
    """Return who neighbours whom."""
    order = permutation(sorted(hashes), graph_seed(session, hashes))
    return neighbours(order, min(session.neighbours, len(order) - 1))


def near_of(session: Session, hashes: Mapping[int, bytes], client: int) -> list[int]:
    """Return one client's neighbours in `graph_of`."""
    return graph_of(session, hashes)[client]


def alive_digest(session: Session, alive: Sequence[int], table: Sequence[Any], graph: bytes) -> bytes:
    """Return the digest of what all must agree on before anything is opened.

    Args:
        session: the session.
        alive: ids of the survivors.
        table: the segments.
        graph: `graph_seed`. Without it a server could show each client advertisements of its own invention
            for those who are not its neighbours, until corrupt clients surround it.
    """
    listed = b"".join(number(i) for i in sorted(alive))
    return hashlib.sha256(session.context("alive") + graph + listed + repr(list(table)).encode()).digest()


def masked_digest(table: Sequence[Any], packed: Sequence[bytes | memoryview]) -> bytes:
    """Return the digest of a masked vector, which its sender signs."""
    digest = hashlib.sha256(repr(list(table)).encode())
    for part in packed:
        digest.update(part)
    return digest.digest()


def segments_of(table: Any) -> list[Segment]:
    """Return the segments of a table of [name, length, bits]; raises `ProtocolError` for anything else."""
    if not isinstance(table, list) or not table:
        raise ProtocolError("malformed vector: no table of segments")
    out = []
    for row in table:
        if not isinstance(row, list) or [type(x) for x in row] != [str, int, int]:
            raise ProtocolError("malformed vector: a segment is a name, a length and a number of bits")
        try:
            out.append(Segment(*row))
        except ConfigError as error:
            raise ProtocolError(f"malformed vector: {error}") from None
    if len({segment.name for segment in out}) < len(out):
        raise ProtocolError("two segments have the same name, and would have the same masks")
    return out


def segments_table(segments: Sequence[Segment]) -> list[list[Any]]:
    """Return segments as [name, length, bits], as they are signed and sent."""
    return [[s.name, s.length, s.bits] for s in segments]


def usable(public: bytes) -> bool:
    """Return whether an X25519 key can be agreed with: one of low order gives every peer the same secret."""
    try:
        AgreementKey.generate().agree(public)
    except ProtocolError:
        return False
    return True
