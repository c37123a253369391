"""Certificate authority of one federation: issue, enrol, renew, revoke, publish.

Its folder contains two secrets, `ca.key` (signs TLS certificates and the revocation list) and `directory.key`
(signs the directory of identity keys), the register, and the published files: `trust.pem`, `crl.pem` and
`directory`. If an organisation's own authority issues the certificates, there is no `ca.key`, and certificates are
registered instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from paceline.core.errors import ConfigError, IdentityError, StoreError, TokenError
from paceline.core.names import safe_name
from paceline.deploy.identity import directory, pki
from paceline.deploy.identity.directory import Member
from paceline.deploy.identity.files import Enrolled, Issued
from paceline.deploy.identity.register import CertificateRow, CertificateRows, Register, TokenRow
from paceline.deploy.identity.tokens import Token, proof_text
from paceline.deploy.identity.trust import Trust, read
from paceline.store.files import atomic_write

__all__ = ["REASONS", "Authority"]

REASONS = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation")
CRL_DAYS = 30
"""Validity of a revocation list in days; every change and `paceline ca publish` write a new one."""


@dataclass(frozen=True)
class Authority:
    """Authority stored in a folder. Safe for concurrent use by several threads and processes.

    Args:
        folder: folder of the authority.
        trust: trust anchors of the federation.
        register: clients, certificates and tokens.
        directory_key: signs the directory.
        ca_key: signs certificates; None if an organisation's own authority issues them.
        clock: returns the current time.
    """

    folder: Path
    trust: Trust
    register: Register
    directory_key: Ed25519PrivateKey = field(repr=False)
    ca_key: pki.TlsKey | None = field(default=None, repr=False)
    clock: Callable[[], datetime] = pki.utc_now

    @staticmethod
    def create(
        folder: str | Path,
        federation: str,
        *,
        days: int = 3650,
        passphrase: bytes | None = None,
        ca: bytes | None = None,
        clock: Callable[[], datetime] = pki.utc_now,
    ) -> Authority:
        """Create an authority in a new or empty folder.

        Args:
            folder: folder of the authority.
            federation: name of the federation.
            days: validity of the authority's own certificate in days.
            passphrase: encrypts both keys.
            ca: PEM certificates of the organisation's own authority, to be trusted instead of a new one.
            clock: returns the current time.

        Raises:
            StoreError: the folder is not empty or cannot be created.
            ConfigError: invalid name of the federation.
            IdentityError: `ca` contains no certificate.
        """
        folder, now = Path(folder), clock()
        pki.check_name(federation, "federation")
        try:
            taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        except OSError as error:
            raise StoreError(f"{folder} cannot be created: {error.strerror or error}") from error
        if taken:
            raise StoreError(f"{folder} is not empty; choose a new folder for the authority, which is never overwritten")
        aside = folder.absolute().with_name(f".{safe_name(folder.absolute().name)}.new")
        shutil.rmtree(aside, ignore_errors=True)
        ca_key = pki.new_key() if ca is None else None
        roots = pki.pem(pki.make_ca(federation, ca_key, days, now)) if ca_key is not None else pki.certificates(ca or b"")
        signer = Ed25519PrivateKey.generate()
        public = signer.public_key().public_bytes_raw()
        trust = Trust.parse(Trust(federation, roots, public).pem, "the certificate of your authority")
        try:
            aside.mkdir(parents=True, mode=0o700)
            if ca_key is not None:
                atomic_write(aside / "ca.key", pki.key_pem(ca_key, passphrase), mode=0o600)
            atomic_write(aside / "directory.key", pki.key_pem(signer, passphrase), mode=0o600)
            atomic_write(aside / "trust.pem", trust.pem)
            Register.create(aside / "register.db", federation, now)
            os.replace(aside, folder)
        except OSError as error:
            raise StoreError(f"{folder} cannot be created: {error.strerror or error}") from error
        made = Authority(folder, trust, Register(folder / "register.db"), signer, ca_key, clock)
        made.publish()
        return made

    @staticmethod
    def open(folder: str | Path, passphrase: bytes | None = None, clock: Callable[[], datetime] = pki.utc_now) -> Authority:
        """Open the authority in a folder.

        Raises:
            IdentityError: there is no authority, its keys do not match `trust.pem`, or the passphrase is wrong.
        """
        folder = Path(folder)
        advice = "create an authority with `paceline ca init`, or name its folder with --ca"
        trust = Trust.parse(read(folder / "trust.pem", advice), str(folder / "trust.pem"))
        signer = pki.load_key(read(folder / "directory.key", advice), str(folder / "directory.key"), passphrase)
        if not isinstance(signer, Ed25519PrivateKey) or signer.public_key().public_bytes_raw() != trust.operator:
            raise IdentityError(f"{folder}: directory.key is not the key in trust.pem; restore the right one")
        ca_key: pki.TlsKey | None = None
        if (folder / "ca.key").exists():
            loaded = pki.load_key(read(folder / "ca.key", advice), str(folder / "ca.key"), passphrase)
            if not isinstance(loaded, pki.TlsKey) or loaded.public_key() != trust.certificates[0].public_key():
                raise IdentityError(f"{folder}: ca.key is not the key of trust.pem's certificate; restore the right one")
            ca_key = loaded
        return Authority(folder, trust, Register(folder / "register.db"), signer, ca_key, clock)

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return self.trust.federation

    # -- issuing -------------------------------------------------------------------------------
    def issue_server(self, hosts: Sequence[str], *, days: int = 365) -> Issued:
        """Generate a key and issue a certificate for a server.

        Args:
            hosts: DNS names and IP addresses under which clients reach the server.
            days: validity in days.

        Raises:
            IdentityError: this authority does not issue certificates.
            ConfigError: an invalid host or validity.
        """
        ca, ca_key = self._signer()
        key = pki.new_key()
        with self.register.transaction() as rows:
            certificate = pki.make_server(ca, ca_key, key, hosts, days, self.clock())
            rows.add_certificate(CertificateRow.of(certificate, "server", None, ",".join(hosts)))
        return Issued(pki.pem(certificate), pki.key_pem(key), self.trust.pem)

    def issue_client(self, name: str, *, days: int = 365, replace: bool = False) -> Issued:
        """Generate all keys of a client here and issue its certificate. With a token, the client generates its own keys.

        Args:
            name: name of the client.
            days: validity in days.
            replace: give a known client new keys and revoke its old certificates.

        Raises:
            IdentityError: the client is known and `replace` is False, or this authority does not issue certificates.
        """
        key, identity = pki.new_key(), Ed25519PrivateKey.generate()
        with self.register.transaction() as rows:
            member = self._admit(rows, name, identity.public_key().public_bytes_raw(), replace)
            certificate = self._certify(rows, member, key.public_key(), days)
            rows.changed(self.clock())
        self._write()
        return Issued(
            pki.pem(certificate), pki.key_pem(key), self.trust.pem, pki.key_pem(identity), self.directory_file(), member.id, name
        )

    def register_client(self, name: str, certificate: bytes, identity: bytes, *, replace: bool = False) -> Member:
        """Bind an identity key and a certificate issued by the organisation's own authority to a client.

        Args:
            name: name of the client.
            certificate: PEM; for a known client with the same identity key, an additional one.
            identity: public Ed25519 key, 32 bytes.
            replace: give a known client another identity key.

        Raises:
            IdentityError: the client is known with another key and `replace` is False, or a key or certificate is in use.
        """
        given = pki.load_certificate(certificate, "the certificate")
        with self.register.transaction() as rows:
            known = rows.member(name)
            renewed = known is not None and known[1] and known[0].key == identity
            member = known[0] if renewed and known else self._admit(rows, name, identity, replace)
            rows.add_certificate(CertificateRow.of(given, "client", member.id, name, own=True))
            rows.changed(self.clock())
        self._write()
        return member

    def renew(self, client: int, request: bytes, *, days: int = 365) -> Enrolled:
        """Issue a new certificate to a client that has presented its old one; its identity key remains.

        Args:
            client: id of the client.
            request: certificate request in PEM.
            days: validity in days.

        Raises:
            IdentityError: the client is not active, or the request is malformed.
        """
        wanted = pki.load_request(request)
        with self.register.transaction() as rows:
            member = next((m for m in rows.members() if m.id == client), None)
            if member is None:
                raise IdentityError(f"client {client} is not, or no longer, part of the federation; contact its operator")
            certificate = self._certify(rows, member, wanted.public_key(), days)
        return self._enrolled(pki.pem(certificate), member)

    # -- enrolment -----------------------------------------------------------------------------
    def token(self, name: str, *, hours: float = 24.0, replace: bool = False) -> str:
        """Return a token with which a client can enrol once; invalidates an earlier unused one.

        Args:
            name: name of the client.
            hours: validity in hours.
            replace: permit a known client to enrol with new keys.

        Raises:
            IdentityError: the client is known and `replace` is False.
            ConfigError: an invalid name or validity.
        """
        if not 0 < hours <= 24 * 365:
            raise ConfigError(f"a token cannot be valid for {hours} hours; choose more than 0 and at most 8760")
        pki.check_name(name)
        self._signer()
        made, now = Token.make(self.trust), self.clock()
        with self.register.transaction() as rows:
            self._refuse_known(rows, name, replace)
            rows.add_token(TokenRow(made.id, made.hash, name, now, now + timedelta(hours=hours), replace))
        return str(made)

    def redeem(self, token: str, request: bytes, identity: bytes, proof: bytes, *, days: int = 365) -> Enrolled:
        """Enrol the client that a token was issued for.

        The same request with the same token returns the same certificate again, because an answer can be lost.

        Args:
            token: what `token` returned.
            request: certificate request in PEM; the certificate carries the token's name, whatever the request contains.
            identity: public Ed25519 key of the client, 32 bytes.
            proof: signature of `proof_text` with that key.
            days: validity in days.

        Raises:
            TokenError: the token is unknown, expired or used.
            IdentityError: the request is malformed, or the proof is invalid.
        """
        given, now = Token.parse(token), self.clock()
        signed = proof_text(given, request, identity)
        wanted = pki.load_request(request)
        try:
            Ed25519PublicKey.from_public_bytes(identity).verify(proof, signed)
        except (InvalidSignature, ValueError):
            raise IdentityError(
                "the client did not prove possession of the identity key; enrol again from its own folder"
            ) from None
        with self.register.transaction() as rows:
            row = next((t for t in rows.tokens() if t.id == given.id), None)
            if row is None or not given.fits(row.hash):
                raise TokenError(
                    "this enrolment token is unknown, or was replaced by a later one; request a new one from the operator"
                )
            if now > row.expires:
                raise TokenError(
                    f"this enrolment token expired at {row.expires:%Y-%m-%d %H:%M} UTC; request a new one from the operator"
                )
            if row.used is not None:
                member, certificate = self._again(rows, row, signed)
            else:
                member = self._admit(rows, row.name, identity, row.replaces)
                certificate = self._certify(rows, member, wanted.public_key(), days)
                rows.use_token(row.id, now, signed, pki.serial_text(certificate.serial_number))
                rows.changed(now)
        self._write()
        return self._enrolled(pki.pem(certificate), member)

    def _again(self, rows: CertificateRows, row: TokenRow, signed: bytes) -> tuple[Member, x509.Certificate]:
        known = next((c for c in rows.certificates() if c.serial == row.serial), None)
        member = rows.member(row.name)
        if row.proof != signed or known is None or known.revoked is not None or member is None or not member[1]:
            raise TokenError(
                "this enrolment token was already used; request a new one from the operator, and report that it may have been stolen"
            )
        return member[0], pki.load_certificate(known.pem, "the register")

    # -- revoking and publishing ---------------------------------------------------------------
    def revoke(self, what: str, reason: str = "unspecified") -> list[CertificateRow]:
        """Revoke a client with all its certificates, or a single certificate.

        Args:
            what: name or id of a client, or serial of a certificate.
            reason: one of `REASONS`.

        Returns:
            the newly revoked certificates.

        Raises:
            IdentityError: no active client and no certificate has that name.
            ConfigError: unknown reason.
        """
        if reason not in REASONS:
            raise ConfigError(f"{reason!r} is not a revocation reason; known: {', '.join(REASONS)}")
        with self.register.transaction() as rows:
            now, listed = self.clock(), rows.certificates()
            member = next((m for m in rows.members() if what in (m.name, str(m.id))), None)
            chosen = [c for c in listed if (c.member == member.id if member else c.serial == what.lower())]
            if member is None and not chosen:
                raise IdentityError(f"no active client or certificate is named {what!r}; list them with `paceline ca list`")
            if member is not None:
                rows.retire(member.id)
            for row in chosen:
                rows.revoke(row.serial, now, reason)
            rows.changed(now)
            after = {c.serial: c for c in rows.certificates()}
        self._write()
        return [after[row.serial] for row in chosen if row.revoked is None]

    def publish(self) -> None:
        """Rewrite the revocation list and the directory, with a new serial and date."""
        with self.register.transaction() as rows:
            rows.changed(self.clock())
        self._write()

    def directory_file(self) -> bytes:
        """Return the signed directory as currently published."""
        return read(self.folder / "directory", "write it again with `paceline ca publish`")

    def members(self) -> list[Member]:
        """Return the active clients."""
        with self.register.transaction() as rows:
            return rows.members()

    def certificates(self) -> list[CertificateRow]:
        """Return every issued or registered certificate."""
        with self.register.transaction() as rows:
            return rows.certificates()

    def tokens(self) -> list[TokenRow]:
        """Return every token, used and unused."""
        with self.register.transaction() as rows:
            return rows.tokens()

    def _write(self) -> None:
        """Write the published files. Their content is a function of the register's state, so a crash does no harm."""
        with self.register.transaction() as rows:  # the lock prevents an older state from overwriting a newer one
            federation, serial, made = rows.facts()
            found = directory.Directory(federation, serial, made.isoformat(), tuple(rows.members()))
            revoked = [c for c in rows.certificates() if c.revoked is not None and not c.own]
            atomic_write(self.folder / "directory", directory.sign(found, self.directory_key))
            if self.ca_key is not None:
                listed = [(int(c.serial, 16), c.revoked, c.reason or "unspecified") for c in revoked if c.revoked is not None]
                crl = pki.make_crl(self.trust.certificates[0], self.ca_key, listed, serial, made, CRL_DAYS)
                atomic_write(self.folder / "crl.pem", crl)

    # -- parts ---------------------------------------------------------------------------------
    def _signer(self) -> tuple[x509.Certificate, pki.TlsKey]:
        if self.ca_key is None:
            raise IdentityError(
                f"{self.folder} trusts your organisation's authority and does not issue certificates; "
                "request one there, then bind it to the client with `paceline ca register`"
            )
        return self.trust.certificates[0], self.ca_key

    def _refuse_known(self, rows: CertificateRows, name: str, replace: bool) -> None:
        known = rows.member(name)
        if known is not None and not replace:
            state = "part of the federation" if known[1] else "revoked"
            raise IdentityError(
                f"client {name} is already {state}; pass --replace to give it new keys and revoke its old certificates"
            )

    def _admit(self, rows: CertificateRows, name: str, identity: bytes, replace: bool) -> Member:
        pki.check_name(name)
        if len(identity) != 32:
            raise IdentityError(f"the identity key must be an Ed25519 public key of 32 bytes, not {len(identity)}")
        self._refuse_known(rows, name, replace)
        member = rows.put_member(name, identity, int(name) if name.isdigit() else None)
        for row in rows.certificates():
            if row.member == member.id:
                rows.revoke(row.serial, self.clock(), "superseded")
        return member

    def _certify(self, rows: CertificateRows, member: Member, public: object, days: int) -> x509.Certificate:
        certificate = pki.make_client(*self._signer(), public, member.name, days, self.clock())
        rows.add_certificate(CertificateRow.of(certificate, "client", member.id, member.name))
        return certificate

    def _enrolled(self, certificate: bytes, member: Member) -> Enrolled:
        return Enrolled(certificate, self.trust.pem, self.directory_file(), member.id, member.name)
