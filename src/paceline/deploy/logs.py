"""Structured logs of a server or client: one line per event, as JSON or as text, on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["Journal", "logged_warnings"]

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
    """Event logger.

    Args:
        role: ``server`` or ``client``; added to every line.
        format: ``json`` or ``text``.
        level: lowest level that is written: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        ImportError: structlog is not installed.
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
        """Log one event with its facts; facts that are None are omitted."""
        getattr(self._log, _LEVELS.get(event, "info"))(event, **{k: v for k, v in facts.items() if v is not None})


@contextmanager
def logged_warnings(journal: Journal) -> Iterator[None]:
    """Context manager: log Python warnings to `journal` as events named ``warning``, and the package's own log records as ``note``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        journal("warning", kind=category.__name__, why=str(message))

    records, package = _Records(journal), logging.getLogger("paceline")
    level, before, warnings.showwarning = package.level, warnings.showwarning, show
    package.addHandler(records)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        warnings.showwarning = before
        package.removeHandler(records)
        package.setLevel(level)


class _Records(logging.Handler):
    """Passes log records to a journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal("note", kind=record.name.rpartition(".")[2], why=record.getMessage())


class _Stderr:
    """Proxy for the current `sys.stderr`, which may be replaced after the logger was created."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
