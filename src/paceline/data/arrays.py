"""NumPy's files as data sets: an ``.npz`` with inputs and targets, or a folder of ``.npy`` files of the same names."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from paceline.core.errors import DataFormatError, SchemaError, UnknownNameError
from paceline.data.columns import Parsed
from paceline.data.conform import conform
from paceline.data.fit import coded_targets, encoded, make_column, make_target
from paceline.data.fit import targets as codes_of
from paceline.data.mapping import Names
from paceline.data.raw import Array, Part, RawData, hold_out
from paceline.data.schema import PictureForm, Schema
from paceline.data.tables import Table

__all__ = ["numbers_by_schema", "read_numpy"]

_KINDS = "biufU"


def read_numpy(
    path: Path,
    inputs: str = "x",
    targets: str = "y",
    test: float = 0.2,
    target_kind: str = "",
    schema: Schema | None = None,
    names: Names | None = None,
) -> RawData:
    """Read arrays named ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    Inputs of shape [N, F] are a table of numbers, whose NaN are missing values; [N, H, W] and [N, H, W, C] are pictures.

    Args:
        path: an .npz file, or a folder of .npy files.
        inputs, targets: names of the arrays, without ``_train`` and ``_test``.
        test: fraction of the samples for tests, if there are no test arrays.
        target_kind: ``class`` or ``number``; recognised by default.
        schema, names: schema to read by, and names of classes that differ from it.

    Raises:
        SchemaError: the arrays differ from the schema.
        DataFormatError: an array is missing, pickled or of an unsuitable shape, or lengths differ.
    """
    arrays = _arrays(path)
    parts = [""] if inputs in arrays else ["_train", "_test"] if f"{inputs}_train" in arrays else []
    if not parts:
        raise UnknownNameError(f"array of {path}", inputs, arrays, "name the arrays with inputs= and targets=")
    pairs = [_pair(path, arrays, f"{inputs}{part}", f"{targets}{part}") for part in parts if f"{inputs}{part}" in arrays]
    if len({x.shape[1:] for x, _ in pairs}) > 1:
        raise DataFormatError(f"{path}: training inputs have shape {pairs[0][0].shape}, but test inputs {pairs[1][0].shape}")
    x, y = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    split = len(pairs[0][0]) if len(pairs) > 1 else None
    if schema is not None and schema.content == "table":
        return _by_schema(path, x, y, schema, names or Names(), split, test)
    made = _data(path, x, y, (inputs, targets), split, test, target_kind)
    return made if schema is None else conform(made, schema, names or Names(), str(path))


def _data(path: Path, x: Array, y: Array, names: tuple[str, str], split: int | None, test: float, kind: str) -> RawData:
    table = Table(str(path), {}, range(len(y)), "sample")
    target, taken = make_target(table, _parsed(names[1], y), kind)
    codes = codes_of(target, _parsed(names[1], y))
    rows = np.arange(len(x))
    train, held = (rows[:split], rows[split:]) if split is not None else hold_out(codes, test, where=str(path))
    notes = [f"{names[0]}: {x.dtype} of shape {list(x.shape)}", taken]
    if x.ndim == 2:
        values = [Parsed(f"{names[0]}{i}", "number", x[:, i].astype(np.float64), None, Counter()) for i in range(x.shape[1])]
        columns = tuple(make_column(table, column, train) for column in values)
        x = np.concatenate([encoded(c, v)[0] for c, v in zip(columns, values, strict=True)], axis=1).astype(np.float32)
        schema = Schema(content="table", columns=columns, target=target)
    else:
        x, note = _pictures(path, x)
        notes += note
        top = {"uint8": 255.0, "uint16": 65535.0}.get(str(x.dtype), 1.0)
        shape = PictureForm(height=x.shape[1], width=x.shape[2], channels=1 if x.ndim == 3 else x.shape[3], top=top)
        schema = Schema(content="image", picture=shape, target=target)
    whole = Part(x, codes)
    return RawData(whole.take(train), whole.take(held), target.classes, schema=schema, notes=tuple(notes))


def _by_schema(path: Path, x: Array, y: Array, schema: Schema, names: Names, split: int | None, test: float) -> RawData:
    """Return a table of numbers, read by a schema: its columns in their order."""
    inputs = numbers_by_schema(str(path), x, schema)
    codes = coded_targets(schema.target, _parsed(schema.target.name, y), names, str(path))
    rows = np.arange(len(x))
    train, held = (rows[:split], rows[split:]) if split is not None else hold_out(codes, test, where=str(path))
    whole = Part(inputs, codes)
    return RawData(whole.take(train), whole.take(held), schema.target.classes, schema=schema, notes=(f"{len(x)} samples",))


def numbers_by_schema(where: str, x: Array, schema: Schema) -> Array:
    """Return the inputs that an array becomes: its columns in the order of a schema of numbers, shape [N, width] (float32).

    Args:
        where: name of the array, for messages.
        x: numbers, shape [N, columns].
        schema: the schema of a table.

    Raises:
        SchemaError: the schema has other columns.
    """
    kinds = {column.kind for column in schema.columns}
    if x.ndim != 2 or x.shape[1] != len(schema.columns) or kinds - {"number"}:
        shape = "pictures" if x.ndim > 2 else f"{x.shape[-1]} columns of numbers"
        text = f"the schema has {len(schema.columns)} columns ({', '.join(sorted(kinds))}), this array has {shape}"
        raise SchemaError(where, [text], [text])
    found = [Parsed(c.name, "number", x[:, i].astype(np.float64), None, Counter()) for i, c in enumerate(schema.columns)]
    return np.concatenate([encoded(c, f)[0] for c, f in zip(schema.columns, found, strict=True)], axis=1).astype(np.float32)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        if path.is_dir():
            return {
                file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy")) if not file.name.startswith(".")
            }
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataFormatError(f"{path}: a single array; write an .npz of x and y, or name the folder of x.npy and y.npy")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except DataFormatError:
        raise
    except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error)
        why = "it contains Python objects, which are not unpickled; save plain arrays of numbers" if pickled else str(error)
        raise DataFormatError(f"{path}: not a readable NumPy file: {why}") from None


def _pair(path: Path, arrays: dict[str, Array], inputs: str, targets: str) -> tuple[Array, Array]:
    """Return inputs and targets, checked."""
    if targets not in arrays:
        raise UnknownNameError(f"array of {path}", targets, arrays, "name the arrays with inputs= and targets=")
    x, y = arrays[inputs], arrays[targets]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    for name, array in ((inputs, x), (targets, y)):
        if array.dtype.kind not in _KINDS or (name == inputs and array.dtype.kind == "U"):
            raise DataFormatError(f"{path}: array {name!r} has values of type {array.dtype}; save it as numbers")
    if x.ndim not in (2, 3, 4) or not x.size:
        raise DataFormatError(
            f"{path}: array {inputs!r} has shape {list(x.shape)}; expected [N, features], [N, H, W] or [N, H, W, channels]"
        )
    if y.ndim != 1:
        hint = "; write one class number per sample in place of one-hot rows" if y.ndim == 2 else ""
        raise DataFormatError(f"{path}: array {targets!r} has shape {list(y.shape)}; expected one target per sample{hint}")
    if len(x) != len(y):
        raise DataFormatError(
            f"{path}: {len(y)} targets in {targets!r} for {len(x)} inputs in {inputs!r}; they must be equally many"
        )
    odd = x[~np.isfinite(x)] if x.dtype.kind == "f" else x[:0]
    if len(odd) and (x.ndim > 2 or np.isinf(odd).any()):
        where = np.argwhere(~np.isfinite(x))[0].tolist()
        raise DataFormatError(f"{path}: array {inputs!r} has the value {x[tuple(where)]} at {where}; replace it")
    return x, y


def _parsed(name: str, y: Array) -> Parsed:
    if y.dtype.kind == "U":
        return Parsed(name, "category", None, y.tolist(), Counter())
    return Parsed(name, "number", y.astype(np.float64), None, Counter())


def _pictures(path: Path, x: Array) -> tuple[Array, list[str]]:
    """Return pictures as uint8, uint16 or float32 with channels last, and a note if they were first."""
    notes = []
    if x.ndim == 4:
        first, last = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
        if first == last:
            why = (
                "either the second or the last may be the channels"
                if first
                else "neither the second nor the last is 1, 3 or 4 channels"
            )
            raise DataFormatError(f"{path}: inputs of shape {list(x.shape)}: {why}; save them as [N, H, W, channels]")
        if first:
            x, notes = x.transpose(0, 2, 3, 1), ["channels are the second dimension"]
        x = x[..., 0] if x.shape[3] == 1 else x
    if x.dtype.kind == "b":
        x = x.astype(np.uint8) * 255
    elif x.dtype.kind in "iu" and x.dtype != np.uint8:
        if x.min() < 0 or x.max() > 65535:
            raise DataFormatError(f"{path}: pictures have values from {x.min()} to {x.max()}; save them as uint8, uint16 or floats")
        x = x.astype(np.uint8 if x.max() <= 255 else np.uint16)
    elif x.dtype.kind == "f":
        x = x.astype(np.float32)
    return np.ascontiguousarray(x), notes
