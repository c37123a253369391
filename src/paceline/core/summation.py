"""What a federation stands on: how a sum is asked for and what comes back, who is there, and what time it is."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from paceline.core.engine import ClientFunction, Receipt
from paceline.core.tree import Tree

if TYPE_CHECKING:
    from paceline.core.federation import Federation

__all__ = ["Aggregation", "Availability", "CallInfo", "Clock", "SumRequest", "Summed"]


class Availability(Protocol):
    """What the core needs of the devices."""

    @property
    def always(self) -> bool:
        """Whether everybody can be asked in every round."""

    def available(self, client: int, round: int) -> bool:
        """Return whether the client can be asked in this round."""

    def rate(self, client: int) -> float:
        """Return the part of the rounds in which it can be, in the long run."""


class Clock(Protocol):
    """Virtual time, in seconds since the start of the run."""

    now: float

    @property
    def phases(self) -> MutableSequence[Any]:
        """The latest calls: name, seconds, and what of them the slowest client spent on work and transfers."""

    def advance(self, name: str, receipts: Sequence[Receipt], deadline: float | None) -> float:
        """Let a synchronous call pass; return the seconds it took."""

    def wait(self, seconds: float) -> None:
        """Let seconds pass in which the server asks nothing."""


@dataclass(frozen=True)
class SumRequest:
    """A sum that a method asks for."""

    function: str
    message: Tree
    cohort: tuple[int, ...]
    declared: ClientFunction
    deadline: float | None = None


@dataclass
class Summed:
    """A formed sum: float64 sums of tensors, scalars and per-coordinate weights, in the terms' order.

    Args:
        structure: of the replies, see `Terms`.
        tensors, scalars, denominators: the sums.
        survivors: clients whose replies are in it.
        notes: figures for the round's metrics, such as the number of clipped coordinates.
    """

    structure: Any
    tensors: list[Any]
    scalars: list[float]
    denominators: list[Any]
    survivors: tuple[int, ...]
    notes: dict[str, float] = field(default_factory=dict)


@dataclass
class CallInfo:
    """What the server knows about its last sum or call.

    Args:
        seconds: virtual time it took, all phases.
        bytes_up, bytes_down: summed over clients and phases.
        arrived: seconds until each client's reply came; in a sum of several phases, of the longest one.
        dropped: clients without a reply, and why.
        notes: see `Summed`.
    """

    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    arrived: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


class Aggregation(Protocol):
    """How a sum is formed."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def sees_each(self) -> bool:
        """Whether the server could see single replies: ``each`` functions are allowed only then."""

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Ask the cohort and form the sum."""

    def check(self, fed: Federation) -> list[str]:
        """Return misfits with this federation."""
