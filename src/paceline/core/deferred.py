"""Deferred replies: work that is started in one call and collected by a later one.

Asynchronous methods are built on this. A started client continues to work, or waits with its result, while the server
runs other rounds. The reply is stored in the client's memory, so checkpoints contain it, and leaves the client later
through any channel: a buffered sum of arrivals is an ordinary sum, secure or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paceline.core.client import Client
from paceline.core.engine import Sink
from paceline.core.tree import Tree, map_leaves
from paceline.core.wire import wire_size

__all__ = ["Held", "hold"]


@dataclass(frozen=True)
class Held:
    """Channel of started work: only the cost is returned.

    Args:
        goes_up: the reply is sent to the server as soon as it is done, so its upload is part of the cost; otherwise it
            waits at the client, and the call that collects it pays for the upload.
    """

    goes_up: bool

    def open(self) -> Sink:
        """Return a sink that stores nothing."""
        return _HeldSink(self.goes_up)


class _HeldSink(Sink):
    def __init__(self, goes_up: bool) -> None:
        self._goes_up = goes_up

    def size(self, reply: Tree) -> int:
        return wire_size(reply) if self._goes_up else 0

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Any:
        return None

    def partial(self) -> Any:
        return None


def hold(client: Client, reply: Tree) -> None:
    """Store a copy of a reply in its client's memory."""
    client.memory["_held"] = map_leaves(torch.clone, reply)
