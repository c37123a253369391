"""Atomic file writes: a file is either the old or the new version, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from functools import partial
from pathlib import Path

from paceline.core.errors import DiskFullError, StoreError

__all__ = ["atomic_write", "named"]


def atomic_write(path: str | os.PathLike[str], *parts: bytes | memoryview, durable: bool = True, mode: int | None = None) -> None:
    """Write `parts` consecutively as the file `path`: all of them, or the old file remains unchanged.

    The bytes are written to a temporary file in the same folder (created if missing), which is then renamed.

    Args:
        path: the file.
        *parts: its content.
        durable: sync file and folder, so that a power failure cannot revert the write.
        mode: permissions, set before the first byte is written: 0o600 for secrets.

    Raises:
        DiskFullError: no space is left.
        StoreError: any other failure.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", opener=None if mode is None else partial(os.open, mode=mode)) as file:
                if mode is not None:  # a file left by a crash may have other permissions
                    os.chmod(temporary, mode)
                for part in parts:
                    file.write(part)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        raise named(error, target, sum(len(part) for part in parts)) from error


def named(error: OSError, path: Path, size: int) -> StoreError:
    """Return the Paceline error for an operating system error, with advice."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DiskFullError(
            f"no disk space for {size / 1e6:.1f} MB at {path}; earlier files are intact: free some space, then resume the run"
        )
    return StoreError(f"{path} cannot be written: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # cannot open folders; the file system's journal makes renames durable
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
