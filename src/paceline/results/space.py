"""What a sweep tries: values and ranges of settings, as a grid or drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import split_top, value
from paceline.core.random import numpy_rng
from paceline.core.wording import setting

__all__ = ["Range", "Space", "drawn", "grid", "owner", "parse_space", "space_of"]


@dataclass(frozen=True)
class Range:
    """Numbers between two limits, both included.

    Args:
        low, high: the limits.
        log: draw uniformly in the logarithm.
        whole: draw whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, unit: float) -> float | int:
        """Return the number at a place from 0 to 1; real ones are rounded to 4 digits."""
        if self.whole:
            return int(min(self.low + math.floor(unit * (self.high - self.low + 1)), self.high))
        found = self.low * (self.high / self.low) ** unit if self.log else self.low + unit * (self.high - self.low)
        return float(f"{found:.4g}")


Space = Mapping[str, Sequence[Any] | Range]
"""Values or the range of each setting, by name."""


def parse_space(texts: Iterable[str]) -> dict[str, Sequence[Any] | Range]:
    """Parse ``lr=0.01,0.1``, ``lr=0.001..1`` and ``lr=log:0.001..1``.

    Raises:
        ConfigError: a text is malformed, or a name is given twice.

    Example:
        >>> parse_space(["mu=0.1,1", "lr=log:0.001..1", "epochs=1..5"])
        {'mu': [0.1, 1], 'lr': Range(low=0.001, high=1.0, log=True, whole=False), 'epochs': Range(low=1, high=5, log=False, whole=True)}
    """
    found: dict[str, Sequence[Any] | Range] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not rest.strip() or name in found:
            raise ConfigError(f"{text!r}: write each setting once, as NAME=VALUE,VALUE or NAME=LOW..HIGH")
        found[name] = _values(rest.strip(), text)
    return found


def space_of(given: Mapping[str, Any]) -> dict[str, Sequence[Any] | Range]:
    """Return the space in a mapping of Python: texts as on the command line, ranges, lists, or single values."""
    found: dict[str, Sequence[Any] | Range] = {}
    for name, values in given.items():
        if isinstance(values, str):
            found[name] = _values(values, f"{name}={values}")
        elif isinstance(values, Range):
            found[name] = values
        else:
            found[name] = list(values) if isinstance(values, Iterable) and not isinstance(values, Mapping) else [values]
        if not isinstance(found[name], Range) and not found[name]:
            raise ConfigError(f"{name} has no values; list at least one")
    return found


def _values(text: str, whole: str) -> Sequence[Any] | Range:
    log, rest = text.startswith("log:"), text.removeprefix("log:")
    low, dots, high = rest.partition("..")
    if not log and not dots:
        return [value(part) for part in split_top(text, ",")]
    ends = [value(low), value(high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends) or ends[0] >= ends[1]:
        raise ConfigError(f"{whole!r}: write a range as LOW..HIGH, such as 0.001..1")
    if log and ends[0] <= 0:
        raise ConfigError(f"{whole!r}: a logarithmic range begins above 0")
    made = [float(end) for end in ends] if log else ends
    return Range(made[0], made[1], log, not log and all(isinstance(end, int) for end in ends))


def grid(space: Space) -> list[dict[str, Any]]:
    """Return every combination of values; raises `ConfigError` for a range."""
    for name, values in space.items():
        if isinstance(values, Range):
            raise ConfigError(f"{name} is a range, which a grid does not have; list values, or draw with {setting('random', 20)}")
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*(list(v) for v in space.values()))]  # type: ignore[arg-type]


def drawn(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return settings drawn at random, without repetition; all of them where there are no more.

    The first ones stay the same with a larger `count`.

    Args:
        space: values and ranges.
        count: number of draws.
        seed: of the draws.
    """
    if not any(isinstance(values, Range) for values in space.values()):
        whole = grid(space)
        if len(whole) <= count:
            return whole
    found: list[dict[str, Any]] = []
    for place in range(100 * count):
        rng = numpy_rng(seed, "sweep", place)
        units = rng.random(len(space))
        one = {
            name: values.draw(unit) if isinstance(values, Range) else values[int(unit * len(values))]
            for (name, values), unit in zip(space.items(), units.tolist(), strict=True)
        }
        if one not in found:
            found.append(one)
        if len(found) == count:
            break
    return found


def owner(name: str, methods: Mapping[str, type]) -> list[str]:
    """Return the methods that a setting belongs to; empty for a field of the run.

    Args:
        name: of the setting.
        methods: the methods' classes by name.

    Raises:
        UnknownNameError: neither a method nor the run has it.
    """
    having = [key for key, cls in methods.items() if name in {f.name for f in fields(cls)}]
    taken = {"method", "options", "task_options", "secure", "seed", "workers"}
    if having or (name in RunConfig.model_fields and name not in taken):
        return having
    known = {f.name for cls in methods.values() for f in fields(cls)} | (set(RunConfig.model_fields) - taken)
    raise UnknownNameError("setting", name, known)
