"""Local files as tasks: ``kind:/path``, with options after a question mark.

idx:/data/mnist                    four idx files
cifar-10-batches-py:/data/cifar    the published batches
leaf-femnist:/data/femnist         LEAF's JSON, likewise leaf-shakespeare
imagefolder:/data/birds?size=64    one folder of images per class
maskfolder:/data/slices             pictures with masks
textfolder:/data/letters?length=512 one folder of texts per class
textfiles:/data/books?length=128    texts to be continued, client = file or sub-folder
csv:/data/heart.csv?client=site&target=num, likewise tsv, jsonl and parquet
numpy:/data/arrays.npz              arrays x and y
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from paceline.core.errors import ConfigError, DataError, DataFormatError, UnknownNameError
from paceline.core.importing import is_import_path
from paceline.data.arrays import read_numpy
from paceline.data.cifar import read_cifar
from paceline.data.conform import conform
from paceline.data.folder import ENDS, read_image_folder, read_mask_folder
from paceline.data.idx import read_idx
from paceline.data.leaf import read_leaf_femnist, read_leaf_shakespeare
from paceline.data.mapping import Names
from paceline.data.raw import RawData
from paceline.data.schema import Schema
from paceline.data.table import read_csv, read_json_lines, read_parquet, read_tsv
from paceline.data.textfiles import read_text_files
from paceline.data.textfolder import read_text_folder

__all__ = ["FileKind", "file_hint", "file_kinds", "file_options", "is_file_task", "read_files", "stated", "without_tests"]


@dataclass(frozen=True)
class FileKind:
    """One format: description, reader, content, and a suitable reference model."""

    about: str
    read: Callable[..., RawData]
    content: Literal["image", "text", "table"]
    model: str


_KINDS = {
    "idx": FileKind("folder of idx files (MNIST, Fashion-MNIST), gzip or not", read_idx, "image", "cnn"),
    "cifar-10-batches-py": FileKind("folder of CIFAR-10's published batches", read_cifar, "image", "vgg9"),
    "leaf-femnist": FileKind("LEAF's FEMNIST JSON, client = writer", read_leaf_femnist, "image", "femnist_cnn"),
    "leaf-shakespeare": FileKind("LEAF's Shakespeare JSON, client = role", read_leaf_shakespeare, "text", "lstm"),
    "imagefolder": FileKind("pictures in a folder per class; size=32, grey=false", read_image_folder, "image", "cnn"),
    "maskfolder": FileKind("pictures in images/, their masks in masks/; size=64, grey=false", read_mask_folder, "image", "unet"),
    "textfolder": FileKind(
        "texts in a folder per class, as bytes or words; length=256, words=0", read_text_folder, "text", "text_encoder"
    ),
    "textfiles": FileKind("texts to be continued, client = file or sub-folder; length=128", read_text_files, "text", "char_model"),
    "csv": FileKind("table; target=COLUMN, client=COLUMN, drop=COLUMN,...", read_csv, "table", "mlp"),
    "tsv": FileKind("table separated by tabs; options of csv", read_tsv, "table", "mlp"),
    "jsonl": FileKind("table as one JSON object per line; options of csv", read_json_lines, "table", "mlp"),
    "parquet": FileKind("table of Apache Parquet (extra parquet); options of csv", read_parquet, "table", "mlp"),
    "numpy": FileKind("arrays x and y in an .npz or a folder of .npy files", read_numpy, "table", "mlp"),
}
_FILES = {"csv", "tsv", "jsonl", "parquet"}
"""Formats of single files."""
_EITHER = {"numpy", "textfiles", "leaf-femnist", "leaf-shakespeare"}
"""Formats of files or folders."""
_NO_OPTIONS = {"path", "folder", "schema", "names", "vocabulary"}
_TABLES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def file_kinds() -> Mapping[str, FileKind]:
    """Return the formats by name."""
    return dict(_KINDS)


def is_file_task(name: str) -> bool:
    """Return whether a task's name is one of files: ``kind:/path``, and not ``package.module:Name``."""
    return ":" in name and (name.partition(":")[0] in _KINDS or not is_import_path(name))


def file_options(name: str) -> list[str]:
    """Return the options of a task named ``kind:/path``; empty for an unknown kind."""
    kind = _KINDS.get(name.partition(":")[0])
    return (
        []
        if kind is None
        else [
            *(n for n in inspect.signature(kind.read).parameters if n not in _NO_OPTIONS),
            "test",
            "schema",
        ]
    )


def file_hint(name: str) -> str:
    """Return how to write a file or folder as a task, from its extension or content; empty if `name` is not a path.

    This checks files on this machine: do not use it for names received from another one.
    """
    kind, colon, rest = name.partition(":")
    place, mark, query = (rest if colon else name).partition("?")
    if kind in _KINDS:
        return ""
    path = Path(place).expanduser()
    kinds = _likely(path)
    if not kinds:
        if path.suffix or path.exists() or os.sep in place:
            return f"write your own files as kind:path, with one of the kinds {', '.join(_KINDS)}"
        return ""
    absent = "" if path.exists() else f" ({path} does not exist yet)"
    if not path.is_dir() and kinds[0] in ("idx", "imagefolder"):  # these formats are read as a whole folder
        place = str(path.parent.parent if kinds[0] == "imagefolder" else path.parent)
    return f"write {' or '.join(f'{kind}:{place}{mark}{query}' for kind in kinds)}{absent}"


