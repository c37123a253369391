"""Interface of experiment trackers: observers that also learn a run's configuration and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paceline import registry
from paceline.core.errors import ConfigError
from paceline.results.progress import Observer

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.results.result import Result

__all__ = ["Observers", "Tracker", "Watch", "figures", "flat", "named"]

Observers = Observer | str | Sequence[Observer | str] | None
"""Observers of a run: functions, trackers, and names of trackers with options."""


class Tracker:
    """Writes a run's configuration, the figures of its rounds and its outcome to another system.

    A subclass implements `begin`, `log` and `end`. One object serves one run at a time, and any number of runs in turn.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> class Printed(Tracker):
        ...     def log(self, round, figures):
        ...         print(round, sorted(figures)[:2])
        >>> _ = pl.run("fedavg", blobs(), clients=4, rounds=1, observer=Printed())
        1 ['accuracy', 'bytes_down']
    """

    def begin(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a run.

        Args:
            name: name of the run's folder, or method, task and seed.
            config: the run's configuration, plain values and tables.
        """

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Write the numbers of a finished round.

        Args:
            round: number of the round, from 1.
            figures: finite numbers by name, as in `Result.history`.
        """
        raise NotImplementedError

    def end(self, outcome: Mapping[str, Any] | None) -> None:
        """End the run.

        Args:
            outcome: its figures (`Result.as_dict`); None if it failed or was stopped.
        """

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Take a finished round."""
        self.log(int(record["round"]), figures(record))


class Watch:
    """All observers of a run as one; begins and ends the trackers among them.

    Args:
        observers: observers, trackers, and specifications of trackers such as ``tensorboard:runs/board``; one or several.
        name: see `Tracker.begin`.
        config: the run's configuration.
    """

    def __init__(self, observers: Observers, name: str, config: RunConfig) -> None:
        given = [observers] if isinstance(observers, str) or callable(observers) else list(observers or ())
        self._observers: list[Observer] = [named(o) if isinstance(o, str) else o for o in given]
        if wrong := [o for o in self._observers if not callable(o)]:
            raise ConfigError(f"observer: {wrong[0]!r} is neither a function of (record, total_rounds) nor a tracker's name")
        self._name, self._config = name, config
        self._begun: list[Tracker] = []
        self._outcome: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        """Begin the trackers."""
        try:
            for one in self._observers:
                if isinstance(one, Tracker):
                    one.begin(self._name, self._config.model_dump(mode="json", exclude_none=True))
                    self._begun.append(one)
        except BaseException:
            self._end()
            raise
        return self

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Pass a finished round to all."""
        for one in self._observers:
            one(record, total_rounds)

    def ended(self, result: Result) -> Result:
        """Note the outcome; return it."""
        self._outcome = result.as_dict()
        return result

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the trackers."""
        self._end()

    def _end(self) -> None:
        while self._begun:
            self._begun.pop().end(self._outcome)


def named(text: str) -> Tracker:
    """Return the tracker of a specification such as ``mlflow:sqlite:///mlflow.db,experiment=trials``."""
    spec = registry.parse("tracker", text)
    tracker: Tracker = registry.build("tracker", spec, {}, {registry.KINDS["tracker"].value: spec.value} if spec.value else {})
    return tracker


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record, without the round."""
    numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k != "round"}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested table as one, with dots in its keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
