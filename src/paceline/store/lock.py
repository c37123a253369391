"""Lock on a folder: an operating system lock that is released when its process ends, however it ends.

Locks belong to processes, not to open files, so worker processes forked from a run neither hold its lock nor keep it
alive. The lock file is never deleted; its content identifies the holder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import warnings
import weakref
from pathlib import Path

from paceline.core.errors import StoreError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK", "FolderLock"]

LOCK = "lock"
"""Name of the lock file."""

_FAR = 1 << 30
"""Offset of the locked byte, far beyond the text, because Windows prevents reading locked bytes."""


class FolderLock:
    """Exclusive lock of this process on a folder; it ends with `release`, with this object, or with the process.

    Args:
        folder: an existing folder.

    Raises:
        StoreError: another process holds the lock, or this one does already.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        self._file: int | None = None
        with _mutex:
            try:
                place = _place(folder)
                if place in _held:
                    raise StoreError(f"{folder} is already in use by this process; wait until that run ends")
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise StoreError(f"{path} cannot be opened: {error.strerror or error}") from error
            try:
                _lock(file)
            except OSError as error:
                holder = _holder(file)
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise StoreError(
                        f"{folder} is in use by {holder}; wait until it ends, or stop it (the lock is released when its process ends)"
                    ) from None
                warnings.warn(
                    f"{folder} cannot be locked ({error.strerror or error}); make sure that only one process uses it", stacklevel=3
                )
                return
            self._file, self._place, self._pid = file, place, os.getpid()
            _held[place] = self
        with contextlib.suppress(OSError):  # a full disk must not stop a run
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def release(self) -> None:
        """Release the lock; idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with _mutex:
                if self._pid == os.getpid():  # a forked copy of this object holds no lock
                    _held.pop(self._place, None)
                os.close(file)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()


_mutex = threading.RLock()
_held: weakref.WeakValueDictionary[tuple[int, int, int], FolderLock] = weakref.WeakValueDictionary()
"""Locks held by this process, because the system permits a process to lock a file twice: by process, device and inode."""


def _place(folder: Path) -> tuple[int, int, int]:
    found = folder.stat()
    return (os.getpid(), found.st_dev, found.st_ino)


def _lock(file: int) -> None:
    """Lock the file, or raise `OSError` immediately."""
    if sys.platform == "win32":
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _FAR)


def _holder(file: int) -> str:
    """Return a description of the lock's holder from its file."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        owner = json.loads(os.read(file, 1 << 12))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:200]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
