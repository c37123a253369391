"""Identity of the work behind a secure sum: the task hash shared by all clients, and the work that a client opens once.

Masks hide a vector but do not bind it to the task that produced it. A server that gave each client a different model,
different bounds or a different name for the same round could make all but one reply vanish, or compare two sums.
Everything that determines a reply is therefore hashed twice: into the session, where it becomes part of every
signature and key, and into the record that a client stores of the sums that it helped to open.
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

__all__ = ["Agreement", "OwnWork", "Work", "halves", "message_digest", "splits"]

_PROTOCOLS = ("_secagg", "_times", "_before")
"""Protocol entries of a client's memory. They change with every call, so they are excluded from the hash."""

_NO_TENSORS = hashlib.sha256().digest()


@dataclass(frozen=True)
class Agreement:
    """Configuration agreed on before the first round; its digests are equal on the server and on every client.

    Args:
        run: SHA-256 of the complete run configuration.
        method: SHA-256 of the method, its options and its version, without values that only name the run.
    """

    run: bytes = b""
    method: bytes = b""

    @staticmethod
    def of(config: Any, method: type, schema: Any = None) -> Agreement:
        """Return the agreement on a `RunConfig` and the locally installed class of its method.

        Args:
            config: the configuration.
            method: the class.
            schema: schema by which clients read their own files, so that none gets another one; None without.
        """
        version = [__version__, _source(method), *([] if schema is None else [schema.digest])]
        named = [config.method, config.options, config.task, config.model, config.task_options, *version]
        return Agreement(_hash(_plain([dict(config), *version])), _hash(_plain(named)))


@dataclass(frozen=True)
class OwnWork:
    """One client's keys for a piece of work.

    Args:
        common: key shared by all clients of the sum.
        work: key that also covers what this client's reply depends on, namely its memory.
        version: key of the function and the tensors of the message. It is equal for runs that differ in their options only,
            and does not depend on memory entries written in between. If the message has no tensors, the memory is hashed instead.
        function: client function of the method.
    """

    common: bytes
    work: bytes
    version: bytes
    function: str = ""


@dataclass(frozen=True)
class Work:
    """A client function, its message, and the rules by which its replies are encoded.

    Args:
        agreed: see `Agreement`.
        function: client function of the method.
        declared: bounds and published records, as declared by the *installed* method.
        message: `message_digest` of the message common to all clients.
    """

    agreed: Agreement
    function: str
    declared: ClientFunction
    message: tuple[bytes, bytes]

    @staticmethod
    def of(agreed: Agreement, function: str, declared: ClientFunction, message: Tree) -> Work:
        """Return the work that a message defines."""
        return Work(agreed, function, declared, message_digest(message, declared))

    def task(self, round: int, trial: int, call: int) -> bytes:
        """Return the hash included in the session: the work, its position in the run, and the whole agreement.

        Args:
            round: round of the run.
            trial: attempt at the round that names the random streams.
            call: number of this call of the function in the round.
        """
        bounds = sorted(self.declared.limits.items())
        place = [round, trial, call, bounds, self.declared.peer_record or "", repr(self.declared.nested)]
        return _hash(["paceline-task-v1", self.agreed.run.hex(), self.common.hex(), place])

    @property
    def common(self) -> bytes:
        """Key of the work, independent of run, round and random stream."""
        return _hash(["paceline-work-v1", self.agreed.method.hex(), self.function, self.message[0].hex()])

    def own(self, memory: Mapping[str, Tree]) -> OwnWork:
        """Return the keys under which a client with this memory records the work."""
        entries = {name: memory[name] for name in sorted(memory) if name not in _PROTOCOLS}
        state = digest(entries)[0].hex() if entries else ""
        version = [self.function, self.message[1].hex(), state if self.message[1] == _NO_TENSORS else ""]
        return OwnWork(self.common, _hash([self.common.hex(), state]), _hash(["paceline-version-v1", *version]), self.function)


def message_digest(message: Tree, declared: ClientFunction) -> tuple[bytes, bytes]:
    """Return the digests of a message and of its tensors.

    In a sum over parts of a model the message is `SegmentedModel.head`, and the second digest is that of the model, whatever
    its segments are.
    """
    whole, tensors = digest(message)
    if declared.nested is not None and isinstance(message, Mapping) and "model" in message:
        tensors = digest(message["model"])[1]
    return whole, tensors


def halves(common: bytes, clients: Sequence[int], least: int) -> list[tuple[int, ...]]:
    """Return the two halves of a cohort whose sum could not be used; empty if they would be too small.

    The work and the cohort determine the halves, so the server cannot choose them. Sums over the halves reveal no more
    than sums over `least` clients.

    Args:
        common: key of the work.
        clients: the cohort.
        least: smallest permitted half; at least 3 clients are required in any case.
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
    """Return the `halves` of each opened set of a piece of work; empty lists for sets that are themselves halves.

    Client and server use it to determine over which clients opened work may be summed again.

    Args:
        common: key of the work.
        sets: clients of opened sums, ascending.
        least: maps the size of a cohort to the smallest permitted half of it.
    """
    split = {tuple(clients): halves(common, clients, least(len(clients))) for clients in sets}
    parts = {half for two in split.values() for half in two}
    return {clients: [] if clients in parts else two for clients, two in split.items()}


def _plain(value: Any) -> Any:
    """Return a form in which JSON also distinguishes NaN and infinity from None, numeric from text keys, bytes from text."""
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
    """Return the hash of the source of the module that defines a method; empty if there is no file, as in a notebook."""
    module = sys.modules.get(method.__module__)
    try:
        return "" if module is None else hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
