"""Preview of a client's reply, computed by the server before any call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from paceline.core.client import Client, ClientData, Memory
from paceline.core.columns import length
from paceline.core.generators import nested
from paceline.core.training import Job, Trained, answer
from paceline.core.tree import Tree, map_leaves

if TYPE_CHECKING:
    from paceline.engines.worker import Worker

__all__ = ["preview"]


def preview(worker: Worker, function: str, message: Tree, client: int | None = None) -> Tree | None:
    """Return a reply of the method's `function` in the shape that clients will send, without any training.

    It is computed on two of the worker's samples, with an empty memory. None is returned if the function needs more, such
    as one that returns work started before.

    Args:
        worker: worker of the server.
        function: name of the client function.
        message: message that clients will receive.
        client: id of the client; None for any.
    """
    here = map_leaves(lambda tensor: tensor.to(worker.model.device), message)
    index = torch.arange(min(2, length(worker.y)), device=worker.model.device)
    # an unknown client id first, then id 0
    for number in (worker.setup.num_clients, 0) if client is None else (client,):
        me = Client(
            number,
            worker.round,
            int,
            worker.model,
            worker.setup.task,
            lambda part: ClientData(worker.x, worker.y, index),
            Memory(),
            services=worker.services,
            ask=_untrained,
            central=worker.test,
            records_times=worker.records_times,
        )
        try:
            with nested(0, worker.model.device):
                return worker.invoke(me, function, here)
        except Exception:  # a user's function may fail in any way on so little data
            continue
    return None


def _untrained(request: Any) -> Any:
    """Answer a training request with its start, without training; execute an evaluation request."""
    if isinstance(request, Job):
        return Trained(request.start.clone(), request.steps, request.steps * request.batch_size, 0.0)
    return answer(request)
