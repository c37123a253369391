"""Debug engine: one worker in this process that stops at a client's first error.

The error contains client, function, round and the step of the local loop; its cause is the original exception. The
loss is checked at every step.
"""

from __future__ import annotations

from dataclasses import replace

from paceline.engines.local import LocalEngine
from paceline.engines.setup import Setup

__all__ = ["DebugEngine"]


class DebugEngine(LocalEngine):
    """A `LocalEngine` with one strict worker."""

    def __init__(self, setup: Setup, workers: int = 1) -> None:
        super().__init__(replace(setup, strict=True, chunk=1), 1)
