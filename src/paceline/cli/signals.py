"""What a command does when it is asked to end: it unwinds, leaves no process behind, and says how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.core.processes import on_stop

__all__ = ["Interrupted", "ending", "listen", "resumable"]

PATIENCE = 10.0
"""Seconds that ending may take; after them a further signal ends the process at once."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(number)


def listen() -> None:
    """Let signals that ask this process to end raise `Interrupted` in it, once.

    One that comes in a finaliser, where Python drops exceptions, is raised again afterwards.
    """
    since: list[float] = []

    def stop(number: int) -> None:
        if not since:
            since.append(time.monotonic())
            raise Interrupted(number)
        if time.monotonic() - since[0] > PATIENCE:
            os._exit(128 + number)

    def dropped(told: sys.UnraisableHookArgs) -> None:
        if not isinstance(told.exc_value, Interrupted):
            sys.__unraisablehook__(told)
            return
        since.clear()
        threading.Timer(0.05, _signal, [told.exc_value.number]).start()

    on_stop(stop)
    sys.unraisablehook = dropped


def _signal(number: int) -> None:
    """Signal the main thread, so that it also wakes up."""
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, number)
    else:
        signal.raise_signal(number)


@contextmanager
def resumable(place: Path) -> Iterator[None]:
    """Note at an interruption which run it was, where that can be gone on with."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if (place / "config.toml").exists():
            stopped.add_note(str(place))
        raise


def ending(stopped: KeyboardInterrupt) -> tuple[str, int]:
    """Return the line for an interruption, and the exit code."""
    number = getattr(stopped, "number", signal.SIGINT)
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    places = getattr(stopped, "__notes__", [])
    return how + (f"; go on with: paceline resume {places[0]}" if places else ""), 128 + number
