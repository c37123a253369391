"""Who has which identity key in a simulation. In a real federation the operator signs that: `paceline.deploy.identity.directory`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from paceline.aggregation.secure.keys import IdentityKey, derive

__all__ = ["SimulatedDirectory"]


class SimulatedDirectory:
    """Gives every simulated client a signing key, and everyone the public ones.

    The secret comes from the operating system, is new for each process tree, and is never stored. A real
    client has a key of its own and pins the others'.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys: dict[int, IdentityKey] = {}

    def identity(self, client: int) -> IdentityKey:
        """Return a client's key."""
        if client not in self._keys:
            self._keys[client] = IdentityKey.from_bytes(derive(self._secret, b"identity", client.to_bytes(8, "little")))
        return self._keys[client]

    def listed(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of those clients that there are: of all."""
        return self.publics(clients)

    def publics(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of some clients."""
        return {client: self.identity(client).public for client in clients}
