"""The server's side of one secure sum: relays what it cannot read, adds what it cannot open, opens the sum.

Masked vectors are added as they come; the server never holds more than one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

import numpy as np

from paceline.aggregation.secure.client import Session, alive_digest, commitment, graph_of, number
from paceline.aggregation.secure.client import _digest as masked_digest
from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.encoding import Words, unpack
from paceline.aggregation.secure.keys import AgreementKey, derive, pair_info, public_of_agreement, verify
from paceline.aggregation.secure.masks import apply_all
from paceline.aggregation.secure.shamir import PRIME, combine, weights
from paceline.errors import ProtocolError, QuorumError

__all__ = ["SecureServer"]

_REPAIRS = 2000


@dataclass
class SecureServer:
    """The server in one session.

    Args:
        session: the session's facts.
        directory: identity keys of the cohort.
        quorum: least number of masked vectors; never below what clients demand.
    """

    session: Session
    directory: Mapping[int, bytes]
    quorum: int = 1
    refused: dict[int, str] = field(default_factory=dict)
    """Clients whose messages broke the protocol, and how."""

    def __post_init__(self) -> None:
        self._adverts: dict[int, bytes] = {}
        self._graph: dict[int, list[int]] = {}
        self._shared: dict[int, dict[str, Any]] = {}
        self._sum: list[tuple[Segment, Words]] | None = None
        self._table: list[list[Any]] = []
        self._masked: list[int] = []
        self._shares_b: dict[int, dict[int, bytes]] = {}
        self._shares_s: dict[int, dict[int, bytes]] = {}
        self._signatures: dict[int, bytes] = {}

    @property
    def _least(self) -> int:
        return self.session.config.least(len(self.session.clients))

    def _lost(self, step: str, count: int, least: int) -> None:
        if count < least:
            raise QuorumError(
                f"secure sum, round {self.session.round}: {count} of {len(self.session.clients)} clients were left "
                f"{step}, and {least} are needed; the round can be run again with fresh keys"
            )

    # -- R0 ------------------------------------------------------------------------------------
    def add_advert(self, client: int, message: dict[str, Any]) -> None:
        """Take a client's advertised keys."""
        keys = message.get("keys")
        if not isinstance(keys, bytes) or len(keys) != 128:
            self.refused[client] = "malformed keys"
        elif not verify(self.directory[client], keys[64:], self.session.context("advertise") + number(client) + keys[:64]):
            self.refused[client] = "the advertised keys are not signed by it"
        else:
            self._adverts[client] = keys

    def directory_for(self) -> tuple[dict[int, bytes], dict[int, dict[int, bytes]]]:
        """Close R0: return everybody's hashes, and for each client its neighbours' keys."""
        self._lost("after advertising", len(self._adverts), max(self.session.threshold + 1, self._least))
        hashes = {c: hashlib.sha256(a).digest() for c, a in sorted(self._adverts.items())}
        self._graph = graph_of(self.session, hashes)
        return hashes, {c: {v: self._adverts[v] for v in near} for c, near in self._graph.items()}

    # -- R1 ------------------------------------------------------------------------------------
    def add_shares(self, client: int, message: dict[str, Any]) -> None:
        """Take a client's sealed shares."""
        sealed, told = message.get("sealed"), message.get("told")
        near = sorted(self._graph[client])
        if not isinstance(sealed, dict) or not isinstance(told, dict) or sorted(sealed) != near or sorted(told) != near:
            self.refused[client] = "its sealed shares are not for its neighbours"
        elif not isinstance(message.get("commit"), bytes):
            self.refused[client] = "it committed to nothing"
        else:
            self._shared[client] = message

    def mail_for(self) -> dict[int, dict[str, dict[int, bytes]]]:
        """Close R1: return for each client what its neighbours sealed for it."""
        self._lost("after sharing", len(self._shared), self._least)
        out = {}
        for client in self._shared:
            senders = [v for v in self._graph[client] if v in self._shared]
            if len(senders) >= self.session.threshold:
                out[client] = {part: {v: self._shared[v][part][client] for v in senders} for part in ("sealed", "told")}
        self._lost("with enough neighbours", len(out), self._least)
        return out

    # -- R2 ------------------------------------------------------------------------------------
    def add_masked(self, client: int, message: dict[str, Any]) -> bool:
        """Add a client's masked vector to the sum at once; return whether it was taken."""
        table, packed = message.get("table"), message.get("segments")
        try:
            if client not in self._shared or client in self._masked:
                raise ProtocolError("it shared nothing, or sends twice")
            if not isinstance(table, list) or not isinstance(packed, list) or len(table) != len(packed):
                raise ProtocolError("malformed vector")
            if self._table and table != self._table:
                raise ProtocolError("its vector has other segments than the first one")
            signed = self.session.context("masked") + number(client) + masked_digest(table, packed)
            if not verify(self.directory[client], message.get("signature", b""), signed):
                raise ProtocolError("its vector is not signed by it")
            segments = [Segment(*row) for row in table]
            words = [unpack(data, segment) for data, segment in zip(packed, segments, strict=True)]
        except (ProtocolError, TypeError, ValueError) as error:
            self.refused[client] = str(error)
            return False
        if self._sum is None:
            self._sum = [(s, np.zeros(s.length, dtype=s.dtype)) for s in segments]
            self._table = table
        for (_, total), part in zip(self._sum, words, strict=True):
            np.add(total, part, out=total)
        self._masked.append(client)
        return True

    # -- R2.5 ----------------------------------------------------------------------------------
    def alive(self) -> list[int]:
        """Close R2: return the survivors, which no later message can join."""
        self._lost("with a masked vector", len(self._masked), max(self.quorum, self._least))
        self._masked.sort()
        return list(self._masked)

    def add_signature(self, client: int, message: dict[str, Any]) -> None:
        """Take a client's signature on the list of survivors."""
        signature = message.get("signature", b"")
        if verify(self.directory[client], signature, alive_digest(self.session, self._masked, self._table)):
            self._signatures[client] = signature
        else:
            self.refused[client] = "it signed another list of survivors"

    def signatures_for(self) -> dict[int, dict[int, bytes]]:
        """Close R2.5: return for each client its neighbours' signatures."""
        out = {c: {v: self._signatures[v] for v in self._graph[c] if v in self._signatures} for c in self._signatures}
        fewest = min((len(near) for near in out.values()), default=0)
        self._lost("around one of them that confirmed the survivors", fewest, self.session.threshold)
        return out

    # -- R3 ------------------------------------------------------------------------------------
    def add_unmasking(self, client: int, message: dict[str, Any]) -> None:
        """Take a client's shares: of survivors' self-masks, and of the mask keys of those that were lost."""
        selfs, keys = message.get("self"), message.get("keys")
        alive = set(self._masked)
        near = set(self._graph[client])
        if not isinstance(selfs, dict) or not isinstance(keys, dict) or not set(selfs) <= alive & near or not set(keys) <= near - alive:
            self.refused[client] = "malformed shares"
            return
        for into, shares in ((self._shares_b, selfs), (self._shares_s, keys)):
            for v, value in shares.items():
                if isinstance(value, bytes) and len(value) == 32:
                    into.setdefault(v, {})[client] = value

    def open(self) -> list[tuple[Segment, Words]]:
        """Rebuild the masks that are left in the sum, take them away, and return the opened segments.

        Raises `QuorumError` where shares are missing, `ProtocolError` where shares are wrong and cannot be repaired.
        """
        assert self._sum is not None
        seeds: list[tuple[bytes, int]] = []
        for v in self._masked:
            secret = self._rebuild(v, self._shares_b.get(v, {}), lambda s, v=v: commitment(self.session, v, s) == self._shared[v]["commit"])
            seeds.append((secret, -1))
        alive = set(self._masked)
        for v in sorted(set(self._shared) - alive):
            survivors = [u for u in self._graph[v] if u in alive]
            if not survivors:
                continue
            secret = self._rebuild(v, self._shares_s.get(v, {}), lambda s, v=v: public_of_agreement(s) == self._adverts[v][32:64])
            key = AgreementKey.from_bytes(secret)
            for u in survivors:
                agreed = key.agree(self._adverts[u][32:64])
                seed = derive(agreed, self.session.context("salt"), pair_info("mask", u, v))
                seeds.append((seed, -1 if u < v else 1))
        for segment, total in self._sum:
            apply_all(total, seeds, segment.name, self.session.config.prg)
        return self._sum

    def _rebuild(self, owner: int, shares: dict[int, bytes], right: Any) -> bytes:
        t = self.session.threshold
        if len(shares) < t:
            raise QuorumError(
                f"secure sum, round {self.session.round}: {len(shares)} shares of client {owner} came, {t} are needed; "
                f"the round is lost and can be run again with fresh keys"
            )
        holders = sorted(shares)
        for chosen in islice(combinations(holders, t), _REPAIRS):  # the first is right unless somebody lied
            ys = [int.from_bytes(shares[u], "little") for u in chosen]
            value = combine(ys, weights([u + 1 for u in chosen]))
            if value < 2**256 and right(secret := value.to_bytes(32, "little")):
                for u in self._liars(chosen, shares, value):
                    self.refused[u] = f"its share of client {owner} was wrong"
                return secret
        raise ProtocolError(f"secure sum, round {self.session.round}: the shares of client {owner} are wrong; one of {holders} lied")

    def _liars(self, chosen: tuple[int, ...], shares: dict[int, bytes], value: int) -> list[int]:
        """Return who holds a share that does not lie on the polynomial of the right ones."""
        out = []
        base = chosen[:-1]
        for u in set(shares) - set(chosen):
            ys = [int.from_bytes(shares[w], "little") for w in (*base, u)]
            if combine(ys, weights([w + 1 for w in (*base, u)])) % PRIME != value:
                out.append(u)
        return out
