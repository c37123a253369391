"""Who has which identity key: a directory signed by the operator, and one for simulations."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping

from paceline.aggregation.secure.keys import IdentityKey, derive, verify
from paceline.errors import ProtocolError

__all__ = ["SimulatedDirectory", "open_directory", "sign_directory"]

_ROLE = b"profileR-v1|directory|"


def sign_directory(publics: Mapping[int, bytes], operator: IdentityKey) -> bytes:
    """Return a directory of identity keys that clients can check with the operator's public key alone.

    It is 64 bytes of signature, then canonical JSON: ids ascending, keys in hex, no spaces.
    """
    text = json.dumps({str(c): publics[c].hex() for c in sorted(publics)}, separators=(",", ":")).encode()
    return operator.sign(_ROLE + text) + text


def open_directory(data: bytes, operator: bytes) -> dict[int, bytes]:
    """Return the identity keys of a signed directory.

    Raises `ProtocolError` where the operator did not sign it, or where keys are malformed or shared by two ids.
    """
    signature, text = data[:64], data[64:]
    if not verify(operator, signature, _ROLE + text):
        raise ProtocolError("the directory of identity keys is not signed by the operator")
    try:
        publics = {int(c): bytes.fromhex(key) for c, key in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the directory of identity keys is malformed: {error}") from None
    if any(c < 0 or len(key) != 32 for c, key in publics.items()) or len(set(publics.values())) < len(publics):
        raise ProtocolError("the directory has a malformed id or key, or one key for two clients")
    return publics


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

    def publics(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the public keys of some clients."""
        return {client: self.identity(client).public for client in clients}
