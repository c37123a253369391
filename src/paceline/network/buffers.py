"""Buffers for incoming messages: in memory within a budget, otherwise in an unnamed temporary file.

Server memory therefore does not grow with the number of clients that send at the same time, and a slow sender does not
delay others.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
import threading
from typing import IO

from paceline.core.errors import DiskFullError, StoreError, WireError

__all__ = ["Budget", "Buffer"]

SMALL = 32 * 1024
"""Buffers up to this size in bytes do not count against the budget."""


class Budget:
    """Total memory that buffers may use; thread-safe.

    Args:
        total: bytes; None for no limit.
        folder: folder of the temporary files; None for the system's default.

    Example:
        >>> budget = Budget(100)
        >>> budget.take(80), budget.take(80)
        (True, False)
    """

    def __init__(self, total: int | None = None, folder: str | None = None) -> None:
        self.total, self.folder = total, folder
        self.used = self.most = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; return False if they exceed the budget."""
        with self._lock:
            if self.total is not None and self.used + size > self.total:
                return False
            self.used += size
            self.most = max(self.most, self.used)
            return True

    def give(self, size: int) -> None:
        """Release reserved bytes."""
        with self._lock:
            self.used -= size


class Buffer:
    """Collects exactly `size` bytes. Memory is allocated as bytes arrive, never for an announced size.

    Args:
        size: expected bytes.
        budget: budget to reserve from; beyond it the bytes go to a temporary file.
        keep: False to count the bytes and discard them.

    Raises:
        StoreError: the temporary file cannot be created.
    """

    def __init__(self, size: int, budget: Budget, keep: bool = True) -> None:
        self.size, self.keep, self.got = size, keep, 0
        self._budget = budget
        self._counted = size if keep and size > SMALL else 0
        self._file: IO[bytes] | None = None
        self._data: bytearray | None = bytearray()
        if self._counted and not budget.take(size):
            self._counted = 0
            try:
                self._file = tempfile.TemporaryFile(dir=budget.folder)  # noqa: SIM115 - lives as long as the buffer
            except OSError as error:
                raise self._full(error) from error

    def add(self, piece: memoryview) -> bool:
        """Append bytes; return whether the buffer is complete.

        Raises:
            WireError: more bytes arrive than announced.
            StoreError: the temporary file cannot be written; `DiskFullError` if the disk is full.
        """
        self.got += len(piece)
        if self.got > self.size:
            raise WireError(f"a part exceeds its announced {self.size} bytes")
        if self._file is not None:
            try:
                self._file.write(piece)
                if self.got == self.size:
                    self._file.flush()  # report a full disk now, not when the bytes are read
            except OSError as error:
                raise self._full(error) from error
        elif self.keep and self._data is not None:
            self._data += piece
        return self.got == self.size

    def take(self) -> bytearray:
        """Return the bytes and empty the buffer. Its reservation is released by `close`."""
        if self._file is not None:
            data = bytearray(self.size)
            try:
                self._file.seek(0)
                self._file.readinto(data)  # type: ignore[attr-defined]
            except OSError as error:
                raise self._full(error) from error
            finally:
                self._drop()
            return data
        data, self._data = self._data or bytearray(), None
        return data

    def close(self) -> None:
        """Release memory, file and reservation; idempotent."""
        self._drop()
        self._data = None
        self._budget.give(self._counted)
        self._counted = 0

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # unwritten bytes are no longer needed
                self._file.close()
            self._file = None

    def _full(self, error: OSError) -> StoreError:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else StoreError
        return kind(f"a message of {self.size} bytes cannot be stored in {tempfile.gettempdir()}: {error.strerror or error}")
