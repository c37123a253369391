"""Run a client function once for a whole chunk, if training is the only operation that depends on the client.

Most functions train from the server's message and return the change, in the same way for every client of a chunk with
equal sample counts. So they run once, with results that represent all clients. As soon as a function accesses anything
that may differ between clients, `NotUniform` aborts the attempt and the clients run one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.generators import GeneratorWatch
from paceline.core.training import Job, Trained
from paceline.engines.stacking.lazy import DeferredColumn, Lazy, NotUniform
from paceline.engines.stacking.one_batch import UniformJobs

__all__ = ["Uniform"]


class Uniform:
    """Substitute for `Client` that represents all clients of a chunk.

    Args:
        lead: the first client of the chunk.
        index: training rows of each client, equally many, shape [K, n].
        order: returns the stream of sample order from the place of a client in the chunk and the number of its local loop.
        solve: trains jobs as one; returns their changes and losses, or None. It does not use global random generators.
    """

    def __init__(
        self,
        lead: Client,
        index: Tensor,
        order: Callable[[int, int], torch.Generator],
        solve: Callable[[Sequence[Job]], Any],
    ) -> None:
        self._lead, self._index, self._order, self._solve = lead, index, order, solve
        self._loops = 0
        lead.ask, lead.redraws = self._train, False
        self._watch = GeneratorWatch(lead.device)

    def __getattr__(self, name: str) -> NoReturn:
        raise NotUniform(f"client.{name}")

    @property
    def num_samples(self) -> int:
        """Number of training samples of each client."""
        return self._index.shape[1]

    @property
    def problem(self) -> Any:
        """The task's loss and defaults, the same for all clients."""
        return self._lead.problem

    @property
    def round(self) -> int:
        """Number of the current round."""
        return self._lead.round

    @property
    def device(self) -> torch.device:
        """Device of the model and the data."""
        return self._lead.device

    def redraw(self) -> None:
        """Do nothing: any draw aborts the attempt."""

    def drew_nothing(self) -> None:
        """Raise `NotUniform` if the function drew from a global generator, because each client has its own stream."""
        if self._watch.advanced():
            raise NotUniform("random numbers")

    def sgd(self, *args: Any, **options: Any) -> Trained:
        """Train all clients; see `Client.sgd`."""
        if options.get("batches") is not None:
            raise NotUniform("batches that are reused")
        if options.get("limit") is not None:
            raise NotUniform("a limit, by the time of one client's device")
        return self._lead.sgd(*args, **options)

    def _train(self, job: Job) -> Trained:
        if job.alone or job.buffers is not None or not job.steps:
            raise NotUniform("a separate module, buffers of a client's own, or no step")
        self._loops += 1
        loop = self._loops
        solved = self._solve(UniformJobs(job, self._index, lambda place: partial(self._order, place, loop)))
        if solved is None:
            raise NotUniform("a hook that cannot be stacked")
        rows, losses = solved
        values = losses.tolist()
        if not all(map(math.isfinite, values)):
            raise NotUniform("a non-finite loss")  # running one by one identifies the client
        params = Lazy(rows, None, job.start.layout, 1.0, ((1.0, job.start.vector),))
        return Trained(params, job.steps, job.samples(), DeferredColumn(values))
