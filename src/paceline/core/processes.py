"""Child processes: by which method they start, and that none is left once the process that started them is gone.

A child watches its parent by the handle that `multiprocessing` gives it, and by its parent's number where that changes:
it ends within a second, in the middle of its work, however the parent ended. Signals that a terminal sends to all
processes at once are for the parent only.
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
"""Names of our child processes begin with this."""

UNGUARDED = 86
"""Exit code of a child that would have run the script of its parent a second time."""

_ORPHANED = 87
_EVERY = 1.0
_GUARD = """\
this script starts worker processes, and on this system (start method {method!r}) each of them imports the script first, which
would start workers again. Put what the script does below a main guard:

    if __name__ == "__main__":
        main()  # what the script does: prepare(...), run(...)

or use one worker"""


def start_method(without: str = "") -> str:
    """Return how child processes are started: as `multiprocessing.set_start_method` says, else the fastest that is safe.

    Forked children share the parent's data. macOS offers to fork, but its system libraries do not survive it; Windows
    does not. There children are spawned.

    Args:
        without: a method that does not fit.
    """
    there = multiprocessing.get_all_start_methods()
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen in there and chosen not in (there[0], without):
        return chosen
    return "fork" if "fork" in there and sys.platform != "darwin" and without != "fork" else "spawn"


def stop_signals() -> list[signal.Signals]:
    """Return the signals of this system that ask a process to end."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def on_stop(stop: Callable[[int], Any]) -> None:
    """Call `stop` with the number of each signal that asks this process to end; those that are ignored stay so (nohup)."""
    for number in stop_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda got, _: stop(got))


# -- in the parent -----------------------------------------------------------------------------
@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back while a child is started: it must be known, and must not find its parent's handlers.

    Blocking them does half of that: children inherit it, but a signal that another thread takes is handled here as well.
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
        process: of `multiprocessing`, daemonic, whose target calls `begin`.
        script: whether it needs what the parent's script defines; only then is the script imported there.

    Raises `EngineError` in a process that itself only imports a script.
    """
    check_main(starts=True)
    forked = process._start_method == "fork"
    if not forked and os.name == "posix":
        resource_tracker.ensure_running()  # else it starts below, and lets signals through again
    with held_back(), _main(script or forked):
        process.start()


@contextmanager
def _main(script: bool) -> Iterator[None]:
    """Show `multiprocessing` no script, where children need none of it."""
    main = sys.modules["__main__"]
    if not script:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def importable() -> bool:
    """Return whether a child can import the parent's script: one that was typed in, or piped in, is no file."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (path is not None and Path(path).exists())


def check_main(starts: bool = False) -> None:
    """End one of our children that is importing its parent's script and has come to a run: its parent says why.

    Args:
        starts: whether this process is about to start others. In another child that imports a script this
            raises `EngineError`.
    """
    here = multiprocessing.current_process()
    if getattr(here, "_inheriting", False):
        if here.name.startswith(NAME):
            os._exit(UNGUARDED)
        if starts:
            raise EngineError(unguarded())


def unguarded() -> str:
    """Return what is wrong with a script without a main guard, and what to add."""
    return _GUARD.format(method=start_method())


# -- in the child ------------------------------------------------------------------------------
def begin() -> None:
    """Say at the beginning of a child that it ends with its parent, and leaves a terminal's signals to it.

    What a forked child inherits is never collected there: finalisers may wait for threads that only the parent has (those
    of gRPC's asyncio do, without end).
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
