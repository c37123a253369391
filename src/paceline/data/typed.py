"""Tables of formats that have types: JSON lines, Parquet and data frames."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from paceline.core.errors import DataFormatError, MissingExtraError
from paceline.data.decode import read_text
from paceline.data.tables import Table, Typed

__all__ = ["of_frame", "of_values", "read_json_lines_table", "read_parquet_table"]


def of_values(where: str, columns: Mapping[str, Iterable[Any]], lines: list[int] | None = None, unit: str = "row") -> Table:
    """Return a table of Python values: texts, numbers, truth values, dates and None.

    A column of numbers stays one; texts that look like numbers stay texts.

    Args:
        where: name of the source, for messages.
        columns: values by column, of equal length.
        lines: position of each row, by default from 1.
        unit: what `lines` counts.

    Raises:
        DataFormatError: a value is no plain value, or a column has values of several types.

    Example:
        >>> table = of_values("memory", {"zip": ["01", "02"], "age": [30, None]})
        >>> table.columns["age"], dict(table.types)
        (['30', ''], {'zip': 'text', 'age': 'number'})
    """
    cells: dict[str, list[str]] = {}
    types: dict[str, Typed] = {}
    for name, values in columns.items():
        listed = list(values)
        lines = lines or list(range(1, len(listed) + 1))
        kinds: dict[Typed, int] = {}
        cells[name] = []
        for row, value in enumerate(listed):
            text, kind = _cell(value)
            if kind is None and text is None:
                raise DataFormatError(
                    f"{where}, {unit} {lines[row]}: column {name!r} has a {type(value).__name__}, which is no plain value; "
                    "write its parts as columns of their own"
                )
            cells[name].append(text or "")
            if kind is not None:
                kinds.setdefault(kind, row)
        if len(kinds) > 1:
            (one, _), (other, row), *_ = kinds.items()
            raise DataFormatError(
                f"{where}, {unit} {lines[row]}: column {name!r} has a {other} here and a {one} before; write values of one type"
            )
        types.update((name, kind) for kind in kinds)
    if not cells or not lines:
        raise DataFormatError(f"{where}: there are no rows")
    return Table(where, cells, lines, unit, (), types)


def _cell(value: Any) -> tuple[str | None, Typed | None]:
    """Return the text and the type of a value; no type for a missing value, neither for one that is not plain."""
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return "", None
    if hasattr(value, "item") and not isinstance(value, str | datetime):  # a scalar of NumPy
        value = value.item()
    if isinstance(value, bool):
        return ("true" if value else "false"), "text"
    if isinstance(value, int | float):
        if isinstance(value, float) and math.isnan(value):
            return "", None
        return (str(int(value)) if isinstance(value, float) and value % 1 == 0 else repr(value)), "number"
    if isinstance(value, datetime | date):
        return value.isoformat(), "date"
    if isinstance(value, str):
        return value.strip(), "text" if value.strip() else None
    if type(value).__name__ == "Decimal":
        return _cell(float(value))
    return None, None


def read_json_lines_table(path: Path) -> Table:
    """Read one JSON object per line.

    Raises:
        DataFormatError: a line is no object of plain values; names it.
    """
    text, _ = read_text(path)
    rows, lines = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; this is one JSON document, write one object per line" if number == 1 and line.strip() in "[{" else ""
            raise DataFormatError(f"{path}, line {number}: not a JSON object ({error}){hint}") from None
        if not isinstance(found, dict):
            what = "a list; write one object per line" if isinstance(found, list) else type(found).__name__
            raise DataFormatError(f"{path}, line {number}: expected an object with a value for each column, found {what}")
        rows.append(found)
        lines.append(number)
    if not rows:
        raise DataFormatError(f"{path}: the file is empty; expected one JSON object per line")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return of_values(str(path), {name: [row.get(name) for row in rows] for name in names}, lines, "line")


def read_parquet_table(path: Path) -> Table:
    """Read a Parquet file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataFormatError: the file is no Parquet file, or has a column of nested values.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet") from None
    try:
        read = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFormatError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    names = [name for name in read.column_names if not name.startswith("__index_level_")]
    return of_values(str(path), {name: read.column(name).to_pylist() for name in names})


def of_frame(frame: Any, where: str = "the data frame") -> Table:
    """Return the table in a data frame of pandas or polars; the index of pandas is left out.

    Args:
        frame: the data frame.
        where: name of it, for messages.

    Raises:
        DataFormatError: it is no data frame, a name is no text, or a value is not plain.
    """
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise DataFormatError(f"{where} is a {type(frame).__name__}; expected a data frame of pandas or polars")
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataFormatError(f"{where}: duplicate column name {twice[0]!r}; rename one")
    return of_values(where, {str(name): frame[name].to_list() for name in frame.columns})
