"""Common base of engines with several workers: scheduling, client memories, and the server's own worker."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paceline.core.engine import Call, Engine, Receipt
from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.params import Params
from paceline.core.profiling import Spent
from paceline.core.services import Services
from paceline.core.tree import Tree
from paceline.core.wording import setting
from paceline.engines.scheduling import Dealer
from paceline.engines.setup import Setup
from paceline.engines.stacking import Choice, Kernels, choose, compiled
from paceline.engines.stacking.products import available
from paceline.engines.worker import Worker
from paceline.store import MemoryStore

__all__ = ["Pool", "StackingWarning", "stack_size"]


class StackingWarning(UserWarning):
    """Clients cannot train as one stacked computation and train one at a time."""


class Pool(Engine):
    """Assigns chunks of clients to workers, sends them the clients' memories, and stores these.

    Args:
        setup: what workers are built from.
        workers: number of workers.

    Raises:
        ConfigError: fewer than 1 worker.
    """

    def __init__(self, setup: Setup, workers: int) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers} must be at least 1")
        self.setup = setup
        self.num_clients = setup.num_clients
        self.memories = MemoryStore()
        """Client memories between rounds."""
        self._notes: dict[str, str] = {}
        """Functions that could not be stacked, with the reasons."""
        self.spent = Spent()
        """Profile of the worker processes; this process has a separate one."""
        self.here = Worker(setup)
        """Worker of this process, used for evaluations of the server."""
        self._width_key: str | None = getattr(setup.programs.get("method"), "width_key", None)
        self._widths: dict[int, Any] = {}
        """Last width of each client's model, for methods whose clients differ in it."""
        kind = self._widths.get if self._width_key else None
        self._dealer = Dealer(setup.cost, setup.chunk, workers, kind, setup.costs)
        self._kernels = "plain"
        self._lent: set[int] = set()

    def stack(self, chunk: int, kernels: str = "plain") -> None:
        """Set the maximum number of clients that are trained as one stack, and how stacks are computed (`Kernels.parse`)."""
        self._dealer.chunk, self._kernels = chunk, kernels

    def measure(self, cohort: int, always: bool = False, chunk: int | None = None) -> Choice:
        """Measure how many clients should be stacked; see `choose`.

        Args:
            cohort: number of clients per round.
            always: stack even if it is not faster.
            chunk: the only number to try; then only how they are computed is measured.
        """
        clients = [c for c in range(min(self.num_clients, 128)) if self.setup.cost(c) > 1]
        here, on_gpu = self.here, self.here.model.device.type == "cuda"
        parts = self._dealer.workers if on_gpu else 2
        try:
            start, data = here.initial.to(here.model.device), [here.samples(c) for c in clients]
            return choose(here.model, start, self.setup.task, data, cohort, always, parts, chunk)
        except Exception as error:  # where training itself is at fault, the first round says whose and how
            return Choice(1, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", failed=True)

    def steps(self) -> int:
        """Return the steps of one pass over the samples of the first client."""
        return -(-max(self.setup.cost(0) - 1, 1) // int(self.setup.task.batch_size))

    # -- dealing -------------------------------------------------------------------------------
    def _parts(self, call: Call) -> Iterator[tuple[int, Call, dict[int, dict[str, Any]]]]:
        """Yield (worker, its part of the call, memories to send to it)."""
        for number, share in self._dealer.deal(self._dealer.chunks(call.clients)).items():
            clients = [c for chunk in share for c in chunk]
            mine = set(clients)
            part = replace(
                call,
                clients=tuple(clients),
                chunks=tuple(share),
                kernels=self._kernels,
                each_message={c: m for c, m in call.each_message.items() if c in mine},
                peers={c: p for c, p in call.peers.items() if c in mine},
            )
            yield number, part, self._lend(clients)

    def _lend(self, clients: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the memories that a worker needs for a call and has not received in this round."""
        new = [c for c in clients if c not in self._lent]
        self._lent.update(new)
        return {c: self.memories[c] for c in new if c in self.memories} if self.memories else {}

    def _new_round(self) -> None:
        self._lent.clear()
        self._dealer.new_round()

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the changed memories.

        Raises:
            WorkerDiedError: a worker process died.
        """
        changed: dict[int, dict[str, Any]] = {}
        for part in self._ask_all("commit"):
            changed.update(part)
        for client, memory in changed.items():
            self.memories.put(client, memory)
            self._note_width(client, memory)
        self._new_round()
        return changed

    def _note_width(self, client: int, memory: Mapping[str, Any]) -> None:
        if self._width_key and self._width_key in memory:
            self._widths[client] = memory[self._width_key]

    def rollback(self) -> None:
        """Discard memory changes since the last commit."""
        self.here.rollback()
        for _ in self._ask_all("rollback"):
            continue
        self._new_round()

    def withdraw(self, operation: int, clients: Sequence[int]) -> None:
        """Undo what clients staged in an operation; a worker without these clients has nothing to undo."""
        for _ in self._ask_all("withdraw", operation, tuple(clients)):
            continue

    def restore(self, memories: MemoryStore) -> None:
        """Use `memories` as the store of the clients' memories.

        Raises:
            CheckpointError: the store contains clients outside this run.
        """
        unknown = [c for c in memories if not 0 <= c < self.num_clients]
        if unknown:
            raise CheckpointError(
                f"the checkpoint has a memory of client {unknown[0]}, but the run has only {self.num_clients} clients"
            )
        self.memories = memories
        self._widths.clear()
        if self._width_key:
            for client in memories:
                self._note_width(client, memories[client])
        self._new_round()

    def _ask_all(self, what: str, *values: Any) -> Iterator[Any]:
        """Yield the result of each worker's method `what`; a worker that has committed drops its memories."""
        raise NotImplementedError

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yield receipts and partial sums.

        Args:
            call: the call.

        Raises:
            WorkerDiedError: a worker process died; it was replaced, and the round can be repeated.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stop the workers."""
        raise NotImplementedError

    # -- figures of the workers ----------------------------------------------------------------
    @property
    def notes(self) -> Mapping[str, str]:
        """Functions that could not be stacked, with the reasons."""
        return self._notes

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time of worker processes by section."""
        return self.spent.seconds

    # -- the server's own model ----------------------------------------------------------------
    @property
    def services(self) -> Services:
        """Services of the worker in this process."""
        return self.here.services

    def init_params(self) -> Params:
        """Return a copy of the initial model."""
        return self.here.initial.clone()

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply of the shape that clients will send; see `Worker.preview`."""
        return self.here.preview(function, message)

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate a model on the task's central test set."""
        return self.here.evaluate(params)


def stack_size(engine: Any, config: Any, method: Any) -> Choice:
    """Decide how many clients train as one computation and how it is computed, and set it in the engine.

    Raises:
        ConfigError: `kernels` names an unknown form.
    """
    given = None if config.kernels == "auto" else _known(config.kernels, config.device)
    if not isinstance(engine, Pool) or engine.setup.strict:
        return Choice(1, "the engine runs one client at a time")
    if config.vectorize == "off":
        return Choice(1, "switched off")
    if not method.vectorizable and config.vectorize == "auto" and not config.chunk:
        return Choice(1, "the method requires that clients train one at a time")
    choice = Choice(config.chunk or 1, "as given")
    if not config.chunk:
        choice = engine.measure(config.cohort, config.vectorize == "on")
    elif given is None and config.chunk > 1 and engine.here.model.device.type == "cuda":
        choice = replace(engine.measure(config.cohort, True, config.chunk), chunk=config.chunk, failed=False)
    if choice.failed:
        warnings.warn(
            f"clients train one at a time, because the measurement of stacks failed on {engine.here.model.device}: {choice.reason}; "
            f"give the size of stacks with {setting('chunk')}, or omit the measurement with {setting('vectorize', 'off')}",
            StackingWarning,
            stacklevel=3,
        )
    if given is not None:
        choice = replace(choice, kernels=given)
    elif compiled(choice, config.rounds * config.cohort * engine.steps()):
        choice = replace(choice, kernels=f"{choice.kernels},compile")
    engine.stack(choice.chunk, choice.kernels)
    return choice


def _known(kernels: str, device: str) -> str:
    """Return forms of a stack as `Kernels` writes them. Raises `ConfigError` for those that cannot be computed on the device."""
    found = Kernels.parse(kernels)
    if found.triton and not available(torch.device(device).type):
        raise ConfigError(
            f"{setting('kernels')}: triton needs a GPU (and Triton, which torch installs with it); the device is {device}"
        )
    return str(found)
