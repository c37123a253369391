"""Client values kept consistent with the server's sum, although replies may be lost.

A server that maintains the sum of all clients' values receives only changes. A client whose reply was late cannot
know that its change was not counted. The server therefore sends with each call the round in which a client's last change
was received, and the client continues from the value of that round: it stores the last two.

    own = Kept(client, "control", landed, message.zeros())
    ...
    own.keep(new)
    return Update(change=new - own.value, weight=1)

and on the server, after the call, ``landed | dict.fromkeys(fed.last.arrived, fed.round)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.client import Client
from paceline.core.errors import CheckpointError
from paceline.core.tree import Tree

__all__ = ["Kept"]


class Kept:
    """A client's value as counted by the server, with one change per round.

    Args:
        client: the client, in whose memory the value is stored.
        name: key in its memory.
        landed: round of each client's last received change (0: before the first); clients without one are missing.
        first: value of a client without one.

    Raises:
        CheckpointError: the server counts a value that this client does not have.
    """

    def __init__(self, client: Client, name: str, landed: Mapping[int, int], first: Any) -> None:
        self._client, self._name, self.round = client, name, landed.get(client.id)
        self._known: Any = None
        self.value = first
        """The value counted by the server."""
        if self.round is None:
            return
        kept = client.memory.get(name) or {}
        found = [entry for entry in kept.values() if entry is not None and entry["round"] == self.round]
        if not found:
            raise CheckpointError(
                f"client {client.id}: no {name} of round {self.round} is stored, although the server counts one; start a new run"
            )
        self._known, self.value = found[0], found[0]["value"]

    def keep(self, value: Tree, round: int | None = None) -> None:
        """Set the value, which counts once this reply is received; `round` is the current one, or 0 for a first value."""
        stamp = self._client.round if round is None else round
        self._client.memory[self._name] = {"sent": {"round": stamp, "value": value}, "counted": self._known}
