"""How much a function does, counted and not timed: the same figure on an idle machine and on a busy one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

__all__ = ["steps"]


class _Count:
    def __init__(self, most: int) -> None:
        self.calls, self.most = 0, most

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1
            if self.calls == self.most:
                sys.setprofile(None)
                pytest.fail(f"it takes more than {self.most} calls")


def steps(most: int, function: Callable[..., Any], *values: Any) -> tuple[Any, int]:
    """Return what a function returns, and how many functions, of Python or C, were called on the way.

    Fails the test at once where they are more than `most`. What one call of C does within is not counted, so
    tests of what strangers send bound the memory as well.
    """
    count, before = _Count(most), sys.getprofile()
    sys.setprofile(count)
    try:
        result = function(*values)
    finally:
        sys.setprofile(before)
    return result, count.calls
