"""What a secure sum is of: the task that all its clients must share, and the work that a client opens once.

Masks hide a vector and say nothing of what it is a vector *of*. A server that gives each client another model, other
bounds or another name for the same round could make all answers but one vanish, or compare two sums. So everything
that shapes an answer is hashed: into the session, where it becomes part of every signature and key, and into what a
client remembers of the sums that it helped to open.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline import __version__
from paceline.aggregation.secure.graph import permutation
from paceline.core.engine import ClientFunction
from paceline.core.serialization import digest
from paceline.core.tree import Tree

__all__ = ["Agreement", "OwnWork", "Work", "halves", "splits"]

_PROTOCOLS = ("_secagg", "_times")
"""What a client's memory holds beside the method's own: it changes with every call."""

_NO_TENSORS = hashlib.sha256().digest()


@dataclass(frozen=True)
class Agreement:
    """What was agreed on before the first round; equal digests on the server and on every client.

    Args:
        run: SHA-256 of the run's whole configuration.
        method: SHA-256 of the method, its options and its version, without what only names the run.
    """

    run: bytes = b""
    method: bytes = b""

    @staticmethod
    def of(config: Any, method: type) -> Agreement:
        """Return the agreement on a `RunConfig`, with the class of its method as it is installed here."""
        version = [__version__, _source(method)]
        named = [config.method, config.options, config.task, config.model, config.task_options, *version]
        return Agreement(_hash(_plain([dict(config), *version])), _hash(_plain(named)))


@dataclass(frozen=True)
class OwnWork:
    """One client's view of a piece of work.

    Args:
        common: the key that all clients of a sum share.
        work: the same with what this client's answer depends on: its memory.
        version: function and tensors of the message: equal for runs that differ in their options only, and whatever was
            noted in between. Where a message has no tensors, the memory takes their place.
        function: the method's client function.
    """

    common: bytes
    work: bytes
    version: bytes
    function: str = ""


@dataclass(frozen=True)
class Work:
    """A function, what it is given, and by which rules its answers are encoded.

    Args:
        agreed: see `Agreement`.
        function: the method's client function.
        declared: bounds and told records, as the *installed* method declares them.
        message: `paceline.core.serialization.digest` of the common message.
    """

    agreed: Agreement
    function: str
    declared: ClientFunction
    message: tuple[bytes, bytes]

    @staticmethod
    def of(agreed: Agreement, function: str, declared: ClientFunction, message: Tree) -> Work:
        """Return the work that a message makes."""
        return Work(agreed, function, declared, digest(message))

    def task(self, round: int, trial: int, call: int) -> bytes:
        """Return the hash that a session carries: the work, its place in the run, and everything that was agreed on."""
        bounds = sorted((name, float(bound)) for name, bound in self.declared.bounds.items())
        place = [round, trial, call, bounds, self.declared.tells or ""]
        return _hash(["paceline-task-v1", self.agreed.run.hex(), self.common.hex(), place])

    @property
    def common(self) -> bytes:
        """The work's key, whatever run, round or stream it is given for."""
        return _hash(["paceline-work-v1", self.agreed.method.hex(), self.function, self.message[0].hex()])

    def own(self, memory: Mapping[str, Tree]) -> OwnWork:
        """Return the keys under which a client with this memory remembers the work."""
        kept = {name: memory[name] for name in sorted(memory) if name not in _PROTOCOLS}
        state = digest(kept)[0].hex() if kept else ""
        version = [self.function, self.message[1].hex(), state if self.message[1] == _NO_TENSORS else ""]
        return OwnWork(self.common, _hash([self.common.hex(), state]), _hash(["paceline-version-v1", *version]), self.function)


def halves(common: bytes, clients: Sequence[int], least: int) -> list[tuple[int, ...]]:
    """Return the two halves into which a cohort is split after its sum could not be used; none where they would be too small.

    The halves follow from the work and the cohort, so the server cannot choose them, and sums over them show no more
    than sums over `least` clients.
    """
    if len(clients) < 2 * max(least, 3):
        return []
    listed = b"".join(c.to_bytes(8, "little") for c in sorted(clients))
    order = permutation(sorted(clients), hashlib.sha256(b"paceline-halves-v1" + common + listed).digest())
    middle = len(order) // 2
    return [tuple(sorted(order[:middle])), tuple(sorted(order[middle:]))]


def splits(
    common: bytes, sets: Iterable[Sequence[int]], least: Callable[[int], int]
) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the `halves` of each opened set of a piece of work; none of those that are themselves halves of another one.

    By this both sides know over whom opened work may be summed again.

    Args:
        common: the work.
        sets: clients of opened sums, ascending.
        least: least size of a half, from the size of the cohort that is split.
    """
    split = {tuple(clients): halves(common, clients, least(len(clients))) for clients in sets}
    parts = {half for two in split.values() for half in two}
    return {clients: [] if clients in parts else two for clients, two in split.items()}


def _plain(value: Any) -> Any:
    """Return what JSON tells apart as well: NaN and infinity from None, keys that are numbers from texts, bytes from text."""
    if isinstance(value, Mapping):
        return [
            "dict",
            sorted([[type(key).__name__, str(key), _plain(part)] for key, part in value.items()], key=lambda row: row[:2]),
        ]
    if isinstance(value, list | tuple):
        return ["list", [_plain(part) for part in value]]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return ["float", value.hex()]
    return [type(value).__name__, repr(value)]


def _hash(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _source(method: type) -> str:
    """Return the hash of the module that defines a method; empty where there is no file, as in a notebook."""
    module = sys.modules.get(method.__module__)
    try:
        return "" if module is None else hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
