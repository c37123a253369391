"""Keys and shares of the next round, exchanged in messages of this one: what the server prepares, and when it may be used.

The request for a masked vector carries the id of the next session, and its reply the advertised keys. The list of survivors is
sent with the keys of the neighbours. Clients seal shares for them once they have signed it, and send them with those that
open the sum. The next round then begins with the masked
vectors: three exchanges in place of five. A preparation is used by the first attempt at the first sum of the same function in
the next round, over the same clients with the same identity keys, and only if all of them have taken part in it. In all other
cases it is discarded, and the five exchanges take place.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from paceline.aggregation.secure.messages import MALFORMED
from paceline.aggregation.secure.server import SecureServer
from paceline.core.errors import PacelineError, ProtocolError, QuorumError

__all__ = ["Preparation", "Preparations", "UnpreparedError"]

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE = 8


class UnpreparedError(QuorumError):
    """A client no longer has the keys of a prepared session, as after a restart: the keys are exchanged anew."""


class Preparation:
    """The next session of a function, on the server.

    Args:
        now: server of the current session, from whose messages the next one is prepared.
        works: number of operations on clients up to now, if they send records: the next one must be the sum for which they are
            sealed. None without records, which alone depend on what clients store.

    Raises:
        ProtocolError: no session can be prepared for such a sum.
    """

    def __init__(self, now: SecureServer, works: int | None = None) -> None:
        self.works = works
        self.server = SecureServer(now.session.following(secrets.token_bytes(32)), now.directory)
        self.mail: dict[int, Any] = {}
        """Sealed shares for each client, once all have sent theirs."""
        self._directory: dict[int, Any] = {}
        self._given: tuple[set[int], set[int]] = set(), set()

    @property
    def id(self) -> bytes:
        """Return the id of the session, from which clients derive the rest."""
        return self.server.session.id

    @property
    def keys_complete(self) -> bool:
        """Whether all clients have advertised keys, so that shares were requested."""
        return bool(self._directory)

    @property
    def missing(self) -> str:
        """Return which clients have not taken part, with reasons where they sent something unusable."""
        step, what = (1, "shares") if self.keys_complete else (0, "keys")
        missing = [client for client in self.server.session.clients if client not in self._given[step]]
        wrong = "".join(f"; client {client}: {self.server.refused[client]}" for client in missing if client in self.server.refused)
        return f"the {what} of clients {missing} did not arrive in the round before{wrong}"

    def add_advert(self, client: int, message: Any) -> None:
        """Add a client's advertised keys; anything malformed is recorded like in any session."""
        self._add(self.server.add_advert, client, message, self._given[0])

    def directory_for(self, client: int) -> dict[str, Any] | None:
        """Return what a client needs in order to share its secrets; None if some client has not advertised keys."""
        if not self._directory:
            try:
                hashes, adverts = self.server.directory_for()
            except PacelineError:
                return None
            if len(hashes) == len(self.server.session.clients):
                self._directory = {c: {**self.server.announced(hashes), "adverts": near} for c, near in adverts.items()}
        return self._directory.get(client)

    def add_shares(self, client: int, message: Any) -> None:
        """Add a client's sealed shares."""
        if self._directory:
            self._add(self.server.add_shares, client, message, self._given[1])

    def complete(self) -> bool:
        """Close the preparation; return whether all clients have taken part."""
        try:
            mail = self.server.inbox_for() if self._directory else {}
        except PacelineError:
            return False
        self.mail = dict(sorted(mail.items()))  # by client, as in the first step of a session: workers then keep their clients
        return len(self.mail) == len(self.server.session.clients)

    def bound(self, task: bytes, quorum: int) -> SecureServer:
        """Return the server of the session, to be used once, for the task with this hash."""
        server, self.server = self.server, SecureServer(self.server.session, {})
        server.session, server.quorum = server.session.bound(task), quorum
        return server

    def _add(self, add: Callable[[int, Any], None], client: int, message: Any, given: set[int]) -> None:
        try:
            add(client, message)
            if client not in self.server.refused:
                given.add(client)
        except (PacelineError, *MALFORMED) as error:
            self.server.refused[client] = f"malformed message: {type(error).__name__}: {error}"


