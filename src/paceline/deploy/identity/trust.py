"""Trust anchors of a federation: the authority's certificate and the operator's directory key, in one file.

`trust.pem` contains a line with the federation's name, one or more certificates, and the Ed25519 public key
that signs the directory. It is not secret, but whoever can modify it controls what is trusted. A token therefore
includes its fingerprint, so that an enrolling client cannot be given a different one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from paceline.core.errors import ConfigError, IdentityError
from paceline.deploy.identity.pki import check_name

__all__ = ["Trust", "read"]

_BLOCK = re.compile(rb"-----BEGIN (CERTIFICATE|PUBLIC KEY)-----\n.*?-----END \1-----\n?", re.DOTALL)
_NAME = re.compile(rb"^# paceline federation: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Trust:
    """Trust anchors of a federation.

    Args:
        federation: name of the federation.
        roots: certificates of the authorities, in PEM, as passed to TLS.
        operator: Ed25519 public key that signs the directory, 32 bytes.
    """

    federation: str
    roots: bytes
    operator: bytes

    @staticmethod
    def load(path: str | Path) -> Trust:
        """Read a `trust.pem`; raises `IdentityError` if it is missing or malformed."""
        return Trust.parse(read(path, "request it from the operator of the federation"), str(path))

    @staticmethod
    def parse(data: bytes, where: str = "the trust file") -> Trust:
        """Parse the content of a trust file; raises `IdentityError` if it is malformed."""
        name, blocks = _NAME.search(data), [(m[1], m[0]) for m in _BLOCK.finditer(data)]
        roots = b"".join(text.rstrip(b"\n") + b"\n" for kind, text in blocks if kind == b"CERTIFICATE")
        keys = [text for kind, text in blocks if kind == b"PUBLIC KEY"]
        if name is None or not roots or len(keys) != 1:
            raise IdentityError(
                f"{where} is not a trust file, which has the federation's name, a certificate and one directory key; "
                "`paceline ca init` writes one"
            )
        try:
            x509.load_pem_x509_certificates(roots)
            key = load_pem_public_key(keys[0])
            federation = check_name(name[1].decode(), "federation")
        except (ValueError, UnsupportedAlgorithm, ConfigError) as error:
            raise IdentityError(f"{where} is damaged: {error}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise IdentityError(f"{where} has a directory key that is not Ed25519")
        return Trust(federation, roots, key.public_bytes_raw())

    @cached_property
    def certificates(self) -> list[x509.Certificate]:
        """Parsed certificates of `roots`."""
        return x509.load_pem_x509_certificates(self.roots)

    @cached_property
    def pem(self) -> bytes:
        """Content of the file."""
        key = Ed25519PublicKey.from_public_bytes(self.operator)
        public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return f"# paceline federation: {self.federation}\n".encode() + self.roots + public

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the name, the certificates and the key."""
        hashed = hashlib.sha256(b"paceline-trust-v1|" + self.federation.encode() + b"|" + self.operator)
        for certificate in sorted(hashlib.sha256(c.public_bytes(Encoding.DER)).digest() for c in self.certificates):
            hashed.update(certificate)
        return hashed.digest()

    @property
    def fingerprint(self) -> str:
        """The digest in hexadecimal, for comparison by people."""
        return self.digest.hex()


def read(path: str | Path, advice: str) -> bytes:
    """Return a file's bytes; raises `IdentityError` that includes `advice` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise IdentityError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror or error}; {advice}") from error
