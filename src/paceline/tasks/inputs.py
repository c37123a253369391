"""Inputs of a trained model from raw rows, pictures and texts, by the schema of the run: the same steps as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from paceline.core.columns import length, map_tree
from paceline.core.errors import DataError, DataFormatError, SchemaError, UnknownNameError
from paceline.data.arrays import numbers_by_schema
from paceline.data.columns import Reading
from paceline.data.decode import read_text
from paceline.data.delimited import read_delimited
from paceline.data.files import file_kinds
from paceline.data.fit import fit_inputs
from paceline.data.mapping import Names
from paceline.data.pictures import ENDS, hidden, in_one_form, read_picture
from paceline.data.schema import Schema
from paceline.data.tables import Table
from paceline.data.textfolder import as_bytes
from paceline.data.typed import of_frame, of_values, read_json_lines_table, read_parquet_table
from paceline.data.words import coded
from paceline.tasks.images import channels_first

__all__ = ["READING", "Inputs", "inputs_of"]

READING = ("na", "sep", "encoding", "decimal", "dates", "header")
"""Options of how a table's cells are read."""

_TABLES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_TEXTS = {".txt", ".text", ".md"}
_TRUTHS = {"true": "1", "false": "0", "": ""}


@dataclass(frozen=True)
class Inputs:
    """Samples as a model takes them.

    Args:
        x: a tensor of shape [N, ...], or a tree of them.
        names: a name for each sample, such as its file; empty where samples are rows.
        notes: what was found, a line each.
        table: the table that was read, if it was one.
    """

    x: Any
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    table: Table | None = None

    def __len__(self) -> int:
        return length(self.x)


@dataclass(frozen=True)
class _Rules:
    schema: Schema | None
    names: Names
    reading: Mapping[str, Any] = field(default_factory=dict)
    advice: str = "name it with columns={OWN: SCHEMA}"


def inputs_of(
    data: Any,
    schema: Schema | None,
    *,
    columns: Mapping[str, str] | None = None,
    reading: Mapping[str, Any] | None = None,
    advice: str = "",
) -> Inputs:
    """Return samples as a model takes them.

    Args:
        data: a file or folder; rows, as a data frame, a list of dicts or a dict of columns; texts or paths of pictures, in a
            list; pictures as an array of whole numbers, [N, H, W] or [N, H, W, channels]; or floats, whose tensors (one, a
            tuple or a dict) are passed to the model as they are.
        schema: schema of the run; None for a model that takes tensors alone.
        columns: the schema's name of a column, by the data's own.
        reading: options of how cells are read, see `READING`.
        advice: what to do about a column that has another name, for the message.

    Raises:
        SchemaError: columns are missing, or pictures have another form; lists all differences.
        DataFormatError: the content cannot be read, or the schema needs another kind of data.
    """
    rules = _Rules(schema, Names(columns or {}), reading or {}, advice or _Rules.advice)
    if isinstance(data, str | Path):
        return _file(data, rules)
    if _tensors(data):
        return _arrays(data, rules)
    if schema is None:
        raise DataFormatError(
            f"a {type(data).__name__} needs a schema, which the model's task does not have; pass tensors as the model takes them"
        )
    if schema.content != "table":
        return _listed(data, rules)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):
        return _rows(of_frame(data), rules)
    if isinstance(data, Mapping):
        if not all(isinstance(value, Sequence | np.ndarray | Tensor) and not isinstance(value, str) for value in data.values()):
            data = [data]  # one row
        else:
            return _rows(of_values("the rows", {name: list(values) for name, values in data.items()}), rules)
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        return _rows(of_values("the rows", {name: [row.get(name) for row in data] for name in names}), rules)
    raise DataFormatError(f"a {type(data).__name__} has no rows; pass a data frame, a list of dicts, a file or a tensor")


def _tensors(data: Any) -> bool:
    if isinstance(data, Tensor | np.ndarray):
        return True
    parts = list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, tuple) else []
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)


def _file(data: str | Path, rules: _Rules) -> Inputs:
    """Read a file or folder: ``PATH`` or ``kind:PATH?option=value``."""
    kind, colon, rest = str(data).partition(":")
    kind = kind if colon and kind in file_kinds() else ""
    place, _, query = (rest if kind else str(data)).partition("?")
    path = Path(place).expanduser()
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in READING:
            raise UnknownNameError("option of reading", name, READING)
    rules = _Rules(rules.schema, rules.names, {**rules.reading, **options}, rules.advice)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file or folder to predict from")
    if path.suffix in (".npy", ".npz") or kind == "numpy":
        return _arrays(_array(path), rules, str(path))
    if rules.schema is None:
        raise DataFormatError(f"{path}: the model's task has no schema by which files are read; pass tensors to predict in Python")
    if rules.schema.content != "table":
        return _listed(sorted(_files(path, ENDS if rules.schema.content == "image" else _TEXTS)), rules, path)
    return _rows(_table(path, kind or _TABLES.get(path.suffix.lower(), "csv"), rules.reading), rules)


def _table(path: Path, kind: str, reading: Mapping[str, Any]) -> Table:
    if path.is_dir():
        raise DataFormatError(f"{path} is a folder; name a file in it")
    if kind in ("jsonl", "parquet"):
        return read_json_lines_table(path) if kind == "jsonl" else read_parquet_table(path)
    header = str(reading.get("header", True)).lower() not in ("false", "0", "no")
    sep = "\t" if kind == "tsv" else str(reading.get("sep", ""))
    return read_delimited(path, sep, str(reading.get("encoding", "")), header)


