"""Register of an authority: clients, certificates and tokens, in one SQLite file.

Every operation is one transaction, also between processes, so two redemptions of one token cannot both succeed.
The file contains no secrets: no private keys, and only hashes of tokens.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from paceline.core.errors import IdentityError, StoreError
from paceline.deploy.database_errors import named
from paceline.deploy.identity import pki
from paceline.deploy.identity.directory import Member

__all__ = ["CertificateRow", "CertificateRows", "Register", "TokenRow"]

SCHEMA = """
CREATE TABLE facts (one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL, federation TEXT NOT NULL,
    serial INTEGER NOT NULL, made TEXT NOT NULL);
CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, key BLOB NOT NULL UNIQUE, active INTEGER NOT NULL);
CREATE TABLE certificates (serial TEXT PRIMARY KEY, kind TEXT NOT NULL, member INTEGER REFERENCES members (id),
    names TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, pem BLOB NOT NULL, issued TEXT NOT NULL, expires TEXT NOT NULL,
    own INTEGER NOT NULL, revoked TEXT, reason TEXT);
CREATE TABLE tokens (id TEXT PRIMARY KEY, hash BLOB NOT NULL, name TEXT NOT NULL, made TEXT NOT NULL,
    expires TEXT NOT NULL, replaces INTEGER NOT NULL, used TEXT, proof BLOB, serial TEXT REFERENCES certificates (serial));
"""
FORMAT = 1


@dataclass(frozen=True)
class CertificateRow:
    """One issued or registered certificate.

    Args:
        serial: in hexadecimal.
        kind: ``server`` or ``client``.
        member: id of the client, or None.
        names: name of the client, or comma-separated hosts of a server.
        digest: SHA-256 of the certificate, in hexadecimal.
        pem: the certificate.
        issued, expires: validity period.
        own: whether another authority issued it.
        revoked: time of the revocation, or None.
        reason: reason of the revocation.
    """

    serial: str
    kind: str
    member: int | None
    names: str
    digest: str
    pem: bytes
    issued: datetime
    expires: datetime
    own: bool = False
    revoked: datetime | None = None
    reason: str | None = None

    @staticmethod
    def of(certificate: x509.Certificate, kind: str, member: int | None, names: str, own: bool = False) -> CertificateRow:
        """Return the row of a certificate that is not revoked."""
        serial, digest = pki.serial_text(certificate.serial_number), certificate.fingerprint(SHA256()).hex()
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return CertificateRow(serial, kind, member, names, digest, pki.pem(certificate), begin, end, own)


@dataclass(frozen=True)
class TokenRow:
    """One enrolment token: its hash, the client's name, its validity, and its use."""

    id: str
    hash: bytes
    name: str
    made: datetime
    expires: datetime
    replaces: bool = False
    used: datetime | None = None
    proof: bytes | None = None
    serial: str | None = None


class Register:
    """Database file of the register.

    Args:
        path: an existing SQLite file; see `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(path: Path, federation: str, now: datetime) -> Register:
        """Create an empty register, readable by its owner only.

        Args:
            path: the new file.
            federation: name of the federation.
            now: time of creation.

        Raises:
            StoreError: the file exists or cannot be created.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise StoreError(f"{path} cannot be created: {error.strerror or error}") from error
        register = Register(path)
        with register.transaction() as rows:
            for statement in SCHEMA.split(";")[:-1]:
                rows.db.execute(statement)
            rows.db.execute("INSERT INTO facts VALUES (1, ?, ?, 0, ?)", (FORMAT, federation, now.isoformat()))
        return register

    @contextmanager
    def transaction(self) -> Iterator[CertificateRows]:
        """Yield the rows under the write lock; commit at the end, or roll back if the block raises.

        Raises:
            IdentityError: the file does not exist.
            StoreError: the database reports an error.
        """
        if not self.path.exists():
            raise IdentityError(
                f"{self.path.parent} contains no authority; create one with `paceline ca init`, or name its folder with --ca"
            )
        try:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            try:
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("BEGIN IMMEDIATE")
                yield CertificateRows(db)
                db.execute("COMMIT")
            finally:
                db.close()  # rolls back without a commit
        except sqlite3.Error as error:
            raise named(error, str(self.path)) from error


