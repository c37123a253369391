"""The client's side of one secure sum: four answers, and every check that a client can make alone.

A machine lives for one session. Any broken rule burns it: it answers nothing more, and its keys go.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, pack
from paceline.aggregation.secure.graph import neighbours, permutation
from paceline.aggregation.secure.keys import (
    AgreementKey,
    IdentityKey,
    context,
    derive,
    open_sealed,
    pair_info,
    seal,
    verify,
)
from paceline.aggregation.secure.masks import apply_all
from paceline.aggregation.secure.shamir import PRIME, share
from paceline.errors import ProtocolError

__all__ = ["SecureClient", "Session", "alive_digest", "commitment", "graph_of", "number"]

TELL_BYTES = 64
"""Size to which a told record is padded, so that its length says nothing."""


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
    """

    id: bytes
    round: int
    attempt: int
    clients: tuple[int, ...]
    neighbours: int
    threshold: int
    config: SecureConfig

    def context(self, role: str) -> bytes:
        """Return what every signature and key derivation of this session starts with."""
        facts = hashlib.sha256(repr((self.attempt, self.clients, self.neighbours, self.threshold, self.config)).encode())
        return context(self.id, self.round, role) + facts.digest()


def number(value: int) -> bytes:
    """Return an id as 8 little-endian bytes."""
    return value.to_bytes(8, "little")


def commitment(session: Session, client: int, secret: bytes) -> bytes:
    """Return the hash by which a client commits to its self-mask's seed."""
    return hashlib.sha256(session.context("commit") + number(client) + secret).digest()


def graph_of(session: Session, hashes: Mapping[int, bytes]) -> dict[int, list[int]]:
    """Return who neighbours whom, from a seed that no single party chose: the hash of all advertised keys."""
    ids = sorted(hashes)
    seed = hashlib.sha256(session.context("graph") + b"".join(number(i) + hashes[i] for i in ids)).digest()
    return neighbours(permutation(ids, seed), min(session.neighbours, len(ids) - 1))


def alive_digest(session: Session, alive: list[int], table: list[list[Any]]) -> bytes:
    """Return the digest of the survivors and the segment table that all must agree on."""
    return hashlib.sha256(session.context("alive") + b"".join(number(i) for i in sorted(alive)) + repr(table).encode()).digest()


