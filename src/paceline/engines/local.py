"""The default engine: worker processes on this machine, or one worker in this process.

Each worker keeps one resident model and forms its own partial sum. Which worker runs a client has no
influence on results: streams belong to clients, chunks are formed before they are dealt, and sums are exact.
What clients keep between rounds belongs to the engine, and is lent to the worker that runs them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from paceline.call import Call, Receipt
from paceline.engines.pipes import End, pair
from paceline.engines.pool import Pool
from paceline.engines.worker import Setup, Worker
from paceline.errors import EngineError, WorkerDiedError
from paceline.spent import spent

__all__ = ["LocalEngine"]

_BATCH = 64
"""Items that a worker sends as one message."""


class LocalEngine(Pool):
    """Runs client functions on `workers` processes; with 1, in this process.

    Args:
        setup: what a worker is built from.
        workers: number of workers.
    """

    def __init__(self, setup: Setup, workers: int = 1) -> None:
        super().__init__(setup, workers)
        self._processes = [_Process(setup, i) for i in range(workers)] if workers > 1 else []

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yields receipts and partial sums as they come."""
        if not self._processes:
            chunks = self._dealer.chunks(call.clients)
            self.here.restore(self._lend(call.clients))
            yield from self.here.run(replace(call, chunks=tuple(chunks.values())))
            self.notes.update(self.here.solver.notes)
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
                assert isinstance(pipe, Connection)
                kind, value = self._receive(busy[pipe])
                if kind == "items":
                    yield from value
                elif kind == "done":
                    notes, seconds = value
                    self.notes.update(notes)
                    self.spent.add(seconds)
                    del busy[pipe]
                else:
                    raise value

    def _receive(self, process: _Process) -> tuple[str, Any]:
        try:
            return process.receive()
        except (EOFError, OSError) as error:
            self._replace()
            raise WorkerDiedError(
                f"worker {process.number} (pid {process.pid}) died; it was replaced, the round can be run again"
            ) from error

    def _replace(self) -> None:
        """Start a new process for every worker, as the others are in the middle of the call."""
        for process in self._processes:
            process.kill()
        self._processes = [_Process(self.setup, p.number) for p in self._processes]
        self._new_round()

    def _ask_all(self, what: str) -> Iterator[Any]:
        if not self._processes:
            yield getattr(self.here, what)()
            if what == "commit":
                self.here.memories.clear()
        for process in self._processes:
            process.send((what,))
            kind, value = self._receive(process)
            if kind == "error":
                raise value
            yield value

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers; empty when the worker is in this process."""
        return [p.pid for p in self._processes]

    def close(self) -> None:
        """End the worker processes."""
        for process in self._processes:
            process.kill()
        self._processes = []


class _Process:
    """One worker process and the pipe to it."""

    def __init__(self, setup: Setup, number: int) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise EngineError("worker processes cannot be forked once CUDA is in use; use one worker")
        context = multiprocessing.get_context("fork")
        self.number = number
        self.end, in_child = pair(context)
        self._process = context.Process(target=_serve, args=(setup, in_child), daemon=True)
        self._process.start()
        self.end.forked()
        self.pid = self._process.pid or 0

    def send(self, message: Any) -> None:
        self.end.reuse()  # an answer came to whatever was sent before
        with contextlib.suppress(OSError):  # the reader finds the end of the pipe and names the death
            self.end.send(message)

    def receive(self) -> tuple[str, Any]:
        return self.end.receive()  # type: ignore[no-any-return]

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.end.close()


def _serve(setup: Setup, open_end: Callable[[], End]) -> None:
    """Run inside a worker process until the parent goes."""
    end = open_end()
    torch.set_num_threads(setup.threads)
    worker = Worker(setup)
    while True:
        try:
            message = end.receive()
        except (EOFError, OSError):
            return
        end.reuse()
        try:
            if message[0] == "run":
                worker.restore(message[2])
                _run(worker, message[1], end)
            else:
                end.send(("value", getattr(worker, message[0])()))
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
