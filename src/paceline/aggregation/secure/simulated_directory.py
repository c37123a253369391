"""Identity keys of a simulation. In a real federation the operator signs them: `paceline.deploy.identity.directory`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from paceline.aggregation.secure.keys import IdentityKey, derive

__all__ = ["SimulatedDirectory"]


class SimulatedDirectory:
    """Generates a signing key for every simulated client and publishes the public keys.

    The keys derive from a secret of the operating system, which is new for each process tree and never stored. A real
    client has its own key and pins those of the others.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys: dict[int, IdentityKey] = {}

    def identity(self, client: int) -> IdentityKey:
        """Return a client's signing key."""
        if client not in self._keys:
            self._keys[client] = IdentityKey.from_bytes(derive(self._secret, b"identity", client.to_bytes(8, "little")))
        return self._keys[client]

    def listed(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of those clients that have one; in a simulation, of all given clients."""
        return self.publics(clients)

    def publics(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of the given clients."""
        return {client: self.identity(client).public for client in clients}
