"""Scheduling: which clients form a chunk, and which worker executes it.

Chunks are formed from the cohort independently of the number of workers, so that results do not depend on it. A client
stays in its chunk, and on its worker, for a whole round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["Dealer"]


class Dealer:
    """Forms chunks and assigns them to workers.

    Args:
        cost: expected work of a client, such as its number of samples; at least 1.
        chunk: maximum number of clients in a chunk.
        workers: number of workers.
        kind: what the clients of a chunk have in common, such as the width of their models; it only affects speed.
        costs: the same as `cost` for several clients at once, where that is faster.

    Example:
        >>> dealer = Dealer(cost=lambda client: client + 1, chunk=2, workers=2)
        >>> chunks = dealer.chunks([0, 1, 2, 3])
        >>> chunks, dealer.deal(chunks)
        ({0: [3, 2], 1: [1, 0]}, {0: [[3, 2]], 1: [[1, 0]]})
    """

    def __init__(
        self,
        cost: Callable[[int], int],
        chunk: int = 1,
        workers: int = 1,
        kind: Callable[[int], Any] | None = None,
        costs: Callable[[Sequence[int]], Sequence[int]] | None = None,
    ) -> None:
        self.cost, self.chunk, self.workers, self.kind = cost, chunk, workers, kind
        self._costs = costs or (lambda clients: [cost(client) for client in clients])
        self.new_round()

    def new_round(self) -> None:
        """Reset chunks and assignments."""
        self._chunk_of: dict[int, int] = {}
        self._home: dict[int, int] = {}
        self._chunks = 0

    def chunks(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """Return the chunks of a call by number: clients of similar cost together, the largest first."""
        new = [c for c in clients if c not in self._chunk_of]
        costs = dict(zip(new, self._costs(new), strict=True)) if self.chunk > 1 else {}
        if self.chunk > 1:
            new.sort()
            new.sort(key=costs.__getitem__, reverse=True)  # clients of equal cost stay in order
        formed: dict[int, list[int]] = {}
        for alike in self._alike(new):
            count = -(-len(alike) // self.chunk)
            bounds = [-(-number * len(alike) // count) for number in range(count + 1)]
            for a, b in pairwise(bounds):
                formed[self._chunks] = alike[a:b]
                self._chunk_of.update(dict.fromkeys(alike[a:b], self._chunks))
                self._chunks += 1
        if self.chunk > 1 and 0 < len(new) == len(clients):
            return formed
        found: dict[int, list[int]] = {}
        for client in clients if self.chunk == 1 else sorted(clients, key=lambda c: self._order(c, costs)):
            found.setdefault(self._chunk_of[client], []).append(client)
        return found

    def deal(self, chunks: dict[int, list[int]]) -> dict[int, list[list[int]]]:
        """Return each worker's chunks: greedy, the most expensive first, each to the worker with the smallest load."""
        costs = {number: sum(map(self.cost, clients)) for number, clients in chunks.items()}
        loads = dict.fromkeys(range(self.workers), 0)
        shares: dict[int, list[list[int]]] = {}
        for number in sorted(chunks, key=lambda n: (-costs[n], n)):
            home = self._home.get(number)
            if home is None:
                home = self._home[number] = min(loads, key=lambda w: (loads[w], w))
            loads[home] += costs[number]
            shares.setdefault(home, []).append(chunks[number])
        return shares

    def _alike(self, clients: list[int]) -> list[list[int]]:
        """Return the clients of each kind, in their order; the kind of the first client first."""
        if self.kind is None or self.chunk == 1:
            return [clients] if clients else []
        groups: dict[Any, list[int]] = {}
        for client in clients:
            groups.setdefault(self.kind(client), []).append(client)
        return list(groups.values())

    def _order(self, client: int, costs: dict[int, int]) -> tuple[int, int, int]:
        return (self._chunk_of[client], -costs.get(client, 0), client)
