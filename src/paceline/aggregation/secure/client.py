"""Client side of one secure sum: five protocol steps, and every check that a client can make on its own.

An instance serves one session. Any protocol violation burns it: it answers nothing more, and its secrets are erased.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, pack
from paceline.aggregation.secure.keys import (
    AgreementKey,
    IdentityKey,
    derive,
    open_sealed,
    pair_info,
    seal,
    verify,
)
from paceline.aggregation.secure.masks import apply_all
from paceline.aggregation.secure.session import (
    Session,
    alive_digest,
    commitment,
    graph_seed,
    masked_digest,
    near_of,
    number,
    segments_of,
    segments_table,
    share_checks,
)
from paceline.aggregation.secure.shamir import PRIME, share
from paceline.core.errors import ProtocolError

__all__ = ["SecureClient", "Session"]

_BYTES = ("_advert", "_secret", "_digest", "_graph")
_LISTS = ("_near", "_alive", "_table", "accused")
_MAPS = ("_keys", "_shares", "peers")


@dataclass
class SecureClient:
    """State machine of one client in one session.

    Args:
        me: id of the client.
        session: public parameters of the session.
        identity: long-lived signing key of the client.
        directory: pinned identity keys of the cohort.
        peers: records of the neighbours, by id; filled when their sealed shares arrive.
        accused: neighbours whose sealed shares could not be decrypted; filled at the same time.
        policy: options that this client requires; None to accept the session's.

    Raises:
        ProtocolError: the session is invalid for this client.
    """

    me: int
    session: Session
    identity: IdentityKey
    directory: Mapping[int, bytes]
    peers: dict[int, bytes] = field(default_factory=dict)
    accused: list[int] = field(default_factory=list)
    policy: SecureConfig | None = None

    def __post_init__(self) -> None:
        self._step = 0
        self._discarded = False
        self._seal_key, self._mask_key = AgreementKey.generate(), AgreementKey.generate()
        self._advert = self._secret = self._digest = self._graph = b""
        self._keys: dict[int, tuple[bytes, bytes]] = {}
        self._near: list[int] = []
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._alive: list[int] = []
        self._table: list[list[Any]] = []
        missing = [c for c in self.session.clients if c not in self.directory]
        if missing or self.me not in self.session.clients:
            self._refuse(f"no identity keys for clients {missing or [self.me]}")
        if self.directory[self.me] != self.identity.public:
            self._refuse("the directory lists a different identity key for this client")
        if self.policy is not None and self.session.config != self.policy:
            self._refuse("the session's options differ from this client's policy")
        if faults := self.session.faults():
            self._refuse("; ".join(faults))

    def state(self) -> dict[str, Any]:
        """Return the complete state as a plain tree, so that another process can continue.

        It contains this session's secrets. Keep one copy, store it before an answer is sent, and never return to an older
        one: a client that answers a step twice can reveal its own vector.
        """
        out: dict[str, Any] = {"me": self.me, "session": self.session.plain(), "step": self._step, "burnt": int(self._discarded)}
        if not self._discarded:
            out["secrets"] = [self._seal_key.to_bytes(), self._mask_key.to_bytes()]
        out |= {name: getattr(self, name) for name in (*_BYTES, *_LISTS)}
        for name in _MAPS:
            out[name] = [[v, *([x] if isinstance(x, bytes) else x)] for v, x in getattr(self, name).items()]
        return out

    @staticmethod
    def from_state(state: Mapping[str, Any], identity: IdentityKey, directory: Mapping[int, bytes]) -> SecureClient:
        """Return the client saved by `state`."""
        client = SecureClient(state["me"], Session.from_plain(state["session"]), identity, directory)
        client._step, client._discarded = state["step"], bool(state["burnt"])
        if not client._discarded:
            client._seal_key, client._mask_key = (AgreementKey.from_bytes(s) for s in state["secrets"])
        for name in (*_BYTES, *_LISTS):
            value = state[name]
            setattr(client, name, value if isinstance(value, bytes) else list(value))
        for name in _MAPS:
            setattr(client, name, {v: x[0] if len(x) == 1 else tuple(x) for v, *x in state[name]})
        return client

    def _discard(self) -> None:
        self._discarded = True
        self._secret, self._shares, self._keys = b"", {}, {}
        self._seal_key = self._mask_key = AgreementKey.generate()

    def _refuse(self, why: str) -> NoReturn:
        self._discard()
        raise ProtocolError(f"client {self.me} refused and discarded the session: {why}")

    def _at(self, step: int) -> None:
        if self._discarded:
            raise ProtocolError(f"client {self.me}: this session was discarded")
        if step != self._step:
            self._refuse(f"step {step} was requested after step {self._step - 1}; each step is answered once, in order")
        self._step = step + 1

    def _by_id(self, value: Any, what: str) -> dict[int, bytes]:
        """Return a mapping of bytes by client id; refuse anything else that a server sends."""
        if not isinstance(value, dict) or not all(type(k) is int and isinstance(v, bytes) for k, v in value.items()):
            self._refuse(f"{what} are malformed")
        return value

    def _agree(self, key: AgreementKey, peer: int, which: int) -> bytes:
        try:
            return key.agree(self._keys[peer][which])
        except ProtocolError as error:
            self._refuse(f"keys of client {peer}: {error}")

    def _enough(self, count: int, what: str) -> None:
        if count < self.session.threshold:
            self._refuse(f"only {count} {what}; the threshold is {self.session.threshold}")

    def _derived(self, secret: bytes, label: str, peer: int) -> bytes:
        return derive(secret, self.session.context("salt"), pair_info(label, self.me, peer))

    def _aad(self, sender: int, receiver: int) -> bytes:
        return self.session.context("sealed") + number(sender) + number(receiver)

    # -- R0 ------------------------------------------------------------------------------------
    def advertise(self) -> dict[str, Any]:
        """R0: return this session's two public keys, signed."""
        self._at(0)
        keys = self._seal_key.public + self._mask_key.public
        self._advert = keys + self.identity.sign(self.session.context("advertise") + number(self.me) + keys)
        return {"keys": self._advert}

    # -- R1 ------------------------------------------------------------------------------------
    def share(self, hashes: dict[int, bytes], adverts: dict[int, bytes], record: bytes = b"") -> dict[str, Any]:
        """R1: verify the neighbours' keys, and return sealed shares of both secrets for each of them.

        Args:
            hashes: SHA-256 of every client's advertisement; it determines the graph.
            adverts: the neighbours' advertisements, 128 bytes each.
            tell: record for the neighbours, sealed separately next to the shares.

        Raises:
            ProtocolError: a key, a signature or the graph is wrong, or the record is too long.
        """
        self._at(1)
        self._near = self._checked_neighbours(self._by_id(hashes, "hashes"), self._by_id(adverts, "keys"))
        size = self.session.tell_bytes
        if len(record) > max(size - 2, 0):
            self._refuse(f"the peer record has {len(record)} bytes; the maximum is {max(size - 2, 0)}")
        while int.from_bytes(secret := secrets.token_bytes(32), "little") >= PRIME:
            pass
        self._secret = secret
        xs = [v + 1 for v in self._near]
        t = self.session.threshold
        shares_b = share(int.from_bytes(secret, "little"), t, xs)
        shares_s = share(int.from_bytes(self._mask_key.to_bytes(), "little"), t, xs)
        padded = (len(record).to_bytes(2, "little") + record).ljust(size, b"\0")
        sealed, sealed_records = {}, {}
        for v, b, s in zip(self._near, shares_b, shares_s, strict=True):
            agreed = self._agree(self._seal_key, v, 0)
            shares = b.to_bytes(32, "little"), s.to_bytes(32, "little")
            text = number(self.me) + number(v) + b"".join(shares)
            sealed[v] = share_checks(self.session, self.me, v, shares) + seal(
                self._derived(agreed, "seal", v), text, self._aad(self.me, v)
            )
            sealed_records[v] = seal(self._derived(agreed, "tell", v), padded, self._aad(self.me, v)) if size else b""
        return {"sealed": sealed, "told": sealed_records, "commit": commitment(self.session, self.me, secret)}

    def _checked_neighbours(self, hashes: dict[int, bytes], adverts: dict[int, bytes]) -> list[int]:
        session = self.session
        if hashes.get(self.me) != hashlib.sha256(self._advert).digest():
            self._refuse("the server announced other keys for this client than it sent")
        if not set(hashes) <= set(session.clients):
            self._refuse("the server listed clients that are not in the session")
        self._graph, near = graph_seed(session, hashes), near_of(session, hashes, self.me)
        if sorted(adverts) != near:
            self._refuse(f"the server sent the keys of clients {sorted(adverts)}, but the neighbours in the graph are {near}")
        seen = {self._seal_key.public, self._mask_key.public}
        for v, advert in adverts.items():
            keys, signature = advert[:64], advert[64:]
            if len(advert) != 128 or hashlib.sha256(advert).digest() != hashes[v]:
                self._refuse(f"the keys of client {v} do not match the hash from which the graph was derived")
            if not verify(self.directory[v], signature, session.context("advertise") + number(v) + keys):
                self._refuse(f"the keys of client {v} lack a valid signature of that client")
            if keys[:32] in seen or keys[32:] in seen or keys[:32] == keys[32:]:
                self._refuse(f"the keys of client {v} appear twice")
            seen |= {keys[:32], keys[32:]}
            self._keys[v] = (keys[:32], keys[32:])
        self._enough(len(near), "neighbours advertised keys")
        return near

    # -- R2 ------------------------------------------------------------------------------------
    def receive(self, sealed: dict[int, bytes], told: dict[int, bytes]) -> None:
        """R2: decrypt the neighbours' sealed shares and records; neighbours that sent none have dropped out.

        A share that cannot be decrypted counts against its sender: the sender is listed in `accused` and no mask is shared
        with it. In that case this client masks nothing; see `accuse`.
        """
        self._at(2)
        sealed, told = self._by_id(sealed, "sealed shares"), self._by_id(told, "sealed records")
        if not set(sealed) <= set(self._near) or set(told) != set(sealed):
            self._refuse("the server relayed shares from clients that are not neighbours")
        size = self.session.tell_bytes
        for v in sealed:
            agreed = self._agree(self._seal_key, v, 0)
            try:
                text = open_sealed(self._derived(agreed, "seal", v), sealed[v][64:], self._aad(v, self.me))
                record = open_sealed(self._derived(agreed, "tell", v), told[v], self._aad(v, self.me)) if size else b""
            except ProtocolError:
                text, record = b"", b""
            if len(text) != 80 or text[:16] != number(v) + number(self.me) or len(record) != size:
                self.accused.append(v)
                continue
            shares = text[16:48], text[48:80]
            if share_checks(self.session, v, self.me, shares) != sealed[v][:64]:
                self.accused.append(v)
                continue
            self._shares[v] = shares
            self.peers[v] = record[2 : 2 + int.from_bytes(record[:2], "little")]
        self._enough(len(self._shares) + len(self.accused), "neighbours shared secrets")

    def accuse(self) -> dict[str, Any]:
        """R2, instead of a vector: return the neighbours whose shares cannot be decrypted, and end the session."""
        self._at(3)
        accused = sorted(self.accused)
        self._discard()
        return {"accused": accused}

    def masked(self, segments: list[tuple[Segment, Words]]) -> dict[str, Any]:
        """R2: return the segments with all masks added, packed and signed. The words are modified in place.

        Args:
            segments: each segment with its words, shape [length], dtype of the segment.

        Raises:
            ProtocolError: invalid segments, or a neighbour was accused.
        """
        self._at(3)
        if self.accused:
            self._refuse(
                f"the sealed shares of clients {self.accused} cannot be decrypted, so the masks shared with them would not cancel"
            )
        table = segments_table([segment for segment, _ in segments])
        try:
            segments_of(table)  # segments of the same name would share their masks
        except ProtocolError as error:
            self._refuse(str(error))
        for segment, words in segments:  # checked before masking: floats or signed words would not wrap
            if words.dtype != segment.dtype or words.shape != (segment.length,):
                self._refuse(f"segment {segment.name!r} must have {segment.length} words of {segment.dtype}, not {words.dtype}")
        seeds = [(self._secret, 1)]
        for v in self._shares:
            agreed = self._agree(self._mask_key, v, 1)
            seeds.append((self._derived(agreed, "mask", v), 1 if self.me < v else -1))
        packed = []
        for segment, words in segments:
            apply_all(words, seeds, segment.name, self.session.config.prg)
            packed.append(pack(words, segment))
        self._table = table
        signature = self.identity.sign(self.session.context("masked") + number(self.me) + masked_digest(table, packed))
        return {"segments": packed, "table": table, "signature": signature}

    # -- R2.5 ----------------------------------------------------------------------------------
    def consistency(self, alive: list[int]) -> dict[str, Any]:
        """R2.5: check and sign the list of survivors received from the server."""
        self._at(4)
        if not isinstance(alive, list) or not all(type(v) is int for v in alive):
            self._refuse("the list of survivors is malformed")
        if self.me not in alive or len(set(alive)) != len(alive) or not set(alive) <= set(self.session.clients):
            self._refuse("the list of survivors is malformed")
        if not {v for v in alive if v in self._near} <= set(self._shares):
            self._refuse("the list of survivors includes neighbours that sent this client no shares")
        least = self.session.config.least(len(self.session.clients))
        if len(alive) < least:
            self._refuse(f"only {len(alive)} survivors; with fewer than {least} the sum could expose one of them")
        self._alive = sorted(alive)
        self._digest = alive_digest(self.session, alive, self._table, self._graph)
        return {"signature": self.identity.sign(self._digest)}

    # -- R3 ------------------------------------------------------------------------------------
    def unmask(self, signatures: dict[int, bytes]) -> dict[str, Any]:
        """R3: return a share for each neighbour: of its self-mask if it survived, else of its mask key.

        Never both, and only once; against an active server, only if enough neighbours signed the same list.
        """
        self._at(5)
        signatures = self._by_id(signatures, "signatures")
        if self.session.config.active:
            known = {v: s for v, s in signatures.items() if v in self._shares and v in self._alive}
            good = [v for v, s in known.items() if verify(self.directory[v], s, self._digest)]
            self._enough(len(good), "neighbours signed the same list of survivors")
        alive = set(self._alive)
        self_masks = {v: b for v, (b, _) in self._shares.items() if v in alive}
        mask_keys = {v: s for v, (_, s) in self._shares.items() if v not in alive}
        self._discard()
        return {"self": self_masks, "keys": mask_keys}
