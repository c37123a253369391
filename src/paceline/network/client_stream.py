"""Connection management of a client: connects, answers calls, and reconnects with exponential backoff."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from paceline.core.address import Address
from paceline.core.errors import EngineError, IdentityError, WireError
from paceline.core.serialization import NETWORK
from paceline.network import protocol as p
from paceline.network.buffers import Budget
from paceline.network.client_runner import Runner
from paceline.network.connection import Dial
from paceline.network.fault_injection import Faults
from paceline.network.frames import MessagePart
from paceline.network.job_queue import JobQueue
from paceline.network.stream import Link
from paceline.network.tls import Credentials, options

__all__ = ["Node", "NodeSettings"]

_CODE = grpc.StatusCode
_JITTER = random.SystemRandom()
"""Separate generator, because training uses Python's global one."""


class _Ended(Exception):
    """The server closed the stream."""

    def __init__(self, code: grpc.StatusCode, why: str | None) -> None:
        super().__init__(why or code.name)
        self.code = code


_BROKEN = (_Ended, WireError, OSError, TimeoutError)


@dataclass(frozen=True)
class NodeSettings:
    """Connection settings of a client.

    Args:
        address: address of the server.
        first, most: initial and maximal delay in seconds before a reconnect. The delay doubles with each try and is reduced
            at random by up to half, so that clients do not all reconnect at once.
        limit: largest accepted message of the server, in bytes.
        pack: whether zstd may be used.
        attempts: consecutive tries without a welcome before the client gives up; 0 for no limit.
        name: server name in its certificate, if different from the address.
        stay: wait for the next run when one has ended.
        proxy: see `tls.through`.
        good: seconds of service, or an answer within them, after which the delay is reset.
    """

    address: Address
    first: float = 0.2
    most: float = 30.0
    limit: int = 4 << 30
    pack: bool = False
    attempts: int = 0
    name: str = ""
    stay: bool = False
    proxy: str = ""
    good: float = 60.0


