"""The local loop of a stack with fixed shapes: the same sequence of kernels for every chunk, so that it can be recorded.

Where clients take unequally many steps or have smaller last batches, all take as many steps as the longest with samples of
weight 0, and clients that have finished no longer move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.columns import columns
from paceline.core.training import Job, descend
from paceline.engines.stacking.constants import constants
from paceline.engines.stacking.hooks import Shared, Unstackable, share
from paceline.engines.stacking.layers import traits_of
from paceline.engines.stacking.stack import Stack

__all__ = ["FixedStack", "shape_of"]

_WASTE = 1.5
"""Most steps of a padded loop for each step that clients take; beyond it the ragged loop is faster."""

_OWN = "random numbers, statistics of batches or buffers belong to single clients"


class FixedStack(Stack):
    """A stack whose tensors can be replaced by those of another chunk of the same `shape_of`.

    Args:
        jobs, unscored: as for `Stack`.

    Raises:
        Unstackable: if the loop cannot have fixed shapes; the message gives the reason.
    """

    def __init__(self, jobs: Sequence[Job], unscored: bool = False) -> None:
        if jobs[0].model.stateful or traits_of(jobs[0].model, jobs[0].data).exact:
            raise Unstackable(_OWN)
        if jobs[0].hooks.augment is not None:
            raise Unstackable("the hook augment draws random numbers on the CPU in each step")
        super().__init__(jobs, unscored)
        self._share()
        self.fresh = self._fresh
        self.alive: list[Tensor | None] = [None] * self.job.steps
        """Which clients still move in each step, [K, 1]; None if all do."""
        self.rates: list[Tensor] = []
        """Factor of the schedule in each step, [K, 1]; empty without a schedule."""
        if self.job.optimizer.schedule is not None:
            for step, count in enumerate(self.batches.active):
                self.active = count
                self.rates.append(F.pad(super().rate(step), (0, 0, 0, len(self.jobs) - count)))
        self.active = 0
        if self._uneven:
            self._pad()

    @property
    def _uneven(self) -> bool:
        count = len(self.jobs)
        return any(active != count for active in self.batches.active) or not all(self.batches.even)

    def _share(self) -> None:
        """Put all tensors of the hooks among their stacked values, and refuse what is neither a tensor nor a constant."""
        hooks, device = [job.hooks for job in self.jobs], self.at.vector.device

        def shared(values: list[Any]) -> Shared | None:
            return share(values, device, explicit=True) if values[0] else None

        self._hook = shared([h.direction for h in hooks])
        self._correct = shared([h.correct for h in hooks])
        self._after = shared([h.after for h in hooks])
        self._loss = share([job.hooks.objective or job.loss for job in self.jobs], device, explicit=True)

    def _pad(self) -> None:
        """Give every client as many steps as the first, with full batches of weight 0 at the end."""
        batches, count = self.batches, len(self.jobs)
        if self._objective is not None or self._hook is not None or self.job.loss is not F.cross_entropy:
            raise Unstackable("clients take unequally many steps, or smaller batches, with a loss other than the cross-entropy")
        if self.unscored:  # the mean over no targets is not a number
            raise Unstackable("clients take unequally many steps, or smaller batches, with targets that do not count")
        if count * self.job.steps > _WASTE * sum(batches.active):
            raise Unstackable("clients take very unequal numbers of steps")
        first = batches.rows[0]
        width = first.shape[1]
        full = torch.full((count, width), 1.0 / width, device=self.at.vector.device)
        for step, active in enumerate(batches.active):
            weights = batches.weights[step]
            weights = full[:active] if weights is None else weights
            batches.weights[step] = torch.cat([weights, torch.zeros_like(full[active:])])
            batches.rows[step] = torch.cat([batches.rows[step], first[active:]])
            self.alive[step] = (torch.arange(count, device=full.device) < active)[:, None]
        batches.active[:] = [count] * self.job.steps
        batches.sizes[:] = [[width] * count] * self.job.steps
        batches.even[:] = [False] * self.job.steps

    def _each(self, call: Callable[..., Any], run: tuple[int, int, int], *values: Any) -> Any:
        """Return ``call(*values)`` of each client, and refuse what happens beside the kernels: in a hook, or seldom."""
        out = super()._each(call, run, *values)
        if self._buffers.moving or (self._layers is not None and self._layers.streams.drawn):
            raise Unstackable(_OWN)
        return out

    def rate(self, step: int) -> Tensor:
        """Return the schedule's factor of each client, shape [K, 1]."""
        return self.rates[step][: self.active]

    def move(self, along: Tensor) -> None:
        """Take the step with the clients that still move."""
        alive = self.alive[self.step]
        super().move(along if alive is None else torch.where(alive, along, torch.zeros_like(along)))

    def project(self) -> None:
        """Apply the hook `after` to the clients that still move."""
        alive, live = self.alive[self.step], self.at.vector[: self.active]
        before = None if alive is None else live.clone()
        super().project()
        if alive is not None and before is not None:
            live.copy_(torch.where(alive, live, before))

    def hooks(self) -> list[Shared]:
        """Return the hooks, the loss last."""
        return [shared for shared in (self._hook, self._correct, self._after, self._loss) if shared is not None]

    def inputs(self) -> list[Tensor]:
        """Return the tensors that differ between chunks; those that all clients share have one row."""
        found = [self.starts, *self.batches.rows, *(w for w in self.batches.weights if w is not None), *self.rates]
        found += [alive for alive in self.alive if alive is not None]
        found += [self._lr] if isinstance(self._lr, Tensor) else []
        return found + [_base(values) for shared in self.hooks() for values in shared.stacked]

    def own(self) -> None:
        """Copy the inputs, so that `load` may write into them."""
        batches = self.batches
        self.starts = self.starts.clone()
        batches.rows = [rows.clone() for rows in batches.rows]
        batches.weights = [None if w is None else w.clone() for w in batches.weights]
        self.alive = [None if a is None else a.clone() for a in self.alive]
        self.rates = [rate.clone() for rate in self.rates]
        self._lr = self._lr.clone() if isinstance(self._lr, Tensor) else self._lr
        for shared in self.hooks():
            shared.stacked = [_base(v).clone().expand(v.shape) for v in shared.stacked]

    def load(self, other: FixedStack) -> None:
        """Copy the inputs of another chunk; this stack must `own` its inputs."""
        for mine, theirs in zip(self.inputs(), other.inputs(), strict=True):
            mine.copy_(theirs, non_blocking=True)

    def loop(self) -> None:
        """Train from the current inputs."""
        self._fresh, self.active = self.fresh, 0
        self.totals.zero_()
        if self.fresh:
            self.at.vector[:, self._count :] = self.starts[self._count :]
        else:
            self.at.vector.copy_(self.starts.expand_as(self.at.vector))
        descend(self)


