"""Running a client function once for a whole chunk, where it asks nothing of a client but to train.

Most functions train from the server's message and return what changed. They do the same for every client of a
chunk that has equally many samples, so it is enough to run them once, with results that stand for all. As soon
as a function asks for anything that may differ, `NotUniform` ends the attempt and the clients run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.generators import Still
from paceline.core.lazy import Column, Lazy, NotUniform
from paceline.core.training import Job, Trained
from paceline.engines.stacking.one_batch import Alike

__all__ = ["Uniform"]


class Uniform:
    """What a client function gets in place of a `Client`: it stands for all clients of a chunk.

    Args:
        lead: the first of them.
        index: training rows of each, equally many, shape [K, n].
        orders: for each, returns the stream that orders them in its local loop of a number.
        solve: trains jobs as one; returns their changes and losses, or None. It leaves the random generators alone.
    """

    def __init__(
        self,
        lead: Client,
        index: Tensor,
        orders: Sequence[Callable[[int], torch.Generator]],
        solve: Callable[[Sequence[Job]], Any],
    ) -> None:
        self._lead, self._index, self._orders, self._solve = lead, index, orders, solve
        self._loops = 0
        lead.ask, lead.redraws = self._train, False
        self._still = Still(lead.device)

    def __getattr__(self, name: str) -> NoReturn:
        raise NotUniform(f"client.{name}")

    @property
    def num_samples(self) -> int:
        """Number of training samples of each."""
        return self._index.shape[1]

    @property
    def problem(self) -> Any:
        """The task's loss and defaults, the same for all."""
        return self._lead.problem

    @property
    def round(self) -> int:
        """The round."""
        return self._lead.round

    @property
    def device(self) -> torch.device:
        """Where the model and the data are."""
        return self._lead.device

    def redraw(self) -> None:
        """Nothing: what draws ends the attempt."""

    def drew_nothing(self) -> None:
        """Raise `NotUniform` where the function drew from a global generator, as each client has its own stream."""
        if self._still.moved():
            raise NotUniform("random numbers")

    def sgd(self, *args: Any, **options: Any) -> Trained:
        """Train all clients: see `Client.sgd`."""
        if options.get("batches") is not None:
            raise NotUniform("batches that are seen again")
        return self._lead.sgd(*args, **options)

    def _train(self, job: Job) -> Trained:
        if job.alone or not job.steps:
            raise NotUniform("a module of its own, or no step")
        self._loops += 1
        orders = [partial(order, self._loops) for order in self._orders]
        solved = self._solve(Alike(job, self._index, orders))
        if solved is None:
            raise NotUniform("a hook that cannot be stacked")
        rows, losses = solved
        if not bool(torch.isfinite(losses).all()):
            raise NotUniform("a loss that is not finite")  # alone it is found out whose
        params = Lazy(rows, None, job.start.layout, 1.0, ((1.0, job.start.vector),))
        return Trained(params, job.steps, job.samples(), _column(losses))


def _column(values: Tensor) -> Column:
    return Column(values.tolist())