@dataclass
class SecureClient:
    """One client in one session.

    Args:
        me: its id.
        session: the session's facts.
        identity: its long-lived signing key.
        directory: pinned identity keys of the cohort.
    """

    me: int
    session: Session
    identity: IdentityKey
    directory: Mapping[int, bytes]
    peers: dict[int, bytes] = field(default_factory=dict)
    """What neighbours told, by id; known once their sealed shares came."""

    def __post_init__(self) -> None:
        self._step = 0
        self._burnt = False
        self._seal_key, self._mask_key = AgreementKey.generate(), AgreementKey.generate()
        self._advert = b""
        self._keys: dict[int, tuple[bytes, bytes]] = {}
        self._near: list[int] = []
        self._secret = b""
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._digest = b""
        self._alive: list[int] = []
        self._table: list[list[Any]] = []
        missing = [c for c in self.session.clients if c not in self.directory]
        if missing or self.me not in self.session.clients:
            self._refuse(f"the identity keys of {missing or [self.me]} are not known")

    def _refuse(self, why: str) -> NoReturn:
        self._burnt = True
        self._secret, self._shares, self._keys = b"", {}, {}
        raise ProtocolError(f"client {self.me} refuses, and burns the session: {why}")

    def _at(self, step: int) -> None:
        if self._burnt:
            raise ProtocolError(f"client {self.me}: this session is burnt")
        if step != self._step:
            self._refuse(f"step {step} was asked for after step {self._step - 1}; each step is answered once, in order")
        self._step = step + 1

    # -- R0 ------------------------------------------------------------------------------------
    def advertise(self) -> dict[str, Any]:
        """R0: return this round's two public keys, signed."""
        self._at(0)
        keys = self._seal_key.public + self._mask_key.public
        self._advert = keys + self.identity.sign(self.session.context("advertise") + number(self.me) + keys)
        return {"keys": self._advert}

    # -- R1 ------------------------------------------------------------------------------------
    def share(self, hashes: dict[int, bytes], adverts: dict[int, bytes], tell: bytes = b"") -> dict[str, Any]:
        """R1: check the neighbours' keys, and return sealed shares of both secrets for each of them.

        Args:
            hashes: SHA-256 of everybody's advertisement, which decides the graph.
            adverts: the neighbours' advertisements.
            tell: a record for the neighbours, sealed with the shares.
        """
        self._at(1)
        self._near = self._checked_neighbours(hashes, adverts)
        while int.from_bytes(secret := secrets.token_bytes(32), "little") >= PRIME:
            pass
        self._secret = secret
        xs = [v + 1 for v in self._near]
        t = self.session.threshold
        shares_b = share(int.from_bytes(secret, "little"), t, xs)
        shares_s = share(int.from_bytes(self._mask_key.to_bytes(), "little"), t, xs)
        sealed, told = {}, {}
        for v, b, s in zip(self._near, shares_b, shares_s, strict=True):
            secret_key = self._seal_key.agree(self._keys[v][0])
            text = number(self.me) + number(v) + b.to_bytes(32, "little") + s.to_bytes(32, "little")
            sealed[v] = seal(self._derived(secret_key, "seal", v), text, self._aad(self.me, v))
            if len(tell) > TELL_BYTES - 1:
                self._refuse(f"a told record has {len(tell)} bytes; at most {TELL_BYTES - 1} fit")
            padded = (bytes([len(tell)]) + tell).ljust(TELL_BYTES, b"\0")
            told[v] = seal(self._derived(secret_key, "tell", v), padded, self._aad(self.me, v))
        commit = commitment(self.session, self.me, secret)
        return {"sealed": sealed, "told": told, "commit": commit}

    def _checked_neighbours(self, hashes: dict[int, bytes], adverts: dict[int, bytes]) -> list[int]:
        session = self.session
        if hashes.get(self.me) != hashlib.sha256(self._advert).digest():
            self._refuse("the server shows other keys of mine than I sent")
        if not set(hashes) <= set(session.clients):
            self._refuse("the server invented clients")
        near = graph_of(session, hashes)[self.me]
        if sorted(adverts) != sorted(near):
            self._refuse(f"the server gave the keys of {sorted(adverts)}, but my neighbours are {sorted(near)}")
        seen = {self._seal_key.public, self._mask_key.public}
        for v, advert in adverts.items():
            keys, signature = advert[:64], advert[64:]
            if len(advert) != 128 or hashlib.sha256(advert).digest() != hashes[v]:
                self._refuse(f"the keys of {v} are not those that the graph was made from")
            if not verify(self.directory[v], signature, session.context("advertise") + number(v) + keys):
                self._refuse(f"the keys of {v} are not signed by {v}")
            if keys[:32] in seen or keys[32:] in seen or keys[:32] == keys[32:]:
                self._refuse(f"the keys of {v} appear twice")
            seen |= {keys[:32], keys[32:]}
            self._keys[v] = (keys[:32], keys[32:])
        self._enough(len(near), "neighbours advertised keys")
        return near

    def _enough(self, count: int, what: str) -> None:
        if count < self.session.threshold:
            self._refuse(f"only {count} {what}, fewer than the threshold {self.session.threshold}")

    def _derived(self, secret: bytes, label: str, peer: int) -> bytes:
        return derive(secret, self.session.context("salt"), pair_info(label, self.me, peer))

    def _aad(self, sender: int, receiver: int) -> bytes:
        return self.session.context("sealed") + number(sender) + number(receiver)

    # -- R2 ------------------------------------------------------------------------------------
    def receive(self, sealed: dict[int, bytes], told: dict[int, bytes]) -> None:
        """Open the neighbours' sealed shares and records; those who sent none have dropped out."""
        self._at(2)
        if not set(sealed) <= set(self._near) or set(told) != set(sealed):
            self._refuse("shares came from clients that are not my neighbours")
        for v in sealed:
            secret = self._seal_key.agree(self._keys[v][0])
            try:
                text = open_sealed(self._derived(secret, "seal", v), sealed[v], self._aad(v, self.me))
                record = open_sealed(self._derived(secret, "tell", v), told[v], self._aad(v, self.me))
            except ProtocolError:
                self._refuse(f"the sealed share of {v} was changed on its way")
            if len(text) != 80 or text[:16] != number(v) + number(self.me) or len(record) != TELL_BYTES:
                self._refuse(f"the sealed share of {v} is meant for somebody else")
            self._shares[v] = (text[16:48], text[48:80])
            self.peers[v] = record[1 : 1 + record[0]]
        self._enough(len(self._shares), "neighbours shared secrets")

    def masked(self, segments: list[tuple[Segment, Words]]) -> dict[str, Any]:
        """R2: return the segments with all masks added, packed and signed. The words are changed in place."""
        self._at(3)
        seeds = [(self._secret, 1)]
        for v in self._shares:
            secret = self._mask_key.agree(self._keys[v][1])
            seeds.append((self._derived(secret, "mask", v), 1 if self.me < v else -1))
        packed, table = [], []
        for segment, words in segments:
            apply_all(words, seeds, segment.name, self.session.config.prg)
            packed.append(pack(words, segment))
            table.append([segment.name, segment.length, segment.bits])
        self._table = table
        signature = self.identity.sign(self.session.context("masked") + number(self.me) + _digest(table, packed))
        return {"segments": packed, "table": table, "signature": signature}

    # -- R2.5 ----------------------------------------------------------------------------------
    def consistency(self, alive: list[int]) -> dict[str, Any]:
        """R2.5: sign the list of survivors that the server shows."""
        self._at(4)
        if self.me not in alive or len(set(alive)) != len(alive) or not set(alive) <= set(self.session.clients):
            self._refuse("the list of survivors is malformed")
        if not {v for v in alive if v in self._near} <= set(self._shares):
            self._refuse("the list of survivors has clients that shared no secrets with me")
        least = self.session.config.least(len(self.session.clients))
        if len(alive) < least:
            self._refuse(f"only {len(alive)} survivors; with fewer than {least} a sum could expose one of them")
        self._alive, self._digest = sorted(alive), alive_digest(self.session, alive, self._table)
        return {"signature": self.identity.sign(self._digest)}

    # -- R3 ------------------------------------------------------------------------------------
    def unmask(self, signatures: dict[int, bytes]) -> dict[str, Any]:
        """R3: for each neighbour, return the share of its self-mask if it survived, else of its mask key.

        Never both, and only once; in the active setting only if enough neighbours signed the same list.
        """
        self._at(5)
        if self.session.config.active:
            good = [v for v, s in signatures.items() if v in self._shares and verify(self.directory[v], s, self._digest)]
            self._enough(len(good), "neighbours signed the list of survivors that I was shown")
        alive = set(self._alive)
        self_masks = {v: b for v, (b, _) in self._shares.items() if v in alive}
        mask_keys = {v: s for v, (_, s) in self._shares.items() if v not in alive}
        self._burnt = True
        return {"self": self_masks, "keys": mask_keys}


def _digest(table: list[list[Any]], packed: list[bytes]) -> bytes:
    digest = hashlib.sha256(repr(table).encode())
    for part in packed:
        digest.update(part)
    return digest.digest()
