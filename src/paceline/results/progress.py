"""The live progress of a run: round, virtual time, accuracy, bytes; on stderr, or below a notebook's cell."""

from __future__ import annotations

import html
import importlib
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paceline.results.display import bytes_text, err, score_text, seconds_text

__all__ = ["LiveProgress", "NotebookProgress", "Observer", "RunProgress", "both", "in_notebook", "library_progress"]


class Observer(Protocol):
    """Watches a run: progress bars, trackers, tests."""

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Take a finished round.

        Args:
            record: the round's figures, as in `Result.history`.
            total_rounds: rounds of the run, if it does not end earlier.
        """


class RunProgress(Observer, Protocol):
    """An observer of runs that shows their progress; a context manager."""

    def __enter__(self) -> Self:
        """Begin to draw."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the drawing."""

    def begin(self, label: str, total: int | None = None) -> None:
        """Start the bar of another run."""


def library_progress(show: bool | None = None) -> RunProgress:
    """Return the progress of a library call: a bar in a terminal or a notebook, elsewhere nothing.

    Args:
        show: False for none; True for a line at about every tenth of the rounds where there is no terminal.
    """
    if show is not False and in_notebook():
        return NotebookProgress()
    return LiveProgress(quiet=show is False, lines=show is True)


def both(observer: Observer | None, bar: RunProgress) -> Observer:
    """Return an observer that shows a round and passes it on."""
    if observer is None:
        return bar

    def observe(record: dict[str, Any], total_rounds: int) -> None:
        bar(record, total_rounds)
        observer(record, total_rounds)

    return observe


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class LiveProgress:
    """An observer of runs that draws one bar at a time; a context manager.

    On a terminal the bar moves; elsewhere a line is written for about every tenth of the rounds.

    Args:
        quiet: draw nothing.
        lines: write those lines.
    """

    def __init__(self, quiet: bool = False, lines: bool = True) -> None:
        console = err()
        self.lines, self.live = lines and not quiet and not console.is_terminal, console.is_terminal and not quiet
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self.live,
        )
        self._label = ""
        self._task = self._bar.add_task("", total=None, figures="", visible=False)
        self._score = ""
        self._bytes = 0

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the drawing and leave the cursor below it."""
        self._bar.stop()

    def begin(self, label: str, total: int | None = None) -> None:
        """Start the bar of another run."""
        self._label, self._score, self._bytes = label, "", 0
        self._bar.reset(self._task, total=total, description=escape(label), figures="setting up", visible=True)

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Show a finished round."""
        number = int(record["round"])
        self._score = _score(record) or self._score
        self._bytes += int(record["bytes_up"]) + int(record["bytes_down"])
        figures = _figures(record, self._score, self._bytes)
        self._bar.update(self._task, completed=number, total=total_rounds, figures=figures)
        if self.lines and (number % max(1, total_rounds // 10) == 0 or number == total_rounds):
            self._console.print(f"{escape(self._label)}  round {number}/{total_rounds} · {figures}", soft_wrap=True)


class NotebookProgress:
    """An observer of runs that draws one bar at a time below a notebook's cell; a context manager. Needs no widgets."""

    EVERY = 0.1
    """Fewest seconds between two drawings."""

    def __init__(self) -> None:
        self._label, self._score, self._bytes, self._drawn = "", "", 0, 0.0
        self._handle: Any = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the last drawing as it is."""

    def begin(self, label: str, total: int | None = None) -> None:
        """Start the bar of another run, in place of the last one."""
        self._label, self._score, self._bytes = label, "", 0
        self._draw(0, total or 1, "setting up")

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Show a finished round."""
        number = int(record["round"])
        self._score = _score(record) or self._score
        self._bytes += int(record["bytes_up"]) + int(record["bytes_down"])
        if number == total_rounds or time.monotonic() - self._drawn >= self.EVERY:
            self._draw(number, total_rounds, f"{number}/{total_rounds} · {_figures(record, self._score, self._bytes)}")

    def _draw(self, number: int, total: int, text: str) -> None:
        shown: Any = importlib.import_module("IPython.display")
        self._drawn = time.monotonic()
        label = html.escape(f"{self._label}  {text}")
        picture = shown.HTML(f'<progress value="{number}" max="{total}"></progress> <code>{label}</code>')
        if self._handle is None:
            self._handle = shown.display(picture, display_id=True)
        else:
            self._handle.update(picture)


def _score(record: dict[str, Any]) -> str:
    """Return the primary figure of a round as text; empty where it was not evaluated."""
    name = record.get("metric", "accuracy")
    return f"{name} {score_text(record[name], name == 'accuracy')}" if name in record else ""


def _figures(record: dict[str, Any], score: str, count: int) -> str:
    return f"virtual {seconds_text(record['virtual_seconds'])} · {score or 'accuracy –'} · {bytes_text(count)}"
