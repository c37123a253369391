"""Keys, signatures, key derivation and authenticated encryption, all through the `cryptography` package."""

from __future__ import annotations

import hmac
import secrets
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from paceline.core.errors import ProtocolError

__all__ = [
    "AgreementKey",
    "IdentityKey",
    "context",
    "derive",
    "derive_stream",
    "open_sealed",
    "pair_info",
    "public_of_agreement",
    "seal",
    "verify",
]

_NONCE = 12
_HASH = 32


def context(session: bytes, round: int, role: str) -> bytes:
    """Return the prefix that binds a signature or key to one session, round and role; the encoding is unambiguous."""
    return b"profileR-v1" + len(session).to_bytes(2, "little") + session + round.to_bytes(8, "little") + role.encode() + b"\0"


class IdentityKey:
    """Long-lived Ed25519 signing key.

    Example:
        >>> key = IdentityKey.generate()
        >>> verify(key.public, key.sign(b"data"), b"data"), verify(key.public, key.sign(b"data"), b"other")
        (True, False)
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @staticmethod
    def generate() -> IdentityKey:
        """Generate a key."""
        return IdentityKey(Ed25519PrivateKey.generate())

    @staticmethod
    def from_bytes(secret: bytes) -> IdentityKey:
        """Return the key with a 32-byte secret."""
        return IdentityKey(Ed25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """Return the 32-byte secret."""
        return self._key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data`."""
        return self._key.sign(data)


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether `signature` is a valid signature of `data` under `public`; False for malformed input.

    Results are cached: in a process with several clients, as in a simulation, all of them check the same signatures.
    """
    try:
        return _verified(public, signature, data)
    except TypeError:  # unhashable, so not bytes
        return False


@lru_cache(maxsize=4096)
def _verified(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


class AgreementKey:
    """X25519 key agreement key of one round."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @staticmethod
    def generate() -> AgreementKey:
        """Generate a key."""
        return AgreementKey(X25519PrivateKey.generate())

    @staticmethod
    def from_bytes(secret: bytes) -> AgreementKey:
        """Return the key with a 32-byte secret."""
        return AgreementKey(X25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """Return the 32-byte secret."""
        return self._key.private_bytes_raw()

    def agree(self, peer: bytes) -> bytes:
        """Return the secret shared with the owner of a public key.

        Raises:
            ProtocolError: the key is malformed or of low order; with a low-order key everyone would know the secret.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"a public key is malformed or of low order: {error}") from None


def public_of_agreement(secret: bytes) -> bytes:
    """Return the public key of an X25519 secret."""
    return AgreementKey.from_bytes(secret).public


def derive(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """Derive `length` bytes with HKDF-SHA256 (RFC 5869)."""
    if length > _HASH:
        return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)
    return derive_stream(hmac.digest(salt, secret, "sha256"), info, length)


def derive_stream(key: bytes, info: bytes, length: int) -> bytes:
    """Derive at most 32 bytes from a random key: HKDF's expansion (RFC 5869), of which one block is needed."""
    if length > _HASH:
        raise ValueError(f"{length} bytes cannot be expanded in one block of {_HASH}")
    return hmac.digest(key, info + b"\1", "sha256")[:length]


def pair_info(label: str, a: int, b: int) -> bytes:
    """Return the HKDF info of a pair's key, the same at both ends."""
    low, high = sorted((a, b))
    return label.encode() + b"|" + low.to_bytes(8, "little") + high.to_bytes(8, "little")


def seal(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Encrypt with ChaCha20-Poly1305; return nonce and ciphertext, 28 bytes more than the plaintext."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)


def open_sealed(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Decrypt and authenticate.

    Raises:
        ProtocolError: the message was modified, or is meant for another recipient.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], aad)
    except (InvalidTag, ValueError, TypeError):
        raise ProtocolError("a sealed message was modified, or is addressed to another client") from None
