"""Texts of the command line made into values: ``name=value``, ``method:name=value,...`` and TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError

__all__ = ["MethodSpec", "pairs", "read_toml", "split_top", "value"]

PAIRED = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class MethodSpec:
    """One METHOD argument.

    Args:
        text: as typed; the row's label in tables.
        name: method name or ``package.module:Class``.
        options: its fields.
    """

    text: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> MethodSpec:
        """Read ``name`` or ``name:field=value,field=value``; a value may hold brackets with commas in them.

        >>> MethodSpec.parse("clip:network=true,lr=0.1").options
        {'network': True, 'lr': 0.1}
        """
        parts = split_top(text, ":")
        given = [i for i, part in enumerate(parts) if "=" in part]
        name = ":".join(parts[: given[0]] if given else parts)
        if not name:
            raise ConfigError(f"{text!r} names no method; write METHOD or METHOD:field=value,field=value")
        if not given:
            return MethodSpec(text, name)
        options = pairs(split_top(":".join(parts[given[0] :]), ","), "METHOD:field=value,field=value")
        return MethodSpec(text, name, options)


def split_top(text: str, mark: str) -> list[str]:
    """Split `text` at each `mark` that stands outside quotes and brackets."""
    parts, start, closers, quote = [], 0, [], ""
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in PAIRED:
            closers.append(PAIRED[sign])
        elif closers and sign == closers[-1]:
            closers.pop()
        elif sign == mark and not closers:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def pairs(texts: Iterable[str] | None, form: str = "name=value") -> dict[str, Any]:
    """Return ``name=value`` texts as a dictionary; raises `ConfigError` where one has no name or no ``=``."""
    found = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{text!r} is not of the form {form}")
        found[name] = value(rest)
    return found


def value(text: str) -> Any:
    """Return `text` read as a TOML value (number, true, false, list, quoted text), else the text itself.

    >>> value("0.05"), value("[1, 0.5]"), value("true"), value("adam")
    (0.05, [1, 0.5], True, 'adam')
    """
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, or brackets of thousands
        return text.strip()
    return read["value"] if list(read) == ["value"] else text.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; raises `ConfigError` naming file and place."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
