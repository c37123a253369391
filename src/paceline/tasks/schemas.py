"""Schemas: of a task, and of files or a data frame, where a run is defined."""

from __future__ import annotations

from typing import Any

from paceline.core.errors import ConfigError
from paceline.core.task import Task
from paceline.data.columns import Reading
from paceline.data.conform import described
from paceline.data.files import read_files, stated
from paceline.data.schema import Schema
from paceline.data.table import of_table
from paceline.data.typed import of_frame
from paceline.tasks.images import scaled

__all__ = ["make_schema", "schema_of", "standardized"]


def schema_of(task: Task) -> Schema | None:
    """Return the schema of a task's data; None for a task that was not read from files or a named data set.

    Example:
        >>> from paceline.tasks import load_task
        >>> schema_of(load_task("digits")).picture.form
        '8x8 pixels, grey'
    """
    text = task.info.get("schema")
    return None if text is None else Schema.parse(text, f"task {task.name!r}")


def make_schema(source: Any, *, standardize: str | None = None, **options: Any) -> tuple[Schema, tuple[str, ...]]:
    """Return the schema of a sample, and what each of its columns or folders was taken for, a line each.

    Args:
        source: files, as ``kind:/path?option=value``, or a data frame of pandas or polars.
        standardize: see `Schema`; by default as in the source.
        options: of the reader, such as ``target``; for a data frame: target, client, drop, na, dates, numbers, categories and
            target_kind.

    Raises:
        UnknownNameError: unknown kind, option or column.
        DataFormatError: the content is malformed or in doubt.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"age": [31, 45, 27, 52, 38, 60], "sick": ["no", "yes", "no", "yes", "no", "yes"]})
        >>> schema, notes = make_schema(frame, target="sick")
        >>> schema.columns[0].kind, schema.target.classes, notes[-1]
        ('number', ('no', 'yes'), 'target sick: 2 classes: no, yes')
    """
    if isinstance(source, str):
        files, own = stated(source, "standardize")
        kind, raw = read_files(files, **options)
        standardize = standardize or own
        schema = scaled(described(raw, kind.content), raw.train)
    else:
        reading = {name: options.pop(name) for name in ("na", "dates", "numbers", "categories") if name in options}
        raw = of_table(of_frame(source), how=Reading.of(**reading), **options)
        assert raw.schema is not None
        schema = raw.schema
    return schema if standardize is None else standardized(schema, standardize), raw.notes


def standardized(schema: Schema, how: str) -> Schema:
    """Return a schema with another origin of its scaling; raises `ConfigError` for an unknown one."""
    if how not in ("schema", "federated", "none"):
        raise ConfigError(f"standardize={how!r} must be schema, federated or none")
    changes: dict[str, Any] = {"standardize": how}
    if how == "none":
        plain = {"mean": 0.0, "deviation": 1.0}
        changes["columns"] = tuple(column.model_copy(update=plain) for column in schema.columns)
        if schema.picture is not None:
            same = {name: (value,) * schema.picture.channels for name, value in plain.items()}
            changes["picture"] = schema.picture.model_copy(update=same)
    return schema.model_copy(update=changes)