class Preparations:
    """The prepared sessions of a run, by client function. They are held in memory only, so a restart discards them.

    A sum that takes the five exchanges although sessions are prepared is logged at level INFO, with the reason.
    """

    def __init__(self) -> None:
        self._at = 0, 0
        self._ready: dict[str, Preparation] = {}
        self._coming: dict[str, Preparation] = {}
        self._last: dict[str, tuple[int, ...]] = {}
        self._pauses: dict[str, tuple[int, int]] = {}
        self._why: dict[str, str] = {}
        """Why nothing is ready in this round."""
        self._later: dict[str, str] = {}
        """The same for the next one."""

    def begin(self, round: int, attempt: int) -> None:
        """Begin an attempt at a round: what the last round prepared is ready now; a repeated attempt discards everything."""
        if (round, attempt) == self._at:
            return
        follows = (round, attempt) == (self._at[0] + 1, 0)
        self._ready, self._why = (self._coming, self._later) if follows else ({}, {})
        self._at, self._coming, self._later = (round, attempt), {}, {}

    def take(
        self, function: str, keys: Mapping[int, bytes], place: tuple[int, int], never: str = "", works: int = 0
    ) -> Preparation | None:
        """Return the session prepared for a sum, and forget it; None, and a line in the log, if there is none for exactly this sum.

        Args:
            function: client function of the method.
            keys: identity keys of the cohort.
            place: attempt and number of the call, from which clients name their random streams.
            never: why such a sum is never prepared; empty if it can be.
            works: number of operations on clients, with this one.
        """
        ready = self._ready.pop(function, None) if place == (0, 1) else None
        why = never or self._misfit(ready, function, keys, place)
        if not why and ready is not None and ready.works not in (None, works - 1):
            why = "another function of the method ran on clients after they had sealed their records"
            self.pause(function)
        if why:
            self.note(function, why)
        return None if why else ready

    def _misfit(self, ready: Preparation | None, function: str, keys: Mapping[int, bytes], place: tuple[int, int]) -> str:
        """Return why a session cannot be used for a sum; empty if it can."""
        if self._at[1] or place[0]:
            return "the round is repeated"
        if place[1] != 1:
            return f"it is sum {place[1]} of this function in the round, and only the first one is prepared"
        if ready is None:
            return self._why.get(
                function, "no sum of this function in the round before prepared its keys, or the server was restarted"
            )
        session, known = ready.server.session, ready.server.directory
        if changed := set(session.clients).symmetric_difference(keys):
            return f"clients {sorted(changed)} joined or left the cohort"
        if replaced := [client for client in session.clients if known[client] != keys[client]]:
            return f"the identity keys of clients {replaced} were replaced"
        return ""

    def note(self, function: str, why: str) -> None:
        """Log that a sum takes five exchanges, and why."""
        _LOG.info("round %d: the secure sum of %r takes five exchanges: %s", self._at[0], function, why)

    def start(self, now: SecureServer, everybody: bool, works: int | None = None) -> Preparation | None:
        """Begin to prepare the session after `now`; None if its cohort is unlikely to be the same, or this has failed lately.

        Args:
            now: server of the current session.
            everybody: whether its cohort consists of all clients of the federation.
            works: see `Preparation`.
        """
        session = now.session
        if session.call != 1 or not session.config.pipelined:
            return None
        function, (until, _) = session.function, self._pauses.get(session.function, (0, 0))
        known = everybody or self._last.get(function) == session.clients
        self._last[function] = session.clients
        if not known:
            self._later[function] = "the cohort of the round before was new, so the same one was not expected again"
        elif session.round < until:
            self._later[function] = f"shares or prepared keys were missing lately; the next preparation is made in round {until}"
        else:
            try:
                coming = Preparation(now, works)
            except ProtocolError:
                return None
            self._later[function] = "the sum of the round before, which was to prepare it, was lost"
            return coming
        return None

    def finish(self, preparation: Preparation) -> None:
        """Keep a preparation for the next round if it is complete."""
        function = preparation.server.session.function
        if preparation.complete():
            self._coming[function] = preparation
        else:
            self._later[function] = preparation.missing
            if preparation.keys_complete:
                self.pause(function)

    def used(self, function: str) -> None:
        """Record that a prepared session has served its purpose."""
        self._pauses.pop(function, None)

    def pause(self, function: str) -> None:
        """Prepare nothing for some rounds, twice as many each time: a client that spoils preparations saves nobody's time.

        Keys that do not arrive cost nothing, so they are requested again in the next round.
        """
        rounds = min(2 * self._pauses.get(function, (0, 0))[1] or 1, _LONGEST_PAUSE)
        self._pauses[function] = self._at[0] + rounds, rounds
