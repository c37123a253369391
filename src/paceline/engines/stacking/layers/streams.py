"""The random streams of stacked clients: each draws exactly what it would draw in training alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paceline.core.generators import generators_of
from paceline.core.training import Job

__all__ = ["Streams"]

T = TypeVar("T")


class Streams:
    """States of torch's global generators, one for each of K stacked clients.

    Args:
        jobs: the clients' jobs, in stacking order.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._generators = generators_of(jobs[0].model.device)
        self._states: dict[int, list[Any]] = {}

    @property
    def drawn(self) -> bool:
        """Whether any client has drawn."""
        return bool(self._states)

    def draw(self, clients: Sequence[int], make: Callable[[int], T]) -> list[T]:
        """Return ``make(place)`` for each client, drawn from its own stream; the streams continue with the next call.

        Args:
            clients: positions of the clients in the stack.
            make: what draws from global generators; `place` counts from 0.
        """
        before = [g.get_state() for g in self._generators]
        drawn = []
        try:
            for place, client in enumerate(clients):
                self._enter(client)
                drawn.append(make(place))
                self._states[client] = [g.get_state() for g in self._generators]
        finally:
            self._restore(before)
        return drawn

    def repeat(self, make: Callable[[], T], again: Callable[[], T]) -> tuple[T, T]:
        """Return the results of two functions that draw the same numbers; for use within `draw`."""
        before = [g.get_state() for g in self._generators]
        one = make()
        self._restore(before)
        return one, again()

    def _enter(self, client: int) -> None:
        states = self._states.get(client)
        if states is not None:
            self._restore(states)
            return
        seed = self._jobs[client].order().initial_seed()  # as `train` seeds them
        for generator in self._generators:
            generator.manual_seed(seed)

    def _restore(self, states: Sequence[Any]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
