"""A user's own files: ``kind:/path``, with options behind a question mark.

    idx:/data/mnist                    four idx files
    cifar-10-batches-py:/data/cifar    the published batches
    leaf-femnist:/data/femnist         LEAF's JSON, likewise leaf-shakespeare
    imagefolder:/data/birds?size=64    one folder of pictures for each class
    csv:/data/heart.csv?client=site&target=num
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from paceline.data.cifar import read_cifar
from paceline.data.folder import read_image_folder
from paceline.data.idx import read_idx
from paceline.data.leaf import read_leaf_femnist, read_leaf_shakespeare
from paceline.data.raw import RawData
from paceline.data.table import read_csv
from paceline.errors import ConfigError, DataError, UnknownNameError

__all__ = ["FileKind", "file_kinds", "is_file_task", "read_files"]


@dataclass(frozen=True)
class FileKind:
    """One format: what it holds, what reads it, and the reference model that suits it."""

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
    "csv": FileKind("table; target=COLUMN, client=COLUMN, drop=COLUMN,...", read_csv, "table", "mlp"),
}


def file_kinds() -> Mapping[str, FileKind]:
    """Return the formats by name."""
    return dict(_KINDS)


def is_file_task(name: str) -> bool:
    """Say whether a task's name is one of a file."""
    return ":" in name


def read_files(name: str, **options: Any) -> tuple[FileKind, RawData]:
    """Read the files that ``kind:/path?option=value`` names; `options` win over those in the name.

    Data without a test part are split by a fixed seed, a share of `test` (0.2 by default) of each class.
    Raises `UnknownNameError` for a kind or option that does not exist, `DataError` when there is no such
    path, `DataFormatError` when its content is not as it should be.
    """
    kind_name, _, rest = name.partition(":")
    if kind_name not in _KINDS:
        raise UnknownNameError("kind of file", kind_name, _KINDS)
    kind = _KINDS[kind_name]
    place, _, query = rest.partition("?")
    path = Path(place).expanduser()
    given = dict(parse_qsl(query, keep_blank_values=True)) | options
    signature = inspect.signature(kind.read).parameters
    known = [n for n in signature if n not in {"path", "folder"}]
    share = 0.2 if "test" in known else float(_typed("test", given.pop("test", 0.2), 0.2))
    values = {}
    for option, value in given.items():
        if option not in known:
            raise UnknownNameError(f"option of {kind_name}", option, [*known, "test"])
        values[option] = _typed(option, value, signature[option].default)
    if not place or not path.exists():
        raise DataError(f"{name}: there is no {path if place else 'path in it'}; write {kind_name}:/path")
    if kind.read is not read_csv and path.is_file() and path.suffix != ".json":
        raise DataError(f"{name}: {path} is a file; name the folder that it is in")
    return kind, kind.read(path, **values).with_test(share)


def _typed(option: str, value: Any, default: Any) -> Any:
    """Return `value`, which may be text, in the type of the option's default."""
    kind = type(default)
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in words:
            raise ConfigError(f"{option}={value!r}: true or false is needed")
        return words[str(value).lower()]
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{option}={value!r}: {kind.__name__} is needed") from None
