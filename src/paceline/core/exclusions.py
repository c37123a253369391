"""Temporary exclusion of clients that spoilt sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Exclusions"]


class Exclusions:
    """Excludes blamed clients: for the rest of the round at first, then for twice as long each time.

    Example:
        >>> out = Exclusions()
        >>> out.blame({4: "a wrong commitment"}, round=7)
        >>> out.sits_out(4, 7), out.sits_out(4, 8)
        (True, False)
    """

    def __init__(self) -> None:
        self._until: dict[int, int] = {}
        self._times: dict[int, int] = {}
        self._why: dict[int, tuple[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def blame(self, clients: Mapping[int, str], round: int) -> None:
        """Exclude clients from this round on.

        Args:
            clients: reason by client.
            round: the current round.
        """
        for client, why in clients.items():
            times = self._times[client] = self._times.get(client, 0) + 1
            self._until[client] = round + 2 ** min(times - 1, 20) - 1
            self._why[client] = (round, why)

    def rest(self, clients: Iterable[int], round: int) -> None:
        """Exclude clients for the rest of a round without blame: those that did not answer in a lost attempt."""
        for client in clients:
            self._until[client] = max(self._until.get(client, -1), round)

    def sits_out(self, client: int, round: int) -> bool:
        """Return whether a client is excluded in a round."""
        return self._until.get(client, -1) >= round

    def of(self, round: int) -> dict[int, str]:
        """Return the clients blamed in a round, with the reasons."""
        return {client: why for client, (when, why) in sorted(self._why.items()) if when == round}
