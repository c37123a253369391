"""Keep freed memory in the process: model-sized vectors come and go for every client."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to give freed blocks of up to 32 MiB back to the kernel; return whether it listens.

    By default a block the size of a model is fetched from the kernel page by page for every client anew, which
    costs several times the arithmetic on it. The process's peak stays what it is; elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20) and libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30))
    return False
