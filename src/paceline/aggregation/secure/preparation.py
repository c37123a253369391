"""Keys and shares of the next round, exchanged in messages of this one: what the server prepares, and when it may be used.

The request for a masked vector carries the id of the next session, and its reply the advertised keys. The request for shares
carries the keys of the neighbours, and its reply the shares sealed for them. The next round then begins with the masked
vectors: three exchanges in place of five. A preparation is used by the first attempt at the first sum of the same function in
the next round, over the same clients with the same identity keys, and only if all of them have taken part in it. In all other
cases it is discarded, and the five exchanges take place.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from paceline.aggregation.secure.messages import MALFORMED
from paceline.aggregation.secure.server import SecureServer
from paceline.core.errors import PacelineError, ProtocolError, QuorumError

__all__ = ["Preparation", "Preparations", "UnpreparedError"]

_LONGEST_PAUSE = 8


class UnpreparedError(QuorumError):
    """A client no longer has the keys of a prepared session, as after a restart: the keys are exchanged anew."""


class Preparation:
    """The next session of a function, on the server.

    Args:
        now: server of the current session, from whose messages the next one is prepared.

    Raises:
        ProtocolError: no session can be prepared for such a sum.
    """

    def __init__(self, now: SecureServer) -> None:
        self.server = SecureServer(now.session.following(secrets.token_bytes(32)), now.directory)
        self.mail: dict[int, Any] = {}
        """Sealed shares for each client, once all have sent theirs."""
        self._directory: dict[int, Any] = {}

    @property
    def id(self) -> bytes:
        """Return the id of the session, from which clients derive the rest."""
        return self.server.session.id

    def add_advert(self, client: int, message: Any) -> None:
        """Add a client's advertised keys; anything malformed is recorded like in any session."""
        self._add(self.server.add_advert, client, message)

    def directory_for(self, client: int) -> dict[str, Any] | None:
        """Return what a client needs in order to share its secrets; None if some client has not advertised keys."""
        if not self._directory:
            try:
                hashes, adverts = self.server.directory_for()
            except PacelineError:
                return None
            if len(hashes) == len(self.server.session.clients):
                self._directory = {c: {"hashes": hashes, "adverts": near} for c, near in adverts.items()}
        return self._directory.get(client)

    def add_shares(self, client: int, message: Any) -> None:
        """Add a client's sealed shares."""
        if self._directory:
            self._add(self.server.add_shares, client, message)

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

    def _add(self, add: Any, client: int, message: Any) -> None:
        try:
            add(client, message)
        except (PacelineError, *MALFORMED) as error:
            self.server.refused[client] = f"malformed message: {type(error).__name__}: {error}"


class Preparations:
    """The prepared sessions of a run, by client function. They are held in memory only, so a restart discards them."""

    def __init__(self) -> None:
        self._at = 0, 0
        self._ready: dict[str, Preparation] = {}
        self._coming: dict[str, Preparation] = {}
        self._last: dict[str, tuple[int, ...]] = {}
        self._pauses: dict[str, tuple[int, int]] = {}

    def begin(self, round: int, attempt: int) -> None:
        """Begin an attempt at a round: what the last round prepared is ready now; a repeated attempt discards everything."""
        if (round, attempt) == self._at:
            return
        self._ready = self._coming if (round, attempt) == (self._at[0] + 1, 0) else {}
        self._at, self._coming = (round, attempt), {}

    def take(self, function: str, keys: Mapping[int, bytes], place: tuple[int, int]) -> Preparation | None:
        """Return the session prepared for a sum, and forget it; None if there is none for exactly this sum.

        Args:
            function: client function of the method.
            keys: identity keys of the cohort.
            place: attempt and number of the call, from which clients name their random streams.
        """
        if place != (0, 1):
            return None
        ready = self._ready.pop(function, None)
        if ready is None or self._at[1] or ready.server.session.round != self._at[0]:
            return None
        return ready if ready.server.session.clients == tuple(sorted(keys)) and dict(ready.server.directory) == dict(keys) else None

    def start(self, now: SecureServer, everybody: bool) -> Preparation | None:
        """Begin to prepare the session after `now`; None if its cohort is unlikely to be the same, or this has failed lately.

        Args:
            now: server of the current session.
            everybody: whether its cohort consists of all clients of the federation.
        """
        session = now.session
        known = everybody or self._last.get(session.function) == session.clients
        self._last[session.function] = session.clients
        if not known or session.round < self._pauses.get(session.function, (0, 0))[0]:
            return None
        try:
            return Preparation(now)
        except ProtocolError:
            return None

    def finish(self, preparation: Preparation) -> None:
        """Keep a preparation for the next round if it is complete."""
        function = preparation.server.session.function
        if preparation.complete():
            self._coming[function] = preparation
        else:
            self.pause(function)

    def used(self, function: str) -> None:
        """Record that a prepared session has served its purpose."""
        self._pauses.pop(function, None)

    def pause(self, function: str) -> None:
        """Prepare nothing for some rounds, twice as many each time: a client that spoils preparations saves nobody's time."""
        rounds = min(2 * self._pauses.get(function, (0, 0))[1] or 1, _LONGEST_PAUSE)
        self._pauses[function] = self._at[0] + rounds, rounds
