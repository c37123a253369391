"""What a federation is built on: engines with their calls, replies and channels; aggregations; who is there; what time it is.

`Engine`, `Aggregation` and `Sink` are base classes: what is optional has a default there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from paceline.core.declarations import Bound, ClientFunction, declaration
from paceline.core.errors import PacelineError
from paceline.core.params import Params
from paceline.core.placement import on_host
from paceline.core.services import Services
from paceline.core.tree import Tree
from paceline.core.wire import wire_size

if TYPE_CHECKING:
    from paceline.core.federation import Federation

__all__ = [
    "Aggregation",
    "Availability",
    "Bound",
    "Call",
    "CallInfo",
    "Channel",
    "ClientFunction",
    "Clock",
    "Each",
    "Engine",
    "Receipt",
    "Sink",
    "SumRequest",
    "Summed",
    "declaration",
    "delivered",
]


@dataclass(frozen=True)
class Call:
    """Run one client function on some clients.

    Args:
        function: its name.
        program: whose function: ``"method"``, or a protocol's name such as ``"secagg"``.
        message: what the server sends: one tree for all clients.
        each_message: a further part of the message for each client, where they differ.
        clients: who runs it.
        round: the round, from 1.
        stream: names the clients' random streams of this call: function, and which call of it this is.
        channel: how replies leave the client.
        deadline: virtual seconds after which a reply counts as dropped, or None.
        peers: records published by other clients, by receiving client.
        chunks: `clients` in the groups that may work as one; an engine forms them.
        operation: number of the method's operation in the round; `kernels`: how stacks of clients are computed, set by an engine.
    """

    function: str
    message: Tree
    clients: Sequence[int]
    round: int
    stream: str
    channel: Channel
    program: str = "method"
    each_message: Mapping[int, Tree] = field(default_factory=dict)
    deadline: float | None = None
    peers: Mapping[int, Mapping[int, Tree]] = field(default_factory=dict)
    chunks: Sequence[Sequence[int]] = ()
    operation: int = 0
    kernels: str = "plain"


def delivered(message: Tree, own: Tree) -> Tree:
    """Return what a client function receives: the common message or, if the client gets a further part, both of them.

    A real client's policy judges the value that is returned here, and the function works on it.

    Example:
        >>> delivered(1, None), delivered(1, 2)
        (1, {'all': 1, 'own': 2})
    """
    return message if own is None else {"all": message, "own": own}


@dataclass(slots=True)
class Receipt:
    """One client's answer to a call, less its content where that went into a partial sum.

    Args:
        client: who.
        value: the reply, where the channel lets it through singly.
        compute, network: seconds that working and both transfers took (virtual, or measured).
        bytes_down, bytes_up: what crossed the wire for this client.
        dropped: why there is no reply (``"late"``, ``"gone"``, ``"declined"``, ``"refused: ..."`` or an error's text), or None.
        error: the class of `paceline.core.errors` that the error belongs to, where it is one of them.
    """

    client: int
    value: Any = None
    compute: float = 0.0
    network: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: str | None = None
    error: str = ""


class Sink:
    """A channel's end at one worker: takes replies, and gives one partial at the end."""

    stands_for_all: ClassVar[bool] = False
    """Whether `add_uniform` may succeed."""

    def size(self, reply: Tree) -> int:
        """Return the bytes that the client sends for this reply."""
        return wire_size(reply)

    def sizes(self, replies: Sequence[Tree]) -> list[int]:
        """Return what `size` does for each reply."""
        return [self.size(reply) for reply in replies]

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Any:
        """Take a reply; return what goes on singly, or None. `seed` gives that of the client's encoding stream."""
        raise NotImplementedError

    def add_all(self, entries: Sequence[tuple[int, Tree, Callable[[], int]]]) -> list[Any]:
        """Take the replies of clients that worked together; return what `add` does, or its error, for each."""
        values: list[Any] = []
        for entry in entries:
            try:
                values.append(self.add(*entry))
            except Exception as error:
                values.append(error)
        return values

    def add_uniform(self, clients: Sequence[int], reply: Tree) -> bool:
        """Take one reply that stands for one of each client; return whether that could be done."""
        return False

    def partial(self) -> Any:
        """Return this worker's partial sum, or None."""
        return None


class Channel(Protocol):
    """How replies leave the clients: singly, or added up. Small, and the same on every worker."""

    def open(self) -> Sink:
        """Return a new sink."""


class Each:
    """The channel that lets every reply through singly."""

    def open(self) -> Sink:
        """Return a sink that keeps nothing."""
        return _EachSink()


class _EachSink(Sink):
    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Any:
        return on_host(reply)

    def add_all(self, entries: Sequence[tuple[int, Tree, Callable[[], int]]]) -> list[Any]:
        """Pass several replies on; the host waits once for their tensors."""
        with contextlib.suppress(PacelineError):  # the one at fault is found below
            return list(on_host([reply for _, reply, _ in entries]))
        return super().add_all(entries)


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

    def since(self, start: float) -> list[dict[str, Any]]:
        """Return the calls from a time on in plain types: who computed, sent and waited, with times relative to it."""


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
        tensors, scalars, denominators: the sums; tensors may be on a GPU.
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

    def add(self, other: CallInfo) -> None:
        """Add a further phase of the same sum."""
        self.seconds += other.seconds
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        if not self.arrived:
            self.arrived = dict(other.arrived)
        else:
            for client, seconds in other.arrived.items():
                self.arrived[client] = max(self.arrived.get(client, 0.0), seconds)
        self.dropped.update(other.dropped)


class Aggregation:
    """How a sum is formed.

    Args:
        name: as on the command line.
        sees_each: whether the server could see single replies: ``each`` functions are allowed only then.
    """

    name: str = ""
    sees_each: bool = False

    @property
    def programs(self) -> Mapping[str, Any]:
        """Protocols whose client functions may run beside the method's, by name; see `paceline.core.protocol`."""
        return {}

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Ask the cohort and form the sum."""
        raise NotImplementedError

    def check(self, fed: Federation) -> list[str]:
        """Return misfits with this federation."""
        return []

    def reply_size(self, model: Params, cohort: int) -> int:
        """Return the bytes of a reply that holds as many values as the model."""
        return model.vector.nbytes


class Engine:
    """Runs client functions."""

    num_clients: int

    @property
    def services(self) -> Services:
        """What server programs may use as well, such as the sub-models of the full model."""
        raise NotImplementedError

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Yield a receipt for each client and ``("partial", value)`` for each worker, in any order."""
        raise NotImplementedError

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply of the method's `function` with the shape that clients will send; None where none can be formed."""
        return None

    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the stores that changed."""
        raise NotImplementedError

    def rollback(self) -> None:
        """Forget memory changes since the last commit."""
        raise NotImplementedError

    def withdraw(self, operation: int, clients: Sequence[int]) -> None:
        """Undo what clients staged in an operation of this round whose result does not count them; see `Memory.stage`."""
        raise NotImplementedError

    def restore(self, memories: Any) -> None:
        """Take the clients' memories from this `MemoryStore`; `commit` puts what changed there."""
        raise NotImplementedError

    def init_params(self) -> Params:
        """Return the initial model."""
        raise NotImplementedError

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the task's central test set."""
        raise NotImplementedError

    def close(self) -> None:
        """Free workers."""

    @property
    def notes(self) -> Mapping[str, str]:
        """What could not be stacked, and why."""
        return {}

    @property
    def seconds(self) -> Mapping[str, float]:
        """What worker processes spent their time on; see `paceline.core.profiling`."""
        return {}
