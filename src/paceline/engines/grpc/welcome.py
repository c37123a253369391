"""What passes between a client's stream and its runner: the server's welcome, answers, and the rules in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from paceline.engines.grpc import protocol as p
from paceline.errors import WireError
from paceline.tree import Tree

__all__ = ["Answer", "Rules", "Welcome"]


@dataclass(frozen=True)
class Welcome:
    """What the server says at the beginning of a stream; see `hub.Progress`."""

    run: str
    incarnation: int
    number: int
    round: int
    take: int
    saved: int
    kept: bool
    plan: Mapping[str, Any]
    heartbeat: float
    directory: bytes = b""

    @staticmethod
    def read(head: Mapping[str, Any], directory: bytes) -> Welcome:
        """Check a head. Raises `WireError` for what is malformed."""
        run = p.field(head, "run", str)
        if not run or not all(c.isalnum() or c in "-_.=+" for c in run) or run.startswith(".") or len(run) > 200:
            raise WireError(f"{p.clean(run)!r} is no name of a run")
        numbers = {n: p.field(head, n, int) for n in ("incarnation", "number", "round", "take", "saved")}
        if min(numbers.values()) < 0:
            raise WireError("a welcome has numbers below 0")
        beat = min(max(p.seconds(head, "heartbeat"), 0.05), 3600.0)
        kept, plan = p.field(head, "kept", bool), p.field(head, "plan", dict)
        return Welcome(run, kept=kept, plan=plan, heartbeat=beat, directory=directory, **numbers)


class Rules(Protocol):
    """A client's policy and its books."""

    def join(self, welcome: Welcome) -> None:
        """Raise `PolicyError` where this client takes no part in such a run."""

    def call(self, head: Mapping[str, Any], message: Tree) -> None:
        """Raise `PolicyError` where this client does not answer such a call."""

    def done(self, head: Mapping[str, Any], sent: int, seconds: float) -> None:
        """Note what a call cost."""


@dataclass(frozen=True)
class Answer:
    """What goes back to the server: the head's facts, and the value where there is one."""

    head: dict[str, Any]
    value: Tree = None
    spent: float = 0.0
