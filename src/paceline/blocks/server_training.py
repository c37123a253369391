"""Training on the server, on samples that clients sent, by the one local loop."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from paceline.core.client import ClientData, Hooks
from paceline.core.columns import Samples, length, map_tree
from paceline.core.federation import Federation
from paceline.core.hooks import Objective
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params, Resident
from paceline.core.placement import upload
from paceline.core.random import torch_rng
from paceline.core.training import Job, train

__all__ = ["train_on_server"]


def train_on_server(
    fed: Federation,
    model: Resident,
    start: Params,
    x: Samples,
    y: Samples,
    *,
    objective: Objective,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
) -> Params:
    """Return a server's model after training on samples that it received, in an order drawn for the round.

    Args:
        fed: the federation, whose seed and round give the order.
        model: a module of the server.
        start: its parameters, [d].
        x, y: inputs and targets, trees of columns of N samples.
        objective: ``(module, inputs, targets) -> scalar``.
        optimizer: with a learning rate.
        epochs, batch_size: passes over the samples, and samples per step.
    """
    n = length(x)
    x, y = (map_tree(lambda column: upload(column, model.device), tree) for tree in (x, y))
    data, rate = ClientData(x, y, torch.arange(n), model.device), optimizer.lr
    assert rate is not None
    order = partial(torch_rng, fed.seed, "server order", fed.round)
    steps = epochs * -(-n // batch_size)
    job = Job(model, data, start, F.cross_entropy, rate, steps, batch_size, order, optimizer, Hooks(objective=objective))
    return train(job).params
