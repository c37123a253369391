"""Values of single cells: numbers, dates and missing values, in the notations that are recognised."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

__all__ = [
    "MISSING",
    "DateStyle",
    "as_date",
    "as_number",
    "comma_style",
    "date_styles",
    "is_missing",
    "is_number",
    "leading_zero",
    "measured",
]

MISSING = ("", "?", "na", "nan", "null")
"""Cells that are missing values, in any case. Others are named with ``na=``."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_ZERO = re.compile(r"[+-]?0\d+")
_ISO = re.compile(r"\d{4}-\d\d?-\d\d?([T ]\d\d?:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")
_DAYS = re.compile(r"(\d\d?)([./-])(\d\d?)\2(\d{4})([T ]\d\d?:\d\d(:\d\d)?)?")
_YEARS = re.compile(r"\d{4}/\d\d?/\d\d?")
_WITH_UNIT = re.compile(
    r"(?P<sign>[€$£¥]?)\s*[+-]?\d+([.,]\d+)?\s*(?P<unit>[^\W\d_]{1,10}([/.][^\W\d_]{1,10})?|%|‰|°[CF]?|[€$£¥])?"
)
_TIME = re.compile(r"\d\d?:\d\d(:\d\d)?")
_LEAST_MEASURED = 3
"""Different numbers with the same unit from which on texts are measured values, not names."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DateStyle = Literal["ymd", "dmy", "mdy"]


def is_missing(text: str, also: Iterable[str] = ()) -> bool:
    """Return whether a cell is a missing value.

    Args:
        text: the cell.
        also: further spellings, compared exactly.

    Example:
        >>> is_missing("NaN"), is_missing("-"), is_missing("-", ["-"])
        (True, False, True)
    """
    return text.lower() in MISSING or text in also


def as_number(text: str, decimal: str = ".") -> float | None:
    """Return the finite number that a cell denotes; None for any other text.

    Example:
        >>> as_number("1.5"), as_number("1,5", decimal=","), as_number("1,5"), as_number("inf")
        (1.5, 1.5, None, None)
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    if decimal == "," and ("." in text or not (text.lstrip("+-").isdigit() or _DECIMAL_COMMA.fullmatch(text))):
        return None
    if "_" in text:  # Python's own notation
        return None
    try:
        value = float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_number(text: str) -> bool:
    """Return whether a cell denotes a finite number."""
    return as_number(text) is not None


def measured(cells: Sequence[str]) -> tuple[str, str]:
    """Return the unit beside the numbers of at least half of some texts, or ``time of day``, and such a text; empty if there is none.

    Example:
        >>> measured(["unknown", "12 mg", "7 mg", "0.5 mg"]), measured(["8:30", "9:00", "9:30"]), measured(["T1", "T2", "T3"])
        (('mg', '12 mg'), ('time of day', '8:30'), ('', ''))
    """
    found: dict[str, list[str]] = {}
    for text in cells:
        if _TIME.fullmatch(text):
            found.setdefault("time of day", []).append(text)
        elif (parts := _WITH_UNIT.fullmatch(text)) and (unit := parts["sign"] or parts["unit"]):
            found.setdefault(unit, []).append(text)
    unit, texts = max(found.items(), key=lambda item: len(item[1]), default=("", []))
    return (unit, texts[0]) if 2 * len(texts) >= len(cells) and len(set(texts)) >= _LEAST_MEASURED else ("", "")


def leading_zero(text: str) -> bool:
    """Return whether a number starts with a zero that a number would not have, as codes do.

    Example:
        >>> leading_zero("0123"), leading_zero("0.5")
        (True, False)
    """
    return _ZERO.fullmatch(text) is not None


def comma_style(cells: Iterable[str]) -> Literal["decimal", "grouped", "none"]:
    """Return what the commas in a column of numbers are: decimal commas, possibly thousands separators, or neither.

    Example:
        >>> comma_style(["1,5", "2"]), comma_style(["1,200", "300"]), comma_style(["1.5", "2"])
        ('decimal', 'grouped', 'none')
    """
    with_comma = [text for text in cells if "," in text]
    if not with_comma or not all(_DECIMAL_COMMA.fullmatch(text) for text in with_comma):
        return "none"
    return "grouped" if all(_GROUPED.fullmatch(text) for text in with_comma) else "decimal"


def date_styles(cells: Sequence[str]) -> list[DateStyle]:
    """Return the orders of year, month and day in which all cells are dates; more than one if the days do not tell.

    Example:
        >>> date_styles(["2024-02-01"]), date_styles(["31/01/2024", "1/2/2024"]), date_styles(["1/2/2024"])
        (['ymd'], ['dmy'], ['dmy', 'mdy'])
    """
    styles: tuple[DateStyle, ...] = ("ymd", "dmy", "mdy")
    return [style for style in styles if cells and all(as_date(text, style) is not None for text in cells)]


def as_date(text: str, style: DateStyle) -> float | None:
    """Return the days since 1970-01-01 of a date, with the time of day as a fraction; None for any other text.

    Example:
        >>> as_date("1970-01-02T12:00", "ymd"), as_date("2.1.1970", "dmy"), as_date("2023-02-30", "ymd")
        (1.5, 1.0, None)
    """
    try:
        if style == "ymd":
            if not (_ISO.fullmatch(text) or _YEARS.fullmatch(text)):
                return None
            date, _, time = text.replace("/", "-").replace("T", " ").partition(" ")
            year, month, day = (int(part) for part in date.split("-"))
        else:
            parts = _DAYS.fullmatch(text)
            if parts is None or (style == "mdy" and parts[2] == "."):
                return None
            one, two, year, time = int(parts[1]), int(parts[3]), int(parts[4]), (parts[5] or "").lstrip("T ")
            day, month = (one, two) if style == "dmy" else (two, one)
        time = f"0{time}" if time[1:2] == ":" else time or "00:00"
        found = datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}T{time}")
    except ValueError:
        return None
    return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH).total_seconds() / 86400
