"""Monitoring of expiry dates: revocation list, server certificate, and damaged files.

After a revocation list has expired, no client is admitted. If the authority is on the server, the lists are republished
automatically in good time; otherwise the operator is warned early and repeatedly.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from paceline.core.errors import PacelineError
from paceline.deploy.identity import pki
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import CRL_DAYS, Authority

__all__ = ["Lists"]

REPUBLISH = timedelta(days=CRL_DAYS / 2)
"""An authority on this machine republishes its lists if less than this time is left."""

SOON = timedelta(days=7)
"""The operator is warned if less than this time is left."""

AGAIN = 6 * 3600.0
"""Seconds after which a warning is repeated."""

Note = Callable[[str, int | None, dict[str, object]], None]


class Lists:
    """Periodic check of expiry dates; call `check`, or `start` to run it in a thread.

    Args:
        gate: provides the lists.
        note: receives events.
        authority: authority of the federation, if it is on this machine.
        certificate: the server's certificate in PEM.
        every: seconds between two checks.
    """

    def __init__(
        self, gate: Gate, note: Note, authority: Authority | None = None, certificate: bytes = b"", every: float = 60.0
    ) -> None:
        self._gate, self._note, self._authority, self.every = gate, note, authority, every
        self._ends = pki.load_certificate(certificate, "the server's certificate").not_valid_after_utc if certificate else None
        self._warned: dict[str, float] = {}
        self._over = threading.Event()

    def start(self) -> None:
        """Check now, then periodically until `stop`."""
        self.check()
        threading.Thread(target=self._work, name="lists", daemon=True).start()

    def stop(self) -> None:
        """Stop the periodic checks."""
        self._over.set()

    def _work(self) -> None:
        while not self._over.wait(self.every):
            self.check()

    def check(self) -> None:
        """Republish lists that are about to expire, and warn of what cannot be fixed here."""
        now, stale = self._gate.clock(), self._gate.stale()
        if stale is not None and self._authority is not None and stale - now < REPUBLISH:
            try:
                self._authority.publish()
                self._note("published", None, {"why": f"the revocation list would have expired on {stale:%Y-%m-%d}"})
                stale = self._gate.stale()
            except (PacelineError, OSError) as error:
                self._warn("lists", f"the directory and revocation list cannot be published: {error}")
        if stale is not None and stale - now < SOON:
            what = "has expired, so no client is admitted" if now > stale else "expires, after which no client is admitted"
            self._warn("lists", f"at {stale:%Y-%m-%d %H:%M} UTC the revocation list {what}; run paceline ca publish")
        if self._gate.fault is not None:
            self._warn("lists", self._gate.fault)
        if self._ends is not None and self._ends - now < SOON:
            until = f"{self._ends:%Y-%m-%d %H:%M} UTC"
            self._warn("certificate", f"the server's certificate expires at {until}; issue another with paceline ca issue --server")

    def _warn(self, event: str, why: str) -> None:
        """Log a warning; the same one only every `AGAIN` seconds."""
        moment = time.monotonic()
        if moment - self._warned.get(why, -math.inf) > AGAIN:
            self._warned[why] = moment
            self._note(event, None, {"why": why})
