"""Write queue of the server's database: a bounded queue in memory, and the thread that writes it in order.

While the database is unavailable, rows are queued and the run continues. A row is retried until it is known to be
written; each row has a unique key, so a repeated write changes nothing. When the queue is full the run must stop.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from paceline.core.errors import StoreError, StoreUnavailableError

__all__ = ["BACK", "FROM_STREAMS", "PATIENCE", "ROOM", "Backlog"]

ROOM = 100_000
"""Maximum number of queued rows, about 500 bytes each: the result of one client in one call is a row, as is an event."""
FROM_STREAMS = 10_000
"""Share of these for events of streams, which strangers can cause; further ones are counted and dropped."""
PATIENCE = 10.0
"""Seconds without an answer after which a database counts as unavailable."""
BACK = 30.0
"""Seconds that a server waits for its database at its start and end."""
EVERY = 30.0
"""Seconds between two log lines during an outage."""
_PAUSES = (0.1, 2.0)


@dataclass
class _Item:
    function: Callable[..., Any]
    values: tuple[Any, ...]
    facts: dict[str, Any]
    rows: int
    stream: bool = False
    always: bool = False
    done: Future[None] = field(default_factory=Future)
    awaited: bool = False


class Backlog:
    """The queue and its thread; thread-safe.

    Args:
        where: name of the database, for messages.
        tell: writes a log event.
        room, patience, back, every: see `ROOM`, `PATIENCE`, `BACK` and `EVERY`.
    """

    def __init__(
        self,
        where: str,
        log: Callable[..., None],
        room: int = ROOM,
        patience: float = PATIENCE,
        back: float = BACK,
        every: float = EVERY,
    ) -> None:
        self.where, self.log = where, log
        self.room, self.patience, self.back, self.every = room, patience, back, every
        self.waiting = self.left_out = 0
        self._streams = 0
        self._since: float | None = None
        self._warned_at = 0.0
        self._failed: StoreError | None = None
        self._until: float | None = None
        self._gave_up = False
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Item | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="notes", daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether the last attempt to write found no database, or still waits for its answer."""
        return self._since is not None

    # -- in ------------------------------------------------------------------------------------
    def put(self, function: Callable[..., Any], *values: Any, rows: int = 1, **facts: Any) -> None:
        """Queue a function call.

        Args:
            function: the write.
            *values: its positional arguments.
            rows: number of rows that it counts for.
            **facts: its keyword arguments.

        Raises:
            StoreError: the queue is full, or an earlier write failed.
        """
        self._put(_Item(function, values, facts, rows))

    def last(self, function: Callable[..., Any], *values: Any, **facts: Any) -> None:
        """Queue a final function call, even if the queue is full; never fails."""
        self._put(_Item(function, values, facts, 1, always=True))

    def stream(self, function: Callable[..., Any], *values: Any, **facts: Any) -> None:
        """Queue a stream event, or count it if there are too many; never blocks and never fails."""
        with self._lock:
            if self._streams >= FROM_STREAMS or self.waiting >= self.room:
                self.left_out += 1
                return
        with contextlib.suppress(StoreError):
            self._put(_Item(function, values, facts, 1, stream=True))

    def sure(self, function: Callable[..., Any], *values: Any, **facts: Any) -> None:
        """Call a function after the queued ones and wait for it; raises its exception.

        Raises:
            StoreUnavailableError: the database is not available again within `BACK`.
        """
        item = _Item(function, values, facts, 1, always=True, awaited=True)
        self._put(item)
        end = time.monotonic() + self.back
        while True:
            with contextlib.suppress(TimeoutError):
                item.done.result(0.05)
                return
            late = time.monotonic() - end
            if late >= 0 and (self.away or late >= self.patience):
                self._gave_up = True
                raise StoreUnavailableError(
                    f"{self.where} was not available again within {self.back:g} s, and {self.waiting} rows are queued for it; "
                    f"the run's folder is intact: restart the database, then the server"
                )

    def soon(self, function: Callable[..., Any], *values: Any, **facts: Any) -> bool:
        """Call a function after the queued ones; return True once it is done, False if the database is unavailable for now.

        Its exception is raised here, or by a later call if it fails after this method has returned False.
        """
        item = _Item(function, values, facts, 1, awaited=True)
        self._put(item)
        end = time.monotonic() + self.patience
        while not self.away:
            with contextlib.suppress(TimeoutError):
                item.done.result(0.05)
                return True
            if time.monotonic() >= end:
                self._outage(f"{self.where} has not responded for {self.patience:g} s")
        item.done.add_done_callback(self._later)
        return False

    def close(self) -> None:
        """Write the remaining rows, for at most `BACK` seconds if the database is unavailable; log the number of lost ones."""
        if not self._thread.is_alive():
            return
        seconds = 0.0 if self._gave_up else self.back
        self._until = time.monotonic() + seconds
        self._closing.set()
        self._queue.put(None)
        self._thread.join(seconds + min(self.patience, PATIENCE))
        if self.waiting:
            self.log("error", why=f"{self.waiting} rows were not written to {self.where}; the run's folder is intact")

    def _put(self, item: _Item) -> None:
        with self._lock:
            if self._failed is not None and not item.always:
                raise self._failed
            if not item.always and self.waiting and self.waiting + item.rows > self.room:
                state = f"has been unavailable for {self._seconds():.0f} s" if self.away else "is too slow"
                raise StoreError(
                    f"{self.where} {state}, and its queue is full with {self.waiting} rows; "
                    f"the run's folder is intact: restart the database, then the server"
                )
            self.waiting += item.rows
            self._streams += item.stream
            self._queue.put(item)

    def _later(self, done: Future[None]) -> None:
        """Record the failure of a row that nobody waits for any more, but that must not be lost."""
        error = done.exception()
        if isinstance(error, StoreError) and not isinstance(error, StoreUnavailableError):
            self._failed = error

    # -- out -----------------------------------------------------------------------------------
    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if not self._written(item):
                return
            with self._lock:
                self.waiting -= item.rows
                self._streams -= item.stream

    def _written(self, item: _Item) -> bool:
        """Retry until the row is written or fails permanently; return False if the time is over."""
        pause = _PAUSES[0]
        while True:
            try:
                item.function(*item.values, **item.facts)
            except StoreUnavailableError as error:
                self._outage(str(error))
                if self._until is not None and time.monotonic() >= self._until:
                    item.done.set_exception(error)
                    return False
                if self._closing.wait(pause):
                    time.sleep(_PAUSES[0])
                pause = min(2 * pause, _PAUSES[1])
            except Exception as error:  # raised in the waiting caller, else logged: the run continues without the row
                self._over()
                if not item.awaited:
                    self.log("error", why=f"the database: {error}")
                item.done.set_exception(error)
                return True
            else:
                self._over()
                item.done.set_result(None)
                return True

    def _seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _outage(self, why: str) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._say(why)
        elif now - self._warned_at >= self.every:
            self._say(why)

    def _say(self, why: str) -> None:
        self._warned_at = time.monotonic()
        self.log("database_away", why=why, seconds=round(self._seconds(), 1), waiting=self.waiting, room=self.room)

    def _over(self) -> None:
        if self._since is not None:
            seconds, self._since = self._seconds(), None
            self.log("database_back", seconds=round(seconds, 1), waiting=self.waiting, left_out=self.left_out or None)
            self.left_out = 0
