"""Parsing of command-line values: ``name=value``, ``method:name=value,...`` and TOML files."""

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
    """One METHOD argument of the command line.

    Args:
        text: the argument as typed; label of the row in tables.
        name: method name or ``package.module:Class``.
        options: fields of the method.
    """

    text: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> MethodSpec:
        """Parse ``name`` or ``name:field=value,field=value``; a value may contain brackets with commas.

        Raises:
            ConfigError: the text has no name, or an option is malformed.

        Example:
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
    """Split `text` at each `mark` outside quotes and brackets.

    Example:
        >>> split_top("a=[1,2],b=3", ",")
        ['a=[1,2]', 'b=3']
    """
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
    """Parse ``name=value`` texts into a dict; dashes in names become underscores.

    Args:
        texts: the texts.
        form: expected form, for error messages.

    Raises:
        ConfigError: a text has no name or no ``=``.
    """
    found = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{text!r} is not of the form {form}")
        found[name] = value(rest)
    return found


def value(text: str) -> Any:
    """Parse a TOML value (number, true, false, list, quoted text); return any other text unchanged.

    Example:
        >>> value("0.05"), value("[1, 0.5]"), value("true"), value("adam")
        (0.05, [1, 0.5], True, 'adam')
    """
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, or thousands of digits or brackets
        return text.strip()
    return read["value"] if list(read) == ["value"] else text.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read or parsed; the message contains file and position.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
