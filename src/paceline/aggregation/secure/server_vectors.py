"""Masked vectors at the server: their sum, separately for each layout until the most frequent one is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.encoding import Words
from paceline.core.errors import ProtocolError

__all__ = ["GROUPS", "MaskedVectors", "VectorGroup"]

GROUPS = 3


@dataclass
class VectorGroup:
    """Vectors of one layout: their sum, their senders, and their lead in votes over the other layouts."""

    sums: list[tuple[Segment, Words]]
    clients: list[int]
    lead: int


class MaskedVectors:
    """Sums of masked vectors, in at most `GROUPS` groups of equal layout.

    A vector of one more layout takes a vote from each of the others, and groups without votes are discarded. A majority
    therefore survives whatever the order of arrival.

    Args:
        refused: receives the clients whose vectors are discarded, with the reason.
    """

    def __init__(self, refused: dict[int, str]) -> None:
        self.refused = refused
        self._groups: dict[str, VectorGroup] = {}

    def __contains__(self, client: int) -> bool:
        return any(client in group.clients for group in self._groups.values())

    def add(self, client: int, layout: str, segments: Sequence[Segment], words: Mapping[str, Words]) -> None:
        """Add a vector.

        Args:
            client: id of the sender.
            layout: key of the layout; vectors are added only if it is equal.
            segments: all segments of the layout.
            words: the segments that the client sends, by name.

        Raises:
            ProtocolError: there are too many other layouts.
        """
        self._make_room(layout)
        if layout not in self._groups:
            self._groups[layout] = VectorGroup([(s, np.zeros(s.length, dtype=s.dtype)) for s in segments], [], 0)
        group = self._groups[layout]
        for segment, total in group.sums:
            if segment.name in words:
                np.add(total, words[segment.name], out=total)
        group.clients.append(client)
        group.lead += 1

    def most(self) -> VectorGroup | None:
        """Return the group with most clients and discard the others; None if there are no vectors."""
        best = max(self._groups.values(), key=lambda group: len(group.clients), default=None)
        for group in self._groups.values():
            if group is not best:
                self._refuse(group.clients)
        self._groups = {}
        return best

    def _make_room(self, layout: str) -> None:
        """Count a vector of a new layout against the existing groups; raises `ProtocolError` if no group is freed."""
        if layout in self._groups or len(self._groups) < GROUPS:
            return
        for group in self._groups.values():
            group.lead -= 1
        for name in [name for name, group in self._groups.items() if group.lead <= 0]:
            self._refuse(self._groups.pop(name).clients)
        if len(self._groups) == GROUPS:
            raise ProtocolError("vector of another structure than those of other clients")

    def _refuse(self, clients: Sequence[int]) -> None:
        self.refused |= dict.fromkeys(clients, "vector of another structure than those of most clients")
