"""A real client's answer to "who has which identity key": its own from a file, the others' pinned.

It takes the place of `SimulatedDirectory`: secure aggregation asks both the same two questions. The keys
come from the directory that the operator signed. The client keeps what it has seen, and refuses an older
directory, or one in which a known client suddenly has another key, until its owner has accepted that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paceline.aggregation.secure.keys import IdentityKey
from paceline.core.errors import IdentityError, ProtocolError
from paceline.deploy.identity.directory import Directory, open_signed
from paceline.deploy.identity.enrolment import identity_key
from paceline.deploy.identity.trust import Trust, read
from paceline.store.files import atomic_write

__all__ = ["PinnedDirectory", "load_identity"]


Note = Callable[[str, dict[str, Any]], None]


def _unheard(event: str, facts: dict[str, Any]) -> None:
    """Let events pass."""


def load_identity(path: str | Path) -> IdentityKey:
    """Return the identity key of a PEM file; raises `IdentityError`."""
    return IdentityKey(identity_key(path))


class PinnedDirectory:
    """The identity keys that a party knows.

    Args:
        path: the signed directory's file.
        trust: the federation's anchors.
        client: who this is; None for the server, which has no identity key.
        identity: this client's key.
        pins: where a client keeps the keys that it has seen; None keeps nothing.
        accept_changed: take another key of a known client without asking.
        note: is told of keys that were taken so: an event's name and facts.

    Raises `IdentityError` where the directory is damaged, not signed, older than one seen before, has changed keys,
    or does not have this client's own key.
    """

    def __init__(
        self,
        path: str | Path,
        trust: Trust,
        *,
        client: int | None = None,
        identity: IdentityKey | None = None,
        pins: str | Path | None = None,
        accept_changed: bool = False,
        note: Note = _unheard,
    ) -> None:
        self.note = note
        self.path, self.trust, self.client, self.accept_changed = Path(path), trust, client, accept_changed
        self._identity, self._pins = identity, Path(pins) if pins is not None else None
        self._lock = threading.Lock()
        self._serial, self._seen = self._load_pins()
        self._directory = self._take(read(self.path, "enrol this client, or get the directory from the operator"))

    @staticmethod
    def of(folder: str | Path, accept_changed: bool = False, note: Note = _unheard) -> PinnedDirectory:
        """Return the directory of a client's folder, as enrolment wrote it."""
        folder = Path(folder)
        trust, identity = Trust.load(folder / "trust.pem"), load_identity(folder / "identity.key")
        data = read(folder / "directory", "enrol this client first")
        listed = open_signed(data, trust.operator, str(folder / "directory"))
        me = next((m.id for m in listed.members if m.key == identity.public), None)
        if me is None:
            raise IdentityError(
                f"{folder}: the directory does not have this client's identity key; was it revoked? Ask the operator"
            )
        return PinnedDirectory(
            folder / "directory",
            trust,
            client=me,
            identity=identity,
            pins=folder / "pins.json",
            accept_changed=accept_changed,
            note=note,
        )

    @property
    def serial(self) -> int:
        """The serial of the directory in use; ask the server for a newer one with it."""
        return self._directory.serial

    def identity(self, client: int) -> IdentityKey:
        """Return this client's own key; raises `ProtocolError` for anyone else's."""
        if self._identity is None or client != self.client:
            raise ProtocolError(f"the identity key of client {client} is not here; each client has only its own")
        return self._identity

    def publics(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of some clients; raises `ProtocolError` that names all who are unknown or revoked."""
        with self._lock:
            known, wanted = self._directory.by_id, list(clients)
        missing = [c for c in wanted if c not in known]
        if missing:
            raise ProtocolError(
                f"clients {missing} are not in the directory of federation {self.trust.federation!r} (serial {self.serial}); "
                "they were revoked, or joined since: update the directory"
            )
        return {client: known[client].key for client in wanted}

    def listed(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of those clients that are part of the federation now."""
        with self._lock:
            return {client: self._directory.by_id[client].key for client in clients if client in self._directory.by_id}

    def update(self, data: bytes) -> bool:
        """Take a newer directory that the server sent, and keep it; return whether it was newer."""
        with self._lock:
            if open_signed(data, self.trust.operator).serial == self._directory.serial:
                return False
            self._directory = self._take(data)
            atomic_write(self.path, data)
            return True

    def follow(self, data: bytes) -> bool:
        """Take up a newer file without keeping it, as a server does, whose file it is; return whether it was newer."""
        with self._lock:
            before = self._directory.serial
            self._directory = self._take(data)
            return self._directory.serial != before

    def _take(self, data: bytes) -> Directory:
        found = open_signed(data, self.trust.operator, str(self.path))
        if found.federation != self.trust.federation:
            raise IdentityError(f"{self.path} is of federation {found.federation!r}, not {self.trust.federation!r}")
        if found.serial < self._serial:
            raise IdentityError(
                f"the directory has serial {found.serial}, but {self._serial} was seen before; an older one may bring "
                "revoked clients back: get the newest from the operator"
            )
        changed = [m for m in found.members if self._seen.get(m.id, m.key) != m.key]
        who = ", ".join(f"{m.name} ({m.id})" for m in changed)
        if changed and not self.accept_changed:
            raise IdentityError(
                f"clients {who} have other identity keys than before; if the operator confirms that they got new ones, "
                f"accept them (accept_changed_keys in the policy, or take them out of {self._pins})"
            )
        if self._identity is not None and self.client is not None:
            mine = found.by_id.get(self.client)
            if mine is None or mine.key != self._identity.public:
                raise IdentityError(
                    f"client {self.client} is not in the directory with its own key; was it revoked? Ask the operator"
                )
        if changed:
            self.note(
                "keys", {"changed": [m.name for m in changed], "why": f"clients {who} have other identity keys, which were taken"}
            )
        self._serial = found.serial
        self._seen |= {m.id: m.key for m in found.members}
        if self._pins is not None:
            pinned = {"serial": self._serial, "keys": {str(c): k.hex() for c, k in sorted(self._seen.items())}}
            atomic_write(self._pins, json.dumps(pinned, indent=1).encode() + b"\n")
        return found

    def _load_pins(self) -> tuple[int, dict[int, bytes]]:
        if self._pins is None or not self._pins.exists():
            return 0, {}
        try:
            facts = json.loads(read(self._pins, "delete it to pin anew"))
            return int(facts["serial"]), {int(c): bytes.fromhex(k) for c, k in facts["keys"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(
                f"{self._pins} is damaged ({error}); delete it if you are sure that the directory is right"
            ) from None
