"""What each column of a table is taken for, or why that is in doubt."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.cells import DateStyle, as_date, as_number, comma_style, date_styles, is_missing, leading_zero, measured
from paceline.data.raw import Array
from paceline.data.schema import MOST_CATEGORIES
from paceline.data.tables import Table

__all__ = ["ColumnWarning", "Parsed", "Reading", "many_texts", "parse_column", "warn_of_codes", "warn_of_identifier"]

_STRAY = 0.1
"""Share of numbers or dates in a column of texts from which on the texts may be strays."""
_IDENTIFIER = re.compile(r"(?i)(.*[_ .-])?(id|uid|uuid|key|index|nr|no|mrn|patient|pid)")
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_LEAST_ROWS = 20
"""Rows from which on distinct whole numbers are suspected to be an identifier, and distinct texts to be no categories."""
_LONGEST = 200
"""Most characters of a category."""
_LEAST_DIFFERENT = 5
"""Other values of a column beside which a number is suspected to be a code."""
_CODE = re.compile(r"-?9{2,}|-9|-1")
_SHOWN = 40
"""Characters of a category that are shown."""


class ColumnWarning(UserWarning):
    """A column was read, but is probably no input, such as an identifier."""


@dataclass(frozen=True)
class Reading:
    """Options of how cells are read.

    Args:
        na: further spellings of missing values.
        decimal: decimal mark, or empty to recognise it.
        dates: order of day and month, or empty to recognise it.
        numbers, categories: columns whose kind is given.
    """

    na: tuple[str, ...] = ()
    decimal: str = ""
    dates: str = ""
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @staticmethod
    def of(na: str = "", decimal: str = "", dates: str = "", numbers: str = "", categories: str = "") -> Reading:
        """Return the options as they are written in the name of a task, with commas between several values.

        Raises:
            ConfigError: an option has an invalid value.
        """
        if decimal not in ("", ".", ","):
            raise ConfigError(f"decimal={decimal!r} must be a point or a comma")
        if dates not in ("", "ymd", "dmy", "mdy"):
            raise ConfigError(f"dates={dates!r} must be ymd, dmy or mdy")
        both = set(_listed(numbers)) & set(_listed(categories))
        if both:
            raise ConfigError(f"column {min(both)!r} is listed in both numbers= and categories=")
        return Reading(_listed(na), decimal, dates, _listed(numbers), _listed(categories))

    def check(self, table: Table) -> None:
        """Raise `UnknownNameError` for an option that names a column that does not exist."""
        table.check(*self.numbers, *self.categories)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class Parsed:
    """A column's values.

    Args:
        name: name of the column.
        kind: what it was taken for.
        values: numbers, or days since 1970-01-01; NaN where missing. None for categories.
        texts: texts; empty where missing. None for numbers and dates.
        missing: spellings of missing values and their counts.
        note: notation that was recognised, such as decimal commas.
    """

    name: str
    kind: Literal["number", "category", "date"]
    values: Array | None
    texts: Sequence[str] | None
    missing: Counter[str]
    note: str = ""

    @property
    def absent(self) -> Array:
        """Which rows have no value, shape [N] (bool)."""
        if self.values is not None:
            return np.isnan(self.values)
        return np.array([not text for text in self.texts or ()], dtype=bool)

    def describe(self) -> str:
        """Return a line for the report."""
        known = Counter(text for text in self.texts or () if text)
        if self.values is not None:
            present = self.values[~np.isnan(self.values)]
            ends = f" from {present.min():g} to {present.max():g}" if len(present) and self.kind == "number" else ""
            constant = ", the same everywhere" if len(present) and present.min() == present.max() else ""
            text = f"{self.kind}{ends}{constant}"
        else:
            names = ", ".join(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in list(dict.fromkeys(known))[:5])
            text = f"category, {len(known)} values: {names}{', ...' if len(known) > 5 else ''}"
        spelled = ", ".join(f"{'empty' if not name else repr(name)} {count}x" for name, count in self.missing.items())
        return f"{self.name}: {text}{f' ({self.note})' if self.note else ''}{f'; missing: {spelled}' if spelled else ''}"


def parse_column(table: Table, name: str, how: Reading, kind: str = "") -> Parsed:
    """Return a column's values.

    Args:
        table: the table.
        name: the column.
        how: options.
        kind: kind that the column must have, such as a schema's; empty to recognise it.

    Raises:
        DataFormatError: the kind is in doubt, or a value is not of the given kind; names the row.
    """
    cells = table.columns[name]
    absent = [is_missing(cell, how.na) for cell in cells]
    missing = Counter(cell for cell, gone in zip(cells, absent, strict=True) if gone)
    present = [cell for cell, gone in zip(cells, absent, strict=True) if not gone]
    declared = table.types.get(name)
    kind = kind or ("number" if name in how.numbers else "category" if name in how.categories else "")
    if not present and kind in ("", "number", "date"):
        if not kind:
            raise DataFormatError(f"{table.where}: column {name!r} has no values; leave it out with drop={name}")
        return Parsed(name, "date" if kind == "date" else "number", np.full(len(cells), np.nan), None, missing)
    if kind == "category":
        return _category(table, name, cells, absent, missing)
    if declared == "text" and not kind and not date_styles(present):
        return _names(table, name, cells, absent, missing)
    if declared == "number" and kind != "date":
        return _numbers(table, name, cells, absent, missing, ".", "", given=True)
    decimal, note = _decimal(table, name, present, how)
    numeric = sum(as_number(cell, decimal) is not None for cell in present)
    if kind == "number" or (not kind and numeric >= _STRAY * len(present)):
        return _numbers(table, name, cells, absent, missing, decimal, note, given=kind == "number")
    dated = max((sum(as_date(cell, style) is not None for cell in present), style) for style in ("ymd", "dmy", "mdy"))[0]
    if kind == "date" or dated >= max(_STRAY * len(present), 1):
        return _dates(table, name, cells, absent, missing, how)
    return _names(table, name, cells, absent, missing)


def _decimal(table: Table, name: str, present: Sequence[str], how: Reading) -> tuple[str, str]:
    """Return the decimal mark of a column, and a note if it was recognised."""
    if how.decimal:
        return how.decimal, ""
    style = comma_style(present)
    if style == "none" or not all(cell.lstrip("+-").isdigit() or "," in cell for cell in present):
        return ".", ""
    if style == "decimal":
        return ",", "decimal commas"
    row = next(i for i, cell in enumerate(table.columns[name]) if "," in cell)
    raise DataFormatError(
        f"{table.place(row)}: column {name!r} has {table.columns[name][row]!r}, whose comma separates either decimals or thousands; "
        "write decimal=, if decimals, and remove the commas from the file if thousands"
    )


def _numbers(
    table: Table,
    name: str,
    cells: Sequence[str],
    absent: Sequence[bool],
    missing: Counter[str],
    decimal: str,
    note: str,
    given: bool,
) -> Parsed:
    values = [float("nan") if gone else as_number(cell, decimal) for cell, gone in zip(cells, absent, strict=True)]
    stray = [row for row, value in enumerate(values) if value is None]
    if stray:
        raise _stray(table, name, cells, stray, "numbers" if not given else "a number in every row", len(cells) - sum(absent))
    coded = [row for row, cell in enumerate(cells) if leading_zero(cell)]
    if coded and not given:
        raise DataFormatError(
            f"{table.place(coded[0])}: column {name!r} has {cells[coded[0]]!r}, whose leading zero a number would lose; "
            f"write categories={name} if these are codes, numbers={name} if numbers, or drop={name}"
        )
    return Parsed(name, "number", np.array(values, dtype=np.float64), None, missing, note)


def _stray(table: Table, name: str, cells: Sequence[str], stray: Sequence[int], what: str, count: int) -> DataFormatError:
    """Return the error for a column of numbers or dates with other texts, with the options that resolve it."""
    odd = Counter(cells[row] for row in stray)
    text = cells[stray[0]][:60]
    more = (
        f" ({len(stray)} of {count} values are no {what.split()[0]}: {', '.join(map(repr, list(odd)[:5]))})"
        if len(stray) > 1
        else ""
    )
    absent = f"na={text} if it means that a value is missing, " if "," not in text else ""
    advice = f"{absent}categories={name} if these are names, or drop={name}"
    return DataFormatError(
        f"{table.place(stray[0])}: column {name!r} has {what}, but here {text!r}{more}; correct the file, or write {advice}"
    )


def _dates(table: Table, name: str, cells: Sequence[str], absent: Sequence[bool], missing: Counter[str], how: Reading) -> Parsed:
    present = [cell for cell, gone in zip(cells, absent, strict=True) if not gone]
    known: tuple[DateStyle, ...] = ("ymd", "dmy", "mdy")
    styles = date_styles(present)
    if how.dates and how.dates in styles:
        styles = [style for style in known if style == how.dates]
    if not styles:
        best = max(known, key=lambda style: sum(as_date(cell, style) is not None for cell in present))
        stray = [row for row, gone in enumerate(absent) if not gone and as_date(cells[row], best) is None]
        raise _stray(table, name, cells, stray, "dates", len(present))
    if len(styles) > 1:
        row = absent.index(False)
        raise DataFormatError(
            f"{table.place(row)}: column {name!r} has dates such as {cells[row]!r} that may be day/month or month/day; "
            "write dates=dmy or dates=mdy"
        )
    days = [float("nan") if gone else as_date(cell, styles[0]) for cell, gone in zip(cells, absent, strict=True)]
    return Parsed(
        name,
        "date",
        np.array(days, dtype=np.float64),
        None,
        missing,
        {"ymd": "", "dmy": "day first", "mdy": "month first"}[styles[0]],
    )


def _names(table: Table, name: str, cells: Sequence[str], absent: Sequence[bool], missing: Counter[str]) -> Parsed:
    """Return a column of texts as categories, unless these are numbers with a unit."""
    present = [cell for cell, gone in zip(cells, absent, strict=True) if not gone]
    unit, text = measured(present)
    if unit:
        what = "times of day, which are no dates" if unit == "time of day" else f"numbers with {unit!r}"
        raise DataFormatError(
            f"{table.place(cells.index(text))}: column {name!r} has texts such as {text!r}: these are {what}; write the numbers alone, "
            f"in one unit, or categories={name} if these are names, or drop={name}"
        )
    return _category(table, name, cells, absent, missing)


def _category(table: Table, name: str, cells: Sequence[str], absent: Sequence[bool], missing: Counter[str]) -> Parsed:
    texts = _whole_numbers(["" if gone else cell for cell, gone in zip(cells, absent, strict=True)])
    seen: dict[str, str] = {}
    for row, text in enumerate(texts):
        if text and (other := seen.setdefault(" ".join(text.split()).casefold(), text)) != text:
            raise DataFormatError(
                f"{table.place(row)}: column {name!r} has {text!r} here and {other!r} before, which differ only in case or spaces; "
                "write them alike in the file"
            )
    return Parsed(name, "category", None, texts, missing)


def _whole_numbers(texts: list[str]) -> list[str]:
    """Write whole numbers without decimals, as pandas adds them to a column with missing values: ``1.0`` is the category ``1``."""
    if not all(_WHOLE.fullmatch(text) for text in texts if text):
        return texts
    return [text.partition(".")[0] for text in texts]


def many_texts(table: Table, column: Parsed) -> None:
    """Raise `DataFormatError` for a column of texts with more categories than a model can use."""
    present = [text for text in column.texts or () if text]
    distinct = set(present)
    if distinct and len(longest := max(distinct, key=len)) > _LONGEST:
        raise DataFormatError(
            f"{table.place((column.texts or ()).index(longest))}: text column {column.name!r} has a text of {len(longest)} characters, "
            f"which is no category; leave it out with drop={column.name}"
        )
    if len(distinct) == len(present) >= _LEAST_ROWS and len(distinct) <= MOST_CATEGORIES:
        raise DataFormatError(
            f"{table.where}: text column {column.name!r} has a different text in each of {len(present)} rows, so these are no "
            f"categories; leave it out with drop={column.name}"
        )
    if len(distinct) > MOST_CATEGORIES:
        raise DataFormatError(
            f"{table.where}: text column {column.name!r} has {len(distinct)} different values, more than {MOST_CATEGORIES}; "
            f"leave it out with drop={column.name}"
        )


def warn_of_identifier(column: Parsed, place: str) -> str:
    """Warn of a column that is probably an identifier, and return the text of the warning; empty if it is none."""
    values = column.values
    if values is None or column.kind != "number" or len(values) < _LEAST_ROWS or np.isnan(values).any():
        return ""
    if (values % 1).any() or len(np.unique(values)) < len(values):
        return ""
    steps = np.diff(values)
    if not ((steps == 1).all() or _IDENTIFIER.fullmatch(column.name)):
        return ""
    text = (
        f"column {column.name!r} has a different whole number in each row, so it is probably an identifier; "
        f"drop={column.name} leaves it out"
    )
    warnings.warn(f"{place}: {text}", ColumnWarning, stacklevel=3)
    return text


def warn_of_codes(column: Parsed, place: str) -> str:
    """Warn of numbers such as -999 that probably mean that a value is missing, and return the text of the warning; empty if none.

    Such a number consists of nines (or is -9 or -1), occurs more than once, and lies further from the other values than these
    are apart.
    """
    if column.values is None or column.kind != "number":
        return ""
    values, counts = np.unique(column.values[~np.isnan(column.values)], return_counts=True)
    for value, count, rest in ((values[:1], counts[:1], values[1:]), (values[-1:], counts[-1:], values[:-1])):
        if len(rest) < _LEAST_DIFFERENT or count[0] < 2 or not _CODE.fullmatch(f"{value[0]:.15g}"):
            continue
        if np.abs(rest - value[0]).min() > rest[-1] - rest[0]:
            text = (
                f"column {column.name!r} has {value[0]:g} in {count[0]} rows, far from its other values ({rest[0]:g} to {rest[-1]:g}); "
                f"na={value[0]:g} counts it as missing"
            )
            warnings.warn(f"{place}: {text}", ColumnWarning, stacklevel=3)
            return text
    return ""
