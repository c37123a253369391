"""What passes between a client's stream and its runner: the server's welcome, answers, and the rules in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from paceline.aggregation.secure.messages import MALFORMED
from paceline.core.engine import Receipt
from paceline.core.errors import PacelineError, PolicyError, ProtocolError, WireError
from paceline.core.names import is_name
from paceline.core.tree import Tree
from paceline.network import protocol as p

__all__ = ["HIDDEN", "MALFORMED", "Answer", "Rules", "Welcome", "reason_of"]


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
        if not is_name(run):
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

    def closed(self) -> list[str]:
        """Return why this client takes no part just now, though it will later; nothing where it does."""

    def call(self, head: Mapping[str, Any], message: Tree) -> None:
        """Raise `PolicyError` where this client does not answer such a call."""

    def done(self, head: Mapping[str, Any], sent: int, seconds: float) -> None:
        """Note what a call cost."""


HIDDEN = "no answer; this client's own log says why (after a run with the same seed over other clients: take another seed)"
"""All that a server learns of why a client does not answer where sums are secure: a reason may hold values of its data."""


@dataclass(frozen=True)
class Answer:
    """What goes back to the server: the head's facts, and the value where there is one.

    Args:
        head: what is sent.
        value: the reply.
        spent: seconds of work, for this client's own log.
        why: why there is no reply, for this client's own log.
        trained: whether the client trained, for its own clock.
    """

    head: dict[str, Any]
    value: Tree = None
    spent: float = 0.0
    why: str | None = None
    trained: bool = False

    @staticmethod
    def of(
        number: int, receipt: Receipt, told: float = 0.0, trained: bool = False, spent: float = 0.0, hidden: bool = False
    ) -> Answer:
        """Return the answer to call `number` that a receipt makes.

        Args:
            number: of the call.
            receipt: what came of it.
            told: seconds that the server is told.
            trained: whether the client trained.
            spent: seconds of work.
            hidden: leave out everything that depends on data: reasons and times; sizes follow from shapes.
        """
        why, worked = receipt.dropped, trained
        if hidden:
            receipt = replace(receipt, compute=0.0, network=0.0, dropped=None if why is None else HIDDEN)
            told, trained = 0.0, False
        head = {"id": number, "dropped": receipt.dropped, "seconds": told, "trained": trained}
        head |= {"compute": float(receipt.compute), "network": float(receipt.network)}
        return Answer(head | {"down": receipt.bytes_down, "up": receipt.bytes_up}, receipt.value, spent, why, worked)


def reason_of(error: Exception) -> str:
    """Return what the server is told of an error: a refusal, or that something is wrong here."""
    if isinstance(error, ProtocolError | WireError | PolicyError):
        return f"refused: {error}"
    if isinstance(error, PacelineError):
        return f"{type(error).__name__}: {error}"
    return f"refused: a malformed call ({type(error).__name__}: {error})"