class CertificateRows:
    """Read and write access within a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def facts(self) -> tuple[str, int, datetime]:
        """Return the federation's name, the serial of its last change, and the time of that change."""
        made, federation, serial, at = self.db.execute("SELECT format, federation, serial, made FROM facts").fetchone()
        if made != FORMAT:
            raise StoreError(f"this register has format {made}, but this version reads {FORMAT}; use the Paceline that wrote it")
        return federation, serial, datetime.fromisoformat(at)

    def changed(self, now: datetime) -> None:
        """Record a change, so that published files get a new serial."""
        self.db.execute("UPDATE facts SET serial = serial + 1, made = ?", (now.isoformat(),))

    # -- clients -------------------------------------------------------------------------------
    def member(self, name: str) -> tuple[Member, bool] | None:
        """Return a client and whether it is active, or None."""
        row = self.db.execute("SELECT id, name, key, active FROM members WHERE name = ?", (name,)).fetchone()
        return None if row is None else (Member(*row[:3]), bool(row[3]))

    def members(self) -> list[Member]:
        """Return all active clients, ordered by id, with the fingerprints of registered certificates."""
        prints: dict[int, list[str]] = {}
        query = "SELECT member, digest FROM certificates WHERE own AND revoked IS NULL ORDER BY digest"
        for member, digest in self.db.execute(query):
            prints.setdefault(member, []).append(digest)
        rows = self.db.execute("SELECT id, name, key FROM members WHERE active ORDER BY id").fetchall()
        return [Member(id_, name, key, tuple(prints.get(id_, ()))) for id_, name, key in rows]

    def put_member(self, name: str, key: bytes, number: int | None) -> Member:
        """Add a client, or replace the key of a known one.

        Args:
            name: name of the client.
            key: public identity key, 32 bytes.
            number: id of a new client; None selects the lowest free id.

        Raises:
            IdentityError: another client has the key or the id.
        """
        owner = self.db.execute("SELECT name FROM members WHERE key = ?", (key,)).fetchone()
        if owner is not None and owner[0] != name:
            raise IdentityError(f"this identity key already belongs to client {owner[0]}; generate a separate key for each client")
        known = self.member(name)
        if known is not None:
            self.db.execute("UPDATE members SET key = ?, active = 1 WHERE name = ?", (key, name))
            return Member(known[0].id, name, key)
        taken = {row[0] for row in self.db.execute("SELECT id FROM members")}
        if number is None:
            number = next(i for i in range(len(taken) + 1) if i not in taken)
        elif number in taken:
            other = self.db.execute("SELECT name FROM members WHERE id = ?", (number,)).fetchone()[0]
            raise IdentityError(f"number {number} already belongs to client {other}; choose another number, or a name")
        self.db.execute("INSERT INTO members VALUES (?, ?, ?, 1)", (number, name, key))
        return Member(number, name, key)

    def retire(self, member: int) -> None:
        """Remove a client from the directory; its id and name remain reserved."""
        self.db.execute("UPDATE members SET active = 0 WHERE id = ?", (member,))

    # -- certificates --------------------------------------------------------------------------
    def add_certificate(self, row: CertificateRow) -> None:
        """Add a certificate.

        Raises:
            IdentityError: it is registered already.
        """
        values = (row.serial, row.kind, row.member, row.names, row.digest, row.pem, row.issued.isoformat(), row.expires.isoformat())
        try:
            self.db.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)", (*values, int(row.own)))
        except sqlite3.IntegrityError:
            raise IdentityError(f"the certificate {row.serial} is already registered") from None

    def certificates(self) -> list[CertificateRow]:
        """Return all certificates in order of creation."""
        query = "SELECT serial, kind, member, names, digest, pem, issued, expires, own, revoked, reason FROM certificates ORDER BY rowid"
        return [
            CertificateRow(serial, kind, member, names, digest, pem, _at(issued), _at(expires), bool(own), _time(revoked), reason)
            for serial, kind, member, names, digest, pem, issued, expires, own, revoked, reason in self.db.execute(query)
        ]

    def revoke(self, serial: str, now: datetime, reason: str) -> None:
        """Mark a certificate as revoked."""
        self.db.execute(
            "UPDATE certificates SET revoked = ?, reason = ? WHERE serial = ? AND revoked IS NULL",
            (now.isoformat(), reason, serial),
        )

    # -- tokens --------------------------------------------------------------------------------
    def add_token(self, row: TokenRow) -> None:
        """Add a token and delete unused ones for the same name."""
        self.db.execute("DELETE FROM tokens WHERE name = ? AND used IS NULL", (row.name,))
        values = (row.id, row.hash, row.name, row.made.isoformat(), row.expires.isoformat(), int(row.replaces))
        self.db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL)", values)

    def tokens(self) -> list[TokenRow]:
        """Return all tokens in order of creation."""
        query = "SELECT id, hash, name, made, expires, replaces, used, proof, serial FROM tokens ORDER BY rowid"
        return [
            TokenRow(id_, hash_, name, _at(made), _at(expires), bool(replaces), _time(used), proof, serial)
            for id_, hash_, name, made, expires, replaces, used, proof, serial in self.db.execute(query)
        ]

    def use_token(self, id_: str, now: datetime, proof: bytes, serial: str) -> None:
        """Mark a token as used for the certificate `serial`; `proof` identifies the request."""
        self.db.execute("UPDATE tokens SET used = ?, proof = ?, serial = ? WHERE id = ?", (now.isoformat(), proof, serial, id_))


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
