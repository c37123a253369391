"""How messages name a setting of the run and a command: as a call from Python, or as the `paceline` command takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["as_commands", "command", "field", "for_commands", "setting"]

_TABLES = {"options": "option", "task_options": "task-option", "secure": "secure-option", "metrics": "metric"}
"""Options of the command line that set the entries of a table or a list."""

_front = {"command": False}


@contextmanager
def as_commands(wanted: bool = True) -> Iterator[None]:
    """Word the messages of this process for a user of the `paceline` command; with False for one of the library."""
    before, _front["command"] = _front["command"], wanted
    try:
        yield
    finally:
        _front["command"] = before


def for_commands() -> bool:
    """Return whether messages are worded for a user of the `paceline` command."""
    return _front["command"]


def setting(name: str, value: Any = None) -> str:
    """Return how a field of the run's configuration is set.

    Args:
        name: of the field.
        value: what to set it to; None names the field alone.

    Example:
        >>> setting("cohort"), setting("evaluation", "clients")
        ('cohort', "evaluation='clients'")
        >>> with as_commands():
        ...     setting("cohort"), setting("evaluation", "clients"), setting("allow_empty", True)
        ('--cohort', '--evaluation clients', '--allow-empty')
    """
    if not _front["command"]:
        return name if value is None else f"{name}={value!r}"
    option = f"--{_TABLES.get(name, name.replace('_', '-'))}"
    return option if value is None or value is True else f"{option} {value}"


def field(name: str, value: Any) -> str:
    """Return how a field of the run's method is set.

    Example:
        >>> field("monitor", True)
        'monitor=True'
        >>> with as_commands():
        ...     field("epochs", 2), field("monitor", True)
        ('-o epochs=2', '-o monitor=true')
    """
    if not _front["command"]:
        return f"{name}={value!r}"
    return f"-o {name}={str(value).lower() if isinstance(value, bool) else value}"


def command(verb: str, path: Any) -> str:
    """Return the call that does something with a run's folder.

    Example:
        >>> command("resume", "runs/a")
        "paceline.resume('runs/a')"
    """
    return f"paceline {verb} {path}" if _front["command"] else f"paceline.{verb}({str(path)!r})"
