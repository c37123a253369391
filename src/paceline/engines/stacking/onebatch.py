"""Clients that take one step from the same point, as one batch: their sum needs one pass, and no model each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.engines.stacking.stack import Functional, Stack, cross_entropies
from paceline.local import Job
from paceline.spent import spent

__all__ = ["OneBatch", "one_batch"]


def one_batch(jobs: Sequence[Job]) -> bool:
    """Return whether these jobs are one step each along the plain gradient, from one point at one rate."""
    first = jobs[0]
    return (
        first.steps == 1
        and not (first.correct or first.direction or first.weight_decay or first.after or first.objective or first.schedule or first.adam)
        and first.loss is F.cross_entropy
        and all(j.steps == 1 and j.start is first.start and j.lr == first.lr for j in jobs)
    )


class OneBatch:
    """The changes ``-lr * gradient`` of K clients that share a start: a `Rows` that is formed when asked for.

    A weighted sum of them is the gradient of the weighted sum of losses: one backward pass in all.

    Args:
        jobs: those for which `one_batch` holds.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.count = jobs, len(jobs)
        first = jobs[0]
        first.model.module.train()
        self._run = Functional(first.model)
        self._count = first.model.layout.num_params
        rows = [j.data.index if len(j.data) <= j.batch_size else next(j.batches()) for j in jobs]
        sizes = [r.shape[0] for r in rows]
        index = torch.cat(rows)
        with spent.on("loading"):
            x, y = first.data.x.index_select(0, index), first.data.y.index_select(0, index)
        self._leaf = first.start.vector.detach().requires_grad_()
        with torch.enable_grad():
            losses = cross_entropies(self._run(self._leaf, x)[None], y[None])[0]
            if len(set(sizes)) == 1:
                self.losses = losses.view(len(jobs), sizes[0]).mean(1)
            else:
                count = torch.tensor(sizes, device=losses.device)
                owner = torch.repeat_interleave(torch.arange(len(jobs), device=losses.device), count)
                self.losses = torch.zeros(len(jobs), device=losses.device).index_add(0, owner, losses) / count
        """Mean loss of each client, shape [K]."""
        self._rows: Tensor | None = None

    def row(self, index: int) -> Tensor:
        """Return one client's change; the first time, those of all are formed by a stack."""
        if self._rows is None:
            stack = Stack(self.jobs)
            stack.advance(0)
            stack.descend()
            self._rows = stack.at.vector.sub_(stack.starts)
        return self._rows[index]

    def weighted(self, coefficients: Sequence[float]) -> Tensor:
        """Return the weighted sum of changes, from one backward pass."""
        weights = torch.tensor(coefficients, dtype=self.losses.dtype).to(self.losses.device)
        with spent.on("local steps"):
            (gradient,) = torch.autograd.grad(self.losses @ weights, self._leaf, retain_graph=True)
        gradient[self._count :] = 0.0
        return gradient.mul_(-self.jobs[0].lr)