def _likely(path: Path) -> tuple[str, ...]:
    """Return the kinds that match a path."""
    end = path.suffix.lower()
    if end in _TABLES:
        return (_TABLES[end],)
    if end in (".npz", ".npy"):
        return ("numpy",)
    if end == ".json":
        return ("leaf-femnist", "leaf-shakespeare")
    if end == ".idx" or (end == ".gz" and ".csv" not in path.suffixes) or path.name.endswith("-ubyte"):
        return ("idx",)
    if end in ENDS:
        return ("imagefolder",)
    if not path.is_dir():
        return ()
    inside = [p for where in (path, path / "train") if where.is_dir() for p in sorted(where.iterdir())[:50]]
    if any(p.name.startswith("data_batch") for p in inside):
        return ("cifar-10-batches-py",)
    for found in map(_likely, (p for p in inside if p.is_file())):
        if found and found != ("imagefolder",):
            return found
    pictures = any(q.suffix.lower() in ENDS for p in inside if p.is_dir() for q in sorted(p.iterdir())[:50])
    return ("imagefolder",) if pictures else ()


def read_files(name: str, names: Names | None = None, **options: Any) -> tuple[FileKind, RawData]:
    """Read the files named by ``kind:/path?option=value``; `options` override those in the name.

    Data without a test part are split with a fixed seed, a fraction `test` (0.2 by default) of each class. The option
    `schema` is a `Schema`, or the path of one, by which the files are read; only then may `test` be 0.

    Args:
        name: ``kind:/path``, with options after a question mark.
        names: the files' own names of columns and values, if they differ from the schema's.
        options: see the reader of the kind.

    Raises:
        UnknownNameError: unknown kind or option.
        DataError: the path does not exist.
        DataFormatError: the content is malformed.
        SchemaError: the content does not match the schema.
    """
    kind_name, _, rest = name.partition(":")
    if kind_name not in _KINDS:
        raise UnknownNameError("kind of file", kind_name, _KINDS)
    kind = _KINDS[kind_name]
    place, _, query = rest.partition("?")
    path = Path(place).expanduser()
    given = dict(parse_qsl(query, keep_blank_values=True)) | options
    schema = given.pop("schema", None) or None
    if schema is not None and not isinstance(schema, Schema):
        schema = Schema.read(schema)
    signature = inspect.signature(kind.read).parameters
    known = [n for n in signature if n not in _NO_OPTIONS]
    share = 0.2 if "test" in known else float(_typed("test", given.pop("test", 0.2), 0.2))
    values = {}
    for option, value in given.items():
        if option not in known:
            raise UnknownNameError(f"option of {kind_name}", option, [*known, "test", "schema"])
        values[option] = _typed(option, value, signature[option].default)
    if schema is None and not values.get("test", share):
        raise ConfigError("test=0 leaves no samples for tests; only a site that reads its files by a schema can do without")
    if not place or not path.exists():
        raise DataError(f"{name}: {f'{path} does not exist' if place else 'the path is missing'}; write {kind_name}:/path")
    if path.is_file() and kind_name not in _FILES | _EITHER:
        raise DataError(f"{name}: {path} is a file; name its folder instead")
    if path.is_dir() and kind_name in _FILES:
        raise DataError(f"{name}: {path} is a folder; name a file in it")
    if schema is None:
        return kind, _classed(kind.read(path, **values), path).with_test(share, where=str(path))
    if "schema" in signature:
        return kind, kind.read(path, **values, schema=schema, names=names).with_test(share, where=str(path))
    if schema.picture is not None and "size" in known:
        values = {"size": schema.picture.height, "grey": schema.picture.channels == 1 and schema.picture.top == 255} | values
    if schema.text is not None and "length" in known:
        values = {"length": schema.text.length} | values
    if schema.text is not None and schema.text.words and "vocabulary" in signature:
        values |= {"words": schema.text.symbols, "vocabulary": schema.text.words}
    return kind, conform(kind.read(path, **values), schema, names or Names(), str(path)).with_test(share, where=str(path))


def _classed(data: RawData, path: Path) -> RawData:
    """Return data with no classes or several; raises `DataFormatError` for one class alone, which there is nothing to tell from."""
    if len(data.classes) == 1:
        raise DataFormatError(
            f"{path}: every sample is of the class {data.classes[0]!r}; at least two are needed, and a folder without files of this "
            "kind is none"
        )
    return data


def without_tests(name: str) -> dict[str, float]:
    """Return the option by which all samples of a site are its own, unless the name says what share is for tests.

    Example:
        >>> without_tests("csv:own.csv?na=-"), without_tests("csv:own.csv?test=0.1")
        ({'test': 0.0}, {})
    """
    return {} if "test" in dict(parse_qsl(name.partition("?")[2], keep_blank_values=True)) else {"test": 0.0}


def stated(name: str, option: str) -> tuple[str, str | None]:
    """Return a name without an option that is not its reader's, and the value that it states, None without one.

    Example:
        >>> stated("csv:own.csv?na=-&standardize=none", "standardize"), stated("csv:own.csv?na=-", "standardize")
        (('csv:own.csv?na=-', 'none'), ('csv:own.csv?na=-', None))
    """
    place, _, query = name.partition("?")
    parts = query.split("&") if query else []
    rest = [part for part in parts if part.partition("=")[0] != option]
    value = dict(parse_qsl(query, keep_blank_values=True)).get(option)
    return (name, None) if value is None else ("?".join([place, *(["&".join(rest)] if rest else [])]), value)


def _typed(option: str, value: Any, default: Any) -> Any:
    """Convert `value`, which may be text, to the type of the option's default."""
    kind = type(default)
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in words:
            raise ConfigError(f"{option}={value!r} must be true or false")
        return words[str(value).lower()]
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{option}={value!r} must be of type {kind.__name__}") from None
