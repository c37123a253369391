"""Child processes: start methods, signals, and the guarantee that no child outlives its parent.

A child monitors its parent by the handle provided by `multiprocessing`, and by the parent's process id where that
changes: it ends within a second, even during its work, however the parent ended. Signals that a terminal sends to all
processes at once are handled by the parent only.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from paceline.core.allocator import keep_freed
from paceline.core.errors import EngineError

__all__ = [
    "NAME",
    "UNGUARDED",
    "begin",
    "check_main",
    "importable",
    "on_stop",
    "start",
    "start_method",
    "stop_signals",
    "unguarded",
]

NAME = "paceline"
"""Prefix of the names of child processes."""

UNGUARDED = 86
"""Exit code of a child that would have run its parent's script a second time."""

_ORPHANED = 87
_EVERY = 1.0
_GUARD = """\
this script starts worker processes. On this system (start method {method!r}) each worker imports the script first, which
would start workers again. Put the script's top-level code below a main guard:

    if __name__ == "__main__":
        main()  # calls prepare(...), run(...)

or use one worker"""


def start_method(without: str = "") -> str:
    """Return the start method of child processes: as set by `multiprocessing.set_start_method`, else the fastest safe one.

    Forked children share the parent's data. macOS supports fork, but its system libraries do not survive it; Windows
    does not support it. Children are spawned there.

    Args:
        without: a method to avoid.
    """
    there = multiprocessing.get_all_start_methods()
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen in there and chosen not in (there[0], without):
        return chosen
    return "fork" if "fork" in there and sys.platform != "darwin" and without != "fork" else "spawn"


def stop_signals() -> list[signal.Signals]:
    """Return the signals of this system that request a process to end."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def on_stop(stop: Callable[[int], Any]) -> None:
    """Call `stop` with the number of each signal that requests this process to end; ignored signals stay ignored (nohup)."""
    for number in stop_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda got, _: stop(got))


# -- in the parent -----------------------------------------------------------------------------
@contextmanager
def held_back() -> Iterator[None]:
    """Context manager: defer signals while a child is started, so that the child is registered and has default handlers.

    Blocking the signals is only half of that: children inherit the mask, but a signal delivered to another thread is
    handled in this process as well.
    """
    caught: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: now for number in stop_signals() if callable(now := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda got, _: caught.append(got))
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals()) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            handlers[number](number, None)


def start(process: Any, script: bool = False) -> None:
    """Start a child process.

    Args:
        process: daemonic process of `multiprocessing` whose target calls `begin`.
        script: whether it needs definitions of the parent's script; only then does it import the script.

    Raises:
        EngineError: this process is itself only importing a script.
    """
    check_main(starts=True)
    forked = process._start_method == "fork"
    if not forked and os.name == "posix":
        resource_tracker.ensure_running()  # otherwise it starts below and unblocks the signals
    with held_back(), _main(script or forked):
        process.start()


@contextmanager
def _main(script: bool) -> Iterator[None]:
    """Hide the script from `multiprocessing` if children do not need it."""
    main = sys.modules["__main__"]
    if not script:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def importable() -> bool:
    """Return whether a child can import the parent's script: interactive or piped input is not a file."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (path is not None and Path(path).exists())


def check_main(starts: bool = False) -> None:
    """Exit a Paceline child that imports its parent's script and reaches a run; the parent reports the reason.

    Args:
        starts: whether this process is about to start others. In any other child that imports a script this
            raises `EngineError`.

    Raises:
        EngineError: see `starts`.
    """
    here = multiprocessing.current_process()
    if getattr(here, "_inheriting", False):
        if here.name.startswith(NAME):
            os._exit(UNGUARDED)
        if starts:
            raise EngineError(unguarded())


def unguarded() -> str:
    """Return the message for a script without a main guard."""
    return _GUARD.format(method=start_method())


# -- in the child ------------------------------------------------------------------------------
def begin() -> None:
    """Initialise a child process: end with the parent, and leave terminal signals to it.

    Objects inherited by a forked child are never collected there: finalisers may wait for threads that exist only in the
    parent (those of gRPC's asyncio wait forever).
    """
    gc.freeze()
    keep_freed()
    for number in stop_signals():
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel, os.getppid()), name="parent", daemon=True).start()


def _watch(sentinel: int, number: int) -> None:
    with suppress(OSError):
        while os.getppid() == number and not wait([sentinel], _EVERY):
            continue
    os._exit(_ORPHANED)
