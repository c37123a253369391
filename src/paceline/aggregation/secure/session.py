"""Values that client and server derive from a session's public parameters: contexts, graph, digests."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.graph import least_owners, neighbours, parameters, permutation
from paceline.aggregation.secure.keys import AgreementKey, context
from paceline.aggregation.tiers import TierRules, Tiers
from paceline.core.errors import ConfigError, ProtocolError, QuorumError

__all__ = [
    "MOST_PARTS",
    "Session",
    "advert_parts",
    "alive_digest",
    "bound_tiers",
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
    "sends",
    "share_check",
    "share_checks",
    "sizes",
    "usable",
]


MOST_PARTS = 255
"""Largest number of tiers; an advertisement has one byte for them."""
_UNKNOWN = bytes(32)
"""In place of the task hash while a session is prepared."""

_NUMBERS = ("round", "attempt", "neighbours", "threshold", "tell_bytes", "trial", "call", "parts")


@dataclass(frozen=True)
class Session:
    """Public parameters of one secure sum.

    Args:
        id: 32 random bytes chosen by the server.
        round: round of the run. A client accepts only an increasing (round, attempt).
        attempt: attempt within the round.
        clients: ids of the cohort, ascending.
        neighbours: k, neighbours of each client.
        threshold: t, shares needed to rebuild a secret.
        config: clip, bits, mask generator and the other options.
        tell_bytes: size in bytes to which a record for the neighbours is padded, so that its length reveals nothing;
            0 if no record is sent.
        function: client function of the method whose replies are summed.
        trial: attempt at the round that names the random streams.
        call: number of this call of the function in the round, from 1.
        task: `Work.task`, the hash of everything that determines a reply. Every context includes it, so signatures and
            keys of clients that received different tasks do not match.
        parts: number of tiers, if clients receive and send parts of a model; else 0.
        tiers: tiers that may be used, as indices, ascending.
        prepared: whether keys and shares were exchanged in the round before, when the task was unknown; see `following`.
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
    parts: int = 0
    tiers: tuple[int, ...] = ()
    prepared: bool = False

    @cached_property
    def _facts(self) -> bytes:
        facts = (self.attempt, self.clients, self.neighbours, self.threshold, self.config, self.tell_bytes)
        task = (self.function, self.trial, self.call, self.task, self.parts, self.tiers, self.prepared)
        return hashlib.sha256(repr((facts, task)).encode()).digest()

    @property
    def stream(self) -> str:
        """Name of the random streams of the summed function; client and server derive the same name."""
        return f"{self.trial}/method.{self.function}/{self.call}"

    def context(self, role: str) -> bytes:
        """Return the prefix of every signature and key derivation of this session for one role."""
        return context(self.id, self.round, role) + self._facts

    def key_context(self, role: str) -> bytes:
        """Return the prefix for keys and shares: `context`, without the task if it was unknown when they were exchanged.

        Masks and the signatures of vectors and survivors always depend on the task.
        """
        if role not in self._key_contexts:  # the same few for every neighbour
            self._key_contexts[role] = self._without_task.context(role)
        return self._key_contexts[role]

    _key_contexts = cached_property[dict[str, bytes]](lambda _: {})

    @cached_property
    def _without_task(self) -> Session:
        return dataclasses.replace(self, task=_UNKNOWN) if self.prepared else self

    def following(self, id: bytes) -> Session:
        """Return the session that prepares the first sum of the same function in the next round, over the same clients.

        Client and server derive it on their own; the server chooses only the id.

        Raises:
            ProtocolError: no session can be prepared for such a sum.
        """
        if not self.config.pipelined or self.call != 1 or not isinstance(id, bytes) or len(id) != 32:
            raise ProtocolError(f"round {self.round}: no session can be prepared for the next sum of {self.function!r}")
        place = {"round": self.round + 1, "attempt": 0, "trial": 0, "call": 1, "tiers": tuple(range(self.parts))}
        return dataclasses.replace(self, id=id, task=_UNKNOWN, prepared=True, **place)  # type: ignore[arg-type]

    def bound(self, task: bytes) -> Session:
        """Return this prepared session with the task for which it is used."""
        return dataclasses.replace(self, task=task)

    def least_half(self, clients: int) -> int:
        """Return `least_half` under this session's options."""
        return least_half(clients, self.config)

    @property
    def tier_rules(self) -> TierRules:
        """Return the rules for tiers and for segments of the model."""
        few = self.config.least_contributors
        near = least_owners(len(self.clients), self.neighbours, self.threshold, self.config.gamma)
        return TierRules(few, max(self.config.least(len(self.clients)), few), near)

    def assigned_tiers(self, declared: Mapping[int, int], hashes: Mapping[int, bytes]) -> Tiers:
        """Return the tiers that follow from what the clients declared; raises `QuorumError` if there are too few clients."""
        return _assigned_tiers(self, self.tier_rules, tuple(sorted(declared.items())), tuple(sorted(hashes.items())))

    def faults(self) -> list[str]:
        """Return the reasons why a client must refuse this session; empty if it is valid."""
        out = []
        if not isinstance(self.id, bytes) or len(self.id) != 32:
            out.append("the session id must have 32 bytes")
        if not isinstance(self.task, bytes) or len(self.task) != 32:
            out.append("the task hash must have 32 bytes")
        if min(self.round, self.attempt, self.trial) < 0 or self.call < 1:
            out.append("round, attempt and trial must be at least 0, and call at least 1")
        if list(self.clients) != sorted(set(self.clients)) or len(self.clients) < 2 or self.clients[0] < 0:
            out.append("the cohort must be an ascending list of at least 2 ids")
        elif (self.neighbours, self.threshold) != sizes(len(self.clients), self.config):
            out.append(f"k={self.neighbours}, t={self.threshold} do not follow from the cohort and the options")
        if bool(self.tiers) != bool(self.parts) or not 0 <= self.parts <= MOST_PARTS:
            out.append(f"{self.parts} parts with the tiers {list(self.tiers)} do not fit together")
        elif list(self.tiers) != sorted(set(self.tiers)) or not set(self.tiers) <= set(range(self.parts)):
            out.append(f"the tiers {list(self.tiers)} are not an ascending list of tiers below {self.parts}")
        if self.prepared and (self.trial, self.call) != (0, 1):
            out.append("only the first sum of a function in a round can be prepared")
        if not 1 <= self.threshold <= self.neighbours:
            out.append(f"the threshold {self.threshold} must be from 1 to the number of neighbours, {self.neighbours}")
        elif self.config.active and 2 * self.threshold <= self.neighbours:
            out.append(
                f"with t={self.threshold} of k={self.neighbours} a malicious server could send two halves of the "
                "neighbours different lists of survivors; set t > k/2"
            )
        if self.tell_bytes and not 2 < self.tell_bytes < 2**16:
            out.append(f"peer records of {self.tell_bytes} bytes are not supported; use 3 to 65535, or 0 for none")
        return out

    def plain(self) -> dict[str, Any]:
        """Return the parameters as a tree of plain values."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**facts, "clients": list(self.clients), "tiers": list(self.tiers), "config": dataclasses.asdict(self.config)}

    @staticmethod
    def from_plain(facts: Mapping[str, Any]) -> Session:
        """Return the session encoded by `plain`.

        Raises:
            ConfigError: invalid values of options.
            ProtocolError: missing, unknown or mistyped parameters.
        """
        numbers = [facts.get(name) for name in _NUMBERS]
        known = {f.name for f in dataclasses.fields(Session)}
        clients, tiers, options = facts.get("clients"), facts.get("tiers"), facts.get("config")
        lists = isinstance(clients, list | tuple) and isinstance(tiers, list | tuple)
        if set(facts) != known or not lists or not isinstance(options, Mapping):
            raise ProtocolError(f"malformed session parameters: expected {', '.join(sorted(known))}")
        texts = isinstance(facts.get("function"), str) and isinstance(facts.get("task"), bytes)
        texts = texts and isinstance(facts.get("prepared"), bool)
        unknown = set(options) - {f.name for f in dataclasses.fields(SecureConfig)}
        if not texts or unknown or any(type(n) is not int for n in (*numbers, *facts["clients"], *facts["tiers"])):
            raise ProtocolError("malformed session parameters: wrong types or unknown options")
        ids = {"clients": tuple(facts["clients"]), "tiers": tuple(facts["tiers"])}
        return Session(**{**facts, **ids, "config": SecureConfig(**facts["config"])})


def new_session(clients: Collection[int], config: SecureConfig, round: int = 1, attempt: int = 0, tell_bytes: int = 64) -> Session:
    """Return a fresh session whose k and t follow from the cohort's size.

    Raises `QuorumError` for a cohort that is too small for the threshold, `ConfigError` for other misfits.
    """
    ordered = tuple(sorted(clients))
    k, t = sizes(len(ordered), config)
    if t > k:
        raise QuorumError(f"secure sum, round {round}: {len(ordered)} clients are too few for the threshold {t}")
    session = Session(secrets.token_bytes(32), round, attempt, ordered, k, t, config, tell_bytes)
    if faults := session.faults():
        raise ConfigError("secure aggregation: " + "; ".join(faults))
    return session


def sizes(clients: int, config: SecureConfig) -> tuple[int, int]:
    """Return (k, t) for a cohort: computed by `parameters`, or as set in the options.

    Raises:
        ConfigError: `neighbours` is odd and the graph is not complete.
    """
    computed = parameters(clients, config.gamma, config.delta, config.active, config.sigma, config.eta, config.complete_up_to)
    k = computed.neighbours if config.neighbours is None else min(config.neighbours, max(clients - 1, 1))
    if k % 2 and k < clients - 1:
        raise ConfigError(f"neighbours={k}: each client has equally many on both sides of the ring; set an even number")
    return k, computed.threshold if config.threshold is None else config.threshold


def least_half(clients: int, config: SecureConfig) -> int:
    """Return the smallest permitted half of a cohort whose sum was lost; the cohort's own size if it must not be split.

    A cohort of n clients may be split if all of these hold:

    - the graphs of the cohort and of the half are complete;
    - the half is large enough for its threshold;
    - the clients that need not have helped to open the whole (n - t - 1) are fewer than the helpers that a half needs;
    - at least two honest clients of each half have helped to open the whole. The remaining clients, and corrupt clients
      among the helpers, may take part in sums of the server's choice.

    Args:
        clients: n, size of the cohort.
        config: options of secure aggregation.
    """
    half = clients // 2
    if half < 3:
        return clients
    (k, t), (k_half, t_half) = sizes(clients, config), sizes(half, config)
    free, corrupt = clients - t - 1, math.ceil(config.gamma * clients - 1e-9)
    fits = k >= clients - 1 and k_half >= half - 1 and t_half <= k_half and free + 1 < t_half and half - free - corrupt >= 2
    return max(config.least(clients), 3) if fits else clients


@lru_cache(maxsize=4)
def _assigned_tiers(
    session: Session, rules: TierRules, declared: tuple[tuple[int, int], ...], hashes: tuple[tuple[int, bytes], ...]
) -> Tiers:
    """Return `Session.assigned_tiers`, which all clients of a process derive from the same values."""
    return Tiers.of(dict(declared), session.tiers, session.parts, rules, graph_of(session, dict(hashes)))


def number(value: int) -> bytes:
    """Return a client id as 8 little-endian bytes."""
    return value.to_bytes(8, "little")


def commitment(session: Session, client: int, secret: bytes) -> bytes:
    """Return the hash that commits a client to its self-mask seed."""
    return hashlib.sha256(session.key_context("commit") + number(client) + secret).digest()


def share_check(session: Session, owner: int, holder: int, kind: int, share: bytes) -> bytes:
    """Return the hash of one share; `kind` is 0 for a share of the self-mask seed, 1 for a share of the mask key."""
    return hashlib.sha256(session.key_context("shares") + number(owner) + number(holder) + bytes([kind]) + share).digest()


def share_checks(session: Session, owner: int, holder: int, shares: Sequence[bytes]) -> bytes:
    """Return the hashes of a holder's two shares (self-mask seed, mask key), 32 bytes each.

    The hashes are sent next to the sealed shares. The holder accuses the owner if they do not match the decrypted shares.
    The server checks against them the shares that it receives for unmasking. A wrong share is therefore attributed to its
    holder, and a wrong secret to its owner.
    """
    return b"".join(share_check(session, owner, holder, kind, share) for kind, share in enumerate(shares))


def graph_seed(session: Session, hashes: Mapping[int, bytes]) -> bytes:
    """Return the seed of the graph: the hash of all advertised keys, which no single party controls."""
    listed = b"".join(number(i) + hashes[i] for i in sorted(hashes))
    return hashlib.sha256(session.key_context("graph") + listed).digest()


def graph_of(session: Session, hashes: Mapping[int, bytes]) -> dict[int, list[int]]:
    """Return the neighbours of each client."""
    order = permutation(sorted(hashes), graph_seed(session, hashes))
    return neighbours(order, min(session.neighbours, len(order) - 1))


def near_of(session: Session, hashes: Mapping[int, bytes], client: int) -> list[int]:
    """Return one client's neighbours in `graph_of`."""
    return graph_of(session, hashes)[client]


