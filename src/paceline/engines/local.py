"""Default engine: worker processes on this machine, or one worker in this process.

Workers are forked and share the data where the system can do that safely; otherwise, and on GPUs, they are spawned and
load it themselves. GPUs are assigned to them in turn. Each worker has one resident model and forms its own partial sum.
The assignment of clients to workers does not affect results: random streams belong to clients, chunks are formed before
they are assigned, and sums are exact. Client memories belong to the engine and are sent to the worker that executes the
client.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from paceline.core.engine import Call, Receipt
from paceline.core.errors import EngineError, WorkerDiedError
from paceline.core.processes import NAME, UNGUARDED, begin, importable, start, unguarded
from paceline.core.profiling import spent
from paceline.core.tree import rename_main
from paceline.engines.accelerators import device_of, worker_start
from paceline.engines.pipes import End, Ending, freeze, pair, thaw
from paceline.engines.pool import Pool
from paceline.engines.setup import Setup
from paceline.engines.transfer import complete, lighten
from paceline.engines.worker import Worker

__all__ = ["LocalEngine"]

_BATCH = 64
"""Number of items that a worker sends in one message."""

Frozen = tuple[bytes, list[Any]]
Source = Setup | Frozen
"""What a worker is built from: the setup itself if forked, else pickled."""


class LocalEngine(Pool):
    """Runs client functions on `workers` processes; with 1, in this process.

    Args:
        setup: what workers are built from.
        workers: number of workers.

    Raises:
        EngineError: worker processes cannot be started.
        ConfigError: fewer than 1 worker.
    """

    def __init__(self, setup: Setup, workers: int = 1) -> None:
        super().__init__(setup, workers)
        self._processes: list[_Process] = []
        if workers > 1:
            self._start(range(workers))

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yield receipts and partial sums as they arrive.

        Raises:
            WorkerDiedError: a worker process died; all were replaced, and the round can be repeated.
        """
        if not self._processes:
            chunks = self._dealer.chunks(call.clients)
            self.here.restore(self._lend(call.clients))
            yield from self.here.run(replace(call, chunks=tuple(chunks.values()), kernels=self._kernels))
            self._notes.update(self.here.solver.notes)
            return
        busy: dict[Connection, _Process] = {}
        for number, part, memories in self._parts(call):
            process = self._processes[number]
            process.send(("run", part, memories))
            busy[process.end.pipe] = process
        while busy:
            with spent.on("waiting"):
                ready = wait(list(busy))
            for pipe in ready:
                kind, value = self._receive(busy[cast("Connection", pipe)])
                if kind == "items":
                    yield from value
                elif kind == "done":
                    notes, seconds = value
                    self._notes.update(notes)
                    self.spent.add(seconds)
                    del busy[cast("Connection", pipe)]
                else:
                    raise value

    def _receive(self, process: _Process) -> tuple[str, Any]:
        try:
            return process.receive()
        except (EOFError, OSError) as error:
            self._replace()
            raise WorkerDiedError(
                f"worker {process.number} (pid {process.pid}) died and was replaced; the round can be repeated"
            ) from error

    def _replace(self) -> None:
        """Start a new process for every worker, because the others are in the middle of the call."""
        numbers = range(len(self._processes))
        self.close()
        self._start(numbers)
        self._new_round()

    def _start(self, numbers: Sequence[int]) -> None:
        method = worker_start(self.setup.device)
        source = self.setup if method == "fork" else _freeze(self.setup, method)
        try:
            for number in numbers:
                self._processes.append(_Process(source, number, method, device_of(self.setup.device, number)))
            for process in self._processes:
                process.ready()
        except BaseException:
            self.close()
            raise

    def _ask_all(self, what: str, *values: Any) -> Iterator[Any]:
        if not self._processes:
            yield getattr(self.here, what)(*values)
            if what == "commit":
                self.here.memories.clear()
        for process in self._processes:
            process.send((what, *values))
            kind, value = self._receive(process)
            if kind == "error":
                raise value
            yield value

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; empty if the only worker is in this process."""
        return [p.pid for p in self._processes]

    def close(self) -> None:
        """Kill the worker processes."""
        for process in self._processes:
            process.kill()
        self._processes = []


class _Process:
    """One worker process and its pipe."""

    def __init__(self, source: Source, number: int, method: str, device: str) -> None:
        context = multiprocessing.get_context(method)
        self.number = number
        self.end, ending = pair(context)
        self._forked = isinstance(source, Setup)
        made: Any = context.Process  # type: ignore[attr-defined]
        inherited, self._script = (source, False) if isinstance(source, Setup) else (None, b"__main__" in source[0])
        self._process = made(target=_serve, args=(ending, inherited), name=f"{NAME} worker {number}", daemon=True)
        start(self._process, self._script)
        self.end.started()
        self.pid: int = self._process.pid or 0
        if not self._forked:
            self.send((*cast(Frozen, source), device))

    def ready(self) -> None:
        """Wait until a spawned worker has been built. Raises the error that prevented it."""
        if self._forked:
            return
        try:
            kind, value = self.receive()
        except (EOFError, OSError):
            self._process.join(5.0)
            how = f"worker {self.number} could not be started: it exited with code {self._process.exitcode}"
            if self._process.exitcode == UNGUARDED:
                how = unguarded()
            elif self._script:
                how += f". If importing the script caused this: {unguarded()}"
            raise EngineError(how) from None
        if kind == "error":
            raise value

    def send(self, message: Any) -> None:
        self.end.reuse()  # every earlier message has been answered
        with contextlib.suppress(OSError):  # the reader detects the closed pipe and reports the dead worker
            self.end.send(message)

    def receive(self) -> tuple[str, Any]:
        return self.end.receive()  # type: ignore[no-any-return]

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.end.close()


def _freeze(setup: Setup, method: str) -> Frozen:
    """Pickle the setup of workers. Raises `EngineError` for parts that cannot be pickled."""
    try:
        frozen = freeze(lighten(setup))
    except Exception as error:
        raise EngineError(
            f"worker processes use the start method {method!r}, for which this run cannot be pickled ({error}); define "
            f"classes and functions at the top of a module, or use one worker"
        ) from error
    if b"__main__" in frozen[0] and not importable():
        raise EngineError(
            f"worker processes use the start method {method!r} and import the script, but this one is not a file (a notebook, "
            f"or interactive or piped input); move its classes and functions to a module, or use one worker"
        )
    return frozen


def _serve(ending: Ending, setup: Setup | None) -> None:
    """Main function of a worker process; it runs until the parent ends. Without a setup, the setup is received first."""
    begin()
    end = ending.open()
    worker = None if setup is None else _build(setup)
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        if worker is None:
            try:
                header, buffers, device = end.receive()
                worker = _build(replace(complete(thaw(header, buffers)), device=device))
            except Exception as error:
                end.send(("error", error))
                return
            rename_main()
            end.send(("value", None))
        _answer(worker, end)


def _build(setup: Setup) -> Worker:
    torch.set_num_threads(setup.threads)
    if torch.device(setup.device).type == "cuda":
        torch.cuda.set_device(setup.device)
    return Worker(setup)


def _answer(worker: Worker, end: End) -> None:
    while True:
        message = end.receive()
        end.reuse()
        try:
            if message[0] == "run":
                worker.restore(message[2])
                _run(worker, message[1], end)
            else:
                end.send(("value", getattr(worker, message[0])(*message[1:])))
                if message[0] == "commit":
                    worker.memories.clear()
        except Exception as error:
            end.send(("error", error))


def _run(worker: Worker, call: Call, end: End) -> None:
    items: list[Any] = []
    spent.take()
    with spent.on("bookkeeping"):
        for item in worker.run(call):
            items.append(item)
            if len(items) == _BATCH:
                end.send(("items", items))
                items = []
        end.send(("items", items))
    end.send(("done", (worker.solver.notes, spent.take())))
