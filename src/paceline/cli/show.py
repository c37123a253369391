"""Output of the command line: consoles, tables, JSON, error messages, and figures with units."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from paceline.core.errors import PacelineError

__all__ = [
    "bytes_text",
    "err",
    "error_text",
    "out",
    "percent",
    "print_json",
    "seconds_text",
    "show_error",
    "table",
]

WIDE = 160
"""Width of a table in a file or pipe, in columns."""


def out() -> Console:
    """Return the console for results; created on each call, because stdout may have been replaced.

    Without a terminal, and if ``COLUMNS`` is not set, tables may be `WIDE` columns wide.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=sys.stdout, highlight=False, width=width)


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(file=sys.stderr, highlight=False)


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns in `right` are right-aligned."""
    made = Table(title=Text(title), title_justify="left", header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name == columns[0])
    return made


def print_json(value: Any) -> None:
    """Write `value` as JSON to stdout; non-finite numbers become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def error_text(error: Exception) -> tuple[str, str, int]:
    """Return class, message and exit code of a Paceline error or of a malformed command line."""
    if isinstance(error, PacelineError):
        return type(error).__name__, str(error), error.exit_code
    described = getattr(error, "format_message", None)
    return type(error).__name__, described() if described else str(error), getattr(error, "exit_code", 1)


def show_error(error: Exception, as_json: bool) -> None:
    """Write an error to stderr, as text or as one JSON object."""
    name, message, code = error_text(error)
    if as_json:
        sys.stderr.write(json.dumps({"error": name, "message": message, "exit_code": code}) + "\n")
    else:
        err().print(f"[bold red]{escape(name)}[/]: {escape(message)}", soft_wrap=True)


def bytes_text(count: float) -> str:
    """Return a number of bytes with its unit.

    Example:
        >>> bytes_text(950), bytes_text(1_234_567)
        ('950 B', '1.23 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float | None) -> str:
    """Return a duration with its unit; a dash for None.

    Example:
        >>> seconds_text(0.0421), seconds_text(12.34), seconds_text(754)
        ('0.0421 s', '12.3 s', '12 min 34 s')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float | None) -> str:
    """Return a fraction as a percentage; a dash for None."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"
