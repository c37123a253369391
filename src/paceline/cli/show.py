"""Output of the command line: consoles, tables, JSON, error messages, and figures with units."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from paceline.core.errors import PacelineError
from paceline.results.display import bytes_text, err, percent, score_text, seconds_text, table

__all__ = [
    "bytes_text",
    "err",
    "error_text",
    "out",
    "percent",
    "print_json",
    "score_text",
    "seconds_text",
    "show_error",
    "show_warning",
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


def show_warning(name: str, message: str) -> None:
    """Write a warning to stderr."""
    err().print(f"[bold yellow]{escape(name)}[/]: {escape(message)}", soft_wrap=True)
