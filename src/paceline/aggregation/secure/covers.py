"""Which clients are in a sum: on all coordinates the same ones, or, in a sum over parts of a model, others in each segment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.aggregation.tiers import Tiers

__all__ = ["Cover"]


@dataclass(frozen=True)
class Cover:
    """The clients in a sum.

    Args:
        clients: all of them, ascending.
        partition: key of the segments; empty if all clients send the same coordinates.
        owners: clients that send each segment, ascending.
    """

    clients: tuple[int, ...]
    partition: str = ""
    owners: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def of(clients: Sequence[int], tiers: Tiers | None = None, partition: str = "") -> Cover:
        """Return the cover of a sum.

        Args:
            clients: all clients in the sum.
            tiers: their tiers, in a sum over parts of a model.
            partition: key of its segments.
        """
        if tiers is None:
            return Cover(tuple(sorted(clients)))
        known = [c for c in clients if c in tiers.owned]
        return Cover(tuple(sorted(clients)), partition, tuple(tuple(tiers.owners(s, known)) for s in range(tiers.count)))

    def compared(self, other: Cover) -> Iterator[tuple[set[int], set[int]]]:
        """Yield the sets of clients of this sum and of another one that may be over the same coordinates."""
        if self.partition and self.partition == other.partition:
            pairs = zip(self.owners, other.owners, strict=False)
            yield from ((set(a), set(b)) for a, b in pairs if a and b)
            return
        mine, theirs = ({o for o in cover.owners if o} or {cover.clients} for cover in (self, other))
        yield from ((set(a), set(b)) for a in mine for b in theirs)

    def text(self) -> str:
        """Return the form that is stored: a list of clients, or an object for a sum over parts of a model."""
        if not self.partition:
            return json.dumps(list(self.clients))
        return json.dumps({"clients": self.clients, "partition": self.partition, "owners": self.owners})

    @staticmethod
    def read(text: str) -> Cover:
        """Return the cover stored by `text`."""
        stored: Any = json.loads(text)
        if isinstance(stored, list):
            return Cover(tuple(stored))
        return Cover(tuple(stored["clients"]), stored["partition"], tuple(map(tuple, stored["owners"])))