def _base(values: Tensor) -> Tensor:
    """Return the one row that all clients share, shape [1, ...], otherwise the values."""
    return values[:1] if values.dim() and values.shape[0] > 1 and values.stride(0) == 0 else values


def shape_of(stack: FixedStack) -> Any:
    """Return a key: stacks of equal keys run the same kernels on tensors of the same shapes.

    Raises:
        Unstackable: if a hook or `prepare` captured something that may change, or samples are read from elsewhere.
    """
    job = stack.job
    if any(type(column) is not Tensor for tree in (job.data.x, job.data.y) for _, column in columns(tree)):
        raise Unstackable("its samples are not plain tensors")
    captured = tuple(constants(value, name) for shared in stack.hooks() for name, value in shared.constants)
    captured += (constants(job.prepare, "prepare"),)
    rate = stack._lr if isinstance(stack._lr, float | int) else "own"
    shapes = tuple((tuple(t.shape), t.dtype) for t in stack.inputs())
    where = tuple(column.data_ptr() for tree in (job.data.x, job.data.y) for _, column in columns(tree))
    frozen = tuple(t.data_ptr() for t in (*job.model.module.parameters(), *job.model.module.buffers()))
    sizes = (tuple(stack.batches.active), tuple(map(tuple, stack.batches.sizes)))
    rule = (job.optimizer.rule, job.steps, len(stack.jobs), rate, job.model.mixed)
    return (id(job.model), where, frozen, sizes, rule, shapes, captured)
