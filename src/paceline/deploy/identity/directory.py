"""Directory of a federation: id, name and identity key of every client, signed by the operator.

The security of secure aggregation depends on it: whoever could substitute keys could read individual updates. It is
therefore signed with a separate key, which clients know since they joined. The file is one line with the signature in
hex, followed by JSON; the signature is verified over the exact bytes before the JSON is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from paceline.core.errors import ConfigError, IdentityError
from paceline.deploy.identity.pki import check_name

__all__ = ["Directory", "Member", "open_signed", "sign"]

_HEAD = b"paceline-directory-v1 "
_MOST = 64 << 20


@dataclass(frozen=True)
class Member:
    """One client of a federation.

    Args:
        id: number used by the engine and by secure aggregation.
        name: name; the id as text if none was given.
        key: Ed25519 identity key, 32 bytes.
        certificates: SHA-256 (hex) of its TLS certificates issued by another authority.
    """

    id: int
    name: str
    key: bytes
    certificates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directory:
    """All clients that may participate.

    Args:
        federation: name of the federation.
        serial: increases with every change; older directories are refused.
        made: time of the change, as ISO 8601.
        members: the clients, ordered by id.
    """

    federation: str
    serial: int
    made: str
    members: tuple[Member, ...]

    @cached_property
    def by_id(self) -> dict[int, Member]:
        """Clients by id."""
        return {member.id: member for member in self.members}

    @cached_property
    def by_name(self) -> dict[str, Member]:
        """Clients by name."""
        return {member.name: member for member in self.members}

    @cached_property
    def by_certificate(self) -> dict[str, Member]:
        """Clients by fingerprint of a registered certificate."""
        return {print_: member for member in self.members for print_ in member.certificates}


def sign(directory: Directory, key: Ed25519PrivateKey) -> bytes:
    """Return the signed file of a directory."""
    rows = [
        {"id": m.id, "name": m.name, "key": m.key.hex(), **({"certificates": list(m.certificates)} if m.certificates else {})}
        for m in sorted(directory.members, key=lambda m: m.id)
    ]
    facts = {"federation": directory.federation, "serial": directory.serial, "made": directory.made, "clients": rows}
    text = json.dumps(facts, indent=1).encode()
    return _HEAD + key.sign(_HEAD + text).hex().encode() + b"\n" + text


def open_signed(data: bytes, operator: bytes, where: str = "the directory") -> Directory:
    """Verify a directory file's signature with the operator's public key, and parse it.

    Args:
        data: content of the file.
        operator: public Ed25519 key, 32 bytes.
        where: source of the data, for error messages.

    Raises:
        IdentityError: the file is not signed by the operator, is malformed, or assigns the same id, name, key or
            certificate to two clients.
    """
    if len(data) > _MOST:
        raise IdentityError(
            f"{where} has {len(data)} bytes, above the limit of a directory; fetch the directory of your own federation"
        )
    head, _, text = data.partition(b"\n")
    try:
        signature = bytes.fromhex(head.removeprefix(_HEAD).decode("ascii")) if head.startswith(_HEAD) else b""
        Ed25519PublicKey.from_public_bytes(operator).verify(signature, _HEAD + text)
    except (InvalidSignature, ValueError):
        raise IdentityError(
            f"{where} is not signed by the operator in trust.pem; fetch the directory of your own "
            "federation, or check with the operator whether its key was replaced"
        ) from None
    try:
        facts = json.loads(text)
        members = tuple(_member(row) for row in facts["clients"])
        found = Directory(check_name(facts["federation"], "federation"), _number(facts["serial"]), str(facts["made"]), members)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise IdentityError(f"{where} is signed but malformed: {error}") from None
    _distinct(where, "number", (m.id for m in members))
    _distinct(where, "name", (m.name for m in members))
    _distinct(where, "key", (m.key for m in members))
    _distinct(where, "certificate", (c for m in members for c in m.certificates))
    return found


def _member(row: dict[str, Any]) -> Member:
    key = bytes.fromhex(row["key"])
    if len(key) != 32:
        raise ValueError(f"client {row['id']} has a key of {len(key)} bytes")
    if row["name"].isdigit() and row["name"] != str(row["id"]):
        raise ValueError(f"client {row['id']} has the name of another client's number, {row['name']}")
    prints = row.get("certificates", [])
    if not isinstance(prints, list) or not all(isinstance(p, str) and len(p) == 64 for p in prints):
        raise ValueError(f"client {row['id']} has malformed certificates")
    return Member(_number(row["id"]), check_name(row["name"]), key, tuple(prints))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is not a number of at least 0")
    return value


def _distinct(where: str, what: str, values: Iterable[Any]) -> None:
    listed = list(values)
    if len(set(listed)) < len(listed):
        raise IdentityError(f"{where} lists the same {what} for two clients")
