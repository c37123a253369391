"""The folders of a server and of a client: what an authority hands out, and under which names it lies there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paceline.core.errors import StoreError
from paceline.store.files import atomic_write

__all__ = ["Enrolled", "Issued"]


@dataclass(frozen=True)
class Issued:
    """What the authority made for a server, or for a client whose keys it makes too.

    Args:
        certificate: for TLS, in PEM.
        key: of the certificate, in PEM; a secret.
        trust: the trust file.
        identity: a client's Ed25519 identity key, in PEM; a secret.
        directory: the signed directory, for a client.
        client: a client's number.
        name: a client's name.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    trust: bytes
    identity: bytes | None = field(default=None, repr=False)
    directory: bytes | None = None
    client: int | None = None
    name: str | None = None

    def write(self, folder: str | Path) -> Path:
        """Write all files into a folder and return it; raises `StoreError` where keys lie there already."""
        folder, role = Path(folder), "server" if self.client is None else "client"
        for kind in (f"{role}.key", "identity.key"):
            if (folder / kind).exists():
                raise StoreError(f"{folder / kind} is there already; choose another folder, or move it away first")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror or error}") from error
        atomic_write(folder / f"{role}.key", self.key, mode=0o600)
        if self.identity is not None:
            atomic_write(folder / "identity.key", self.identity, mode=0o600)
        if self.directory is not None:
            atomic_write(folder / "directory", self.directory)
        atomic_write(folder / "trust.pem", self.trust)
        atomic_write(folder / f"{role}.pem", self.certificate)
        return folder


@dataclass(frozen=True)
class Enrolled:
    """What a client gets for a token, or for a renewal; all of it is public.

    Args:
        certificate: for TLS, in PEM.
        trust: the trust file.
        directory: the signed directory.
        client: its number.
        name: its name.
    """

    certificate: bytes
    trust: bytes
    directory: bytes
    client: int
    name: str
