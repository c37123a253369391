"""What a server or client tells of its work: one line for each event, in JSON or for people, on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["Journal", "warnings_told"]

_LEVELS = {
    "refused": "warning",
    "refused_by_client": "warning",
    "bad_reply": "warning",
    "malformed": "warning",
    "broken": "warning",
    "not_answered": "warning",
    "lists": "warning",
    "keys": "warning",
    "missing": "warning",
    "warning": "warning",
    "certificate": "warning",
    "database_away": "warning",
    "disk": "error",
    "error": "error",
    "answered": "debug",
    "late": "debug",
    "phase": "debug",
}


class Journal:
    """Writes events.

    Args:
        role: server, or client.
        format: ``json`` or ``text``.
        level: least level that is written.
    """

    def __init__(self, role: str, format: str = "json", level: str = "info") -> None:
        import structlog

        number = logging.getLevelName(level.upper())
        last: Any = (
            structlog.processors.JSONRenderer() if format == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        )
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(_Stderr()),  # type: ignore[arg-type]
            processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), last],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            role=role,
        )

    def __call__(self, event: str, **facts: Any) -> None:
        """Write one event."""
        getattr(self._log, _LEVELS.get(event, "info"))(event, **{k: v for k, v in facts.items() if v is not None})


@contextmanager
def warnings_told(journal: Journal) -> Iterator[None]:
    """Write Python's warnings to `journal` as events ``warning``, as long as the context lasts."""

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        journal("warning", kind=category.__name__, why=str(message))

    before, warnings.showwarning = warnings.showwarning, tell
    try:
        yield
    finally:
        warnings.showwarning = before


class _Stderr:
    """Python's stderr of the moment, which may have been put somewhere else."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
