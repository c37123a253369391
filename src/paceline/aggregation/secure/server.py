"""Server side of one secure sum: relays sealed shares, adds masked vectors, and unmasks their sum.

Masked vectors are added as they arrive; the server never holds more than one of them. A message that arrives after its
step was closed is discarded unread. A message that violates the protocol is discarded and recorded in `refused`. If
the sum itself is spoilt, `MisbehaviourError` names the clients that the protocol proves to be at fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.aggregation.secure import session as shared
from paceline.aggregation.secure.blame import culprits
from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.encoding import Words, unpack
from paceline.aggregation.secure.keys import AgreementKey, derive, pair_info, public_of_agreement, verify
from paceline.aggregation.secure.masks import apply_all
from paceline.aggregation.secure.server_vectors import MaskedVectors
from paceline.aggregation.secure.session import Session
from paceline.aggregation.secure.share_repair import rebuild
from paceline.aggregation.tiers import Tiers
from paceline.core.errors import MisbehaviourError, ProtocolError, QuorumError

__all__ = ["SecureServer"]


@dataclass
class SecureServer:
    """State machine of the server in one session.

    Args:
        session: public parameters of the session.
        directory: identity keys of the cohort.
        quorum: smallest number of masked vectors; never below what clients require.
        refused: clients whose messages violated the protocol, with the reason.
        late: clients whose answers arrived after their step was closed.
        segments: required segments of every vector; None adopts those of most vectors.
    """

    session: Session
    directory: Mapping[int, bytes]
    quorum: int = 1
    refused: dict[int, str] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    segments: Sequence[Segment] | None = None

    def __post_init__(self) -> None:
        self._step = 0
        self._adverts: dict[int, bytes] = {}
        self._seen: set[bytes] = set()
        self._graph: dict[int, list[int]] = {}
        self._graph_seed = b""
        self._shared: dict[int, dict[str, Any]] = {}
        self._sum: list[tuple[Segment, Words]] | None = None
        self._vectors = MaskedVectors(self.refused)
        self.tiers: Tiers | None = None
        """Tiers of the clients, after `directory_for`; None if all clients send the same segments."""
        self._table, self._kind = shared.segments_table(self.segments or ()), ""
        self._masked: list[int] = []
        self._accusations: dict[int, list[int]] = {}
        self._shares_b: dict[int, dict[int, bytes]] = {}
        self._shares_s: dict[int, dict[int, bytes]] = {}
        self._signatures: dict[int, bytes] = {}
        self._dishonest: dict[int, str] = {}
        self._weights: dict[tuple[int, ...], Sequence[int]] = {}

    def expect(self, segments: Sequence[Segment], kind: str) -> None:
        """Set the required segments and layout (see `add_masked`) of every vector. Call it before the first one arrives."""
        self._table, self._kind = shared.segments_table(segments), kind

    @property
    def _least(self) -> int:
        return self.session.config.least(len(self.session.clients))

    def _lost(self, step: str, count: int, least: int) -> None:
        if count < least:
            raise QuorumError(
                f"secure sum, round {self.session.round}: {count} of {len(self.session.clients)} clients remained "
                f"{step}; the minimum is {least}; the round can be repeated with fresh keys"
            )

    def _takes(self, step: int, client: int, message: Any) -> bool:
        """Return whether a message belongs to the open step and comes from a client addressed in it."""
        if self._step < step:
            raise ProtocolError(f"the server received an answer to step {step} before step {step - 1} was closed")
        if self._step > step:
            self.late.add(client)
            return False
        asked = (self.session.clients, self._graph, self._shared, self._masked, self._signatures)[step]
        if client not in asked or client not in self.directory:
            self.refused[client] = "unrequested message"
            return False
        if not isinstance(message, dict):
            self.refused[client] = "malformed message"
            return False
        return True

    def _close(self, step: int) -> None:
        if self._step != step:
            raise ProtocolError(f"the server tried to close step {step} while step {self._step} was open")
        self._step = step + 1

    # -- R0 ------------------------------------------------------------------------------------
    def add_advert(self, client: int, message: dict[str, Any]) -> None:
        """Add a client's advertised keys."""
        if not self._takes(0, client, message):
            return
        keys = message.get("keys")
        try:
            text, _, signature = shared.advert_parts(self.session, keys)  # type: ignore[arg-type]
        except ProtocolError:
            self.refused[client] = "malformed keys"
            return
        assert isinstance(keys, bytes)
        if not verify(self.directory[client], signature, self.session.key_context("advertise") + shared.number(client) + text):
            self.refused[client] = "advertised keys without its valid signature"
        elif client in self._adverts or keys[:32] == keys[32:64] or {keys[:32], keys[32:64]} & self._seen:
            self.refused[client] = "advertised keys that were used before"
        elif not all(shared.usable(k) for k in (keys[:32], keys[32:64])):
            self.refused[client] = "advertised keys of low order"  # its neighbours would abort
        else:
            self._adverts[client] = keys
            self._seen |= {keys[:32], keys[32:64]}

    def directory_for(self) -> tuple[dict[int, bytes], dict[int, dict[int, bytes]]]:
        """Close R0: return the hashes of all advertisements, and for each client its neighbours' keys.

        Raises:
            QuorumError: too few clients advertised keys.
        """
        self._close(0)
        self._lost("after advertising", len(self._adverts), max(self.session.threshold + 1, self._least))
        hashes = {c: hashlib.sha256(a).digest() for c, a in sorted(self._adverts.items())}
        self._graph, self._graph_seed = shared.graph_of(self.session, hashes), shared.graph_seed(self.session, hashes)
        if self.session.parts:
            declared = {c: shared.advert_parts(self.session, a)[1] for c, a in sorted(self._adverts.items())}
            self.tiers = self.session.assigned_tiers(declared, hashes)
            self._graph_seed = shared.bound_tiers(self._graph_seed, self.tiers)
        return hashes, {c: {v: self._adverts[v] for v in near} for c, near in self._graph.items()}

    def announced(self, hashes: Mapping[int, bytes]) -> dict[str, Any]:
        """Return what all clients receive in R1: the hashes, and the tiers that were declared."""
        return {"hashes": dict(hashes)} | ({} if self.tiers is None else {"tiers": dict(self.tiers.wanted)})

    # -- R1 ------------------------------------------------------------------------------------
    def add_shares(self, client: int, message: dict[str, Any]) -> None:
        """Add a client's sealed shares."""
        if not self._takes(1, client, message):
            return
        sizes = {"sealed": 64 + 80 + 28, "told": self.session.tell_bytes and self.session.tell_bytes + 28}
        commit, near = message.get("commit"), set(self._graph[client])
        for part, length in sizes.items():
            sealed = message.get(part)
            if not isinstance(sealed, dict) or set(sealed) != near:
                self.refused[client] = "sealed shares not addressed to its neighbours"
                return
            if not all(isinstance(s, bytes) and len(s) == length for s in sealed.values()):
                self.refused[client] = "sealed shares of wrong size"
                return
        if not isinstance(commit, bytes) or len(commit) != 32:
            self.refused[client] = "missing or malformed commitment"
        elif client in self._shared:
            self.refused[client] = "shares sent twice"
        else:
            self._shared[client] = message

    def inbox_for(self) -> dict[int, dict[str, dict[int, bytes]]]:
        """Close R1: return for each client what its neighbours sealed for it.

        Raises:
            QuorumError: too few clients shared secrets with enough neighbours.
        """
        self._close(1)
        self._lost("after sharing", len(self._shared), self._least)
        out = {}
        for client in self._shared:
            senders = [v for v in self._graph[client] if v in self._shared]
            if len(senders) >= self.session.threshold:
                self._owned_by(client, senders)
                out[client] = {part: {v: self._shared[v][part][client] for v in senders} for part in ("sealed", "told")}
        self._lost("with enough neighbours", len(out), self._least)
        return out

    def _owned_by(self, client: int, senders: Sequence[int]) -> None:
        """Raise `QuorumError` if too few neighbours are left that own the segments of a client, which would refuse to send them."""
        if self.tiers is not None and (why := self.tiers.missing(client, senders)):
            raise QuorumError(f"secure sum, round {self.session.round}: {why}; the round can be repeated with fresh keys")

    # -- R2 ------------------------------------------------------------------------------------
    def add_masked(self, client: int, message: dict[str, Any], kind: str = "") -> bool:
        """Add a client's masked vector to a sum; return whether it was accepted.

        Unless the layout was fixed by `expect`, vectors of different layouts are summed separately, see `MaskedVectors`, and
        `alive` selects the one with most clients.

        Args:
            client: id of the sender.
            message: segments, table and signature, or an accusation.
            kind: further description of the layout; vectors are added only if it is equal.
        """
        if not self._takes(2, client, message):
            return False
        table, packed = message.get("table"), message.get("segments")
        try:
            if client in self._accusations or client in self._vectors:
                raise ProtocolError("vector sent twice")
            if "accused" in message:
                self._accuse(client, message["accused"])
                return False
            segments = shared.segments_of(table)
            if (self._table and table != self._table) or (self._kind and kind != self._kind):
                raise ProtocolError("vector with other segments than requested")
            sent = [segment for segment in segments if shared.sends(self.tiers, client, segment)]
            if not isinstance(packed, list) or [isinstance(p, bytes | memoryview) for p in packed] != [True] * len(sent):
                raise ProtocolError("malformed vector")
            signed = (
                self.session.context("masked")
                + shared.number(client)
                + shared.masked_digest(shared.segments_table(segments), packed)
            )
            if not verify(self.directory[client], message.get("signature", b""), signed):
                raise ProtocolError("vector without its valid signature")
            words = {segment.name: unpack(data, segment) for data, segment in zip(packed, sent, strict=True)}
            self._vectors.add(client, f"{shared.segments_table(segments)} {kind}", segments, words)
        except ProtocolError as error:
            self.refused[client] = str(error)
            return False
        return True

    def _accuse(self, client: int, accused: Any) -> None:
        near = {v for v in self._graph[client] if v in self._shared}
        if not isinstance(accused, list) or not all(type(v) is int for v in accused) or not set(accused) <= near or not accused:
            raise ProtocolError("malformed message")
        self._accusations[client] = sorted(set(accused))

    # -- R2.5 ----------------------------------------------------------------------------------
    def alive(self) -> list[int]:
        """Close R2: return the survivors. No later message can join them.

        Raises:
            MisbehaviourError: clients could not decrypt the shares of others.
            QuorumError: too few vectors are left.
            TierError: too few are left in a tier.
        """
        self._close(2)
        if blamed := culprits(self._accusations):
            raise MisbehaviourError(
                f"secure sum, round {self.session.round}: sealed shares could not be decrypted; nothing was summed, and the round "
                f"is repeated without clients {list(blamed)}",
                blamed,
            )
        if (best := self._vectors.most()) is not None:
            self._sum, self._masked = best.sums, best.clients
            self._table = shared.segments_table([segment for segment, _ in best.sums])
        self._lost("with a masked vector", len(self._masked), max(self.quorum, self._least))
        self._masked.sort()
        if self.tiers is not None:
            self.tiers.check(self._masked)
        return list(self._masked)

    def add_signature(self, client: int, message: dict[str, Any]) -> None:
        """Add a client's signature of the list of survivors."""
        if not self._takes(3, client, message):
            return
        signature = message.get("signature", b"")
        if verify(
            self.directory[client], signature, shared.alive_digest(self.session, self._masked, self._table, self._graph_seed)
        ):
            self._signatures[client] = signature
        else:
            self.refused[client] = "signature of another list of survivors"

    def signatures_for(self) -> dict[int, dict[int, bytes]]:
        """Close R2.5: return for each client its neighbours' signatures.

        Against an active server a client refuses if too few neighbours confirm the list, so such clients are omitted.

        Raises:
            QuorumError: too few clients are left.
        """
        self._close(3)
        t, active = self.session.threshold, self.session.config.active
        out = {c: {v: self._signatures[v] for v in self._graph[c] if v in self._signatures} for c in self._signatures}
        out = {c: near for c, near in out.items() if not active or len(near) >= t}
        self._lost("whose neighbours confirmed the survivors", len(out), t)
        return out

    # -- R3 ------------------------------------------------------------------------------------
    def add_unmasking(self, client: int, message: dict[str, Any]) -> None:
        """Add a client's shares: of the self-masks of survivors, and of the mask keys of dropped clients."""
        if not self._takes(4, client, message):
            return
        selfs, keys = message.get("self"), message.get("keys")
        alive, near = set(self._masked), set(self._graph[client])
        if (
            not isinstance(selfs, dict)
            or not isinstance(keys, dict)
            or not set(selfs) <= alive & near
            or not set(keys) <= near - alive
        ):
            self.refused[client] = "malformed shares"
            return
        if set(selfs) != alive & near:
            self.refused[client] = self._dishonest[client] = "shares withheld"
        for kind, into, shares in ((0, self._shares_b, selfs), (1, self._shares_s, keys)):
            for v, value in shares.items():
                if not isinstance(value, bytes) or len(value) != 32:
                    self.refused[client] = self._dishonest[client] = f"malformed share of client {v}"
                elif shared.share_check(self.session, v, client, kind, value) != self._check(v, client, kind):
                    self.refused[client] = self._dishonest[client] = f"wrong share of client {v}"
                else:
                    into.setdefault(v, {}).setdefault(client, value)

    def open(self) -> list[tuple[Segment, Words]]:
        """Rebuild the masks that remain in the sum, subtract them, and return the opened segments.

        Raises:
            QuorumError: shares are missing.
            MisbehaviourError: shares are wrong. It names the holders of wrong shares if too few others arrived, and the owners
                of secrets that cannot be rebuilt from the shares that they sealed.
        """
        self._close(4)
        assert self._sum is not None
        seeds: list[tuple[tuple[int, ...], tuple[bytes, int]]] = []  # of a client or a pair
        wrong: dict[int, str] = {}
        for v in self._masked:
            if secret := self._rebuild(v, self._shares_b, self._is_self_mask, wrong):
                seeds.append(((v,), (secret, -1)))
        for v in sorted(set(self._shared) - (alive := set(self._masked))):
            survivors = [u for u in self._graph[v] if u in alive]
            if not survivors or not (secret := self._rebuild(v, self._shares_s, self._is_mask_key, wrong)):
                continue
            key = AgreementKey.from_bytes(secret)
            for u in survivors:
                agreed = key.agree(self._adverts[u][32:64])
                seed = derive(agreed, self.session.context("salt"), pair_info("mask", u, v))
                seeds.append(((u, v), (seed, -1 if u < v else 1)))
        if wrong:
            raise MisbehaviourError(
                f"secure sum, round {self.session.round}: the masks of clients {list(wrong)} cannot be removed, so the sum is lost",
                wrong,
                self._masked,
            )
        for segment, total in self._sum:
            masks = [mask for owners, mask in seeds if all(shared.sends(self.tiers, c, segment) for c in owners)]
            apply_all(total, masks, segment.name, self.session.config.prg)
        return self._sum

    def _check(self, owner: int, holder: int, kind: int) -> bytes:
        return bytes(self._shared[owner]["sealed"][holder][32 * kind :][:32])

    def _is_self_mask(self, owner: int, secret: bytes) -> bool:
        return bool(shared.commitment(self.session, owner, secret) == self._shared[owner]["commit"])

    def _is_mask_key(self, owner: int, secret: bytes) -> bool:
        return public_of_agreement(secret) == self._adverts[owner][32:64]

    def _rebuild(
        self, owner: int, of: Mapping[int, Mapping[int, bytes]], right: Callable[[int, bytes], bool], blamed: dict[int, str]
    ) -> bytes | None:
        """Return a secret rebuilt from its shares, each verified to be the one that its owner sealed.

        If the shares do not yield what the owner committed to, so that no decoder can help, blame the owner and return None.
        """
        t = self.session.threshold
        shares = {u: int.from_bytes(s, "little") for u, s in sorted(of.get(owner, {}).items())}
        if len(shares) < t and self._dishonest:
            raise MisbehaviourError(
                f"secure sum, round {self.session.round}: clients {sorted(self._dishonest)} sent wrong shares or withheld some, "
                "and too few valid ones remain",
                self._dishonest,
                self._masked,
            )
        if len(shares) < t:
            raise QuorumError(
                f"secure sum, round {self.session.round}: {len(shares)} of the required {t} shares of client {owner} arrived; "
                f"the sum is lost, and the round can be repeated with fresh keys"
            )
        if (secret := rebuild(shares, t, lambda found: right(owner, found), self._weights)) is not None:
            return secret
        blamed[owner] = "shares that do not match its commitment"
        return None