def alive_digest(session: Session, alive: Sequence[int], table: Sequence[Any], graph: bytes) -> bytes:
    """Return the digest that all survivors must sign before the sum is opened.

    Args:
        session: the session.
        alive: ids of the survivors.
        table: the segments.
        graph: `graph_seed`. Without it, a server could show each client forged advertisements of clients that are not its
            neighbours, until the client is surrounded by corrupt ones.
    """
    listed = b"".join(number(i) for i in sorted(alive))
    return hashlib.sha256(session.context("alive") + graph + listed + repr(list(table)).encode()).digest()


def advert_parts(session: Session, advert: bytes) -> tuple[bytes, int, bytes]:
    """Return an advertisement's signed text, the tier that it declares, and its signature.

    The text consists of two keys of 32 bytes, followed by one byte for the tier if clients receive parts of a model.

    Raises:
        ProtocolError: the advertisement has another length, or no such tier exists.
    """
    end = 65 if session.parts else 64
    if not isinstance(advert, bytes) or len(advert) != end + 64:
        raise ProtocolError(f"an advertisement must have {end + 64} bytes")
    tier = advert[64] if session.parts else 0
    if tier >= max(session.parts, 1):
        raise ProtocolError(f"tier {tier} does not exist; there are {session.parts}")
    return advert[:end], tier, advert[end:]


