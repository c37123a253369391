"""Where incoming bytes wait until they are whole: in memory while a budget lasts, else in a file without a name.

So a server's memory does not grow with the number of clients that send at the same time, and a client that
sends slowly keeps no other one waiting.
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
"""Buffers up to this size are not counted."""


class Budget:
    """Bytes of memory that buffers may take together; safe between threads.

    Args:
        total: bytes; None for no limit.
        folder: where files go, None for the system's folder for temporary files.
    """

    def __init__(self, total: int | None = None, folder: str | None = None) -> None:
        self.total, self.folder = total, folder
        self.used = self.most = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; return whether there was room."""
        with self._lock:
            if self.total is not None and self.used + size > self.total:
                return False
            self.used += size
            self.most = max(self.most, self.used)
            return True

    def give(self, size: int) -> None:
        """Return reserved bytes."""
        with self._lock:
            self.used -= size


class Buffer:
    """Collects exactly `size` bytes. Memory is taken as bytes come, never for what was only announced."""

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
        """Take the next bytes; return whether all are there. Raises `WireError` where too many come."""
        self.got += len(piece)
        if self.got > self.size:
            raise WireError(f"a part has more than the {self.size} bytes that were announced")
        if self._file is not None:
            try:
                self._file.write(piece)
                if self.got == self.size:
                    self._file.flush()  # or a full disk would show only when somebody wants the bytes
            except OSError as error:
                raise self._full(error) from error
        elif self.keep and self._data is not None:
            self._data += piece
        return self.got == self.size

    def take(self) -> bytearray:
        """Return the bytes; the buffer is empty afterwards and its share of the budget is still held."""
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
        """Give everything back; may be called again."""
        self._drop()
        self._data = None
        self._budget.give(self._counted)
        self._counted = 0

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is not wanted any more
                self._file.close()
            self._file = None

    def _full(self, error: OSError) -> StoreError:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else StoreError
        return kind(f"a message of {self.size} bytes cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}")
