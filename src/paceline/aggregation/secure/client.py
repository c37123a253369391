"""Client side of one secure sum: five protocol steps, and every check that a client can make on its own.

An instance serves one session. Any protocol violation burns it: it answers nothing more, and its secrets are erased.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, pack
from paceline.aggregation.secure.keys import AgreementKey, IdentityKey, derive, open_sealed, pair_info, seal, verify
from paceline.aggregation.secure.masks import apply_all
from paceline.aggregation.secure.session import (
    Session,
    advert_parts,
    alive_digest,
    bound_tiers,
    commitment,
    graph_seed,
    masked_digest,
    near_of,
    number,
    segments_of,
    segments_table,
    sends,
    share_checks,
)
from paceline.aggregation.secure.shamir import PRIME, share
from paceline.aggregation.tiers import TierError, Tiers
from paceline.core.errors import ProtocolError, QuorumError

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
        tier: tier that this client declares, in a session over parts of a model.

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
    tier: int = 0

    def __post_init__(self) -> None:
        self._step = 0
        self._discarded = False
        self._seal_key, self._mask_key = AgreementKey.generate(), AgreementKey.generate()
        self._advert = self._secret = self._digest = self._graph = b""
        self._keys: dict[int, tuple[bytes, bytes]] = {}
        self._agreed: dict[tuple[int, int], bytes] = {}
        self._near: list[int] = []
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._alive: list[int] = []
        self._table: list[list[Any]] = []
        self.tiers: Tiers | None = None
        """Tiers of the clients, after `share`; None if all clients send the same segments."""
        missing = [c for c in self.session.clients if c not in self.directory]
        if missing or self.me not in self.session.clients:
            self._refuse(f"no identity keys for clients {missing or [self.me]}")
        if self.directory[self.me] != self.identity.public:
            self._refuse("the directory lists a different identity key for this client")
        if self.policy is not None and self.session.config != self.policy:
            self._refuse("the session's options differ from this client's policy")
        if not 0 <= self.tier < max(self.session.parts, 1):
            self._refuse(f"the session has no tier {self.tier}")
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
        tiers = self.tiers
        return out | {"tiers": [] if tiers is None else [[c, w, tiers.owned[c]] for c, w in tiers.wanted.items()]}

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
        if rows := state["tiers"]:
            wanted, owned = {c: w for c, w, _ in rows}, {c: o for c, _, o in rows}
            client.tiers, client.tier = Tiers(wanted, owned, client.session.parts, client.session.tier_rules), wanted[client.me]
        return client

    def _discard(self) -> None:
        self._discarded = True
        self._secret, self._shares, self._keys, self._agreed = b"", {}, {}, {}
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
            if (peer, which) not in self._agreed:
                self._agreed[peer, which] = key.agree(self._keys[peer][which])
            return self._agreed[peer, which]
        except ProtocolError as error:
            self._refuse(f"keys of client {peer}: {error}")

    def _enough(self, count: int, what: str) -> None:
        if count < self.session.threshold:
            self._refuse(f"only {count} {what}; the threshold is {self.session.threshold}")

    def _derived(self, secret: bytes, label: str, peer: int) -> bytes:
        within = self.session.context if label == "mask" else self.session.key_context  # masks always depend on the task
        return derive(secret, within("salt"), pair_info(label, self.me, peer))

    def _aad(self, sender: int, receiver: int) -> bytes:
        return self.session.key_context("sealed") + number(sender) + number(receiver)

    # -- R0 ------------------------------------------------------------------------------------
    def advertise(self) -> dict[str, Any]:
        """R0: return this session's two public keys and, in a session over parts of a model, this client's tier, signed."""
        self._at(0)
        keys = self._seal_key.public + self._mask_key.public + (bytes([self.tier]) if self.session.parts else b"")
        self._advert = keys + self.identity.sign(self.session.key_context("advertise") + number(self.me) + keys)
        return {"keys": self._advert}

    # -- R1 ------------------------------------------------------------------------------------
    def share(
        self, hashes: dict[int, bytes], adverts: dict[int, bytes], record: bytes = b"", tiers: dict[int, int] | None = None
    ) -> dict[str, Any]:
        """R1: verify the neighbours' keys, and return sealed shares of both secrets for each of them.

        Args:
            hashes: SHA-256 of every client's advertisement; it determines the graph.
            adverts: the neighbours' advertisements, see `advert_parts`.
            record: record for the neighbours, sealed separately next to the shares.
            tiers: the tier that each client declared, in a session over parts of a model.

        Raises:
            ProtocolError: a key, a signature, the graph or a tier is wrong, or the record is too long.
        """
        self._at(1)
        self._near = self._checked_neighbours(self._by_id(hashes, "hashes"), self._by_id(adverts, "keys"))
        if self.session.parts:
            self.tiers = self._checked_tiers(hashes, adverts, tiers)
            self._graph = bound_tiers(self._graph, self.tiers)
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
            if self.session.prepared:  # in advance, while the client waits for messages
                self._agree(self._mask_key, v, 1)
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
            try:
                keys, _, signature = advert_parts(session, advert)
            except ProtocolError as error:
                self._refuse(f"the keys of client {v} do not match the hash from which the graph was derived: {error}")
            if hashlib.sha256(advert).digest() != hashes[v]:
                self._refuse(f"the keys of client {v} do not match the hash from which the graph was derived")
            if not verify(self.directory[v], signature, session.key_context("advertise") + number(v) + keys):
                self._refuse(f"the keys of client {v} lack a valid signature of that client")
            pair = keys[:32], keys[32:64]
            if pair[0] in seen or pair[1] in seen or pair[0] == pair[1]:
                self._refuse(f"the keys of client {v} appear twice")
            seen.update(pair)
            self._keys[v] = pair
        self._enough(len(near), "neighbours advertised keys")
        return near

    def _checked_tiers(self, hashes: dict[int, bytes], adverts: dict[int, bytes], declared: Any) -> Tiers:
        """Return the tiers that follow from the declared ones; neighbours have signed theirs, and all survivors sign the list."""
        session = self.session
        if not isinstance(declared, dict) or set(declared) != set(hashes):
            self._refuse("the server did not announce one tier for each client that advertised keys")
        if not all(type(tier) is int and 0 <= tier < session.parts for tier in declared.values()):
            self._refuse("the server announced tiers that do not exist")
        if declared[self.me] != self.tier:
            self._refuse(f"the server announced tier {declared[self.me]} for this client, which declared tier {self.tier}")
        for v, advert in adverts.items():
            if declared[v] != (signed := advert_parts(session, advert)[1]):
                self._refuse(f"the server announced tier {declared[v]} for client {v}, which signed tier {signed}")
        try:
            tiers = session.assigned_tiers(declared, hashes)
        except QuorumError as error:
            self._refuse(str(error))
        self._owned_by_neighbours(tiers, self._near)
        return tiers

    def _owned_by_neighbours(self, tiers: Tiers, near: Collection[int]) -> None:
        """Refuse if too few neighbours own the segment that fewest clients own, of those that this client sends."""
        if why := tiers.missing(self.me, near):
            self._refuse(why)

    # -- R2 ------------------------------------------------------------------------------------
    def bind(self, task: bytes) -> None:
        """Use a prepared session, once, for the task with this hash: masks and all later signatures depend on it."""
        if self._step != 2 or not self.session.prepared or any(self.session.task):
            self._refuse("keys and shares are used for one task only, after they were exchanged")
        self.session = self.session.bound(task)

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
        if self.tiers is not None:
            self._owned_by_neighbours(self.tiers, [*self._shares, *self.accused])

    def accuse(self) -> dict[str, Any]:
        """R2, instead of a vector: return the neighbours whose shares cannot be decrypted, and end the session."""
        self._at(3)
        accused = sorted(self.accused)
        self._discard()
        return {"accused": accused}

    def masked(self, segments: list[tuple[Segment, Words]], everything: Sequence[Segment] | None = None) -> dict[str, Any]:
        """R2: return the segments with all masks added, packed and signed. The words are modified in place.

        Args:
            segments: each segment with its words, shape [length], dtype of the segment.
            everything: segments of all clients, in a session over parts of a model; this client sends those of its tier.

        Raises:
            ProtocolError: invalid segments, or a neighbour was accused.
        """
        self._at(3)
        if self.accused:
            self._refuse(
                f"the sealed shares of clients {self.accused} cannot be decrypted, so the masks shared with them would not cancel"
            )
        table = segments_table([segment for segment, _ in segments] if everything is None else everything)
        try:
            segments_of(table)  # segments of the same name would share their masks
        except ProtocolError as error:
            self._refuse(str(error))
        if self.tiers is not None and segments_table([s for s, _ in segments]) != segments_table(self._own(table)):
            self._refuse(f"the segments are not those of tier {self.tiers.owned[self.me]}")
        for segment, words in segments:  # checked before masking: floats or signed words would not wrap
            if words.dtype != segment.dtype or words.shape != (segment.length,):
                self._refuse(f"segment {segment.name!r} must have {segment.length} words of {segment.dtype}, not {words.dtype}")
        agreed = {v: self._agree(self._mask_key, v, 1) for v in self._shares}
        pairs = {v: (self._derived(secret, "mask", v), 1 if self.me < v else -1) for v, secret in agreed.items()}
        packed = []
        for segment, words in segments:  # a pair masks what both own
            seeds = [(self._secret, 1), *(pair for v, pair in pairs.items() if sends(self.tiers, v, segment))]
            apply_all(words, seeds, segment.name, self.session.config.prg)
            packed.append(pack(words, segment))
        self._table = table
        signature = self.identity.sign(self.session.context("masked") + number(self.me) + masked_digest(table, packed))
        return {"segments": packed, "table": table, "signature": signature}

    def _own(self, table: list[list[Any]]) -> list[Segment]:
        return [segment for segment in segments_of(table) if sends(self.tiers, self.me, segment)]

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
        if self.tiers is not None:
            self._check_survivors(self.tiers, alive)
        self._alive = sorted(alive)
        self._digest = alive_digest(self.session, alive, self._table, self._graph)
        return {"signature": self.identity.sign(self._digest)}

    def _check_survivors(self, tiers: Tiers, alive: list[int]) -> None:
        if not set(alive) <= set(tiers.owned):
            self._refuse("the list of survivors includes clients without a tier")
        try:
            tiers.check(alive)
        except TierError as error:
            self._refuse(str(error))

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
