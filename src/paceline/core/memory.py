"""A client's own store, and values in it that take effect only if the server counts the client's reply.

A server that maintains a sum over all clients receives changes of their values. A client whose reply was late, or failed
after it had trained, cannot know that its change was not counted. So such a value is *staged*: it becomes permanent with
the round if the reply to the operation that wrote it (`Federation.sum`, `mean`, `each`, ...) was counted, and otherwise
the client continues from the value before.

    own = client.memory.get("control", params.zeros())
    ...
    client.memory.stage("control", new)
    return Update(control=new - own, weight=1)

The engine reports to each client which operations of the round did not count it: in a simulation directly, over a
network with the next message. No message of the method contains a line for each client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.core.tree import Tree, map_leaves

__all__ = ["Memory", "Priors", "undo"]

Priors = list[tuple[int, str, list[Any]]]
"""Values before staged ones: (operation, key, [value], or [] if there was none)."""


class Memory(MutableMapping[str, Any]):
    """A client's own store, kept between rounds.

    Writes go to an overlay and reach the store only when the round is committed, so an aborted round
    leaves no trace. Replace values, do not change tensors in place.

    Example:
        >>> memory = Memory({"control": 1.0})
        >>> memory.begin(operation=1)
        >>> memory.stage("control", 2.0)
        >>> memory["seen"] = True
        >>> memory.withdraw(operation=1)
        >>> dict(memory)
        {'control': 1.0, 'seen': True}
    """

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        self.stored: dict[str, Any] = dict(stored or {})
        self.changes: dict[str, Any] = {}
        self._operation = 0
        self._before: dict[int, dict[str, list[Any]]] = {}
        """Changes of this round before each operation staged its own: [value], or [] if there was none."""

    def __getitem__(self, key: str) -> Any:
        return self.changes[key] if key in self.changes else self.stored[key]

    def __setitem__(self, key: str, value: Tree) -> None:
        self.changes[key] = value

    def __delitem__(self, key: str) -> None:
        raise ConfigError(f"client memory: the key {key!r} cannot be deleted; assign another value to it")

    def __iter__(self) -> Iterator[str]:
        return iter({**self.stored, **self.changes})

    def __len__(self) -> int:
        return len({**self.stored, **self.changes})

    def stage(self, key: str, value: Tree) -> None:
        """Write a value that takes effect only if the server counts this client's reply to the current operation."""
        self._before.setdefault(self._operation, {}).setdefault(key, [self.changes[key]] if key in self.changes else [])
        self.changes[key] = value

    def begin(self, operation: int) -> None:
        """Begin the method's part of an operation, numbered within the round; what an earlier try of it staged is withdrawn."""
        self.withdraw(operation)
        self._operation = operation

    def withdraw(self, operation: int) -> None:
        """Restore the values before those that an operation staged."""
        for key, before in self._before.pop(operation, {}).items():
            _restore(self.changes, key, before)

    def priors(self) -> Priors:
        """Return the values before all staged ones of this round."""
        return [
            (operation, key, before or ([self.stored[key]] if key in self.stored else []))
            for operation, values in self._before.items()
            for key, before in values.items()
        ]

    def mark(self) -> tuple[Any, ...]:
        """Return the state that `reset` restores."""
        return dict(self.changes), {operation: dict(values) for operation, values in self._before.items()}

    def reset(self, mark: tuple[Any, ...]) -> None:
        """Restore the state as of `mark`, after a function that failed."""
        self.changes, self._before = mark

    def copy(self) -> Memory:
        """Return the store as it is now, with the same tensors."""
        return Memory({key: map_leaves(_itself, value) for key, value in self.items()})

    def commit(self) -> dict[str, Any]:
        """Make the changes permanent and return the whole store."""
        self.stored.update({key: map_leaves(_itself, value) for key, value in self.changes.items()})
        self.rollback()
        return self.stored

    def rollback(self) -> None:
        """Forget the changes."""
        self.changes.clear()
        self._before.clear()


def undo(memory: dict[str, Any], priors: Priors, lost: set[int]) -> None:
    """Restore, in a merged memory, the values before those that the operations in `lost` staged."""
    for operation, key, before in sorted(priors, key=lambda prior: -prior[0]):
        if operation in lost:
            _restore(memory, key, before)


def _restore(values: dict[str, Any], key: str, before: list[Any]) -> None:
    """Set a key to its value before: [value], or [] if there was none."""
    if before:
        values[key] = before[0]
    else:
        values.pop(key, None)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
