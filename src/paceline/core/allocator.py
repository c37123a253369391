"""Allocator tuning for workloads that free and reallocate large blocks repeatedly, as training does."""

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
    """Configure glibc to retain up to `trim` MiB of freed memory, in blocks of up to `blocks` MiB.

    By default glibc returns large blocks to the system. Each reuse then causes page faults, which cost as much as the
    arithmetic of a small model. Other C libraries are left unchanged, as are processes started with settings of their own
    (``MALLOC_...``, ``GLIBC_TUNABLES``). Call it in Paceline's own processes only, the command line and workers: a process that
    imports Paceline decides for itself.

    Args:
        trim: in MiB.
        blocks: in MiB.
    """
    global _done
    if _done or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # library not found, or not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_TRIM, trim * _MIB)
        mallopt(_MMAP, blocks * _MIB)
    _done = True