@dataclass
class Node:
    """A client for the duration of its participation.

    Args:
        settings: connection settings.
        credentials: certificate and key of the client, and the trusted roots.
        runner: executes the calls.
        note: receives events: a name and facts.
        faults: injected faults; None for none.
        pool: executor with one thread for the runner; shared by the clients of one process.
        check: raises `IdentityError` if this client's certificate can never become valid again.
        instance: 16 random bytes that identify this process.
    """

    settings: NodeSettings
    credentials: Credentials
    runner: Runner
    note: Callable[[str, dict[str, Any]], None] = lambda event, facts: None
    faults: Faults | None = None
    pool: Executor | None = None
    check: Callable[[], None] = lambda: None
    instance: bytes = field(default_factory=lambda: os.urandom(16))

    def __post_init__(self) -> None:
        self._dial: Dial | None = None
        self._over = asyncio.Event()
        self._slow = self._left = False
        self._jobs: JobQueue | None = None
        self.ended = ""

    @property
    def welcomed(self) -> bool:
        """Whether this client is connected and has joined the run."""
        return self._dial is not None and self._jobs is not None and self._jobs.joined > 0

    async def run(self) -> str:
        """Participate until the run has ended or `stop` is called; return the reason.

        Raises:
            EngineError: the server will never accept this client, or did not answer within `attempts` tries.
            IdentityError: the server reports that this client's certificate was revoked or is unknown.
            PacelineError: any error that prevents the runner from working.
        """
        pool = self.pool or ThreadPoolExecutor(1, "runner")
        settings = self.settings
        limits = replace(NETWORK, size=settings.limit, header=settings.limit)
        jobs = JobQueue(self.runner, pool, limits, self._put, self.note, settings.pack, self.faults)
        self._jobs = jobs
        work = asyncio.ensure_future(jobs.work())
        over = asyncio.ensure_future(self._over.wait())
        try:
            await self._reconnect_loop(jobs, work, over)
            await jobs.finish(1.0 if self._left else 5.0)
        finally:
            if self.pool is None:
                pool.shutdown(wait=False, cancel_futures=True)
            for task in (work, over):
                task.cancel()
            await asyncio.gather(work, over, return_exceptions=True)
        return self.ended

    async def _reconnect_loop(self, jobs: JobQueue, work: asyncio.Future[None], over: asyncio.Future[Any]) -> None:
        failed = missed = 0
        while not self._over.is_set():
            before, answered, began = jobs.joined, jobs.answered, time.monotonic()
            stream = asyncio.ensure_future(self._stream(jobs))
            try:
                await asyncio.wait({stream, work, over}, return_when=asyncio.FIRST_COMPLETED)
                if not stream.done():
                    await asyncio.wait({stream}, timeout=0.2)  # flush queued messages
            finally:
                stream.cancel()
            (ended,) = await asyncio.gather(stream, return_exceptions=True)
            if isinstance(ended, _BROKEN):
                self._broken(ended)
            elif isinstance(ended, Exception):
                raise ended
            if work.done():
                work.result()
            welcomed = jobs.joined > before
            served = welcomed and (jobs.answered > answered or time.monotonic() - began >= self.settings.good)
            failed, missed = 1 if served else failed + 1, 0 if welcomed else missed + 1
            if not welcomed:
                self.check()
            if self.settings.attempts and missed >= self.settings.attempts:
                raise EngineError(
                    f"the server {self.settings.address} sent no welcome in {missed} {'attempt' if missed == 1 else 'attempts'}"
                )
            await self._pause(failed)

    async def stop(self, why: str = "stopped") -> None:
        """Leave the federation."""
        self.ended, self._left = self.ended or why, True
        self._put(p.LEAVE, {"why": why})
        self._over.set()

    def _broken(self, error: BaseException) -> None:
        code, why = getattr(error, "code", None), str(error) or type(error).__name__
        self.note("broken", {"why": p.clean(why), "code": code.name if code else type(error).__name__})
        if code in (_CODE.FAILED_PRECONDITION, _CODE.UNIMPLEMENTED):
            raise EngineError(f"the server refused this client: {p.clean(why)}") from error
        if code is _CODE.PERMISSION_DENIED:
            raise IdentityError(f"the server {self.settings.address} no longer admits this client: {p.clean(why)}") from error
        self._slow = code in (_CODE.UNAUTHENTICATED, _CODE.ALREADY_EXISTS)

    async def _pause(self, failed: int) -> None:
        wait = self.settings.first * 2.0 ** min(failed - 1, 20) * (5.0 if self._slow else 1.0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), min(wait, self.settings.most) * _JITTER.uniform(0.5, 1.0))

    # -- one stream ----------------------------------------------------------------------------
    async def _stream(self, jobs: JobQueue) -> None:
        credentials, chosen = self.credentials.channel(), options(self.settings.name, proxy=self.settings.proxy)
        async with grpc.aio.secure_channel(self.settings.address.target, credentials, options=chosen) as channel:
            call = channel.stream_stream(p.METHOD)()

            async def read() -> bytes | None:
                frame = await call.read()
                return None if frame is grpc.aio.EOF else frame

            link = Link(read, call.write, limit=self.settings.limit, budget=Budget(), shaper=self.faults, skips=(p.CALL,))
            self._dial = Dial(link, jobs, self._bye)
            try:
                await self._dial.talk(self.instance, self.settings.pack)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                async with asyncio.timeout(5.0):  # a write fails before the status arrives
                    raise _Ended(await call.code(), await call.details()) from error
            finally:
                self._dial = None
                call.cancel()

    def _bye(self, head: dict[str, Any]) -> None:
        self.note("bye", {"why": p.clean(head.get("why", ""))})
        if head.get("done") is True and not self.settings.stay:
            self.ended = "the run has ended"
            self._over.set()

    def _put(self, kind: int, head: Any = None, *parts: MessagePart) -> None:
        if self._dial is not None:
            self._dial.put(kind, head, *parts)
