"""The local loop of K clients as one stacked computation: parameters [K, d], batches [K, B, ...].

Clients are sorted by steps, longest first, so that the active clients are always the first ones. Smaller batches are
padded with rows of weight 0, which adds exact zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from paceline.core.columns import Samples, map_tree, stacked
from paceline.core.params import Params
from paceline.core.placement import upload
from paceline.core.profiling import spent
from paceline.core.training import Job
from paceline.engines.stacking.functional import Functional
from paceline.engines.stacking.hooks import Shared, share
from paceline.engines.stacking.kernels import current
from paceline.engines.stacking.layers import Buffers, StackedLayers, traits_of
from paceline.engines.stacking.linear import StackedLinears
from paceline.engines.stacking.losses import cross_entropies, scored_cross_entropies
from paceline.engines.stacking.products import stepped

__all__ = ["Batches", "Changes", "Functional", "Stack"]


class Batches:
    """The rows of every step of every client, padded to one batch size.

    Args:
        jobs: sorted by steps, longest first.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        plans, device = [list(job.batches(plan=True)) for job in jobs], jobs[0].data.device
        sizes = [[rows.shape[0] for rows in plan] for plan in plans]
        width = max(max(row) for row in sizes)
        self.active = [sum(len(row) > step for row in sizes) for step in range(jobs[0].steps)]
        """Number of active clients in each step; they are the first ones."""
        self.sizes = [[row[step] for row in sizes[:count]] for step, count in enumerate(self.active)]
        self.even = [min(row) == width for row in self.sizes]
        """Whether all clients of a step have full batches."""
        rows: list[Tensor] = []
        weights: list[Tensor | None] = []
        for step, count in enumerate(self.active):
            parts = [plan[step] for plan in plans[:count]]
            if self.even[step]:
                rows.append(torch.stack(parts))
                weights.append(None)
                continue
            have = torch.tensor(self.sizes[step], device=parts[0].device)[:, None]
            filled = torch.arange(width, device=have.device) < have
            padded = torch.stack([part[0] for part in parts])[:, None].expand(-1, width).clone()
            padded[filled] = torch.cat(parts)
            rows.append(padded)
            weights.append(filled / have)
        self.rows = _together(rows, device)
        """Rows of the samples, for each step [active, B]; a smaller batch repeats its first row."""
        some = iter(_together([w for w in weights if w is not None], device))
        self.weights = [None if w is None else next(some) for w in weights]
        """Weight of each sample in its client's batch, [active, B], 0 for padding; None if all batches are full."""

    def runs(self, step: int, kinds: Sequence[Any] | None = None) -> list[tuple[int, int, int]]:
        """Return (first, last + 1, batch size) of each run of consecutive clients with equal batch sizes, and equal `kinds`."""
        found: list[tuple[int, int, int]] = []
        for k, size in enumerate(self.sizes[step]):
            if found and found[-1][2] == size and (kinds is None or kinds[k] == kinds[k - 1]):
                found[-1] = (found[-1][0], k + 1, size)
            else:
                found.append((k, k + 1, size))
        return found


