"""X.509 of a federation, through `cryptography`: keys, certificates and revocation lists.

TLS keys use P-256, which every TLS library supports. A client's certificate names the client by the URI
``paceline://client/NAME``; a server's certificate names its hosts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from paceline.core.errors import ConfigError, IdentityError

__all__ = [
    "TlsKey",
    "certificates",
    "check_name",
    "client_name",
    "extension",
    "key_pem",
    "load_certificate",
    "load_key",
    "load_request",
    "make_ca",
    "make_client",
    "make_crl",
    "make_request",
    "make_server",
    "new_key",
    "pem",
    "serial_text",
    "utc_now",
]

E = TypeVar("E", bound=x509.ExtensionType)
TlsKey = ec.EllipticCurvePrivateKey
URI = "paceline://client/"
SLACK = timedelta(minutes=5)
"""Certificates are valid from a little in the past, to tolerate clock differences."""

MOST = 64 << 10
"""Largest accepted certificate or request, in bytes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def utc_now() -> datetime:
    """Return the current time, rounded down to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def check_name(name: str, what: str = "client") -> str:
    """Return `name` if it is valid: 1 to 63 lower-case letters, digits, dots, dashes and underscores.

    Args:
        name: the name.
        what: ``client`` or ``federation``; a client name of digits must be the client's id without leading zeros.

    Raises:
        ConfigError: the name is invalid.

    Example:
        >>> check_name("hospital-1")
        'hospital-1'
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid name for a {what}; use 1 to 63 lower-case letters, digits, dots, dashes and underscores, "
            "with a letter or digit first"
        )
    if what == "client" and name.isdigit() and (name != str(int(name)) or int(name) >= 1 << 31):
        raise ConfigError(f"{name!r} is not a valid name for a client: a name of digits must be a number from 0 to {(1 << 31) - 1}")
    return name


def new_key() -> TlsKey:
    """Generate a TLS key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: TlsKey | ed25519.Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a private key as PKCS #8 PEM, encrypted if there is a passphrase."""
    how: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def load_key(data: bytes, where: str, passphrase: bytes | None = None) -> object:
    """Load a private key from PEM.

    Args:
        data: PEM.
        where: source of the data, for error messages.
        passphrase: of an encrypted key.

    Raises:
        IdentityError: the key is malformed, or the passphrase is wrong or missing.
    """
    try:
        return load_pem_private_key(data, passphrase)
    except TypeError:
        hint = "pass its passphrase" if passphrase is None else "it has no passphrase; pass none"
        raise IdentityError(f"{where} cannot be opened: {hint} (PACELINE_CA_PASSPHRASE)") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{where} is not a private key in PEM, or the passphrase is wrong: {error}") from None


def load_certificate(data: bytes, where: str) -> x509.Certificate:
    """Load the first certificate from PEM; raises `IdentityError` for malformed or oversized data."""
    if len(data) > MOST:
        raise IdentityError(f"{where} has {len(data)} bytes, above the limit of a certificate")
    try:
        return x509.load_pem_x509_certificate(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{where} is not a certificate in PEM: {error}") from None


def certificates(data: bytes) -> bytes:
    """Return the certificates of a PEM text, without its other content; raises `IdentityError` if there is none."""
    try:
        return b"".join(map(pem, x509.load_pem_x509_certificates(data)))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"the file of your authority does not contain a certificate in PEM: {error}") from None


def load_request(data: bytes) -> x509.CertificateSigningRequest:
    """Load an untrusted certificate request.

    The request must be signed by its own key, and the key must be P-256, P-384 or RSA with at least 3072 bits.

    Raises:
        IdentityError: the request is malformed or its key is not acceptable.
    """
    if len(data) > MOST:
        raise IdentityError(f"a certificate request of {len(data)} bytes exceeds the limit")
    try:
        request = x509.load_pem_x509_csr(data)
        signed, key = request.is_signature_valid, request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"not a certificate request in PEM: {error}") from None
    if not signed:
        raise IdentityError("the certificate request is not signed with its own key")
    curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1")
    if not curve and not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072):
        raise IdentityError("the certificate request has an unsupported key; use P-256, P-384, or RSA of at least 3072 bits")
    return request


