"""Authentication of clients on the server: map a certificate to a client, and check that the client is still admitted.

TLS has verified that the peer owns the certificate's key. Here the certificate is checked: issued by the
federation's authority (or registered by fingerprint), currently valid, not revoked, and of a client in the signed
directory. Directory and revocation list are reloaded when their files change, so that a revocation takes effect
immediately; a file that is damaged, unsigned, or older than the one in use never replaces a valid one.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from paceline.core.errors import IdentityError
from paceline.deploy.identity import pki
from paceline.deploy.identity.directory import Directory, Member, open_signed
from paceline.deploy.identity.enrolment import issued_by
from paceline.deploy.identity.trust import Trust, read
from paceline.network.interfaces import NotNow

__all__ = ["Gate"]

_CACHED = 4096


@dataclass(frozen=True)
class _Revoked:
    """Revocation list: serials, its number, and its expiry."""

    serials: frozenset[int]
    number: int
    stale: datetime | None


class Gate:
    """Identifies clients by their certificates; thread-safe.

    Args:
        trust: trust anchors of the federation.
        directory: file of the signed directory.
        crl: file of the revocation list; None only if an organisation's own authority issues the certificates
            and its lists are checked elsewhere.
        every: minimum interval in seconds between two checks of the files.
        clock: returns the current time.

    Raises:
        IdentityError: a file is missing, damaged, unsigned, or outdated.
    """

    def __init__(
        self,
        trust: Trust,
        directory: str | Path,
        crl: str | Path | None,
        *,
        every: float = 1.0,
        clock: Callable[[], datetime] = pki.utc_now,
    ) -> None:
        self.trust, self.every, self.clock = trust, every, clock
        self.fault: str | None = None
        """Reason why the newest files are not in use, or None; the previous ones remain in use."""
        self._paths = Path(directory), Path(crl) if crl is not None else None
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[Member, datetime, datetime, int]] = {}
        self._stamps = self._file_stamps()
        self._checked_at = time.monotonic()
        self._file, self._directory = self._read_directory()
        self._revoked = self._read_crl()

    def member(self, certificate: bytes) -> Member:
        """Return the client that a certificate (PEM) belongs to.

        Raises:
            IdentityError: the certificate is not valid for any client; the message gives the reason.
            NotNow: the revocation list has expired, or the certificate is outside its validity period.
        """
        with self._lock:
            self._refresh()
            key, now = hashlib.sha256(certificate).digest(), self.clock()
            if self._revoked.stale is not None and now > self._revoked.stale:
                raise NotNow(
                    f"the revocation list {self._paths[1]} expired on {self._revoked.stale:%Y-%m-%d}; "
                    "write a new one with `paceline ca publish`"
                )
            if key not in self._known:
                if len(self._known) >= _CACHED:
                    self._known.clear()
                try:
                    self._known[key] = self._find(certificate)
                except IdentityError:
                    if not self._refresh(now=True):
                        raise
                    self._known[key] = self._find(certificate)  # it may have enrolled since the last check
            member, begin, end, serial = self._known[key]
            if serial in self._revoked.serials:
                raise IdentityError(f"the certificate of client {member.name} was revoked; contact the operator of the federation")
            if not begin <= now <= end:
                raise NotNow(
                    f"the certificate of client {member.name} is valid only from {begin} to {end}; renew it, or set the clocks"
                )
            return member

    def members(self) -> list[Member]:
        """Return all clients that may participate."""
        with self._lock:
            self._refresh()
            return list(self._directory.members)

    def stale(self) -> datetime | None:
        """Return the expiry of the revocation list, after which no client is admitted; None if there is no list."""
        with self._lock:
            self._refresh()
            return self._revoked.stale

    def directory_file(self) -> bytes:
        """Return the newest signed directory, for distribution to clients."""
        with self._lock:
            self._refresh(now=True)  # a client that has enrolled or renewed already knows it
            return self._file

    def _find(self, data: bytes) -> tuple[Member, datetime, datetime, int]:
        certificate = pki.load_certificate(data, "the client's certificate")
        times = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number
        registered = self._directory.by_certificate.get(certificate.fingerprint(SHA256()).hex())
        if registered is not None:
            return registered, *times
        if not any(issued_by(certificate, root) for root in self.trust.certificates):
            raise IdentityError(
                "the client's certificate was neither issued by the federation's authority nor registered there; enrol first"
            )
        use = pki.extension(certificate, x509.ExtendedKeyUsage)
        if use is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in use:
            raise IdentityError("this is not a client certificate; a server's certificate cannot be used to join")
        name = pki.client_name(certificate)
        if name is None:
            raise IdentityError(
                "the certificate does not name a client; register it with `paceline ca register`, or enrol with a token"
            )
        member = self._directory.by_name.get(name)
        if member is None:
            raise IdentityError(f"client {name} is not, or no longer, in the federation's directory; contact its operator")
        return member, *times

    # -- files ---------------------------------------------------------------------------------
    def _file_stamps(self) -> list[tuple[int, int, int] | None]:
        stamps = []
        for path in self._paths:
            try:
                found = path.stat() if path is not None else None
            except OSError:
                found = None
            stamps.append(None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps

    def _refresh(self, now: bool = False) -> bool:
        """Reload changed files, both or neither; return whether any were reloaded. Without `now`, respect `every`."""
        if not now and time.monotonic() - self._checked_at < self.every:
            return False
        self._checked_at = time.monotonic()
        stamps = self._file_stamps()
        if stamps == self._stamps:
            return False
        try:
            file, directory = self._read_directory()
            revoked = self._read_crl()
            if directory.serial < self._directory.serial or revoked.number < self._revoked.number:
                raise IdentityError(
                    f"{self._paths[0]} or its revocation list is older than the version read before; run `paceline ca publish`"
                )
        except IdentityError as error:
            self.fault = str(error)
            return False
        self._file, self._directory, self._revoked = file, directory, revoked
        self._stamps, self.fault = stamps, None
        self._known.clear()
        return True

    def _read_directory(self) -> tuple[bytes, Directory]:
        data = read(self._paths[0], "copy it from the authority's folder, or write it with `paceline ca publish`")
        found = open_signed(data, self.trust.operator, str(self._paths[0]))
        if found.federation != self.trust.federation:
            raise IdentityError(
                f"{self._paths[0]} belongs to federation {found.federation!r}, not {self.trust.federation!r}; copy the right one"
            )
        return data, found

    def _read_crl(self) -> _Revoked:
        path = self._paths[1]
        if path is None:
            return _Revoked(frozenset(), 0, None)
        data = read(path, "copy it from the authority's folder, or write it with `paceline ca publish`")
        try:
            listed = x509.load_pem_x509_crl(data)
            signed = any(
                listed.issuer == root.subject and listed.is_signature_valid(root.public_key())  # type: ignore[arg-type]
                for root in self.trust.certificates
            )
            number = next((e.value.crl_number for e in listed.extensions if isinstance(e.value, x509.CRLNumber)), 0)
            serials = frozenset(row.serial_number for row in listed)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"{path} is not a revocation list in PEM: {error}") from None
        if not signed:
            raise IdentityError(f"{path} is not signed by the federation's authority; restore its own list")
        return _Revoked(serials, number, listed.next_update_utc)