def _together(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on a device, copied there as one."""
    if not tensors or device.type == "cpu":
        return tensors
    whole = upload(torch.cat([tensor.reshape(-1) for tensor in tensors]), device)
    return [part.view(t.shape) for part, t in zip(torch.split(whole, [t.numel() for t in tensors]), tensors, strict=True)]


class Changes:
    """The changes of a stack of clients: a `Rows`.

    Args:
        matrix: shape [K, d].
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.count = matrix.float(), len(matrix)
        self._tops: Tensor | None = None

    def row(self, index: int) -> Tensor:
        """Return one client's change, shape [d]."""
        return self.matrix[index]

    def weighted(self, coefficients: Sequence[float]) -> Tensor:
        """Return the weighted sum of changes, shape [d]."""
        weights = upload(torch.tensor(coefficients, dtype=self.matrix.dtype), self.matrix.device)
        out: Tensor = weights @ self.matrix
        return out

    def largest(self, coefficients: Sequence[float]) -> Tensor | None:
        """Return the largest |coefficient x coordinate|, shape []."""
        if self._tops is None:
            self._tops = torch.maximum(-self.matrix.amin(1), self.matrix.amax(1))  # NaN stays NaN
        weights = upload(torch.tensor(coefficients, dtype=self.matrix.dtype).abs_(), self.matrix.device)
        return (weights * self._tops).max()


class Stack:
    """The learner of K stacked clients.

    Args:
        jobs: sorted by steps, longest first, with equal model, loss, batch size and hook code.
        unscored: whether some targets do not count for the cross-entropy (those of -100).

    Raises:
        Unstackable: if hooks captured values that cannot be stacked.
    """

    def __init__(self, jobs: Sequence[Job], unscored: bool = False) -> None:
        self.unscored = unscored
        jobs = list(jobs)  # a lazy sequence builds each job anew on every pass
        self.job, self.jobs = jobs[0], jobs
        layout = self.job.model.layout
        self._count = layout.num_params
        rates = [job.lr for job in jobs]
        self._lr = rates[0] if len(set(rates)) == 1 else upload(torch.tensor(rates), self.job.model.device)[:, None]
        starts = [self._start(job) for job in jobs]
        same = all(s is starts[0] for s in starts)
        self.starts = starts[0] if same else torch.stack(starts)
        self._fresh = same and isinstance(self._lr, float) and not (self.job.hooked or self.job.hooks.after)
        """Whether `at` is still unwritten: the first plain step then goes directly from the shared start into `at`."""
        shape = (len(jobs), layout.size)
        vector = self.starts.new_empty(shape) if self._fresh else self.starts.expand(shape).clone()
        if self._fresh:
            vector[:, self._count :] = self.starts[self._count :]
        self.at = Params(vector, layout)
        self.totals = torch.zeros(len(jobs), device=vector.device)
        hooks, self._objective = [job.hooks for job in jobs], self.job.hooks.objective
        self._traits = traits_of(self.job.model, self.job.data)
        self._buffers = Buffers(jobs)
        self._layers = StackedLayers(jobs, self._traits.changing) if self._traits.special or self.job.model.stateful else None
        self._around = None if self._layers is None else self._layers.around
        self._run = Functional(self.job.model, self._objective, self._around)
        self._hook = share([h.direction for h in hooks], vector.device) if hooks[0].direction else None
        self._correct = share([h.correct for h in hooks], vector.device) if hooks[0].correct else None
        self._after = share([h.after for h in hooks], vector.device) if hooks[0].after else None
        self._loss = share([job.hooks.objective or job.loss for job in jobs], vector.device)
        self.batches = Batches(jobs)
        self.step = self.active = 0
        self._x: Tensor | None = None
        self.job.model.module.train()

    @staticmethod
    def _start(job: Job) -> Tensor:
        """Return where a job starts, in the dtype of the model's vector."""
        start, kind = job.start.vector, job.model.params.vector.dtype
        return start if start.dtype == kind else start.to(kind)

    def advance(self, step: int) -> None:
        """Gather the next batches, shape [active, B, ...]."""
        self.step, self.active = step, self.batches.active[step]
        rows, data = self.batches.rows[step], self.job.data
        flat = rows.reshape(-1)
        if type(data.x) is not Tensor or type(data.y) is not Tensor:
            with spent.on("loading"):
                self.x, self.y = map_tree(lambda t: t.view(*rows.shape, *t.shape[1:]), data.at(flat))
            self._augment()
            return
        if self._x is None or len(self._x) != len(flat):
            self._x = data.x.new_empty(len(flat), *data.x.shape[1:])
        with spent.on("loading"):
            self.x = torch.index_select(data.x, 0, flat, out=self._x).view(*rows.shape, *data.x.shape[1:])
            self.y = data.y.index_select(0, flat).view(*rows.shape, *data.y.shape[1:])
        self._augment()

    def _augment(self) -> None:
        """Apply the hook `augment` to each client's own batch, and pad the results to one size again."""
        if self.job.hooks.augment is None:
            return
        width, parts = self.batches.rows[self.step].shape[1], []
        for k, (job, size) in enumerate(zip(self.jobs, self.batches.sizes[self.step], strict=False)):
            own = map_tree(lambda t: t[k, :size], (self.x, self.y))  # noqa: B023
            made = job.augmented(self.step, *own)
            parts.append(map_tree(lambda t: torch.cat([t, t[:1].expand(width - len(t), *t.shape[1:])]), made))
        self.x, self.y = stacked(parts)

    def descend(self) -> None:
        """Step along the plain gradients, tensor by tensor."""
        if isinstance(self._lr, Tensor):
            self.move(self._flat(self._gradients()))
            return
        starts = self._views(self.starts.expand(self.active, -1)) if self._fresh else None
        gradients, own = self._gradients(), bool(current().triton)
        for place, (view, gradient) in enumerate(zip(self._views(self.at.vector[: self.active]), gradients, strict=False)):
            if own and gradient.is_contiguous():
                stepped(view, view if starts is None else starts[place], gradient, self._lr)
            elif starts is not None:
                torch.add(starts[place], gradient, alpha=-self._lr, out=view)
            else:
                view.add_(gradient, alpha=-self._lr)
        self._fresh = False

    def direction(self) -> Tensor:
        """Return the directions of all active clients after hooks, shape [active, params]."""
        at = self.at.vector[: self.active]
        if self._hook is not None:
            along = self._directed(self._hook)
        else:
            along = self._flat(self._gradients())
            if self._correct is not None:  # hooks get whole vectors; running statistics have no gradient
                along = F.pad(along, (0, at.shape[1] - self._count))
        if self._correct is not None:
            layout = self.at.layout
            along = apply(
                self._correct,
                self.active,
                lambda hook, g, a: hook(Params(g, layout), Params(a, layout)).vector,
                along,
                at,
            )
        return along[:, : self._count]

    def move(self, along: Tensor) -> None:
        """Take the step ``weights -= lr * along``."""
        if isinstance(self._lr, Tensor):
            self.weights().addcmul_(along, self._lr[: self.active], value=-1.0)
        else:
            self.weights().add_(along, alpha=-self._lr)

    def rate(self, step: int) -> Tensor:
        """Return the schedule's factor of each active client, shape [active, 1]."""
        active = self.jobs[: self.active]
        factors = [schedule(step, job.steps) for job in active if (schedule := job.optimizer.schedule)]
        return upload(torch.tensor(factors), self.at.vector.device)[:, None]

    def weights(self) -> Tensor:
        """Return the live parameters of the active clients, shape [active, params]."""
        count = self.active or len(self.jobs)
        return self.at.vector[:count, : self._count]

    @torch.no_grad()
    def project(self) -> None:
        """Apply the hook `after` to the active clients."""
        assert self._after is not None
        live, layout = self.at.vector[: self.active], self.at.layout
        live.copy_(apply(self._after, self.active, lambda hook, a: hook(Params(a, layout)).vector, live))

    def _views(self, vector: Tensor) -> list[Tensor]:
        """Return the named tensors of stacked vectors, shapes [active, ...]."""
        return [self.at.layout.view(vector, e.name) for e in self.at.layout.entries]

    def _flat(self, gradients: list[Tensor]) -> Tensor:
        """Return gradients as vectors, shape [active, params]."""
        return torch.cat([g.reshape(self.active, -1) for g in gradients], 1)

    def _gradients(self) -> list[Tensor]:
        """Return the gradient of each tensor at the live parameters, shapes [active, ...]; add the losses to `totals`."""
        here = self.starts.expand(self.active, -1) if self._fresh else self.at.vector[: self.active]
        tensors = [t.detach() for t in self._views(here)]
        leaves = [t.requires_grad_() for t, e in zip(tensors, self.at.layout.entries, strict=True) if e.kind == "param"]
        with torch.enable_grad():
            losses = self._losses(tensors)
            gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        self._buffers.write(self.at)
        self.totals[: self.active] += losses.detach()
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]

    def _linears(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for linear layers and convolutions."""
        return StackedLinears(self.job.model.mixed is not None)

    def _losses(self, tensors: list[Tensor]) -> Tensor:
        """Return each active client's mean loss on its batch, shape [active]."""
        exact = self._traits.exact and not (self.batches.even[self.step] and self._buffers.counts is None)
        if self._objective is None and self.job.loss is F.cross_entropy and not exact:
            size = self.batches.sizes[self.step][0]
            outputs = self._each(self._run.outputs, (0, self.active, size), tensors, self.x)
            weights = self.batches.weights[self.step]
            if self.unscored:
                return scored_cross_entropies(outputs, self.y, weights)
            each = cross_entropies(outputs, self.y)
            return each.mean(1) if weights is None else (each * weights).sum(1)
        parts = []
        for run in self._runs():
            first, last, size = run
            x, y = map_tree(lambda t: t[first:last, :size], (self.x, self.y))  # noqa: B023
            rows = [s[first:last] for s in self._loss.stacked]
            parts.append(self._each(self._value, run, [t[first:last] for t in tensors], x, y, rows))
        return torch.cat(parts)

    def _runs(self) -> list[tuple[int, int, int]]:
        return self.batches.runs(self.step, self._buffers.counts)

    def _each(self, call: Callable[..., Any], run: tuple[int, int, int], *values: Any) -> Any:
        """Return ``call(*values)`` of each client of a run (first, last + 1, batch size), computed as one."""
        first, last, size = run
        layers, buffers = self._layers, self._buffers
        if self._traits.norms:
            self.job.model.module.train(size > 1)  # as in training alone
        if layers is None:
            with self._linears():
                return vmap(call)(*values)
        counters = buffers.counters(first)

        def one(slot: Tensor, own: dict[str, Tensor], *values: Any) -> tuple[Any, dict[str, Tensor]]:
            layers.begin(slot, own, counters)
            return call(*values), layers.moved()

        layers.clients = range(first, last)
        with self._linears():
            out, moved = vmap(one)(torch.arange(last - first, device=self.at.vector.device), buffers.rows(first, last), *values)
        buffers.moved(first, last, moved, counters)
        return out

    def _value(self, tensors: Sequence[Tensor], x: Samples, y: Samples, rows: list[Tensor]) -> Tensor:
        """Return one client's loss, from its own loss or objective."""
        hook = self._loss.bind(rows)
        if self._objective is None:
            value: Tensor = hook(self._run.outputs(tensors, x), y)
            return value
        own: Tensor = Functional(self.job.model, hook, self._around).at(tensors, x, y)
        return own

    def _directed(self, shared: Shared) -> Tensor:
        """Return the results of the `direction` hooks, one run of equal batch sizes at a time."""
        layout, layers, losses, parts = self.at.layout, self._layers, [], []

        def one(at: Tensor, x: Samples, y: Samples, rows: list[Tensor], loss_rows: list[Tensor]) -> tuple[Tensor, Tensor]:
            seen: list[tuple[Tensor, dict[str, Tensor]]] = []

            def valued(vector: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
                value = self._value(self._run.split(vector), x, y, loss_rows)
                return value, (value.detach(), {} if layers is None else layers.moved())

            def gradient(point: Params) -> Params:
                slope, first = grad(valued, has_aux=True)(point.vector)
                seen.append(first)
                return Params(torch.cat([slope[: self._count], torch.zeros_like(slope[self._count :])]), layout)

            along = shared.bind(rows)(gradient, Params(at, layout)).vector
            if layers is not None:  # only the first call counts for the running statistics
                layers.keep(seen[0][1] if seen else {})
            return along, seen[0][0] if seen else torch.zeros((), device=at.device)

        for run in self._runs():
            first, last, size = run
            rows, own = ([s[first:last] for s in shape.stacked] for shape in (shared, self._loss))
            at = self.at.vector[first:last]
            x, y = map_tree(lambda t: t[first:last, :size], (self.x, self.y))  # noqa: B023
            along, loss = self._each(one, run, at, x, y, rows, own)
            parts.append(along.detach())
            losses.append(loss.detach())
        self._buffers.write(self.at)
        self.totals[: self.active] += torch.cat(losses)
        return torch.cat(parts)

    def finish(self) -> None:
        """Store the buffers that belong to single clients in their jobs."""
        self._buffers.finish()


def apply(shared: Shared, count: int, call: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Call a shared hook for the first `count` clients at once; `call` receives one client's hook and vectors."""

    def one(rows: list[Tensor], *each: Tensor) -> Tensor:
        return call(shared.bind(rows), *each)

    with torch.no_grad():
        out: Tensor = vmap(one)(shared.first(count), *vectors)
        return out
