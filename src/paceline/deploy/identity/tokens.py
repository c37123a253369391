"""Enrolment tokens: a secret that entitles one client to obtain its certificate once, within a limited time.

A token is ``paceline1.ID.SECRET.TRUST``. The register stores the hash of the secret; as the secret has 256 bits, a
plain hash is sufficient. TRUST is a prefix of the trust file's fingerprint, with which a client verifies that the
server belongs to the federation that issued the invitation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from paceline.core.errors import TokenError
from paceline.deploy.identity.trust import Trust

__all__ = ["Token", "proof_text"]

_HEAD = "paceline1"
_TRUST = 16


@dataclass(frozen=True)
class Token:
    """A parsed token.

    Args:
        id: public, 16 hexadecimal digits.
        secret: 32 bytes; only its hash is stored.
        trust: the first 16 bytes of the trust file's digest.
    """

    id: str
    secret: bytes
    trust: bytes

    @staticmethod
    def make(trust: Trust) -> Token:
        """Generate a token."""
        return Token(secrets.token_hex(8), secrets.token_bytes(32), trust.digest[:_TRUST])

    @staticmethod
    def parse(text: str) -> Token:
        """Parse a token.

        Raises:
            TokenError: the text is malformed; the message does not repeat the secret.
        """
        parts = text.strip().split(".")
        try:
            if len(parts) != 4 or parts[0] != _HEAD or len(text) > 200:
                raise ValueError
            token = Token(parts[1], _bytes(parts[2]), _bytes(parts[3]))
            if len(bytes.fromhex(token.id)) != 8 or len(token.secret) != 32 or len(token.trust) != _TRUST:
                raise ValueError
        except (ValueError, binascii.Error):
            raise TokenError("not an enrolment token; copy the complete output of `paceline ca token`") from None
        return token

    def __str__(self) -> str:
        return ".".join((_HEAD, self.id, _text(self.secret), _text(self.trust)))

    def __repr__(self) -> str:
        return f"Token({self.id})"

    @property
    def hash(self) -> bytes:
        """Hash of the secret, as stored in the register."""
        return hashlib.sha256(b"paceline-token-v1|" + self.id.encode() + b"|" + self.secret).digest()

    def fits(self, stored: bytes) -> bool:
        """Return whether the stored hash matches this secret, compared in constant time."""
        return hmac.compare_digest(self.hash, stored)

    def check_trust(self, trust: Trust) -> None:
        """Raise `TokenError` if the trust file is not that of this token's federation."""
        if not hmac.compare_digest(self.trust, trust.digest[:_TRUST]):
            raise TokenError(
                "the trust file does not belong to the federation that issued this token; "
                "request trust.pem and a token from the same operator, and do not use this server"
            )


def proof_text(token: Token, request: bytes, identity: bytes) -> bytes:
    """Return the message that an enrolling client signs with its identity key as proof of possession."""
    return b"paceline-enrol-v1|" + token.id.encode() + b"|" + hashlib.sha256(request).digest() + identity


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    if not text.isascii():
        raise ValueError("not ASCII")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