def make_request(name: str, key: TlsKey) -> bytes:
    """Return a certificate request in PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name, None))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def make_ca(federation: str, key: TlsKey, days: int, now: datetime) -> x509.Certificate:
    """Return the authority's own certificate; it may sign leaf certificates and revocation lists, but no other authorities."""
    subject = _subject(f"{federation} authority", federation)
    builder = _builder(subject, subject, key.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, SHA256())


def make_server(
    ca: x509.Certificate, ca_key: TlsKey, key: TlsKey, hosts: Sequence[str], days: int, now: datetime
) -> x509.Certificate:
    """Return a certificate for a server reachable as `hosts`: DNS names and IP addresses."""
    if not hosts:
        raise ConfigError("a server's certificate needs at least one DNS name or IP address")
    names = [_host(host) for host in hosts]
    return _leaf(ca, ca_key, hosts[0], key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, days, now)


def make_client(ca: x509.Certificate, ca_key: TlsKey, public: object, name: str, days: int, now: datetime) -> x509.Certificate:
    """Return a certificate that binds the client `name` to its public key."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(URI + name)]
    return _leaf(ca, ca_key, name, public, names, ExtendedKeyUsageOID.CLIENT_AUTH, days, now)


def make_crl(
    ca: x509.Certificate, key: TlsKey, revoked: Iterable[tuple[int, datetime, str]], number: int, now: datetime, days: int
) -> bytes:
    """Return the signed revocation list in PEM, with (serial, time, reason) entries; it expires after `days`."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
    builder = builder.last_update(now - SLACK).next_update(now + timedelta(days=days))
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial, when, reason in revoked:
        row = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        flag = x509.ReasonFlags(reason)
        if flag is not x509.ReasonFlags.unspecified:
            row = row.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(row.build())
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def client_name(certificate: x509.Certificate) -> str | None:
    """Return the client named by a certificate's URI; None if it names none or several."""
    alternative = extension(certificate, x509.SubjectAlternativeName)
    uris = alternative.get_values_for_type(x509.UniformResourceIdentifier) if alternative is not None else []
    names = [uri.removeprefix(URI) for uri in uris if uri.startswith(URI)]
    return names[0] if len(names) == 1 and _NAME.fullmatch(names[0]) else None


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Return an extension of a certificate, or None; raises `IdentityError` if it is malformed."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension) as error:
        raise IdentityError(f"the certificate is malformed: {error}") from None


def serial_text(serial: int) -> str:
    """Return a serial number as 40 hexadecimal digits."""
    return f"{serial:040x}"


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def _subject(common: str, federation: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common[:64])]
    if federation is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation))
    return x509.Name(parts)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise ConfigError(
            f"{host!r} is neither a DNS name nor an IP address; write the name that clients connect to, without a port"
        )
    return x509.DNSName(host.lower())


def _builder(subject: x509.Name, issuer: x509.Name, public: object, days: int, now: datetime) -> x509.CertificateBuilder:
    if not 1 <= days <= 36500:
        raise ConfigError(f"a certificate cannot be valid for {days} days; choose 1 to 36500")
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)  # type: ignore[arg-type]
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - SLACK).not_valid_after(now + timedelta(days=days))


def _leaf(
    ca: x509.Certificate,
    ca_key: TlsKey,
    common: str,
    public: object,
    names: Sequence[x509.GeneralName],
    use: x509.ObjectIdentifier,
    days: int,
    now: datetime,
) -> x509.Certificate:
    if now + timedelta(days=days) > ca.not_valid_after_utc:
        raise IdentityError(
            f"the authority's own certificate expires on {ca.not_valid_after_utc:%Y-%m-%d}, before this one would; "
            "choose fewer --days, or set up a new authority"
        )
    federation = ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    subject = _subject(common, str(federation[0].value) if federation else None)
    builder = _builder(subject, ca.subject, public, days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)  # type: ignore[arg-type]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return builder.add_extension(signer, critical=False).sign(ca_key, SHA256())


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
