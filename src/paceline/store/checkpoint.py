"""Checkpoint files: a tree with its SHA-256, so that reading returns exactly what was written, or an error.

The file is a 64-byte prefix (magic, version, length), the tree in wire format, and the SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from paceline.core.errors import CheckpointError, WireError
from paceline.core.serialization import Limits, dumps, loads
from paceline.core.tree import Tree
from paceline.store.files import atomic_write

__all__ = ["load", "save"]

MAGIC = b"PLCHKPT\n"
VERSION = 1
_PREFIX = struct.Struct("<8sIQ44x")
_DIGEST = 32


def save(path: str | os.PathLike[str], tree: Tree, durable: bool = True) -> None:
    """Write `tree` to `path` atomically; a crash leaves the old or the new file.

    Raises:
        DiskFullError: no space is left.
        StoreError: the file cannot be written.
        TreeError: the value is not a tree.
    """
    body = dumps(tree, _limits(1 << 62))
    prefix = _PREFIX.pack(MAGIC, VERSION, len(body))
    digest = hashlib.sha256(prefix)
    digest.update(body)
    atomic_write(path, prefix, body, digest.digest(), durable=durable)


def load(path: str | os.PathLike[str]) -> Tree:
    """Read a tree written by `save`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format version.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = bytearray(size)
        with open(path, "rb") as file:
            read = file.readinto(data)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist; start the run again") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    view = memoryview(data)[:read]
    if len(view) < _PREFIX.size + _DIGEST:
        raise _damaged(path, f"truncated to {len(view)} bytes")
    magic, version, length = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a Paceline checkpoint")
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format {version}, but this version reads {VERSION}; resume with the Paceline that wrote it"
        )
    if len(view) != _PREFIX.size + length + _DIGEST:
        raise _damaged(path, f"{len(view)} bytes instead of {_PREFIX.size + length + _DIGEST}")
    if hashlib.sha256(view[:-_DIGEST]).digest() != view[-_DIGEST:]:
        raise _damaged(path, "SHA-256 mismatch")
    try:
        return loads(view[_PREFIX.size : -_DIGEST], _limits(size), copy=False)
    except WireError as error:
        raise CheckpointError(f"{path} is intact, but cannot be decoded: {error}") from error


def _limits(size: int) -> Limits:
    """Return limits for trusted files: as large as the file."""
    return Limits(size=size, header=size, items=size, tensors=size)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}; restore a backup, or delete the run's folder and start it again")
