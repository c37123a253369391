"""Signal handling of commands: unwind, leave no process behind, and print how to resume."""

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
"""Seconds after which a second signal ends the process immediately."""


class Interrupted(KeyboardInterrupt):
    """A signal requested the command to end.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(number)


def listen() -> None:
    """Install handlers that raise `Interrupted` once for signals that request this process to end.

    A signal that arrives in a finaliser, where Python discards exceptions, is raised again afterwards.
    """
    since: list[float] = []

    def stop(number: int) -> None:
        if not since:
            since.append(time.monotonic())
            raise Interrupted(number)
        if time.monotonic() - since[0] > PATIENCE:
            os._exit(128 + number)

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            sys.__unraisablehook__(unraisable)
            return
        since.clear()
        threading.Timer(0.05, _signal, [unraisable.exc_value.number]).start()

    on_stop(stop)
    sys.unraisablehook = dropped


def _signal(number: int) -> None:
    """Signal the main thread, which also wakes it up."""
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, number)
    else:
        signal.raise_signal(number)


@contextmanager
def resumable(place: Path) -> Iterator[None]:
    """Context manager: attach the run's folder to an interruption, if the run can be resumed."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if (place / "config.toml").exists():
            stopped.add_note(str(place))
        raise


def ending(stopped: KeyboardInterrupt) -> tuple[str, int]:
    """Return the message and the exit code of an interruption."""
    number = getattr(stopped, "number", signal.SIGINT)
    how = "interrupted" if number == signal.SIGINT else f"terminated by {signal.Signals(number).name}"
    places = getattr(stopped, "__notes__", [])
    return how + (f"; resume with: paceline resume {places[0]}" if places else ""), 128 + number
