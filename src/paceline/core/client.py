"""What a client function has: its data, its memory, its randomness, a resident model and the local loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from paceline.core.columns import call, length
from paceline.core.errors import ConfigError, PlanError
from paceline.core.evaluation import Evaluation
from paceline.core.generators import nested, reseed
from paceline.core.hooks import NO_HOOKS, Hooks
from paceline.core.limits import StepLimit, WorkTime
from paceline.core.memory import Memory
from paceline.core.optimizers import PLAIN_SGD, SGD, AdamW, Optimizer
from paceline.core.params import Params, Resident
from paceline.core.random import derive
from paceline.core.samples import ClientData, Problem
from paceline.core.services import Services
from paceline.core.training import Job, Trained, answer, norms_in
from paceline.core.tree import Tree

__all__ = ["SGD", "AdamW", "Client", "ClientData", "Hooks", "LocalOptions", "Memory", "Problem", "Trained"]

V = TypeVar("V")


class LocalOptions(TypedDict, total=False):
    """Options of `Client.sgd` that a method's hyperparameters decide: ``client.sgd(params, **options)``."""

    optimizer: Optimizer
    epochs: int
    steps: int | None
    batch_size: int | None
    limit: StepLimit | None


class Client:
    """What a client function may use. One exists for the length of one call.

    Args:
        id: this client's number in the population.
        round: the round, from 1.
        seed: of this client's stream for this call, or what derives it.
        model: this worker's resident module, or what builds it.
        data: returns this client's training (0) or test (1) samples; the latter are empty unless the partition
            sets some aside.
        memory: its own store, kept between rounds; ``memory.stage`` for values of which the server holds a sum.
        peers: records published by the others of the cohort (`ClientFunction.peer_record`), by client.
        services: what its worker has beside the model, by class, such as ``client.services[Submodels]``.
        strict: check the loss at every step, to name the step at which it broke (the debug engine).
        ask: runs a request to the local loop: at once, or together with those of other clients.
        redraws: let what the function draws from global generators come from this client's streams; whoever says so
            puts the generators back (`paceline.core.generators`).
        central: the task's test samples.
        records_times: store how long training took, see `times`.
        operation: number, within the round, of the server's operation that the call belongs to.
        work_time: returns how work becomes seconds on this device; measured on this machine if None.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> class Halved(pl.methods.FedAvg):
        ...     @pl.on_client
        ...     def train(self, client, message):
        ...         local = client.sgd(message, **self.local(client))
        ...         return pl.Update(delta=0.5 * (local.params - message), weight=client.num_samples)
        >>> pl.run(Halved(), blobs(), clients=4, rounds=2).rounds
        2
    """

    def __init__(
        self,
        id: int,
        round: int,
        seed: Callable[[], int],
        model: Resident,
        problem: Problem,
        data: Callable[[int], ClientData],
        memory: Memory,
        peers: Mapping[int, Tree] | None = None,
        services: Services | None = None,
        strict: bool = False,
        ask: Callable[[Any], Any] = answer,
        redraws: bool = False,
        central: ClientData | None = None,
        records_times: bool = False,
        operation: int = 0,
        work_time: Callable[[], WorkTime] | None = None,
    ) -> None:
        self._id, self.round, self.model, self.problem, self.memory = id, round, model, problem, memory
        self._data, self._seed = data, seed
        self.peers = peers or {}
        self.services = Services() if services is None else services
        self.strict, self.ask, self.redraws = strict, ask, redraws
        self.central, self.records_times, self.operation = central, records_times, operation
        self.flops = 0.0
        self.nameless = False
        """Whether the function that runs may not ask who it runs for: under masks, unless the method says so."""
        self.job: Job | None = None
        """The last request to the local loop."""
        self._loops = self._drawn = 0
        self._work_time = work_time or (lambda: WorkTime(True, float))

    @property
    def id(self) -> int:
        """This client's number in the population.

        In a secure sum only a method with `Method.names_clients` may read it: a message that holds a line for each client
        could make all but one count for nothing. Raises `PlanError` there.
        """
        if self.nameless:
            raise PlanError(
                [
                    "a client function under secure aggregation reads client.id, so a message could single out one client; "
                    "use values common to all clients, or set names_clients = True in the method, which each client's policy must allow"
                ]
            )
        return self._id

    def assigned(self, values: Sequence[V]) -> V:
        """Return this client's entry of a list that the run's configuration assigns to clients in turn.

        The list must not come from a message. Client k receives ``values[k % len(values)]``.
        Raises `ConfigError` for an empty list.
        """
        if not values:
            raise ConfigError("client.assigned: the list of values is empty; give it at least one")
        return values[self._id % len(values)]

    @cached_property
    def seed(self) -> int:
        """Seed of this client's stream in this call."""
        return self._seed()

    @cached_property
    def train(self) -> ClientData:
        """Training samples."""
        return self._data(0)

    @cached_property
    def test(self) -> ClientData:
        """Test samples; empty unless the partition sets some aside."""
        return self._data(1)

    @cached_property
    def rng(self) -> torch.Generator:
        """This client's stream in this call."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.train)

    @property
    def local_buffers(self) -> dict[str, Tensor]:
        """Running statistics of this client's own, at first the initial model's; empty unless they stay local."""
        return dict(self.memory.get("_buffers", self.model.initial_buffers)) if self.model.stateful else {}

    @property
    def device(self) -> torch.device:
        """Where the model and the data are."""
        return self.model.device

    @property
    def times(self) -> tuple[float, float] | None:
        """Seconds that this client's last training took to (compute, transfer); None before the first.

        They are recorded only for methods that declare ``records_times = True``.
        """
        if not self.records_times:
            raise ConfigError(
                "client.times is not recorded for this method; declare records_times: ClassVar[bool] = True in its class"
            )
        seen = self.memory.get("_times")
        return None if seen is None else (float(seen[0]), float(seen[1]))

    def take(self) -> Tree:
        """Return what the function begun with ``fed.start`` returned; it is handed over once.

        Raises `PlanError` where this client has nothing begun.
        """
        stored = self.memory.get("_held")
        if stored is None:
            raise PlanError([f"client {self.id} has no stored reply; call a collects=True function once, after fed.start"])
        self.memory["_held"] = None
        return stored

    def stream(self, *path: int | str) -> torch.Generator:
        """Return a further independent random stream; in one call, the same `path` gives the same stream."""
        return torch.Generator().manual_seed(derive(self.seed, *path))

    def redraw(self) -> None:
        """Let the global generators go on with a further stream of this client, whatever others drew in between."""
        if self.redraws:
            reseed(self._draw(), self.device)

    def _draw(self) -> int:
        self._drawn += 1
        return derive(self.seed, "draws", self._drawn)

    def _asked(self, request: Any) -> Any:
        try:
            return self.ask(request)
        finally:
            self.redraw()

    def sgd(
        self,
        start: Params,
        *,
        optimizer: Optimizer | None = None,
        hooks: Hooks | None = None,
        epochs: int = 1,
        steps: int | None = None,
        batch_size: int | None = None,
        model: Resident | None = None,
        data: ClientData | None = None,
        alone: bool = False,
        batches: str | None = None,
        prepare: Callable[[nn.Module], AbstractContextManager[Any]] | None = None,
        limit: StepLimit | None = None,
    ) -> Trained:
        """Train from `start` on this client's data: the one local loop.

        Args:
            start: where to start, shape [d]; its layout is the model's.
            optimizer: `SGD` or `AdamW`; by default plain SGD at the task's learning rate.
            hooks: what a method changes of the steps: pure functions of tensors, see `Hooks`.
            epochs: passes over the data; or `steps`, optimizer steps, which may end in mid-pass.
            batch_size: samples of a step; the task's by default.
            model: a resident module to use in place of the client's own (a sub-model).
            data: samples to train on, such as a part of the client's (`ClientData.part`); all its training samples by default.
            alone: the module was prepared for this client (forward hooks, buffers), so it trains at once and
                by itself.
            prepare: context in which the module trains, such as one with forward hooks; clients with equal ones can train as one.
            batches: a name: trainings of this call that give the same one see the same batches.
            limit: ``(planned, done, seconds) -> steps``, asked after each step, ends a training early that takes too long.

        Returns:
            The trained parameters, steps, samples and mean loss. A client without data returns `start` after 0 steps.

        Raises:
            ConfigError: for a batch size below 1 or a negative number of epochs.
            NonFiniteError: for a NaN loss.
        """
        optimizer, hooks = optimizer or PLAIN_SGD, hooks or NO_HOOKS
        model = model or self.model
        batch_size = self.problem.batch_size if batch_size is None else batch_size
        if batch_size < 1 or epochs < 0:
            raise ConfigError(f"batch_size={batch_size}, epochs={epochs}: batch_size must be at least 1 and epochs at least 0")
        data = self.train if data is None else data
        n, self._loops = len(data), self._loops + 1
        wanted = steps if steps is not None else epochs * -(-n // batch_size)
        own = model is self.model and model.stateful
        self.job = job = Job(
            model,
            data,
            start,
            hooks.loss or self.problem.loss,
            self.problem.lr if optimizer.lr is None else optimizer.lr,
            wanted if n else 0,
            batch_size,
            partial(self.stream, "order", self._loops if batches is None else batches),
            optimizer,
            hooks,
            alone,
            self.strict,
            prepare=prepare,
        )
        if limit is not None:
            self._limit(job, limit)
        if model.stateful:
            job.buffers = self.local_buffers if own else model.local_buffers()
        trained: Trained = self._asked(job)
        self.flops += 3.0 * model.flops * trained.samples  # backward costs about twice the forward pass
        if own:
            self.memory["_buffers"] = job.buffers
        elif job.buffers is not None:
            model.load_buffers(job.buffers)  # the caller reads them before another client trains
        if self.problem.buffers == "recompute" and trained.steps:
            trained.params.vector[model.layout.num_params :] = start.vector[model.layout.num_params :]
        return trained

    def _limit(self, job: Job, limit: StepLimit) -> None:
        """Apply a limit: before the job where times are computed, so that clients still train as one; else during it."""
        measured, seconds = self._work_time()
        if measured:
            job.limit, job.alone = lambda planned, done, took: limit(planned, done, seconds(took)), True
        else:
            job.steps = job.within(limit, seconds, self.flops)

    def load(self, params: Params) -> nn.Module:
        """Load `params` and `local_buffers` into the module; return it."""
        self.model.load(params)
        self.model.load_buffers(self.local_buffers)
        return self.model.module

    def gradient(self, params: Params, *, batch_size: int | None = None) -> Params:
        """Return the mean gradient of the loss over all training samples at `params`.

        Args:
            params: where to evaluate, [d].
            batch_size: samples per forward pass, which limits memory; 256 by default. It does not change the mean.

        Returns:
            `Params` [d]; running statistics have gradient 0.
        """
        self.load(params).train()
        out, norms = params.zeros(), norms_in(self.model.module)
        with nested(self._draw(), self.device):
            for x, y in self.train.batches(batch_size or 256):
                if norms:  # a single sample has no variance: use BatchNorm's running statistics
                    self.model.module.train(length(y) > 1)
                self.model.clear()
                self.problem.loss(call(self.model.module, x), y).backward()  # type: ignore[no-untyped-call]
                out.vector.add_(self.model.collect().vector, alpha=length(y) / len(self.train))
        self.flops += 3.0 * self.model.flops * len(self.train)
        return out

    @torch.no_grad()
    def statistics(self, params: Params, batch_size: int = 256) -> Params:
        """Return `params` with BatchNorm's running statistics computed anew from this client's training data.

        Batches of one sample have no variance and do not count; without others, the statistics stay as they are.

        Args:
            params: parameters and statistics, [d].
            batch_size: samples per forward pass. Statistics are plain averages over the batches.
        """
        if len(self.train) < 2 or batch_size < 2:
            return params.clone()
        self.model.load(params)
        norms = norms_in(self.model.module)
        before = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        self.model.module.train()
        with nested(self._draw(), self.device):
            for x, _ in self.train.batches(batch_size):
                if length(x) > 1:
                    call(self.model.module, x)
        self.model.sync_buffers()
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        self.flops += self.model.flops * len(self.train)
        return self.model.snapshot()

    def judged_by(self, everything: bool = False) -> ClientData:
        """Return the samples on which a personal model is evaluated.

        Args:
            everything: use all central test samples of the task. Otherwise, use this client's own test samples or, if it has none,
                the central test samples of the classes that it trains on.

        Raises:
            ConfigError: the client has no central test samples (`Client(central=...)`).
        """
        if not everything and len(self.test):
            return self.test
        whole = self.central
        if whole is None:
            raise ConfigError("this client has no central test samples; pass them as Client(central=...)")
        if everything or not self.problem.num_classes or not isinstance(whole.y, Tensor) or whole.y.dim() > 1:
            return whole  # without classes; sequences have no class of their own
        return whole.of_classes(self.train.class_counts(self.problem) > 0, self.problem)

    def evaluate(
        self,
        params: Params,
        data: ClientData | None = None,
        *,
        model: Resident | None = None,
        outputs: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return sums over `data` (by default this client's test samples, else its training samples).

        Args:
            params: of the model.
            data: samples to judge by.
            model: a resident module to use in place of the client's own.
            outputs: ``(module, inputs) -> scores`` in place of the module's outputs.
        """
        model = model or self.model
        if data is None:
            data = self.test if len(self.test) else self.train
        if model is self.model:
            model.load_buffers(self.local_buffers)
        self.flops += model.flops * len(data)
        request = Evaluation(model, params, self.problem, data, model.stateful, outputs, self._draw)
        sums: dict[str, Any] = self._asked(request)
        return sums
