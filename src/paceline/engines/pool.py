"""What engines with several workers share: who runs what, whose memory lies where, what the server's side needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline.core.engine import Call, Engine
from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.params import Params
from paceline.core.profiling import Spent
from paceline.core.services import Services
from paceline.core.tree import Tree
from paceline.engines.scheduling import Dealer
from paceline.engines.stacking import Choice, choose
from paceline.engines.worker import Setup, Worker
from paceline.store import MemoryStore

__all__ = ["Pool"]


class Pool(Engine):
    """Deals chunks of clients out to workers, lends them the clients' memories, and keeps these.

    Args:
        setup: what a worker is built from.
        workers: number of workers.
    """

    def __init__(self, setup: Setup, workers: int) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers}; at least 1 is needed")
        self.setup = setup
        self.num_clients = setup.num_clients
        self.memories = MemoryStore()
        """What clients keep between rounds."""
        self._notes: dict[str, str] = {}
        self.spent = Spent()
        """What worker processes counted; this process has its own."""
        self.here = Worker(setup)
        """The worker of this process, which evaluates for the server."""
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

    # -- dealing -------------------------------------------------------------------------------
    def _parts(self, call: Call) -> Iterator[tuple[int, Call, dict[int, dict[str, Any]]]]:
        """Yield (worker, its part of the call, memories that it needs and has not got)."""
        for number, share in self._dealer.deal(self._dealer.chunks(call.clients)).items():
            clients = [c for chunk in share for c in chunk]
            mine = set(clients)
            part = replace(
                call,
                clients=tuple(clients),
                chunks=tuple(share),
                each_message={c: m for c, m in call.each_message.items() if c in mine},
                peers={c: p for c, p in call.peers.items() if c in mine},
            )
            yield number, part, self._lend(clients)

    def _lend(self, clients: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the memories that a worker needs for a call and has not been given in this round."""
        new = [c for c in clients if c not in self._lent]
        self._lent.update(new)
        return {c: self.memories[c] for c in new if c in self.memories}

    def _new_round(self) -> None:
        self._lent.clear()
        self._dealer.new_round()

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the memories that changed."""
        changed: dict[int, dict[str, Any]] = {}
        for part in self._ask_all("commit"):
            changed.update(part)
        for client, memory in changed.items():
            self.memories.put(client, memory)
        self._new_round()
        return changed

    def rollback(self) -> None:
        """Forget memory changes since the last commit."""
        self.here.rollback()
        for _ in self._ask_all("rollback"):
            continue
        self._new_round()

    def restore(self, memories: MemoryStore) -> None:
        """Take the clients' memories from this store, and keep them there."""
        unknown = [c for c in memories if not 0 <= c < self.num_clients]
        if unknown:
            raise CheckpointError(f"the checkpoint has memories of clients such as {unknown[0]}, of {self.num_clients}")
        self.memories = memories
        self._new_round()

    def _ask_all(self, what: str) -> Iterator[Any]:
        """Yield what each worker's method `what` returns; a worker that has committed gives its memories back."""
        raise NotImplementedError

    # -- what is told of them ------------------------------------------------------------------
    @property
    def notes(self) -> Mapping[str, str]:
        """What could not be stacked, and why."""
        return self._notes

    @property
    def seconds(self) -> Mapping[str, float]:
        """What worker processes spent their time on."""
        return self.spent.seconds

    # -- the server's own model ----------------------------------------------------------------
    @property
    def services(self) -> Services:
        """The services of the worker in this process."""
        return self.here.services

    def init_params(self) -> Params:
        """Return the initial model."""
        return self.here.initial.clone()

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply with the shape that clients will send; see `Worker.preview`."""
        return self.here.preview(function, message)

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the task's central test set."""
        return self.here.evaluate(params)
