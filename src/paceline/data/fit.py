"""Tables and schemas: make the schema of a table, and read a table by a schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.core.errors import DataFormatError, SchemaError
from paceline.data.columns import Parsed, Reading, many_texts, parse_column, warn_of_codes
from paceline.data.mapping import Names
from paceline.data.raw import Array, encode
from paceline.data.schema import Schema, SchemaColumn, Target
from paceline.data.tables import Table

__all__ = ["FEW_CLASSES", "Fitted", "coded_targets", "encoded", "fit", "fit_inputs", "make_column", "make_target", "targets"]

FEW_CLASSES = 20
"""Most distinct whole numbers that are taken for classes."""


@dataclass(frozen=True)
class Fitted:
    """A table, read by a schema.

    Args:
        x: inputs, shape [N, width] (float32).
        y: codes of the classes (int64), or numbers (float32); shape [N].
        notes: what was found, a line each, for the site itself.
    """

    x: Array
    y: Array
    notes: tuple[str, ...]


def make_column(table: Table, column: Parsed, train: Array) -> SchemaColumn:
    """Return the schema of an input column, with categories of all rows and scaling of the rows `train`."""
    if column.values is None:
        many_texts(table, column)
        texts = column.texts or ()
        names = encode([text for text in texts if text])[1]
        if not names:
            raise DataFormatError(f"{table.where}: column {column.name!r} has no values; leave it out with drop={column.name}")
        return SchemaColumn(name=column.name, kind="category", categories=names, missing=bool(column.absent.any()))
    rows = column.values[train]
    known = rows[~np.isnan(rows)]
    if not len(known):
        raise DataFormatError(f"{table.where}: column {column.name!r} has no values; leave it out with drop={column.name}")
    fill = float(np.median(known))
    filled = np.where(np.isnan(rows), fill, rows)
    mean, deviation = float(filled.mean()), float(filled.std()) or 1.0
    absent = bool(column.absent.any())
    return SchemaColumn(name=column.name, kind=column.kind, missing=absent, fill=fill, mean=mean, deviation=deviation)


def make_target(table: Table, column: Parsed, kind: str = "") -> tuple[Target, str]:
    """Return the schema of the target, and a note on what it was taken for.

    Texts are classes. Whole numbers are classes where there are few of them, and a quantity otherwise.

    Args:
        table: the table.
        column: the target column.
        kind: class or number; empty to recognise it.

    Raises:
        DataFormatError: there is a row without value, or no two classes.
    """
    if column.absent.any():
        row = int(np.flatnonzero(column.absent)[0])
        raise DataFormatError(f"{table.place(row)}: the target column {column.name!r} has no value; fill it in or delete the row")
    if column.kind == "date":
        raise DataFormatError(f"{table.where}: the target {column.name!r} is a date; choose another with target=COLUMN")
    values = column.values
    distinct = len(np.unique(values)) if values is not None else len(set(column.texts or ()))
    few = distinct <= min(FEW_CLASSES, max(len(table) // 3, 2))
    if kind == "number" or (not kind and values is not None and (not few or bool((values % 1).any()))):
        if values is None:
            raise DataFormatError(f"{table.where}: the target {column.name!r} is a text; target_kind=number needs numbers")
        spread = float(values.std()) or 1.0
        made = Target(name=column.name, kind="number", mean=float(values.mean()), deviation=spread)
        return made, f"target {column.name}: a number with {distinct} different values, so a regression"
    classes = encode(_labels(column))[1]
    if len(classes) < 2:
        raise DataFormatError(
            f"{table.where}: the target {column.name!r} is {classes[0]!r} in every row; choose another with target="
        )
    if not kind and values is None and len(classes) > max(len(table) // 2, 2):
        raise DataFormatError(
            f"{table.where}: the target {column.name!r} has {len(classes)} different texts in {len(table)} rows, so these are no "
            "classes; choose another column with target="
        )
    shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    return Target(name=column.name, kind="class", classes=classes), f"target {column.name}: {len(classes)} classes: {shown}"


def targets(target: Target, column: Parsed) -> Array:
    """Return the codes (int64) or numbers (float32) of a target column from which `target` was made."""
    if target.kind == "number":
        assert column.values is not None
        return column.values.astype(np.float32)
    codes = {name: code for code, name in enumerate(target.classes)}
    return np.array([codes[text] for text in _labels(column)], dtype=np.int64)


def _labels(column: Parsed) -> list[str]:
    """Return the classes as texts; whole numbers without decimals."""
    if column.values is None:
        return list(column.texts or ())
    return [str(int(value)) if value % 1 == 0 else repr(float(value)) for value in column.values]


def encoded(column: SchemaColumn, found: Parsed, names: Mapping[str, str] | None = None) -> tuple[Array, Counter[str]]:
    """Return the inputs that a column becomes, shape [N, width], and the categories that the schema does not have.

    Args:
        column: the schema of the column.
        found: its values.
        names: the schema's name of a category, by the file's.
    """
    if found.values is not None:
        filled = np.where(np.isnan(found.values), column.fill, found.values)
        scaled: Array = ((filled - column.mean) / column.deviation)[:, None]
        return scaled, Counter()
    codes = {name: code for code, name in enumerate(column.categories)}
    if column.missing:
        codes[""] = len(codes)
    texts = [(names or {}).get(text, text) for text in found.texts or ()]
    unknown = Counter(text for text in texts if text and text not in codes)
    hot = np.zeros((len(texts), column.width))
    for row, text in enumerate(texts):
        if (code := codes.get(text)) is not None:
            hot[row, code] = 1
    return hot, unknown


def fit(table: Table, schema: Schema, how: Reading, names: Names) -> Fitted:
    """Read a site's table by a schema, column by column and by name.

    Args:
        table: the site's table.
        schema: the schema.
        how: how cells are read.
        names: the site's names.

    Raises:
        SchemaError: lists all differences. Its `shared` names columns and classes of the schema and columns of the site, no values.
        ConfigError: the mapping does not fit file and schema.
    """
    if schema.content != "table":
        raise SchemaError(table.where, [other := f"the run needs {schema.content}s, but this site has a table"], [other])
    renamed = names.renamed(table, schema)
    wanted = [*(column.name for column in schema.columns), schema.target.name]
    extra = [name for name in renamed.columns if name not in wanted]
    shared: list[str] = []
    own: list[str] = []
    notes = list(table.notes) + ([f"not in the schema, so unused: {', '.join(extra)}"] if extra else [])

    def differ(text: str, detail: str = "") -> None:
        shared.append(text)
        own.append(f"{text} ({detail})" if detail else text)

    blocks = _inputs(renamed, schema, how, names, _instead(extra), differ, notes)
    y = _target(renamed, schema.target, how, names, extra, differ)
    if shared:
        raise SchemaError(table.where, shared, own)
    assert y is not None
    notes.append(_counts(schema.target, y))
    return Fitted(np.concatenate(blocks, axis=1).astype(np.float32), y, tuple(notes))


def fit_inputs(table: Table, schema: Schema, how: Reading, names: Names, advice: str) -> tuple[Array, tuple[str, ...]]:
    """Read the inputs of a table by a schema, by name; the target may be missing.

    Args:
        table: the table.
        schema: the schema.
        how: how cells are read.
        names: names that differ from the schema's.
        advice: how to name a column of the table that is one of the schema's, for the message.

    Returns:
        inputs, shape [N, width] (float32), and what was found, a line each.

    Raises:
        SchemaError: lists all differences.
        ConfigError: the mapping does not fit table and schema.
    """
    renamed = names.renamed(table, schema)
    extra = [name for name in renamed.columns if name not in {*(c.name for c in schema.columns), schema.target.name}]
    notes = list(table.notes) + ([f"unknown to the model, so unused: {', '.join(extra)}"] if extra else [])
    faults: list[str] = []

    def differ(text: str, detail: str = "") -> None:
        faults.append(f"{text} ({detail})" if detail else text)

    blocks = _inputs(renamed, schema, how, names, _instead(extra, advice), differ, notes, alike=False)
    if faults:
        raise SchemaError(table.where, faults, faults)
    return np.concatenate(blocks, axis=1).astype(np.float32), tuple(notes)


def _inputs(
    table: Table,
    schema: Schema,
    how: Reading,
    names: Names,
    instead: str,
    differ: Callable[..., None],
    notes: list[str],
    alike: bool = True,
) -> list[Array]:
    """Return the inputs of each column; report differences with `differ`, and add to the notes what was found.

    With `alike`, a column without any of the schema's categories is a difference.
    """
    blocks = []
    for column in schema.columns:
        label = _label(column.name, names)
        if column.name not in table.columns:
            differ(f"column {column.name!r} ({column.kind}) is missing{instead}")
            continue
        try:
            found = parse_column(table, column.name, how, column.kind)
        except DataFormatError as error:
            differ(f"column {label} is a {column.kind} in the schema, but not in this file", str(error))
            continue
        block, unknown = encoded(column, found, names.values.get(column.name))
        blocks.append(block)
        notes.append(found.describe())
        if doubt := warn_of_codes(found, table.where):
            notes.append(doubt)
        if alike and unknown and not block[~found.absent].any():
            known = ", ".join(column.categories[:10])
            differ(f"no value of column {label} is one of its categories ({known})", f"found: {_some(unknown)}")
        elif unknown:
            notes.append(
                f"{column.name}: {sum(unknown.values())} rows with categories that the schema does not have: {_some(unknown)}"
            )
    return blocks


def _target(table: Table, target: Target, how: Reading, names: Names, extra: Sequence[str], differ: object) -> Array | None:
    """Return the targets; None where they differ from the schema."""
    assert callable(differ)
    label = _label(target.name, names)
    if target.name not in table.columns:
        differ(f"the target {target.name!r} ({target.kind}) is missing{_instead(extra)}")
        return None
    try:
        kind = "number" if target.kind == "number" else "category"
        found = parse_column(table, target.name, how, kind)
    except DataFormatError as error:
        differ(f"the target {label} is a {target.kind} in the schema, but not in this file", str(error))
        return None
    if found.absent.any():
        row = int(np.flatnonzero(found.absent)[0])
        differ(f"the target {label} has rows without value", f"{table.place(row)}; fill it in or delete the row")
        return None
    try:
        return coded_targets(target, found, names, table.where)
    except SchemaError as error:
        differ(error.shared[0], error.own[0])
        return None


def coded_targets(target: Target, found: Parsed, names: Names, where: str) -> Array:
    """Return the codes (int64) of a schema's classes, or numbers (float32).

    Raises:
        SchemaError: a value is no class of the schema, or a number is needed.
    """
    label = _label(target.name, names)
    if target.kind == "number":
        if found.values is None:
            text = f"the target {label} is a number in the schema, but a text here"
            raise SchemaError(where, [text], [text])
        return found.values.astype(np.float32)
    texts = [names.value(target.name, text) for text in _labels(found)]
    unknown = Counter(text for text in texts if text not in target.classes)
    if unknown:
        known = ", ".join(target.classes[:10]) + (", ..." if len(target.classes) > 10 else "")
        text = f"the target {label} has values that are no class of the schema ({known}); map them in [data.values.{target.name}]"
        raise SchemaError(where, [text], [f"found: {_some(unknown)}"])
    codes = {name: code for code, name in enumerate(target.classes)}
    return np.array([codes[text] for text in texts], dtype=np.int64)


def _counts(target: Target, y: Array) -> str:
    if target.kind == "number":
        return f"target {target.name}: {len(y)} numbers"
    counts = np.bincount(y, minlength=len(target.classes))
    shown = ", ".join(f"{name} {count}" for name, count in list(zip(target.classes, counts, strict=True))[:20])
    return f"target {target.name}: {shown}"


def _label(name: str, names: Names) -> str:
    own = names.own(name)
    return repr(name) if own == name else f"{name!r} (here {own!r})"


def _instead(extra: Sequence[str], advice: str = "map it in [data.columns]") -> str:
    """Return the file's columns that a missing one may be."""
    if not extra:
        return ""
    listed = ", ".join(map(repr, extra[:8])) + (", ..." if len(extra) > 8 else "")
    return f"; this file also has {listed}: {advice}"


def _some(unknown: Counter[str]) -> str:
    return ", ".join(f"{text[:60]!r} {count}x" for text, count in unknown.most_common(10)) + (", ..." if len(unknown) > 10 else "")
