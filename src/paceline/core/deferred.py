"""Work that was begun and is not yet handed over: the reply stays with its client until the server asks for it.

This is what asynchronous methods stand on. A client that was started works on, or waits with its result, while
the server goes through other rounds; its reply lies in its own memory, so that checkpoints have it, and leaves
the client later through any channel: a buffered sum of arrivals is an ordinary sum, secure or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paceline.core.client import Client
from paceline.core.engine import Sink, wire_size
from paceline.core.tree import Tree, map_leaves

__all__ = ["Held", "hold"]


@dataclass(frozen=True)
class Held:
    """The channel of work that is begun: nothing but the cost comes back.

    Args:
        goes_up: the reply goes to the server as soon as it is done, so that its upload is part of the cost; else
            it waits at the client, and the call that takes it up bears that.
    """

    goes_up: bool

    def open(self) -> Sink:
        """Return a sink that keeps nothing."""
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
    """Keep a reply in its client's memory, apart from whatever it was computed with."""
    client.memory["_held"] = map_leaves(torch.clone, reply)
