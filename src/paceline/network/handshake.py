"""Interface between a client's stream and its runner: welcome, answers, and policy rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from paceline.aggregation.secure.messages import MALFORMED
from paceline.core.engine import Receipt
from paceline.core.errors import PacelineError, PolicyError, ProtocolError, WireError
from paceline.core.failures import DECLINED
from paceline.core.names import is_name
from paceline.core.tree import Tree
from paceline.network import protocol as p

__all__ = ["HIDDEN", "MALFORMED", "Answer", "Rules", "Welcome", "reason_of"]


@dataclass(frozen=True)
class Welcome:
    """The server's first message on a stream; see `Progress` for the fields."""

    run: str
    incarnation: int
    number: int
    round: int
    take: int
    saved: int
    kept: int
    lost: tuple[int, ...]
    plan: Mapping[str, Any]
    heartbeat: float
    directory: bytes = b""

    @staticmethod
    def read(head: Mapping[str, Any], directory: bytes) -> Welcome:
        """Validate and parse a head.

        Raises:
            WireError: the head is malformed.
        """
        run = p.field(head, "run", str)
        if not is_name(run):
            raise WireError(f"{p.clean(run)!r} is not a valid run name")
        numbers = {n: p.field(head, n, int) for n in ("incarnation", "number", "round", "take", "saved", "kept")}
        if min(numbers.values()) < 0:
            raise WireError("a welcome contains a negative number")
        beat = min(max(p.seconds(head, "heartbeat"), 0.05), 3600.0)
        lost, plan = p.operations(head), p.field(head, "plan", dict)
        return Welcome(run, lost=lost, plan=plan, heartbeat=beat, directory=directory, **numbers)


class Rules(Protocol):
    """Policy and accounting of a client."""

    def admit(self, welcome: Welcome) -> None:
        """Raise `PolicyError` if the policy excludes this run. Calls are still judged by the rules of the run before."""

    def join(self, welcome: Welcome) -> None:
        """Judge calls by the rules of this run from now on; it was admitted, and its worker exists."""

    def closed(self) -> list[str]:
        """Return the reasons why this client does not participate at present but will later; empty if it does."""

    def call(self, head: Mapping[str, Any], message: Tree) -> None:
        """Raise `PolicyError` if the policy forbids answering this call, `ProtocolError` if its message is malformed.

        Args:
            head: head of the call.
            message: what the client function receives, see `delivered`.
        """

    def done(self, head: Mapping[str, Any], sent: int, seconds: float) -> None:
        """Record the cost of an answer.

        Args:
            head: head of the call.
            sent: bytes of the reply.
            seconds: seconds of work.
        """

    def moved(self, run: str, size: int) -> None:
        """Record bytes that crossed the wire beside the replies in `done`: each call once it has arrived, and repeated replies.

        Args:
            run: the run that the server has named on this stream.
            size: number of bytes.
        """


HIDDEN = "no reply; see this client's own log (if a run with the same seed had other clients, use another seed)"
"""The only reason sent to the server if sums are secure: an actual reason may contain values of the client's data.

The exception is a call that exceeds the client's message limit, which depends on the call's size alone.
"""


@dataclass(frozen=True)
class Answer:
    """Answer to the server: facts in the head, and the value if there is one.

    Args:
        head: facts to send.
        value: the reply.
        spent: seconds of work, for this client's own log.
        why: reason why there is no reply, for this client's own log.
        trained: whether the client trained, for its own clock.
    """

    head: dict[str, Any]
    value: Tree = None
    spent: float = 0.0
    why: str | None = None
    trained: bool = False

    @staticmethod
    def of(
        number: int, receipt: Receipt, reported: float = 0.0, trained: bool = False, spent: float = 0.0, hidden: bool = False
    ) -> Answer:
        """Return the answer for a receipt.

        Args:
            number: id of the call.
            receipt: result of the call.
            told: seconds reported to the server.
            trained: whether the client trained.
            spent: seconds of work.
            hidden: omit everything that depends on data: reasons and times. Sizes follow from shapes.
        """
        why, worked = receipt.dropped, trained
        if hidden:
            receipt = replace(receipt, compute=0.0, network=0.0, dropped=why if why in (None, DECLINED) else HIDDEN)
            reported, trained = 0.0, False
        head = {"id": number, "dropped": receipt.dropped, "seconds": reported, "trained": trained}
        head |= {"compute": float(receipt.compute), "network": float(receipt.network)}
        return Answer(head | {"down": receipt.bytes_down, "up": receipt.bytes_up}, receipt.value, spent, why, worked)


def reason_of(error: Exception) -> str:
    """Return the description of an error that is sent to the server: a refusal, or a local fault."""
    if isinstance(error, ProtocolError | WireError | PolicyError):
        return f"refused: {error}"
    if isinstance(error, PacelineError):
        return f"{type(error).__name__}: {error}"
    return f"refused: a malformed call ({type(error).__name__}: {error})"
