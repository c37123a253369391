"""Train one-step clients with a common start as one batch: a weighted sum of their changes needs one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from paceline.core.linears import linears
from paceline.core.placement import upload
from paceline.core.profiling import spent
from paceline.core.samples import ClientData
from paceline.core.training import Job
from paceline.engines.stacking.losses import cross_entropies
from paceline.engines.stacking.stack import Functional, Stack

__all__ = ["OneBatch", "UniformJobs", "one_batch"]


class UniformJobs(Sequence[Job]):
    """The same job of many clients with equal sample counts; one client's own `Job` is built on access.

    Args:
        job: the job, as one of the clients requests it.
        rows: training rows of each client, shape [K, n].
        order: maps a client's place to the function that returns the stream of its sample order.
    """

    def __init__(self, job: Job, rows: Tensor, order: Callable[[int], Callable[[], torch.Generator]]) -> None:
        self.job, self.rows, self.order = job, rows, order

    def __len__(self) -> int:
        return self.rows.shape[0]

    @overload
    def __getitem__(self, place: int) -> Job: ...

    @overload
    def __getitem__(self, place: slice) -> list[Job]: ...

    def __getitem__(self, place: int | slice) -> Job | list[Job]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        data = self.job.data
        return self.job.of(ClientData(data.x, data.y, self.rows[place], data.device), self.order(place))


def one_batch(jobs: Sequence[Job]) -> bool:
    """Return whether every job is one plain gradient step, all with the same start and learning rate."""
    if isinstance(jobs, UniformJobs):
        return jobs.job.plain
    first = jobs[0]
    return first.plain and all(j.steps == 1 and j.start is first.start and j.lr == first.lr for j in jobs)


class OneBatch:
    """The changes ``-lr * gradient`` of K clients with a common start: a `Rows` that is computed on demand.

    A weighted sum of changes is the gradient of the weighted sum of losses: a single backward pass.

    Args:
        jobs: jobs that satisfy `one_batch`.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.count = jobs, len(jobs)
        first = jobs[0]
        first.model.module.train()
        index, sizes = _rows(jobs)
        self._run = Functional(first.model)
        self._count = first.model.layout.num_params
        with spent.on("loading"):
            x, y = first.data.at(index)
        self._leaf = first.start.vector.detach().requires_grad_()
        with torch.enable_grad(), linears(first.model.module, len(index), first.model.device, first.model.mixed is not None):
            losses = cross_entropies(self._run.outputs(self._run.split(self._leaf), x)[None], y[None])[0]
            if len(set(sizes)) == 1:
                self.losses = losses.view(len(jobs), sizes[0]).mean(1)
            else:
                count = torch.tensor(sizes)
                owner = upload(torch.repeat_interleave(torch.arange(len(jobs)), count), losses.device)
                count = upload(count, losses.device)
                self.losses = torch.zeros(len(jobs), device=losses.device).index_add(0, owner, losses) / count
        """Mean loss of each client, shape [K]."""
        self._rows: Tensor | None = None

    def row(self, index: int) -> Tensor:
        """Return one client's change, shape [d]; the first call computes those of all clients as a stack."""
        if self._rows is None:
            stack = Stack(self.jobs)
            stack.advance(0)
            stack.descend()
            self._rows = stack.at.vector.sub_(stack.starts)
        return self._rows[index]

    def weighted(self, coefficients: Sequence[float]) -> Tensor:
        """Return the weighted sum of changes, shape [d], from one backward pass."""
        weights = upload(torch.tensor(coefficients, dtype=self.losses.dtype), self.losses.device)
        with spent.on("local steps"):
            (gradient,) = torch.autograd.grad(self.losses @ weights, self._leaf, retain_graph=True)
        gradient[self._count :] = 0.0
        return gradient.mul_(-self.jobs[0].lr)

    def largest(self, coefficients: Sequence[float]) -> Tensor | None:
        """Return None: a sum is computed without the single changes."""
        return None


def _rows(jobs: Sequence[Job]) -> tuple[Tensor, list[int]]:
    """Return the rows of all first batches, concatenated, and their sizes."""
    if isinstance(jobs, UniformJobs) and jobs.rows.shape[1] <= jobs.job.batch_size:
        return upload(jobs.rows.reshape(-1), jobs.job.data.device), [jobs.rows.shape[1]] * len(jobs)
    rows = [j.data.known if len(j.data) <= j.batch_size else next(j.batches(plan=True)) for j in jobs]
    return upload(torch.cat(rows), jobs[0].data.device), [r.shape[0] for r in rows]
