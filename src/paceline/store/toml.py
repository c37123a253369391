"""Conversion of a dict to TOML; `tomllib` reads it back to the same values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from paceline.core.errors import ConfigError

__all__ = ["to_toml"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """Return `values` (strings, numbers, booleans, lists and dicts of them) as TOML.

    Raises:
        ConfigError: None or another value that TOML does not support; the message contains the key.

    Example:
        >>> print(to_toml({"rounds": 3, "options": {"lr": 0.1}}), end="")
        rounds = 3
        <BLANKLINE>
        [options]
        lr = 0.1
    """
    lines: list[str] = []
    _table(values, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    for key, value in values.items():
        if not isinstance(value, Mapping):
            lines.append(f"{_key(key)} = {_value(value, (*path, key))}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _table(value, (*path, key), lines)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"the key {key!r} cannot be saved; keys must be strings")
    return key if _BARE.fullmatch(key) else _string(key)


def _value(value: Any, path: tuple[Any, ...]) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value) if math.isfinite(value) else str(float(value))
        case str():
            return _string(value)
        case list() | tuple():
            return f"[{', '.join(_value(v, path) for v in value)}]"
        case Mapping():
            return f"{{{', '.join(f'{_key(k)} = {_value(v, (*path, k))}' for k, v in value.items())}}}"
    raise ConfigError(f"{'.'.join(map(str, path))}={value!r} cannot be saved; use text, numbers, booleans, lists and dicts")


def _string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} cannot be saved: it is not valid Unicode text") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
