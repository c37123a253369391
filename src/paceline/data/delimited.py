"""Delimited text (CSV, TSV and relatives) as a table of texts: separator, header and shape, all checked."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.cells import is_number
from paceline.data.decode import read_text
from paceline.data.tables import Table

__all__ = ["read_delimited"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "bar": "|"}
_SAMPLE = 50
"""Rows that are split to recognise the separator."""

Row = tuple[int, list[str]]


def read_delimited(path: Path, sep: str = "", encoding: str = "", header: bool = True) -> Table:
    """Read a table of delimited text.

    Args:
        path: the file.
        sep: separator, or a word for it such as ``tab``; recognised by default.
        encoding: encoding; recognised by default.
        header: whether the first row has the names of the columns; otherwise they are ``c1``, ``c2``, ...

    Raises:
        ConfigError: an option has an invalid value.
        DataFormatError: the content is malformed or in doubt; the message names the line.
    """
    text, encoded = read_text(path, encoding)
    notes = [] if encoded == "utf-8" else [f"encoding {encoded}"]
    first, _, rest = text.partition("\n")
    skipped = 0
    if first.strip().strip('"').lower().startswith("sep=") and len(first.strip().strip('"')) == 5:
        sep, text, skipped = sep or first.strip().strip('"')[4], rest, 1
    sep = _NAMED.get(sep.lower(), sep)
    if len(sep) > 1:
        raise ConfigError(f"sep={sep!r} must be one character, or one of the words {', '.join(_NAMED)}")
    if not text.strip():
        raise DataFormatError(f"{path}: the file is empty; expected a header and at least one row")
    chosen = sep or _separator(text, path)
    if chosen != ",":
        notes.append(f"separated by {_SEPARATORS.get(chosen, repr(chosen))}")
    rows = _split(text, chosen, path, skipped)
    return _table(rows, path, header, notes)


def _split(text: str, sep: str, path: Path, skipped: int = 0, most: int | None = None) -> list[Row]:
    """Return the rows that are not blank, each with the line on which it begins."""
    rows: list[Row] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep, strict=True)
    line = 1 + skipped
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # one cell may have a long text
    try:
        for cells in reader:
            if cells:
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1 + skipped
            if most is not None and len(rows) == most:
                break
    except csv.Error as error:
        raise DataFormatError(f"{path}, line {line}: {error}; check the quotes from this line on") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _separator(text: str, path: Path) -> str:
    """Return the separator by which the header and the first rows have the same number of columns.

    Raises:
        DataFormatError: more than one separator does so.
    """
    fitting, widths = [], {}
    for sep in _SEPARATORS:
        try:
            rows = _split(text, sep, path, most=_SAMPLE)
        except DataFormatError:
            continue
        widths[sep] = len(rows[0][1]) if rows else 0
        if widths[sep] > 1 and len({len(cells) for _, cells in rows}) == 1:
            fitting.append(sep)
    if len(fitting) > 1:
        what = " and ".join(f"{_SEPARATORS[sep]} ({widths[sep]} columns)" for sep in fitting)
        raise DataFormatError(f"{path}: {what} both separate its rows evenly; choose one with sep=, such as sep=semicolon")
    if fitting:
        return fitting[0]
    return max(widths, key=lambda sep: widths[sep], default=",")  # uneven, or one column: the fault is named with its line


def _table(rows: list[Row], path: Path, header: bool, notes: list[str]) -> Table:
    if header:
        (line, names), rows = rows[0], rows[1:]
        if names and all(is_number(name) for name in names):
            raise DataFormatError(
                f"{path}, line {line}: the first row has only numbers ({', '.join(names[:4])}); add a row of column names, or write "
                "header=false"
            )
    else:
        names = [f"c{i}" for i in range(1, len(rows[0][1]) + 1)]
        notes.append("no header; columns are c1, c2, ...")
    for line, cells in rows:
        if len(cells) != len(names):
            raise DataFormatError(f"{path}, line {line}: {len(cells)} values for {len(names)} columns; check separators and quotes")
    full = [(line, cells) for line, cells in rows if any(cells)]
    if len(full) < len(rows):
        notes.append(f"{len(rows) - len(full)} rows without any value skipped")
    if not full:
        raise DataFormatError(f"{path}: expected a header and at least one row of values")
    columns = {i: [cells[i] for _, cells in full] for i in range(len(names))}
    for i, name in enumerate(names):
        if name:
            continue
        if not any(columns[i]):
            notes.append(f"column {i + 1} has neither name nor values; skipped")
        elif columns[i] in ([str(k) for k in range(len(full))], [str(k + 1) for k in range(len(full))]):
            notes.append(f"column {i + 1} has no name and counts the rows; skipped")
        else:
            raise DataFormatError(f"{path}: column {i + 1} has values but no name; name it in the first row")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataFormatError(f"{path}: duplicate column name {twice[0]!r}; rename one")
    return Table(
        str(path), {name: columns[i] for i, name in enumerate(names) if name}, [line for line, _ in full], "line", tuple(notes)
    )
