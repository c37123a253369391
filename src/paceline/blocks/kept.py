"""What a client keeps in step with the server's sum, although replies may be lost on their way.

A server that holds the sum of all clients' values hears only of changes. A client whose reply was late cannot
know that its change did not count. So the server says, with each call, in which round a client's last change
landed, and the client goes on from the value of that round: it keeps the last two.

    own = Kept(client, "control", landed, message.zeros())
    ...
    own.keep(new)
    return Update(change=new - own.value, weight=1)

and the server, after the call, ``landed | dict.fromkeys(fed.last.arrived, fed.round)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.client import Client
from paceline.core.errors import CheckpointError
from paceline.core.tree import Tree

__all__ = ["Kept"]


class Kept:
    """A client's value as the server counts it; one change in each round.

    Args:
        client: whose memory it lies in.
        name: where.
        landed: the round of each client's last change that landed (0: before the first); clients without one are missing.
        first: the value of a client that has none.

    Raises `CheckpointError` where the server counts a value that this client does not have.
    """

    def __init__(self, client: Client, name: str, landed: Mapping[int, int], first: Any) -> None:
        self._client, self._name, self.round = client, name, landed.get(client.id)
        self._known: Any = None
        self.value = first
        """The value that counts."""
        if self.round is None:
            return
        kept = client.memory.get(name) or {}
        found = [entry for entry in kept.values() if entry is not None and entry["round"] == self.round]
        if not found:
            raise CheckpointError(
                f"client {client.id}: the server counts a {name} of round {self.round} that is not known here; start the run anew"
            )
        self._known, self.value = found[0], found[0]["value"]

    def keep(self, value: Tree, round: int | None = None) -> None:
        """Set the value, which counts once this reply has landed; `round` is this one, or 0 for a first value."""
        stamp = self._client.round if round is None else round
        self._client.memory[self._name] = {"sent": {"round": stamp, "value": value}, "counted": self._known}