def bound_tiers(graph: bytes, tiers: Tiers | None) -> bytes:
    """Return `graph_seed` combined with the declared tiers of all clients, so that survivors sign both."""
    if tiers is None:
        return graph
    listed = b"".join(number(c) + bytes([tiers.wanted[c], tiers.owned[c]]) for c in sorted(tiers.wanted))
    return hashlib.sha256(b"paceline-tiers-v1" + graph + listed).digest()


def masked_digest(table: Sequence[Any], packed: Sequence[bytes | memoryview]) -> bytes:
    """Return the digest of a masked vector, which its sender signs."""
    digest = hashlib.sha256(repr(list(table)).encode())
    for part in packed:
        digest.update(part)
    return digest.digest()


def segments_of(table: Any) -> list[Segment]:
    """Return the segments of a table of `segments_table`.

    Raises:
        ProtocolError: the table is malformed, or two segments have the same name.
    """
    if not isinstance(table, list) or not table:
        raise ProtocolError("malformed vector: the table of segments is missing")
    out = []
    for row in table:
        if not isinstance(row, list) or [type(x) for x in row] not in ([str, int, int], [str, int, int, int]):
            raise ProtocolError(
                "malformed vector: a row of the table must be a name, a length, a number of bits and possibly a part"
            )
        try:
            out.append(Segment(*row))
        except ConfigError as error:
            raise ProtocolError(f"malformed vector: {error}") from None
    if len({segment.name for segment in out}) < len(out):
        raise ProtocolError("malformed vector: two segments have the same name, which would give them the same masks")
    return out


def segments_table(segments: Sequence[Segment]) -> list[list[Any]]:
    """Return segments as rows of [name, length, bits], with the part if there is one: the form that is signed and sent."""
    return [[s.name, s.length, s.bits, *([] if s.part is None else [s.part])] for s in segments]


def sends(tiers: Tiers | None, client: int, segment: Segment) -> bool:
    """Return whether a client sends a segment."""
    return tiers is None or segment.part is None or tiers.owned[client] <= segment.part


def usable(public: bytes) -> bool:
    """Return whether an X25519 public key is safe to use: a low-order key yields the same secret with every peer."""
    try:
        AgreementKey.generate().agree(public)
    except ProtocolError:
        return False
    return True
