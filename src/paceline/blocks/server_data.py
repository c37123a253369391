"""Training on the server, for methods whose server has labelled samples of its own.

`reserve` takes these samples from the task's central test set, which is then evaluated without them. `ServerData.client` returns
them in the form of a client, so the server trains with the same local loop, hooks and evaluation as clients do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from paceline.core.client import Client, ClientData, Hooks
from paceline.core.columns import place
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.memory import Memory
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params, Resident
from paceline.core.random import derive, torch_rng
from paceline.core.services import Host
from paceline.core.task import Task

__all__ = ["ServerData", "best_epoch", "reserve", "server_client", "server_data_service", "server_score"]

HELD_OUT = 4
"""One of so many of the server's samples is held out, to choose between epochs."""


def reserve(task: Task, count: int) -> Task:
    """Return the task with `count` random samples of its test set as the server's own (at most half of the test set)."""
    order = torch.randperm(len(task.test), generator=torch_rng(0, "samples of the server"))
    count = min(count, len(order) // 2)
    rest, own = order[count:].sort().values, order[:count]
    return replace(task, test=task.test.subset(rest), server=task.test.subset(own))


class ServerData:
    """Service that holds the server's samples.

    Args:
        host: the model and the task.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._columns: tuple[Any, Any] | None = None

    def client(self, round: int, *path: int | str) -> Client:
        """Return the server's samples as those of a client; the held-out ones are its test samples.

        Args:
            round: number of the round.
            path: name of the random stream within the round.
        """
        host, own = self._host, self._host.task.server
        if own is None:
            raise ConfigError(f"task {host.task.name!r} has no samples of the server; call reserve in the method's fit_task")
        if len(own) < HELD_OUT:
            raise ConfigError(
                f"the server trains on a part of the test set of task {host.task.name!r}, which is "
                f"too small; give it at least {2 * HELD_OUT} samples"
            )
        if self._columns is None:
            self._columns = place(own.x, host.model.device), place(own.y, host.model.device)
        held, (x, y) = len(own) // HELD_OUT, self._columns
        parts = torch.arange(held, len(own)), torch.arange(held)
        return Client(
            0,
            round,
            lambda: derive(host.seed, "server data", round, *path),
            host.model,
            host.task,
            lambda which: ClientData(x, y, parts[which], host.model.device),
            Memory(),
        )


def server_data_service(host: Host) -> ServerData:
    """Return the service of a worker; nothing is read before its first use."""
    return ServerData(host)


def server_client(fed: Federation, *path: int | str) -> Client:
    """Return the server's samples in this round as those of a client."""
    return fed.engine.services[ServerData].client(fed.round, *path)


def server_score(server: Client, params: Params, model: Resident | None = None) -> tuple[float, float]:
    """Return (accuracy, accuracy - mean loss) on the held-out samples; accuracy is 0 without classes."""
    sums = server.evaluate(params, server.test, model=model)
    count = max(float(sums["count"]), 1.0)
    accuracy = float(sums.get("correct", 0.0)) / count
    return accuracy, accuracy - float(sums["loss"]) / count


def best_epoch(
    server: Client, start: Params, optimizer: Optimizer, epochs: int, batch_size: int, model: Resident | None = None
) -> tuple[float, Params]:
    """Train on the server's samples; return the accuracy and the parameters of the epoch with the best held-out score.

    Args:
        server: see `server_client`.
        start: initial parameters, shape [d]; they count as an epoch.
        optimizer: of all epochs together.
        epochs: passes over the samples.
        batch_size: samples of a step.
        model: module of the parameters; the task's by default.
    """
    ends, steps = [start], [0]
    per_epoch = max(-(-server.num_samples // batch_size), 1)

    def record(at: Params) -> Params:  # the server trains by itself, so a hook may store values
        steps[0] += 1
        if steps[0] % per_epoch == 0:
            ends.append(Params(at.vector.float().clone(), at.layout))
        return at

    if epochs:
        server.sgd(
            start, model=model, optimizer=optimizer, hooks=Hooks(after=record), epochs=epochs, batch_size=batch_size, alone=True
        )
    scored = [(*server_score(server, params, model), params) for params in ends]
    accuracy, _, params = max(scored, key=lambda entry: entry[1])
    return accuracy, params.to(start.vector.device)
