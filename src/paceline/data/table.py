"""Tables as data sets: CSV, TSV, JSON lines and Parquet, with a target column and, optionally, a column of each row's client."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.columns import Reading, parse_column, warn_of_codes, warn_of_identifier
from paceline.data.delimited import read_delimited
from paceline.data.fit import encoded, fit, make_column, make_target, targets
from paceline.data.mapping import Names
from paceline.data.raw import Array, Part, RawData, encode, hold_out
from paceline.data.schema import Schema, Target
from paceline.data.tables import Table
from paceline.data.typed import read_json_lines_table, read_parquet_table

__all__ = ["of_table", "read_csv", "read_json_lines", "read_parquet", "read_tsv"]


def of_table(
    table: Table,
    target: str = "",
    client: str = "",
    test: float = 0.2,
    drop: str = "",
    target_kind: str = "",
    how: Reading | None = None,
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Return the data set in a table; the rows are split with a fixed seed, a fraction `test` of each class for tests.

    A numeric column or date becomes one standardised input; missing values are replaced by the median. A text column becomes
    one input per value (one-hot), where missing is an additional value. Means, deviations and medians are computed on the
    training rows, or are those of `schema`.

    Args:
        table: the table.
        target: column to predict; the last column by default.
        client: column whose values are the natural clients.
        test: fraction of the rows for tests.
        drop: comma-separated columns to omit.
        target_kind: ``class`` or ``number``; recognised by default.
        how: how cells are read.
        schema: schema to read by, in place of the table's own.
        names: names that differ from the schema's.

    Raises:
        UnknownNameError: unknown column.
        ConfigError: target and client are the same column, or an option has an invalid value.
        DataFormatError: malformed content; the message contains the line.
        SchemaError: the table differs from `schema`.
    """
    how = how or Reading()
    if target_kind not in ("", "class", "number"):
        raise ConfigError(f"target_kind={target_kind!r} must be class or number")
    dropped = [name.strip() for name in drop.split(",") if name.strip()]
    if schema is not None:
        if client:
            table.check(client)
        fitted = fit(table, schema, how, names or Names())
        owner, owners = encode(list(table.columns[client])) if client else (None, ())
        train, held = hold_out(fitted.y, test, where=table.where)
        whole = Part(fitted.x, fitted.y, owner)
        return RawData(whole.take(train), whole.take(held), schema.target.classes, owners, schema=schema, notes=fitted.notes)
    target = target or list(table.columns)[-1]
    table.check(target, *([client] if client else []), *dropped)
    how.check(table)
    if target == client:
        raise ConfigError(f"column {target!r} of {table.where} cannot be both target and client; name another client column")
    predicted = parse_column(table, target, how, "category" if target_kind == "class" else target_kind)
    made, taken = make_target(table, predicted, target_kind)
    features = [name for name in table.columns if name not in {target, client, *dropped}]
    if not features:
        raise DataFormatError(f"{table.where}: no feature column remains beside the target {target!r}")
    columns = [parse_column(table, name, how) for name in features]
    y = targets(made, predicted)
    train, held = hold_out(y, test, where=table.where)
    specs = [make_column(table, column, train) for column in columns]
    x = np.concatenate([encoded(spec, found)[0] for spec, found in zip(specs, columns, strict=True)], axis=1)
    owner, owners = encode(list(table.columns[client])) if client else (None, ())
    doubts = [warn(column, table.where) for column in columns for warn in (warn_of_identifier, warn_of_codes)]
    notes = [*table.notes, *(column.describe() for column in columns), *filter(None, doubts), taken, *_untested(made, y, held)]
    if client:
        notes.append(f"client {client}: {len(owners)} natural clients")
    whole = Part(x.astype(np.float32), y, owner)
    described = Schema(content="table", columns=tuple(specs), target=made)
    return RawData(whole.take(train), whole.take(held), made.classes, owners, schema=described, notes=tuple(notes))


def _untested(target: Target, y: Array, held: Array) -> list[str]:
    """Return a note on the classes that have too few rows for one of them to be held out for tests."""
    if target.kind == "number":
        return []
    lost = [name for code, name in enumerate(target.classes) if not (y[held] == code).any()]
    return [f"classes with too few rows for a test row: {', '.join(lost[:8])}{', ...' if len(lost) > 8 else ''}"] if lost else []


def read_csv(
    path: Path,
    target: str = "",
    client: str = "",
    test: float = 0.2,
    drop: str = "",
    na: str = "",
    sep: str = "",
    encoding: str = "",
    decimal: str = "",
    dates: str = "",
    numbers: str = "",
    categories: str = "",
    header: bool = True,
    target_kind: str = "",
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Read delimited text; see `of_table` for the options that are not listed here.

    Args:
        path: the file.
        target, client, test, drop, target_kind, schema, names: see `of_table`.
        na: comma-separated spellings of missing values, beside empty cells, ``?``, ``NA``, ``NaN`` and ``null``.
        sep: separator; recognised by default.
        encoding: encoding; recognised by default.
        decimal: decimal mark, a point or a comma; recognised by default.
        dates: order in dates: ymd, dmy or mdy; recognised by default where the days tell.
        numbers, categories: comma-separated columns of that kind, whatever they look like.
        header: whether the first row has the names of the columns.
    """
    how = Reading.of(na, decimal, dates, numbers, categories)
    return of_table(read_delimited(path, sep, encoding, header), target, client, test, drop, target_kind, how, schema, names)


def read_tsv(
    path: Path,
    target: str = "",
    client: str = "",
    test: float = 0.2,
    drop: str = "",
    na: str = "",
    encoding: str = "",
    decimal: str = "",
    dates: str = "",
    numbers: str = "",
    categories: str = "",
    header: bool = True,
    target_kind: str = "",
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Read text separated by tabs; see `read_csv`."""
    how = Reading.of(na, decimal, dates, numbers, categories)
    return of_table(read_delimited(path, "\t", encoding, header), target, client, test, drop, target_kind, how, schema, names)


def read_json_lines(
    path: Path,
    target: str = "",
    client: str = "",
    test: float = 0.2,
    drop: str = "",
    na: str = "",
    dates: str = "",
    numbers: str = "",
    categories: str = "",
    target_kind: str = "",
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Read one JSON object per line, each a row of plain values; see `read_csv`."""
    how = Reading.of(na, "", dates, numbers, categories)
    return of_table(read_json_lines_table(path), target, client, test, drop, target_kind, how, schema, names)


def read_parquet(
    path: Path,
    target: str = "",
    client: str = "",
    test: float = 0.2,
    drop: str = "",
    na: str = "",
    dates: str = "",
    numbers: str = "",
    categories: str = "",
    target_kind: str = "",
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Read a Parquet file, whose types are its columns' kinds; see `read_csv`. It needs the extra ``parquet``."""
    how = Reading.of(na, "", dates, numbers, categories)
    return of_table(read_parquet_table(path), target, client, test, drop, target_kind, how, schema, names)
