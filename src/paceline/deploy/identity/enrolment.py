"""Client side of enrolment, independent of the transport. Keys are generated in the client's folder and never leave it.

`begin` generates keys and a request; the transport delivers the request to `Authority.redeem` and the answer to
`finish`, which verifies it before storing any of it. Both steps can be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from paceline.core.address import Address
from paceline.core.errors import ConfigError, IdentityError
from paceline.deploy.identity import pki
from paceline.deploy.identity.directory import Member, open_signed
from paceline.deploy.identity.files import Enrolled
from paceline.deploy.identity.tokens import Token, proof_text
from paceline.deploy.identity.trust import Trust, read
from paceline.store.files import atomic_write

__all__ = ["Ask", "Invitation", "begin", "finish", "renewal"]


@dataclass(frozen=True)
class Ask:
    """Enrolment request of a client: the arguments of `Authority.redeem`."""

    token: str = field(repr=False)
    request: bytes
    identity: bytes
    proof: bytes


@dataclass(frozen=True)
class Invitation:
    """File for one client: its token, the trust anchors, and optionally the server's address.

    Args:
        token: secret until it is used.
        trust: trust anchors of the federation.
        server: address for enrolment, or None.
    """

    token: str = field(repr=False)
    trust: Trust
    server: Address | None = None

    def save(self, path: str | Path) -> None:
        """Write the file, readable by its owner only."""
        facts = {"server": None if self.server is None else str(self.server), "token": self.token, "trust": self.trust.pem.decode()}
        atomic_write(path, json.dumps(facts, indent=1).encode() + b"\n", mode=0o600)

    @staticmethod
    def load(path: str | Path) -> Invitation:
        """Read the file.

        Raises:
            IdentityError: the file is missing or malformed.
            TokenError: token and trust anchors belong to different federations.
        """
        data = read(path, "request an invitation from the operator (`paceline ca token --invite FILE`)")
        try:
            facts = json.loads(data)
            token, trust, server = facts["token"], facts["trust"].encode(), facts.get("server")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise IdentityError(f"{path} is not an invitation; request one from the operator") from None
        if not isinstance(token, str):
            raise IdentityError(f"{path} is not an invitation; request one from the operator")
        try:
            address = None if server is None else Address.parse(server, "server")
        except ConfigError as error:
            raise IdentityError(f"{path} is not an invitation: {error}; request one from the operator") from None
        found = Invitation(token, Trust.parse(trust, str(path)), address)
        Token.parse(token).check_trust(found.trust)
        return found


def begin(folder: str | Path, token: str) -> Ask:
    """Return the enrolment request. The first call generates the keys; later calls return the same request.

    Args:
        folder: folder of the client.
        token: enrolment token.

    Raises:
        TokenError: the token is malformed.
        IdentityError: a key file is damaged.
    """
    folder, parsed = Path(folder), Token.parse(token)
    key = _tls_key(folder / "client.key")
    if not (folder / "identity.key").exists():
        atomic_write(folder / "identity.key", pki.key_pem(Ed25519PrivateKey.generate()), mode=0o600)
    identity = identity_key(folder / "identity.key")
    if not (folder / "request.pem").exists():
        atomic_write(folder / "request.pem", pki.make_request("enrolling", key))
    request = read(folder / "request.pem", "enrol again")
    public = identity.public_key().public_bytes_raw()
    return Ask(token, request, public, identity.sign(proof_text(parsed, request, public)))


def finish(folder: str | Path, token: str, enrolled: Enrolled) -> Member:
    """Verify and store the answer to an enrolment request; return this client's entry in the directory.

    Raises:
        TokenError: the answer is of another federation than the token.
        IdentityError: the certificate is not for this client's key, or the directory lacks its identity key.
    """
    trust = Trust.parse(enrolled.trust, "the trust file received from the server")
    Token.parse(token).check_trust(trust)
    member = _check(Path(folder), trust, enrolled)
    atomic_write(Path(folder) / "trust.pem", trust.pem)
    _keep(Path(folder), enrolled)
    return member


def renewal(folder: str | Path) -> bytes:
    """Return a certificate request for the client's present key, for `Authority.renew`."""
    return pki.make_request("renewing", _tls_key(Path(folder) / "client.key", make=False))


def renewed(folder: str | Path, enrolled: Enrolled) -> Member:
    """Verify and store the answer of `Authority.renew`."""
    member = _check(Path(folder), Trust.load(Path(folder) / "trust.pem"), enrolled)
    _keep(Path(folder), enrolled)
    return member


def identity_key(path: str | Path) -> Ed25519PrivateKey:
    """Load the Ed25519 key from a PEM file; raises `IdentityError`."""
    key = pki.load_key(read(path, "enrol this client, or restore its identity key"), str(path))
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{path} is not an Ed25519 key; restore this client's identity key")
    return key


def _tls_key(path: Path, make: bool = True) -> pki.TlsKey:
    if make and not path.exists():
        atomic_write(path, pki.key_pem(pki.new_key()), mode=0o600)
    key = pki.load_key(read(path, "enrol this client first"), str(path))
    if not isinstance(key, pki.TlsKey):
        raise IdentityError(f"{path} is not an elliptic-curve key; move it away and enrol again")
    return key


def _check(folder: Path, trust: Trust, enrolled: Enrolled) -> Member:
    certificate = pki.load_certificate(enrolled.certificate, "the certificate received from the server")
    key = _tls_key(folder / "client.key", make=False).public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_bytes(*form):
        raise IdentityError(
            "the certificate received from the server is for another key than this client's; do not use this server"
        )
    if not any(issued_by(certificate, root) for root in trust.certificates) or pki.client_name(certificate) != enrolled.name:
        raise IdentityError(
            "the certificate received was not issued by the federation's authority, or names another client; do not use this server"
        )
    public = identity_key(folder / "identity.key").public_key().public_bytes_raw()
    listed = open_signed(enrolled.directory, trust.operator, "the directory received from the server")
    member = listed.by_id.get(enrolled.client)
    if member is None or (member.name, member.key) != (enrolled.name, public):
        raise IdentityError("the directory received does not list this client with its identity key; report it to the operator")
    return member


def issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Return whether `root` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _keep(folder: Path, enrolled: Enrolled) -> None:
    atomic_write(folder / "directory", enrolled.directory)
    atomic_write(folder / "client.pem", enrolled.certificate)
    with contextlib.suppress(FileNotFoundError):
        (folder / "request.pem").unlink()
