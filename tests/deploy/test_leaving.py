"""A client that is asked to leave, on systems whose loops take no signal handlers."""

from __future__ import annotations

import asyncio
import os
import signal

from paceline.deploy.client.client import participate


class _Node:
    """Stands in for a client that waits for its server."""

    def __init__(self) -> None:
        self.why = ""
        self.over = asyncio.Event()

    async def stop(self, why: str) -> None:
        self.why = why
        self.over.set()

    async def run(self) -> str:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(self.over.wait(), 5)
        return self.why


def test_sigterm_reaches_a_client_where_loops_take_no_handlers(monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", refuse)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    async def go() -> str:
        return await participate(_Node())

    try:
        assert asyncio.run(go()) == "the client was requested to stop"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
