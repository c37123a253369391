"""The default engine: worker processes on this machine, or one worker in this process.

Each worker keeps one resident model and forms its own partial sum. Which worker runs a client has no
influence on results: streams belong to clients, and sums are exact.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from paceline.call import Call, Receipt
from paceline.engines.dealing import Dealer
from paceline.engines.worker import Setup, Worker
from paceline.errors import ConfigError, EngineError, WorkerDiedError
from paceline.params import Params

__all__ = ["LocalEngine"]


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
        self._here = Worker(setup)
        self._processes = [_Process(setup, i) for i in range(workers)] if workers > 1 else []
        self._dealer = Dealer(setup.cost, setup.chunk, workers)
        self._committed: dict[int, dict[str, Any]] = {}
        self._home: dict[int, int] = {}

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yields receipts and partial sums as they come."""
        chunks = self._dealer.chunks(call.clients)
        if not self._processes:
            yield from self._here.run(replace(call, chunks=tuple(chunks.values())))
            return
        busy: dict[Connection, _Process] = {}
        for number, share in self._dealer.deal(chunks).items():
            process, clients = self._processes[number], [c for chunk in share for c in chunk]
            moved = {
                c: self._committed[c] for c in clients if c in self._committed and self._home.get(c) != number
            }
            self._home.update(dict.fromkeys(clients, number))
            mine = set(clients)
            part = replace(
                call,
                clients=tuple(clients),
                chunks=tuple(share),
                each_message={c: m for c, m in call.each_message.items() if c in mine},
                peers={c: p for c, p in call.peers.items() if c in mine},
            )
            process.send(("run", part, moved))
            busy[process.pipe] = process
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                kind, value = self._receive(busy[pipe])
                if kind == "item":
                    yield value
                elif kind == "done":
                    del busy[pipe]
                else:
                    raise value

    def _receive(self, process: _Process) -> tuple[str, Any]:
        try:
            return process.receive()
        except (EOFError, OSError) as error:
            self._replace(process)
            raise WorkerDiedError(
                f"worker {process.number} (pid {process.pid}) died; it was replaced, the round can be run again"
            ) from error

    def _replace(self, dead: _Process) -> None:
        """Start a new process for every worker, as the others are in the middle of the call."""
        for process in self._processes:
            process.kill()
        self._processes = [_Process(self.setup, p.number) for p in self._processes]
        self._home.clear()
        self._dealer.new_round()

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the stores that changed."""
        if not self._processes:
            self._dealer.new_round()
            return self._here.commit()
        changed: dict[int, dict[str, Any]] = {}
        for process in self._processes:
            changed.update(self._ask(process, "commit"))
        self._committed.update(changed)
        self._dealer.new_round()
        return changed

    def rollback(self) -> None:
        """Forget memory changes since the last commit."""
        self._here.rollback()
        for process in self._processes:
            self._ask(process, "rollback")
        self._dealer.new_round()

    def restore(self, memories: Mapping[int, Mapping[str, Any]]) -> None:
        """Put stored memories back."""
        self._here.restore(memories)
        self._committed = {c: dict(m) for c, m in memories.items()}
        self._home.clear()

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
        return self._here.services

    def init_params(self) -> Params:
        """Return the initial model."""
        return self._here.initial.clone()

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the task's central test set."""
        return self._here.evaluate(params)

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
    """One worker process and the pipe to it. Our own child: pickles on this pipe come from ourselves."""

    def __init__(self, setup: Setup, number: int) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise EngineError("worker processes cannot be forked once CUDA is in use; use one worker")
        context = multiprocessing.get_context("fork")
        self.number = number
        self.pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(setup, child, self.pipe), daemon=True)
        self._process.start()
        child.close()
        self.pid = self._process.pid or 0

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # the reader finds the end of the pipe and names the death
            self.pipe.send_bytes(pickle.dumps(message, protocol=5))

    def receive(self) -> tuple[str, Any]:
        return pickle.loads(self.pipe.recv_bytes())  # type: ignore[no-any-return]

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(setup: Setup, pipe: Connection, other: Connection) -> None:
    """Run inside a worker process until the parent goes."""
    other.close()
    torch.set_num_threads(1)
    worker = Worker(setup)

    def send(kind: str, value: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, value), protocol=5))

    while True:
        try:
            message = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            if message[0] == "run":
                worker.restore(message[2])
                for item in worker.run(message[1]):
                    send("item", item)
                send("done", None)
            else:
                send("value", getattr(worker, message[0])())
        except Exception as error:
            send("error", error)
