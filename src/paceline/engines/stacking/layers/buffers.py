"""Buffers of stacked clients: running statistics in the vector or of a client's own, and BatchNorm's counters of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.core.params import Params
from paceline.core.training import Job

__all__ = ["Buffers"]


class Buffers:
    """Buffers of K stacked clients.

    Args:
        jobs: the clients' jobs, in stacking order.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        model = jobs[0].model
        self._jobs = jobs
        each = [job.buffers or model.initial_buffers for job in jobs]
        self._own = {name: torch.stack([own[name] for own in each]) for name in model.initial_buffers}
        initial = model.counters
        averaging = any(getattr(m, "momentum", 0.0) is None for m in model.module.modules()) if initial else False
        self.counts: list[dict[str, int]] | None = [initial for _ in jobs] if averaging else None
        """Batches that each client's BatchNorm layers have seen, where a layer averages over them (``momentum=None``)."""
        self._initial = initial
        self._moved: list[tuple[int, int, dict[str, Tensor]]] = []

    def rows(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the own buffers of some clients, shapes [last - first, ...]."""
        return {name: rows[first:last] for name, rows in self._own.items()}

    def counters(self, client: int) -> dict[str, int]:
        """Return a client's counters of batches, to be changed by its next one."""
        return dict(self._initial if self.counts is None else self.counts[client])

    def moved(self, first: int, last: int, moved: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Record running statistics and counters of some clients after a batch; `write` takes over the statistics."""
        if moved:
            self._moved.append((first, last, moved))
        if self.counts is not None:
            self.counts[first:last] = [counters] * (last - first)

    @property
    def moving(self) -> bool:
        """Whether statistics are recorded that `write` has not taken over."""
        return bool(self._moved)

    @torch.no_grad()
    def write(self, at: Params) -> None:
        """Write the recorded statistics, those in the vector to the live parameters `at`, [K, d]."""
        for first, last, moved in self._moved:
            for name, values in moved.items():
                to: Any = self._own[name] if name in self._own else at[name]
                to[first:last].copy_(values)
        self._moved.clear()

    def finish(self) -> None:
        """Store the own buffers in the jobs."""
        if self._own:
            for k, job in enumerate(self._jobs):
                job.buffers = {name: rows[k].clone() for name, rows in self._own.items()}
