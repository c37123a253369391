"""Figures with units, tables, and the console for progress."""

from __future__ import annotations

import math
import sys

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

__all__ = ["FittingTable", "bytes_text", "err", "percent", "score_text", "seconds_text", "table"]


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(file=sys.stderr, highlight=False)


class FittingTable(Table):
    """A table that breaks lines between words, and has no vertical lines where the console is too narrow for them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Set the columns' widths to the console's, then render."""
        self._fit(console, options)
        yield from super().__rich_console__(console, options)

    def _fit(self, console: Console, options: ConsoleOptions) -> None:
        sizes = [self._sizes(console, options, column) for column in self.columns]
        lines = 3 * len(sizes) + 1
        if sum(most for _, most in sizes) + lines <= options.max_width:
            return
        self.box, self.show_edge, self.pad_edge, self.collapse_padding = box.SIMPLE_HEAD, False, False, True
        lines = 2 * len(sizes) - 1
        spare = options.max_width - lines - sum(least for least, _ in sizes)
        wanted = sum(most - least for least, most in sizes)
        if spare < 0 or not wanted:
            return  # words have to be broken
        for column, (least, most) in zip(self.columns, sizes, strict=True):
            column.width = least + min(spare * (most - least) // wanted, most - least)

    @staticmethod
    def _sizes(console: Console, options: ConsoleOptions, column: Column) -> tuple[int, int]:
        """Return the widths of a column's longest word and of its longest cell."""
        cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        least, most = max(m.minimum for m in cells), max(m.maximum for m in cells)
        return (most if column.no_wrap else least), most


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> FittingTable:
    """Return an empty table; the columns in `right` hold figures."""
    made = FittingTable(title=Text(title), title_justify="left", header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name == columns[0])
    return made


def bytes_text(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> bytes_text(950), bytes_text(1_234_567)
    ('950 B', '1.23 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float | None) -> str:
    """Return a duration with its unit; a dash for None.

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
    """Return a share in percent; a dash for None."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def score_text(value: float | None, in_percent: bool) -> str:
    """Return the value of a metric, in percent or with four digits; a dash for None.

    >>> score_text(0.912, True), score_text(1234.56, False)
    ('91.2 %', '1235')
    """
    return percent(value) if in_percent else "–" if value is None or not math.isfinite(value) else f"{value:.4g}"
