"""Files issued by an authority for the folders of servers and clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paceline.core.errors import StoreError
from paceline.store.files import atomic_write

__all__ = ["Enrolled", "Issued"]


@dataclass(frozen=True)
class Issued:
    """Files that the authority generated for a server, or for a client whose keys it also generated.

    Args:
        certificate: TLS certificate in PEM.
        key: private key of the certificate in PEM; secret.
        trust: the trust file.
        identity: Ed25519 identity key of a client in PEM; secret.
        directory: signed directory, for a client.
        client: id of a client.
        name: name of a client.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    trust: bytes
    identity: bytes | None = field(default=None, repr=False)
    directory: bytes | None = None
    client: int | None = None
    name: str | None = None

    def write(self, folder: str | Path) -> Path:
        """Write all files into a folder and return it.

        Raises:
            StoreError: the folder already contains keys, or cannot be created.
        """
        folder, role = Path(folder), "server" if self.client is None else "client"
        for kind in (f"{role}.key", "identity.key"):
            if (folder / kind).exists():
                raise StoreError(f"{folder / kind} already exists; choose another folder, or move the file away first")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{folder} cannot be created: {error.strerror or error}") from error
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
    """Answer to an enrolment or a renewal; all of it is public.

    Args:
        certificate: TLS certificate in PEM.
        trust: the trust file.
        directory: the signed directory.
        client: id of the client.
        name: name of the client.
    """

    certificate: bytes
    trust: bytes
    directory: bytes
    client: int
    name: str
