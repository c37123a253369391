"""Faults on purpose: delays, narrow links, slow devices, lost, doubled, swapped and corrupted frames, and death.

A fault is text, ``kind:name=value,...``::

    kill:client=2,phase=secagg.masked,round=2,when=reply
    bandwidth:client=1,rate=500000            bytes per second, both ways
    delay:client=0,seconds=0.2,phase=train
    slow:client=3,factor=4                    work takes so many times as long
    drop | duplicate | swap | corrupt:client=1,phase=train,round=1,times=1

``client=server`` means the server: it dies when it opens a phase, or with ``when=reply`` when it closes one;
``phase=commit`` is the moment between the clients' commit and the server's checkpoint, and for a client that
before it commits. A phase is a function
(``program.function`` for a protocol's); without `phase` or `round` a fault meets all. A frame's fault strikes
the first frames that are sent in the phase, `times` often.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import Spec
from paceline.network.frames import HEAD

__all__ = ["KILL", "KINDS", "Fault", "Faults"]

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What ends a process at once; Windows has one way only."""

KINDS = ("kill", "bandwidth", "delay", "slow", "drop", "duplicate", "swap", "corrupt")


@dataclass
class Fault:
    """One fault; see the module's text for what the fields mean."""

    kind: str
    client: int | None = None
    phase: str = ""
    round: int = 0
    times: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    factor: float = 1.0
    when: str = "start"
    text: str = ""

    @staticmethod
    def parse(text: str) -> Fault:
        """Read a fault; the client None stands for the server. Raises `ConfigError` for one that cannot be."""
        spec = Spec.parse(text, "fault", modules=False)
        kind, values = spec.name, spec.options
        if kind not in KINDS:
            raise UnknownNameError("fault", kind, KINDS)
        known = ("client", "phase", "round", "times", "rate", "seconds", "factor", "when")
        for name in values:
            if name not in known:
                raise UnknownNameError("option of a fault", name, known)
        if "client" not in values:
            raise ConfigError(f"fault {text!r}: whom does it meet? say client=NUMBER or client=server")
        if values["client"] == "server":
            values["client"] = None
        if values.get("when", "start") not in ("start", "reply"):
            raise ConfigError(f"fault {text!r}: when is start or reply")
        try:
            made = Fault(kind, **values, text=text)
            fits = made.round >= 0 and made.times >= 1 and made.rate >= 0 and made.seconds >= 0 and made.factor >= 1
        except TypeError as error:
            raise ConfigError(f"fault {text!r}: {error}") from None
        if not fits or (kind == "bandwidth" and not made.rate):
            raise ConfigError(f"fault {text!r} has a number that cannot be")
        return made

    def meets(self, phase: str, round: int) -> bool:
        """Return whether it strikes in this phase of this round."""
        return self.phase in ("", phase) and self.round in (0, round)


class Faults:
    """What one process suffers; shapes its frames.

    Args:
        faults: of this process alone.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)
        self._phase, self._round = "", 0
        self._free = [0.0, 0.0]  # when the narrow link is free again: out, in
        self._held: bytes | None = None
        self.struck: list[str] = []

    @staticmethod
    def of(texts: Sequence[str], client: int | None) -> Faults | None:
        """Return the faults that a client (None: the server) suffers, or None."""
        mine = [fault for fault in map(Fault.parse, texts) if fault.client == client]
        return Faults(mine) if mine else None

    def enter(self, phase: str, round: int) -> None:
        """A call begins; here is where a process dies that shall die at its start."""
        self._phase, self._round = phase, round
        self._die("start")

    def leave(self) -> None:
        """A phase is over; here is where a server dies that shall die with all answers in its hands."""
        self._die("reply")

    async def work(self, spent: float) -> float:
        """Work is done, the answer is about to go: be slow, be late, or die. Return by how much work was slower."""
        slower = sum(spent * (fault.factor - 1.0) for fault in self._now("slow"))
        await asyncio.sleep(slower)
        for fault in self._now("delay"):
            await asyncio.sleep(fault.seconds)
        self._die("reply")
        return slower

    async def outgoing(self, frame: bytes) -> list[bytes]:
        """Return what becomes of a frame that is sent."""
        await self._narrow(0, len(frame))
        if self._held is not None:
            held, self._held = self._held, None
            return [frame, held]
        if self._strike("drop"):
            return []
        if self._strike("duplicate"):
            return [frame, frame]
        if self._strike("swap"):
            self._held = frame
            return []
        if self._strike("corrupt"):
            broken = bytearray(frame)
            broken[HEAD.size + (len(frame) - HEAD.size) // 2] ^= 0x10
            return [bytes(broken)]
        return [frame]

    async def incoming(self, frame: bytes) -> None:
        """Hold a frame that came until the narrow link would have let it through."""
        await self._narrow(1, len(frame))

    async def _narrow(self, way: int, size: int) -> None:
        """A token bucket that holds an eighth of a second."""
        rate = min((fault.rate for fault in self._now("bandwidth")), default=0.0)
        if not rate:
            return
        now = time.monotonic()
        self._free[way] = max(self._free[way], now - 0.125) + size / rate
        if self._free[way] > now:
            await asyncio.sleep(self._free[way] - now)

    def _now(self, kind: str) -> list[Fault]:
        return [f for f in self.faults if f.kind == kind and f.meets(self._phase, self._round)]

    def _strike(self, kind: str) -> bool:
        if not self._phase:
            return False
        for fault in self._now(kind):
            if fault.times:
                fault.times -= 1
                self.struck.append(fault.text)
                return True
        return False

    def _die(self, when: str) -> None:
        if any(fault.when == when for fault in self._now("kill")):
            os.kill(os.getpid(), KILL)
