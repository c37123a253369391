"""Identity keys of a real federation: a party's own key from a file, and pinned keys of the others.

Replaces `SimulatedDirectory`: secure aggregation calls the same two methods on both. The keys come from the directory
signed by the operator. The client stores the keys that it has seen. It refuses an older directory, and a directory in
which the key of a known client has changed, until its owner has accepted the change.
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
    """Ignore events."""


def load_identity(path: str | Path) -> IdentityKey:
    """Load the identity key from a PEM file; raises `IdentityError`."""
    return IdentityKey(identity_key(path))


class PinnedDirectory:
    """Identity keys known to one party.

    Args:
        path: file of the signed directory.
        trust: trust anchors of the federation.
        client: id of this client; None for the server, which has no identity key.
        identity: identity key of this client.
        pins: file with the keys seen so far; None to store none.
        accept_changed: accept changed keys of known clients without confirmation.
        note: receives an event (name and facts) for each accepted change.

    Raises:
        IdentityError: the directory is damaged, unsigned, older than one seen before, has changed keys, or does not contain
            this client's own key.
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
        self._directory = self._take(read(self.path, "enrol this client, or request the directory from the operator"))

    @staticmethod
    def of(folder: str | Path, accept_changed: bool = False, note: Note = _unheard) -> PinnedDirectory:
        """Return the directory of a client's folder, as written by enrolment.

        Raises:
            IdentityError: a file is missing or damaged, or the directory does not contain this client's key.
        """
        folder = Path(folder)
        trust, identity = Trust.load(folder / "trust.pem"), load_identity(folder / "identity.key")
        data = read(folder / "directory", "enrol this client first")
        listed = open_signed(data, trust.operator, str(folder / "directory"))
        me = next((m.id for m in listed.members if m.key == identity.public), None)
        if me is None:
            raise IdentityError(
                f"{folder}: the directory does not list this client's identity key; it may have been revoked: contact the operator"
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
        """Serial of the directory in use."""
        return self._directory.serial

    def identity(self, client: int) -> IdentityKey:
        """Return this client's own key; raises `ProtocolError` for any other client."""
        if self._identity is None or client != self.client:
            raise ProtocolError(f"the private identity key of client {client} is not available; each client has only its own")
        return self._identity

    def publics(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of the given clients; raises `ProtocolError` that lists unknown or revoked ones."""
        with self._lock:
            known, wanted = self._directory.by_id, list(clients)
        missing = [c for c in wanted if c not in known]
        if missing:
            raise ProtocolError(
                f"clients {missing} are not in the directory of federation {self.trust.federation!r} (serial {self.serial}); "
                "they were revoked, or joined later: update the directory"
            )
        return {client: known[client].key for client in wanted}

    def listed(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of those given clients that are currently part of the federation."""
        with self._lock:
            return {client: self._directory.by_id[client].key for client in clients if client in self._directory.by_id}

    def update(self, data: bytes) -> bool:
        """Verify, use and store a newer directory sent by the server; return whether it was newer.

        Raises:
            IdentityError: the directory is not acceptable.
        """
        with self._lock:
            if open_signed(data, self.trust.operator).serial == self._directory.serial:
                return False
            self._directory = self._take(data)
            atomic_write(self.path, data)
            return True

    def follow(self, data: bytes) -> bool:
        """Use a newer directory without storing it, for a server, which owns the file; return whether it was newer."""
        with self._lock:
            before = self._directory.serial
            self._directory = self._take(data)
            return self._directory.serial != before

    def _take(self, data: bytes) -> Directory:
        found = open_signed(data, self.trust.operator, str(self.path))
        if found.federation != self.trust.federation:
            raise IdentityError(
                f"{self.path} belongs to federation {found.federation!r}, not {self.trust.federation!r}; copy the right one"
            )
        if found.serial < self._serial:
            raise IdentityError(
                f"the directory has serial {found.serial}, but {self._serial} was seen before; an older one may readmit "
                "revoked clients: request the newest from the operator"
            )
        changed = [m for m in found.members if self._seen.get(m.id, m.key) != m.key]
        who = ", ".join(f"{m.name} ({m.id})" for m in changed)
        if changed and not self.accept_changed:
            raise IdentityError(
                f"clients {who} have other identity keys than before; if the operator confirms that they received new ones, "
                f"accept them (set accept_changed_keys in the policy, or remove them from {self._pins})"
            )
        if self._identity is not None and self.client is not None:
            mine = found.by_id.get(self.client)
            if mine is None or mine.key != self._identity.public:
                raise IdentityError(
                    f"the directory does not list client {self.client} with its own key; it may have been revoked: contact the operator"
                )
        if changed:
            self.note(
                "keys",
                {
                    "changed": [m.name for m in changed],
                    "why": f"clients {who} have other identity keys than before, which were accepted",
                },
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
            facts = json.loads(read(self._pins, "delete it to pin the current keys"))
            return int(facts["serial"]), {int(c): bytes.fromhex(k) for c, k in facts["keys"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(
                f"{self._pins} is damaged ({error}); verify the directory with the operator, then delete the file"
            ) from None
