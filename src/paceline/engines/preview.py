"""Preview of a reply: its shape, which depends on the method, the message and the task, and on no client's data.

The server computes it before any call. A real client computes it before it runs a function whose replies are summed under masks:
its own reply must have this shape, and zeros in this shape stand for a reply that it cannot give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.core.client import Client, ClientData, Memory
from paceline.core.columns import Ragged, Samples, first, map_tree
from paceline.core.generators import nested
from paceline.core.training import Job, Trained, answer
from paceline.core.tree import Tree, map_leaves

if TYPE_CHECKING:
    from paceline.engines.worker import Worker

__all__ = ["preview", "stand_ins"]

_COUNTS = (2, 64)
"""Samples of a preview, and of a second one for functions that need more."""

_LENGTH = 4
"""Length of samples that can have any."""


def preview(worker: Worker, function: str, message: Tree, client: int | None = None, held: Tree = None) -> Tree | None:
    """Return a reply of the method's `function` in the shape that clients will send, without any training.

    It is computed on samples that are drawn at random, see `stand_ins`, with an empty memory. None is returned if the function fails
    on them too, as it does for all clients, or if it returns work started before and there is none.

    Args:
        worker: worker of the server, or of the client.
        function: name of the client function.
        message: message that clients will receive. If the function fails with it, as with a model that contains infinite
            values, its shape is computed from a message with small values.
        client: id of the client; None for any.
        held: work that was started before; only its shape is used.
    """
    here = map_leaves(lambda tensor: tensor.to(worker.model.device), message)
    # an unknown client id first, then id 0
    numbers = (worker.setup.num_clients, 0) if client is None else (client,)
    for count, given in [*((count, here) for count in _COUNTS), (_COUNTS[0], map_leaves(_tamed, here))]:
        data = ClientData(*stand_ins(worker, count), torch.arange(count, device=worker.model.device))
        for number in numbers:
            me = _client(worker, number, data, held)
            try:
                with nested(0, worker.model.device):
                    return getattr(worker.setup.programs["method"], function)(me, given)
            except Exception:  # a user's function may fail in any way on such samples
                continue
    return None


def _client(worker: Worker, number: int, data: ClientData, held: Tree) -> Client:
    """Return a client with these samples, and with nothing in its memory but zeros in the shape of the work started before."""
    return Client(
        number,
        worker.round,
        int,
        worker.model,
        worker.setup.task,
        lambda part: data,
        Memory({} if held is None else {"_held": map_leaves(torch.zeros_like, held)}),
        services=worker.services,
        ask=_untrained,
        central=data,
        records_times=worker.records_times,
    )


def stand_ins(worker: Worker, count: int) -> tuple[Samples, Samples]:
    """Return inputs and targets with the shapes and types of the worker's samples, but none of their values.

    Inputs are normal numbers; whole numbers, and all targets, are 0 and 1 in turn; masks are True.

    Args:
        worker: the worker.
        count: number of samples.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return in_turn(like)
        return torch.randn(count, *like.shape[1:], generator=generator).to(like)

    def in_turn(like: Tensor) -> Tensor:
        if like.dtype == torch.bool:
            return like.new_ones(count, *like.shape[1:])
        turn = (torch.arange(count) % 2).view(-1, *[1] * (like.dim() - 1))
        return turn.expand(count, *like.shape[1:]).contiguous().to(like)

    return map_tree(partial(_filled, normal), worker.x), map_tree(partial(_filled, in_turn), worker.y)


def _filled(fill: Callable[[Tensor], Tensor], column: Any) -> Samples:
    """Return a column with the values that `fill` returns for a tensor of its shape and type."""
    if not isinstance(column, Ragged):
        return map_tree(fill, first(column))
    values = torch.cat([fill(column.values)] * _LENGTH)
    offsets = torch.arange(0, len(values) + 1, _LENGTH, device=values.device)
    return Ragged(values, offsets, column.padding, column.mask)


def _tamed(tensor: Tensor) -> Tensor:
    """Return a tensor with floating-point values between -1 and 1."""
    return tensor.nan_to_num(0.0).clamp(-1.0, 1.0) if tensor.is_floating_point() else tensor


def _untrained(request: Any) -> Any:
    """Answer a training request with its start, without training; execute an evaluation request."""
    if isinstance(request, Job):
        return Trained(request.start.clone(), request.steps, request.steps * request.batch_size, 0.0)
    return answer(request)
