"""The local loop: SGD steps on a client's data, for one client or a stack of clients.

A `Job` is one client's request. `descend` is the loop; a `Learner` computes gradients, which is the only difference
between a single model and a stack. Hooks are pure functions of parameters, gradients and batches, so that the same hook
serves both.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.columns import Samples, call, length
from paceline.core.errors import NonFiniteError
from paceline.core.generators import nested
from paceline.core.hooks import NO_HOOKS, Hooks, Loss
from paceline.core.limits import StepLimit, synchronized
from paceline.core.linears import linears
from paceline.core.optimizers import PLAIN_SGD, SGD, Optimizer
from paceline.core.params import Params, Resident
from paceline.core.placement import upload
from paceline.core.profiling import spent
from paceline.core.random import derive
from paceline.core.samples import ClientData, shuffled

__all__ = ["Job", "Learner", "LoopRequest", "One", "Trained", "answer", "descend", "norms_in", "train"]


class LoopRequest(Protocol):
    """A request of a client to the engine, run on its own or together with those of other clients."""

    alone: bool
    """Whether the request must run immediately and on its own."""

    def run(self) -> Any:
        """Run the request on its own and return its result."""


class Trained(NamedTuple):
    """The result of the local loop.

    Args:
        params: parameters after training, shape [d] (of the sub-model, if one was trained).
        steps: optimizer steps taken.
        samples: samples processed, including repetitions.
        loss: mean training loss over the steps.
    """

    params: Params
    steps: int
    samples: int
    loss: float


@dataclass
class Job:
    """One client's request to the local loop.

    Args:
        model: the module that trains.
        data: the client's samples.
        start: initial parameters, shape [d]; not modified.
        loss: mean loss of (outputs, targets): from the hooks if set, otherwise from the task.
        lr: learning rate: from the optimizer if set, otherwise from the task.
        steps, batch_size: number of optimizer steps, which may end within a pass, and samples per step.
        order: function that returns the random stream of the sample order.
        optimizer: maps gradients to steps.
        hooks: the method's changes to the steps.
        alone: the module holds state of this client, so the job must run immediately and on its own.
        strict: check at every step that the loss is finite.
        limit: asked after each step for the number of steps, from the seconds measured on this machine.
    """

    model: Resident
    data: ClientData
    start: Params
    loss: Loss
    lr: float
    steps: int
    batch_size: int
    order: Callable[[], torch.Generator]
    optimizer: Optimizer = PLAIN_SGD
    hooks: Hooks = NO_HOOKS
    alone: bool = False
    strict: bool = False
    limit: StepLimit | None = None
    buffers: dict[str, Tensor] | None = None
    """Float buffers of the module that belong to this client (policy ``local``): their values before training, then after it."""
    prepare: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None
    """Context in which the module trains; jobs with equal ones can run as one."""
    step: int | None = None
    batch: tuple[Samples, Samples] | None = field(default=None, repr=False)
    """Current step of the loop and its (inputs, targets), for error messages."""

    @property
    def hooked(self) -> bool:
        """Whether a step is anything other than a step along the plain gradient."""
        return bool(self.hooks.correct or self.hooks.direction or not self.optimizer.plain)

    @property
    def plain(self) -> bool:
        """Whether the job is exactly one step along the plain gradient of the mean cross-entropy."""
        hooks, rule = self.hooks, self.optimizer
        return (
            self.steps == 1
            and self.prepare is None
            and self.loss is F.cross_entropy
            and not (hooks.correct or hooks.direction or hooks.after or hooks.objective or hooks.augment)
            and type(rule) is SGD
            and not (rule.weight_decay or rule.schedule)  # momentum does not affect a first step
        )

    def of(self, data: ClientData, order: Callable[[], torch.Generator]) -> Job:
        """Return the same request for another client."""
        other = object.__new__(Job)
        other.__dict__.update(self.__dict__, data=data, order=order)
        return other

    def prepared(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the module trains."""
        return contextlib.nullcontext() if self.prepare is None else self.prepare(self.model.module)

    def run(self) -> Trained:
        """Train this client by itself."""
        return train(self)

    def augmented(self, step: int, inputs: Samples, targets: Samples) -> tuple[Samples, Samples]:
        """Return the batch of a step after the hook `augment`, whose stream is that of this client, loop and step."""
        if self.hooks.augment is None:
            return inputs, targets
        return self.hooks.augmented(inputs, targets, derive(self.order().initial_seed(), "augment", step), step)

    def within(self, limit: StepLimit, seconds: Callable[[float], float], done: float = 0.0) -> int:
        """Return the steps that a limit leaves, on a device whose times are computed.

        Args:
            limit: the limit.
            seconds: virtual seconds of a number of FLOPs.
            done: FLOPs of this client before the job.
        """
        planned, step = self.steps, 0
        while step < planned:
            step += 1
            took = seconds(done + 3.0 * self.model.flops * self.samples(step)) - seconds(done)
            planned = self.limited(limit, planned, step, took)
        return planned

    def limited(self, limit: StepLimit, planned: int, step: int, seconds: float) -> int:
        """Return the steps to take in all: what a limit allows, but no step is undone, and none added."""
        return min(planned, max(step, limit(planned, planned * self.samples(step) / self.samples(planned), seconds)))

    def batches(self, plan: bool = False) -> Iterator[Tensor]:
        """Yield the rows of each step's batch; every pass uses a new order.

        Args:
            plan: leave them where the client's rows are known (`ClientData.known`), so that those of many clients can be copied
                to the device at once.
        """
        data, left = self.data, self.steps
        if len(data) <= self.batch_size:  # the order within a batch has no effect
            rows = data.known if plan else data.index
            for _ in range(left):
                yield rows
            return
        generator = self.order()
        while left > 0:
            rows = shuffled(data.known, generator)
            for batch in torch.split(rows if plan else upload(rows, data.device), self.batch_size)[:left]:
                yield batch
                left -= 1

    def samples(self, steps: int | None = None) -> int:
        """Return the number of samples in all steps, or in the first ones, including repetitions."""
        n, size, steps = len(self.data), self.batch_size, self.steps if steps is None else steps
        if steps == 1 or not n:
            return min(n, size) if steps else 0
        passes, rest = divmod(steps, -(-n // size))
        return passes * n + min(rest * size, n)


class Learner(Protocol):
    """Computes gradients at the live parameters of one model or of several stacked ones."""

    job: Job
    """The job, or the longest of the stacked ones: these are equal except for data, start and learning rate."""

    at: Params
    """The live parameters, shape [d], or [K, d] for K stacked clients."""

    def advance(self, step: int) -> None:
        """Load the batch of step `step`."""

    def descend(self) -> None:
        """Step along the plain gradient of the batch."""

    def direction(self) -> Tensor:
        """Return the step direction after hooks, shaped as `weights`."""

    def move(self, along: Tensor) -> None:
        """Take the step ``weights -= lr * along``."""

    def rate(self, step: int) -> float | Tensor:
        """Return the schedule's factor; for a stack one per client, shape [K, 1]."""

    def weights(self) -> Tensor:
        """Return a view of the live parameters of active clients, without running statistics."""

    def project(self) -> None:
        """Apply the hook `after`."""


def descend(learner: Learner) -> None:
    """Run all steps of the local loop."""
    job, optimizer = learner.job, learner.job.optimizer
    hooked, after, schedule = job.hooked, job.hooks.after, optimizer.schedule
    state = optimizer.state(learner.weights())
    step, started = 0, time.perf_counter()
    while step < job.steps:
        learner.advance(step)
        if not hooked:
            learner.descend()
        else:
            along = learner.direction()
            with torch.no_grad():
                weights = learner.weights()
                along = optimizer.direction(step, along, weights, [s[: len(weights)] for s in state])
                learner.move(along if schedule is None else along * learner.rate(step))
        if after is not None:
            learner.project()
        step += 1
        if job.limit is not None:
            synchronized(job.model.device)
            job.steps = job.limited(job.limit, job.steps, step, time.perf_counter() - started)


class One:
    """Learner of a single client, on the worker's resident model."""

    def __init__(self, job: Job) -> None:
        self.job, self.hooks, self.model, self.at = job, job.hooks, job.model, job.model.params
        self._count = job.model.layout.num_params
        self._parameters = job.model.trained()
        self._batches = job.data.each(job.batches())
        self.total = torch.zeros((), device=job.model.device)
        self._norms = bool(norms_in(job.model.module))
        job.model.load(job.start)
        job.model.restart()
        if job.buffers:
            job.model.load_buffers(job.buffers)
        job.model.module.train()

    def advance(self, step: int) -> None:
        """Load the next batch."""
        with spent.on("loading"):
            rows, batch = next(self._batches)
            self.job.batch = self.job.augmented(step, *batch)
        self.job.step = step
        if self._norms:  # a single sample has no variance: use BatchNorm's running statistics
            self.model.module.train(len(rows) > 1)

    def descend(self) -> None:
        """Step along the plain gradient, tensor by tensor, without copies."""
        self.total += self._backward()
        with torch.no_grad():
            if not self.model.views:
                self.move(self.model.collect().vector[: self._count])
                return
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-self.job.lr)

    def direction(self) -> Tensor:
        """Return the direction after the job's hooks at the live parameters."""
        hooks, at = self.hooks, self.at
        if hooks.direction is not None:
            here, own = at.clone(), self.model.local_buffers() if self.job.buffers else {}
            first: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

            def gradient(point: Params) -> Params:
                self.model.load(point)
                self.model.load_buffers(own)
                value = self._backward()
                if not first:  # only the first call counts for the loss and the running statistics
                    first.append((value, at.vector[self._count :].clone(), self.model.local_buffers() if self.job.buffers else {}))
                return self.model.collect().clone()

            along = hooks.direction(gradient, here)
            self.model.load(here)
            if first:  # otherwise the hook requested no gradient
                self.total += first[0][0]
                at.vector[self._count :] = first[0][1]
                self.model.load_buffers(first[0][2])
        else:
            self.total += self._backward()
            along = self.model.collect()
        with torch.no_grad():
            if hooks.correct is not None:
                along = hooks.correct(along, at)
        return along.vector[: self._count].detach()

    def move(self, along: Tensor) -> None:
        """Take the step ``weights -= lr * along``."""
        self.weights().add_(along, alpha=-self.job.lr)

    def rate(self, step: int) -> float:
        """Return the schedule's factor."""
        schedule = self.job.optimizer.schedule
        assert schedule is not None
        return schedule(step, self.job.steps)

    def weights(self) -> Tensor:
        """Return the live vector without running statistics."""
        return self.at.vector[: self._count]

    @torch.no_grad()
    def project(self) -> None:
        """Apply the hook `after` to the live vector."""
        assert self.hooks.after is not None
        self.at.vector.copy_(self.hooks.after(self.at).vector)

    def _backward(self) -> Tensor:
        """Compute the batch's gradient into the parameters' ``grad``; return the loss."""
        job, objective = self.job, self.hooks.objective
        assert job.batch is not None
        x, y = job.batch
        self.model.clear()
        if not self.model.views:
            self.model.sync()
        with torch.enable_grad():
            value = job.loss(call(self.model.module, x), y) if objective is None else objective(self.model.module, x, y)
            value.backward()  # type: ignore[no-untyped-call]
        if not self.model.views:
            self.model.sync_buffers()
        if job.strict and not torch.isfinite(value):
            raise NonFiniteError(f"the loss is {value.item()} on a batch of {length(y)} samples; lower lr, or check the inputs")
        return value.detach()


def norms_in(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the module's BatchNorm layers."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def train(job: Job) -> Trained:
    """Run one client's job and return its result.

    Draws from global generators during the job, such as dropout, use this client's own stream.

    Raises:
        NonFiniteError: if the training loss is not finite.
    """
    if not job.steps:
        return Trained(job.start.clone(), 0, 0, 0.0)
    stream = nested(job.order().initial_seed(), job.model.device)
    rows = min(job.batch_size, len(job.data))
    with (
        spent.on("local steps"),
        job.model.autocast(),
        stream,
        job.prepared(),
        linears(job.model.module, rows, job.model.device, job.model.mixed is not None),  # of the prepared module
    ):
        learner = One(job)
        descend(learner)
    if job.buffers:
        job.buffers = job.model.local_buffers()
    total = float(learner.total)
    if not math.isfinite(total):
        raise diverged(total, job)
    job.step = job.batch = None
    return Trained(job.model.snapshot(), job.steps, job.samples(), total / job.steps)


def answer(request: LoopRequest) -> Any:
    """Run a request immediately and on its own."""
    return request.run()


def diverged(total: float, job: Job) -> NonFiniteError:
    """Return the error for a non-finite training loss."""
    return NonFiniteError(f"the training loss is {total} after {job.steps} steps; lower lr (now {job.lr})")
