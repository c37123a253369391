"""Live progress of a run on stderr: round, virtual time, accuracy, bytes."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paceline.cli.show import bytes_text, err, percent, seconds_text

__all__ = ["LiveProgress"]


class LiveProgress:
    """Observer of runs that displays one progress bar at a time; a context manager.

    On a terminal the bar is updated; otherwise a line is printed for about every tenth of the rounds.

    Args:
        quiet: display nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        console = err()
        self.quiet, self.live = quiet, console.is_terminal and not quiet
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
        self._accuracy: float | None = None
        self._bytes = 0

    def __enter__(self) -> Self:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the display and leave the cursor below it."""
        self._bar.stop()

    def begin(self, label: str, total: int | None = None) -> None:
        """Start the bar of another run."""
        self._label, self._accuracy, self._bytes = label, None, 0
        self._bar.reset(self._task, total=total, description=escape(label), figures="setting up", visible=True)

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Display a finished round."""
        number = int(record["round"])
        self._accuracy = record.get("accuracy", self._accuracy)
        self._bytes += int(record["bytes_up"]) + int(record["bytes_down"])
        figures = (
            f"virtual {seconds_text(record['virtual_seconds'])} · accuracy {percent(self._accuracy)} · {bytes_text(self._bytes)}"
        )
        self._bar.update(self._task, completed=number, total=total_rounds, figures=figures)
        if not self.live and not self.quiet and (number % max(1, total_rounds // 10) == 0 or number == total_rounds):
            self._console.print(f"{escape(self._label)}  round {number}/{total_rounds} · {figures}", soft_wrap=True)
