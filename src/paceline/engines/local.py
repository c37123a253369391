"""The default engine: worker processes on this machine, or one worker in this process.

Each worker keeps one resident model and forms its own partial sum. Which worker runs a client has no
influence on results: streams belong to clients, chunks are formed before they are dealt, and sums are exact.
What clients keep between rounds belongs to the engine, and is lent to the worker that runs them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from paceline.call import Call, Receipt
from paceline.engines.dealing import Dealer
from paceline.engines.pipes import End, pair
from paceline.engines.stacking import Choice, choose
from paceline.engines.worker import Setup, Worker
from paceline.errors import CheckpointError, ConfigError, EngineError, WorkerDiedError
from paceline.params import Params
from paceline.spent import Spent, spent
from paceline.store import MemoryStore

__all__ = ["LocalEngine"]

_BATCH = 64
"""Items that a worker sends as one message."""


class LocalEngine:
    """Runs client functions on `workers` processes; with 1, in this process.

    Args:
        setup: what a worker is built from.
        workers: number of workers.
    """

    def __init__(self, setup: Setup, workers: int = 1) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers}; at least 1 is needed")
        self.setup = setup
        self.num_clients = setup.num_clients
        self.memories = MemoryStore()
        """What clients keep between rounds."""
        self.notes: dict[str, str] = {}
        """What could not be stacked, and why."""
        self.spent = Spent()
        """What worker processes counted; this process has its own."""
        self.here = Worker(setup)
        """The worker of this process, which evaluates for the server; it is the only one where `workers` is 1."""
        self._processes = [_Process(setup, i) for i in range(workers)] if workers > 1 else []
        self._dealer = Dealer(setup.cost, setup.chunk, workers)
        self._lent: set[int] = set()

    def stack(self, chunk: int) -> None:
        """From now on let up to `chunk` clients work as one."""
        self._dealer.chunk = chunk

    def measure(self, cohort: int, always: bool = False) -> Choice:
        """Find out how many clients should work as one; see `choose`."""
        clients = [c for c in range(min(self.num_clients, 128)) if self.setup.cost(c) > 1]
        data = [self.here.samples(c) for c in clients]
        return choose(self.here.model, self.here.initial, self.setup.task, data, cohort, always)

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yields receipts and partial sums as they come."""
        chunks = self._dealer.chunks(call.clients)
        if not self._processes:
            self.here.restore(self._lend(call.clients))
            yield from self.here.run(replace(call, chunks=tuple(chunks.values())))
            self.notes.update(self.here.solver.notes)
            return
        busy: dict[Connection, _Process] = {}
        for number, share in self._dealer.deal(chunks).items():
            process, clients = self._processes[number], [c for chunk in share for c in chunk]
            mine = set(clients)
            part = replace(
                call,
                clients=tuple(clients),
                chunks=tuple(share),
                each_message={c: m for c, m in call.each_message.items() if c in mine},
                peers={c: p for c, p in call.peers.items() if c in mine},
            )
            process.send(("run", part, self._lend(clients)))
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

    def _lend(self, clients: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the memories that a worker needs for a call and has not been given in this round."""
        new = [c for c in clients if c not in self._lent]
        self._lent.update(new)
        return {c: self.memories[c] for c in new if c in self.memories}

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

    def _new_round(self) -> None:
        self._lent.clear()
        self._dealer.new_round()

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the memories that changed."""
        if self._processes:
            changed: dict[int, dict[str, Any]] = {}
            for process in self._processes:
                changed.update(self._ask(process, "commit"))
        else:
            changed = self.here.commit()
            self.here.memories.clear()
        for client, memory in changed.items():
            self.memories.put(client, memory)
        self._new_round()
        return changed

    def rollback(self) -> None:
        """Forget memory changes since the last commit."""
        self.here.rollback()
        for process in self._processes:
            self._ask(process, "rollback")
        self._new_round()

    def restore(self, memories: MemoryStore) -> None:
        """Take the clients' memories from this store, and keep them there."""
        unknown = [c for c in memories if not 0 <= c < self.num_clients]
        if unknown:
            raise CheckpointError(f"the checkpoint has memories of clients such as {unknown[0]}, of {self.num_clients}")
        self.memories = memories
        self._new_round()

    def _ask(self, process: _Process, what: str) -> Any:
        process.send((what,))
        kind, value = self._receive(process)
        if kind == "error":
            raise value
        return value

    # -- the server's own model ----------------------------------------------------------------
    @property
    def services(self) -> Mapping[str, Any]:
        """The services of the worker in this process."""
        return self.here.services

    def init_params(self) -> Params:
        """Return the initial model."""
        return self.here.initial.clone()

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the task's central test set."""
        return self.here.evaluate(params)

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
