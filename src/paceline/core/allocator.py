"""Memory that a process frees and needs again at once, as training does: kept by the process."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["keep_freed"]

_TRIM, _MMAP = -1, -3
"""mallopt(3)'s M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""

_MIB = 1 << 20
_done = False


def keep_freed(trim: int = 512, blocks: int = 32) -> None:
    """Let the C library keep up to `trim` MiB of freed memory, of blocks up to `blocks` MiB.

    By default glibc gives large blocks back to the system, and each use of them faults their pages in anew, which costs
    as much as the arithmetic of a small model. Other C libraries, and a process that was started with settings of its
    own (``MALLOC_...``, ``GLIBC_TUNABLES``), are left as they are. For Paceline's own processes only: the command line and
    workers. A process that imports Paceline decides for itself.
    """
    global _done
    if _done or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # no such library, or not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_TRIM, trim * _MIB)
        mallopt(_MMAP, blocks * _MIB)
    _done = True
