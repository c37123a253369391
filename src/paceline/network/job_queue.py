"""Job queue of a client: executes its work sequentially in one thread, independent of the state of its streams.

The last answer is cached until the next call: a server that resends a call after a broken stream receives the same
answer, and no work is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from paceline.core.errors import (
    DataFormatError,
    IdentityError,
    PacelineError,
    PolicyError,
    ProtocolError,
    StoreError,
    WireError,
)
from paceline.core.serialization import Limits
from paceline.network import protocol as p
from paceline.network.client_runner import Runner
from paceline.network.fault_injection import Faults
from paceline.network.frames import MessagePart
from paceline.network.handshake import MALFORMED, Answer, Welcome
from paceline.network.interfaces import excess
from paceline.network.stream import Message

__all__ = ["JobQueue"]

AGAIN = 5.0
"""Seconds between checks whether an obstacle to participation has passed."""

_Key = tuple[str, int]
"""A run, and the id of a call within it."""

Job = Callable[[], Awaitable[None]]
Put = Callable[..., None]
Note = Callable[[str, dict[str, Any]], None]


class JobQueue:
    """Passes messages to the runner and its answers to the stream.

    Args:
        runner: executes the calls.
        pool: executor with one thread.
        limits: decoding limits of the server's messages.
        put: sends a message on the open stream; does nothing if there is none.
        note: receives events.
        pack: compress answers.
        faults: injected faults; None for none.
    """

    def __init__(
        self, runner: Runner, pool: Executor, limits: Limits, put: Put, note: Note, pack: bool, faults: Faults | None
    ) -> None:
        self._runner, self._pool, self._limits, self._put, self._note = runner, pool, limits, put, note
        self._pack, self._faults = pack, faults
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._last: tuple[_Key, dict[str, Any], tuple[MessagePart, ...]] | None = None
        self._known: _Key | None = None
        self.joined = self.answered = 0
        self._welcome: Welcome | None = None
        self._open = False
        self._held: list[Job] = []
        """Commits and rollbacks that follow the welcome of a run that this client could not join yet."""
        self._why: list[str] = []

    async def work(self) -> None:
        """Execute jobs in order, until cancelled."""
        while True:
            job = await self._jobs.get()
            try:
                await job()
            except (PacelineError, *MALFORMED) as error:
                event = "disk" if isinstance(error, StoreError) else "keys" if isinstance(error, IdentityError) else "malformed"
                self._note(event, {"why": p.clean(f"{type(error).__name__}: {error}")})
            self._jobs.task_done()

    async def finish(self, seconds: float) -> None:
        """Wait at most `seconds` until all jobs are done, including a final commit."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._jobs.join(), seconds)

    def join(self, welcome: Welcome) -> None:
        """Synchronise with the server; report to it that this client is ready, or why it does not participate."""
        self._welcome, at = welcome, self._runner.at
        soon = at is not None and (at.run, at.incarnation) == (welcome.run, welcome.incarnation)
        if soon:
            self._ready(welcome)
        self._jobs.put_nowait(partial(self._join, welcome, soon))

    def call(self, message: Message) -> None:
        """Answer a call, or resend the cached answer."""
        key = ("" if self._welcome is None else self._welcome.run, p.field(message.head, "id", int))
        if self._last is not None and self._last[0] == key:
            _, head, parts = self._last
            message.close()
            self._put(p.REPLY, head, *parts)
            self._count(key, message.opening.raw + head["up"])
        elif key == self._known:
            message.close()  # already in progress
            self._count(key, message.opening.raw)
        else:
            self._known = key
            self._jobs.put_nowait(partial(self._answer, key, message))

    def sent(self, number: int, seconds: float) -> None:
        """Note how long the reply to a call took to send."""
        self._runner.sent(number, seconds)

    def settle(self, message: Message) -> None:
        """Queue a commit, a rollback or a new directory behind the calls before it."""
        if message.kind == p.COMMIT:
            self._jobs.put_nowait(partial(self._settled, partial(self._commit, message.head)))
        elif message.kind == p.ROLLBACK:
            self._jobs.put_nowait(partial(self._settled, partial(self._in_thread, self._runner.rollback)))
        else:
            self._jobs.put_nowait(partial(self._in_thread, self._runner.learn, p.directory_of(message)))

    def _count(self, key: _Key, size: int) -> None:
        """Count the bytes of a call that is not executed."""
        self._jobs.put_nowait(partial(self._in_thread, self._runner.moved, key[0], size))

    # -- jobs ----------------------------------------------------------------------------------
    async def _join(self, welcome: Welcome, reported: bool, again: bool = False) -> None:
        held, self._held = self._held if again else [], []
        try:
            await self._in_thread(self._runner.join, welcome)
        except (PacelineError, *MALFORMED) as error:
            plain = isinstance(error, PolicyError | ProtocolError)
            later = isinstance(error, StoreError)  # usually a full disk, which may be freed
            name, own = type(error).__name__, isinstance(error, DataFormatError)
            why = f"{name}: see this client's own log" if own else error if plain else f"{name}: {error}"
            cause = error if own else error.__cause__  # this text may contain values of the client's data
            log = "" if cause is None else f"{type(cause).__name__}: {cause}"
            self._refuse(getattr(error, "reasons", ()) or [why], later, log)
            if later:
                self._held = held
                self._soon(welcome, self._join, False, True)
            return
        for settle in held:
            await settle()
        if not reported:
            self._ready(welcome)

    async def _settled(self, settle: Job) -> None:
        """Settle a round, now or as soon as this client has joined the run; the next welcome covers what is left."""
        if self._runner.member:
            await settle()
        else:
            self._held.append(settle)

    def _ready(self, welcome: Welcome) -> None:
        """Report to the server that this client participates, or why it does not at this time of day."""
        closed = self._runner.closed()
        self.joined, self._open = self.joined + 1, not closed
        if closed:
            self._refuse(closed, later=True)
        else:
            self._why = []
            self._note("ready", {"run": welcome.run, "round": welcome.round, "incarnation": welcome.incarnation})
            self._put(p.READY)
        self._soon(welcome, self._look)

    def _refuse(self, reasons: Sequence[Any], later: bool, own: str = "") -> None:
        """Report to the server why this client does not participate; `own` goes to the client's log only."""
        reported = [p.clean(r) for r in reasons][:20]
        self._put(p.REFUSE, {"reasons": reported, "later": later})
        if reported != self._why:
            self._note("refused", {"reasons": reported, "later": later} | ({"why": p.clean(own)} if own else {}))
        self._why = reported

    async def _look(self, welcome: Welcome) -> None:
        """Report to the server when this client's participation hours begin or end."""
        if self._open == bool(self._runner.closed()):
            self._ready(welcome)
        else:
            self._soon(welcome, self._look)

    def _soon(self, welcome: Welcome, job: Callable[..., Awaitable[None]], *values: Any) -> None:
        """Run a job after `AGAIN` seconds, unless the server has sent another welcome in the meantime."""

        def begin() -> None:
            if self._welcome is welcome:
                self._jobs.put_nowait(partial(job, welcome, *values))

        asyncio.get_running_loop().call_later(AGAIN, begin)

    async def _commit(self, head: dict[str, Any]) -> None:
        if self._faults is not None:
            self._faults.enter("commit", p.field(head, "round", int))
        await self._in_thread(self._runner.commit, head)

    async def _answer(self, key: _Key, message: Message) -> None:
        head = message.head
        program, function = p.field(head, "program", str), p.field(head, "function", str)
        round = p.field(head, "round", int)
        name = function if program == "method" else f"{program}.{function}"
        if self._faults is not None:
            self._faults.enter(name, round)
        try:
            answer, parts = await self._in_thread(self._compute, key, message)
        finally:
            message.close()
        if self._faults is not None:
            self._runner.slowed(answer, await self._faults.work(answer.spent))
        self._last = (key, answer.head, parts)
        why = answer.why
        facts = {"round": round, "function": p.clean(name), "seconds": answer.spent}
        self._note("answered" if why is None else "not_answered", facts if why is None else {**facts, "why": why})
        self._put(p.REPLY, answer.head, *parts)
        self.answered += why is None
        if self._runner.waiting:
            await self._in_thread(self._runner.idle)

    def _compute(self, key: _Key, message: Message) -> tuple[Answer, tuple[MessagePart, ...]]:
        """Count a call, decode it, execute it and encode the answer; runs on the runner's thread."""
        try:
            self._runner.moved(key[0], message.opening.raw)
        except StoreError as error:
            return self._runner.refused(key[1], error), ()
        if message.excess:
            size, name = max(message.opening.size, message.opening.raw), p.clean(message.head["function"], 100)
            why = excess(f"the message of {name!r}", size, self._limits.size, "client.limit")
            return self._runner.refused(key[1], WireError(why), told=True), ()
        if not message.parts:
            raise WireError("a call arrived without its message")
        trees = [message.tree(i, self._limits) for i in range(len(message.parts))]
        head = {**message.head, "size": message.opening.raw}
        self._runner.received(message.ended - message.began)
        answer = self._runner.call(head, trees[0], trees[1] if len(trees) > 1 else None)
        return answer, () if answer.head["dropped"] is not None else (MessagePart.of(answer.value, self._pack),)

    async def _in_thread(self, function: Callable[..., Any], *values: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *values)