def _rows(table: Table, rules: _Rules) -> Inputs:
    assert rules.schema is not None
    how = Reading.of(**{name: str(rules.reading.get(name, "")) for name in ("na", "decimal", "dates")})
    x, notes = fit_inputs(_truths(table, rules), rules.schema, how, rules.names, rules.advice)
    return Inputs(torch.from_numpy(x), notes=notes, table=table.renamed(rules.names.columns))


def _truths(table: Table, rules: _Rules) -> Table:
    """Return a table in which truth values are 1 and 0, where the schema has a number."""
    assert rules.schema is not None
    numbers = {rules.names.own(column.name) for column in rules.schema.columns if column.kind == "number"}
    found = [n for n, cells in table.columns.items() if n in numbers and set(map(str.lower, cells)) <= set(_TRUTHS) and any(cells)]
    columns = {n: [_TRUTHS[cell.lower()] for cell in cells] if n in found else cells for n, cells in table.columns.items()}
    return replace(table, columns=columns, types={**table.types, **dict.fromkeys(found, "number")}) if found else table


def _files(path: Path, ends: set[str]) -> list[Path]:
    if path.is_file():
        return [path]
    found = [p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in ends and not hidden(p)]
    if not found:
        raise DataFormatError(f"{path}: contains no files with one of the extensions {', '.join(sorted(ends))}")
    return found


def _listed(data: Any, rules: _Rules, root: Path | None = None) -> Inputs:
    """Return the inputs of a list of paths or texts."""
    schema = rules.schema
    assert schema is not None
    if isinstance(data, str) or not isinstance(data, Sequence) or not data or not all(isinstance(d, str | Path) for d in data):
        kind = {"image": "paths of pictures", "text": "texts"}[schema.content]
        raise DataFormatError(f"the model takes {schema.content}s; pass a file, a folder, a list of {kind}, or a tensor")
    names = tuple(str(d.relative_to(root)) if root is not None and root.is_dir() else str(d) for d in map(Path, data))
    if schema.text is not None:
        form, texts = schema.text, [read_text(d)[0] if root is not None or isinstance(d, Path) else d for d in data]
        if form.words:
            codes = coded(texts, form.words, form.length, form.spaces)
        elif form.symbols == 256:
            codes = as_bytes(texts, form.length)
        else:
            raise DataFormatError(f"the model takes codes of {form.symbols} symbols, no bytes of texts; pass them as a tensor")
        for name, content in zip(names, texts, strict=True):
            if not content.strip():
                raise DataFormatError(f"{name.strip() or 'a text'}: the text is empty; leave it out")
        strange = int((codes == 0).all(1).sum())
        notes = (f"{strange} texts consist of words that the vocabulary does not have",) if strange else ()
        return Inputs(torch.from_numpy(codes), names if root is not None else (), notes)
    picture = schema.picture
    assert picture is not None
    if picture.height != picture.width:
        raise DataFormatError(f"pictures of {picture.form} are not read from files; pass them as an array")
    grey = picture.channels == 1 and picture.top == 255
    paths = [Path(d) for d in data]
    x, _, _ = in_one_form([read_picture(path, picture.height, grey) for path in paths], paths)
    return Inputs(_pixels(x, schema, str(root or "the pictures")), names)


def _array(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as archive:
            found = next((name for name in ("x", "x_test", *archive.files) if name in archive.files), "")
            return archive[found]
    except (ValueError, EOFError, KeyError, OSError) as error:
        raise DataFormatError(f"{path}: not a readable NumPy file of plain arrays ({error})") from None


def _arrays(data: Any, rules: _Rules, file: str = "") -> Inputs:
    schema = rules.schema
    if isinstance(data, Mapping | tuple):
        return Inputs(map_tree(torch.as_tensor, data))
    whole = not (data.dtype.is_floating_point if isinstance(data, Tensor) else data.dtype.kind == "f")
    if schema is not None and schema.picture is not None and (whole or file):
        return Inputs(_pixels(np.asarray(data), schema, file or "the array"))
    if schema is not None and schema.content == "table" and file:
        return Inputs(torch.from_numpy(numbers_by_schema(file, np.asarray(data), schema)))
    return Inputs(torch.as_tensor(data))


def _pixels(x: Any, schema: Schema, where: str) -> Tensor:
    """Return pictures as they come from a file, [N, H, W] or [N, H, W, C], scaled as in training."""
    picture = schema.picture
    assert picture is not None
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]
    top = {"uint8": 255.0, "uint16": 65535.0}.get(str(x.dtype), picture.top)
    shape = (picture.height, picture.width) if picture.channels == 1 else (picture.height, picture.width, picture.channels)
    if x.shape[1:] != shape or top != picture.top:
        found = f"{list(x.shape[1:])} of {x.dtype}"
        text = f"the model takes pictures of {picture.form} with full brightness {picture.top:g}, these have shape {found}"
        raise SchemaError(where, [text], [text])
    pixels = channels_first(np.ascontiguousarray(x), picture.top)
    if not picture.mean:
        return pixels
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (picture.mean, picture.deviation))
    return pixels.sub_(shift).div_(scale)
