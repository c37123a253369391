"""Fault injection for tests: delays, bandwidth limits, slow devices, damaged frames, and killed processes.

A fault is specified as text, ``kind:name=value,...``::

    kill:client=2,phase=secagg.masked,round=2,when=reply
    bandwidth:client=1,rate=500000            bytes per second, both directions
    delay:client=0,seconds=0.2,phase=train
    slow:client=3,factor=4                    work takes `factor` times as long
    drop | duplicate | swap | corrupt:client=1,phase=train,round=1,times=1

``client=server`` selects the server: it is killed when it opens a phase, or with ``when=reply`` when it closes one;
``phase=commit`` is the moment between the clients' commit and the server's checkpoint; on a client, the moment before
its commit. A phase is the name of a function (``program.function`` for a protocol's); without `phase` or `round` a fault
applies to all. A frame fault applies to the first `times` frames sent in the phase.
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
"""Signal that kills a process immediately; Windows has only one."""

KINDS = {
    "kill": "when",
    "bandwidth": "rate",
    "delay": "seconds",
    "slow": "factor",
    **dict.fromkeys(("drop", "duplicate", "swap", "corrupt"), "times"),
}
"""Kinds of faults, and the option that each takes beside `client`, `phase` and `round`."""

_NEEDED = {
    "bandwidth": "rate, in bytes per second,",
    "delay": "seconds",
    "slow": "factor, how many times as long work takes,",
}
"""Options that have no default, by kind."""


@dataclass
class Fault:
    """One fault; see the module docstring for the fields."""

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
        """Parse a fault; client None stands for the server.

        Raises:
            UnknownNameError: unknown kind or option.
            ConfigError: missing client or invalid value.

        Example:
            >>> Fault.parse("delay:client=0,seconds=0.2").seconds
            0.2
        """
        spec = Spec.parse(text, "fault", modules=False)
        kind, values = spec.name, spec.options
        if kind not in KINDS:
            raise UnknownNameError("fault", kind, KINDS)
        own = KINDS[kind]
        known = ("client", "phase", "round", own)
        for name in values:
            if name not in known:
                raise UnknownNameError(f"option of the fault {kind}", name, known)
        if "client" not in values:
            raise ConfigError(f"fault {text!r}: the target is missing; add client=NUMBER or client=server")
        if kind in _NEEDED and own not in values:
            raise ConfigError(f"fault {text!r}: {_NEEDED[kind]} is missing; add {own}=NUMBER")
        if values["client"] == "server":
            if kind in ("slow", "delay"):
                raise ConfigError(f"fault {text!r}: the server does no work that could be slowed; give a client's number")
            values["client"] = None
        elif type(values["client"]) is not int or values["client"] < 0:
            raise ConfigError(f"fault {text!r}: client must be a client's number or server")
        if values.get("when", "start") not in ("start", "reply"):
            raise ConfigError(f"fault {text!r}: when must be start or reply")
        try:
            made = Fault(kind, **values, text=text)
            fits = made.round >= 0 and made.times >= 1 and made.rate >= 0 and made.seconds >= 0 and made.factor >= 1
        except TypeError as error:
            raise ConfigError(f"fault {text!r}: {error}") from None
        if not fits or (kind in _NEEDED and getattr(made, own) == getattr(Fault, own)):
            raise ConfigError(f"fault {text!r}: a number is out of range")
        if made.phase == "commit" and made.when == "reply":
            raise ConfigError(f"fault {text!r}: there is no reply in the phase commit")
        return made

    def meets(self, phase: str, round: int) -> bool:
        """Return whether the fault applies to this phase of this round."""
        return self.phase in ("", phase) and self.round in (0, round)


class Faults:
    """Faults injected into one process; implements `Shaper`.

    Args:
        faults: faults of this process only.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)
        self._phase, self._round = "", 0
        self._free = [0.0, 0.0]  # time at which the limited link is free again: out, in
        self._held: bytes | None = None
        self.struck: list[str] = []

    @staticmethod
    def of(texts: Sequence[str], client: int | None) -> Faults | None:
        """Return the faults of a client (None: the server), or None if it has none."""
        mine = [fault for fault in map(Fault.parse, texts) if fault.client == client]
        return Faults(mine) if mine else None

    def enter(self, phase: str, round: int) -> None:
        """Begin a phase; kills a process that must die at its start."""
        self._phase, self._round = phase, round
        self._die("start")

    def leave(self) -> None:
        """End a phase; kills a server that must die after it has received all replies."""
        self._die("reply")

    async def work(self, spent: float) -> float:
        """Delay a completed answer or kill the process before it is sent; return the added work seconds.

        Args:
            spent: actual seconds of work.
        """
        slower = sum(spent * (fault.factor - 1.0) for fault in self._now("slow"))
        await asyncio.sleep(slower)
        for fault in self._now("delay"):
            await asyncio.sleep(fault.seconds)
        self._die("reply")
        return slower

    async def outgoing(self, frame: bytes) -> list[bytes]:
        """Return the frames to send in place of a frame."""
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
        """Delay an incoming frame according to the bandwidth limit."""
        await self._narrow(1, len(frame))

    async def _narrow(self, way: int, size: int) -> None:
        """Apply a token bucket with a capacity of an eighth of a second."""
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
