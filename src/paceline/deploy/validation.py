"""Parsing of sizes and time windows in configuration files, and readable messages for validation errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from pydantic import BaseModel, ValidationError

from paceline.core.errors import nearest

__all__ = ["Window", "faults_of", "shown", "size_of"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B")
_POWER = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TEXTS = {"model_type": "this must be a table; write its keys below [NAME], or as NAME = {KEY = VALUE}"}
_SECRET = re.compile(r"//[^/@]*@")
_TIMES = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


def size_of(value: Any) -> Any:
    """Return the number of bytes in a text such as ``"500 MB"`` or ``"2 GiB"``; other values unchanged.

    Raises:
        ValueError: the text is not a size.

    Example:
        >>> size_of("1.5 kB"), size_of("2 GiB"), size_of(7)
        (1500, 2147483648, 7)
    """
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is not a size; write bytes as a number, or as text such as '500 MB'")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[prefix])


@dataclass(frozen=True)
class Window:
    """Daily time window on some days of the week; it may extend past midnight.

    Args:
        days: days on which it begins; Monday is 0.
        start, end: minutes after midnight; an end before the start is on the next day.
    """

    days: frozenset[int]
    start: int
    end: int

    @staticmethod
    def parse(text: str) -> Window:
        """Parse a text such as ``"mon-fri 20:00-06:00"``, ``"sat,sun"`` or ``"22:00-24:00"``.

        Raises:
            ValueError: the text is not a time window.

        Example:
            >>> window = Window.parse("sat,sun 20:00-06:00")
            >>> sorted(window.days), window.start, window.end
            ([5, 6], 1200, 360)
        """
        words = text.lower().split()
        times = _TIMES.fullmatch(words[-1]) if words else None
        days = words[:-1] if times else words
        if len(days) > 1 or not words:
            raise ValueError(_window_advice(text))
        chosen = _days(days[0], text) if days else frozenset(range(7))
        if times is None:
            return Window(chosen, 0, 1440)
        hours = [int(part) for part in times.groups()]
        start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if start >= 1440 or end > 1440 or hours[1] > 59 or hours[3] > 59 or start == end:
            raise ValueError(_window_advice(text))
        return Window(chosen, start, end)

    def holds(self, now: datetime, zone: tzinfo) -> bool:
        """Return whether `now` lies in the window, in local time of `zone`."""
        local = now.astimezone(zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or any(end not in _DAYS for end in ends):
            raise ValueError(_window_advice(whole))
        first, last = _DAYS.index(ends[0]), _DAYS.index(ends[-1])
        found |= {(first + i) % 7 for i in range((last - first) % 7 + 1)}
    return frozenset(found)


def _window_advice(text: str) -> str:
    return f"{text!r} is not a time of the week; write 'mon-fri 20:00-06:00', 'sat,sun' or '22:00-24:00'"


def faults_of(error: Exception, model: type[BaseModel], given: Mapping[tuple[str, ...], str] | None = None) -> list[str]:
    """Return a message for every validation error, with its location, and close matches for unknown keys.

    Args:
        error: exception raised by pydantic.
        model: the validated model.
        given: sources of values that come from elsewhere, such as environment variables, by location.
    """
    if not isinstance(error, ValidationError):
        return [str(error)]
    faults = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        sources = [name for n in range(len(place), 0, -1) if (name := (given or {}).get(tuple(place[:n]))) is not None]
        where = f"{sources[0]}: " if sources else ""
        if fault["type"] == "extra_forbidden":
            faults.append(f"{where}unknown key {'.'.join(place)!r}{nearest(place[-1], _fields(model, place[:-1]))}")
        else:
            text = _TEXTS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            found = "" if fault["type"] == "missing" else f" = {shown(fault['input'])}"
            faults.append(f"{where}{'.'.join(place) or 'the whole'}{found}: {text}")
    return faults


def shown(value: Any) -> str:
    """Return a value's repr for messages: at most 80 characters, without the password of a URL.

    Example:
        >>> shown("postgresql://user:secret@host/db")
        "'postgresql://...@host/db'"
    """
    try:
        return _SECRET.sub("//...@", repr(value))[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits has no repr
        return f"some {type(value).__name__}"


def _fields(model: type[BaseModel], place: Iterable[str]) -> list[str]:
    for name in place:
        field = model.model_fields.get(name)
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
