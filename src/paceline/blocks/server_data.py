"""Samples of a server in the form of a client, so that it trains and evaluates with the same local loop, hooks and options as clients.

A server has labelled samples of its own (`server_client`; `reserve` takes them from the task's central test set, which is then
evaluated without them), the test samples as a benchmark (`benchmark_client`), or others, such as those that clients sent (`as_client`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from paceline.core.client import Client, ClientData, Hooks
from paceline.core.columns import Samples, length, place
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.memory import Memory
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params, Resident
from paceline.core.random import derive, torch_rng
from paceline.core.services import Host
from paceline.core.task import Task

__all__ = [
    "ServerData",
    "as_client",
    "benchmark_client",
    "best_epoch",
    "reserve",
    "server_client",
    "server_data_service",
    "server_score",
]

HELD_OUT = 4
"""One of so many of the server's own samples is held out, to choose between epochs."""


def reserve(task: Task, count: int) -> Task:
    """Return the task with `count` random samples of its test set as the server's own; warn if it gets half of the set instead."""
    order = torch.randperm(len(task.test), generator=torch_rng(0, "samples of the server"))
    if count > (half := len(order) // 2):
        warnings.warn(f"the server gets {half} samples, not {count}: half of the test set", stacklevel=2)
        count = half
    rest, own = order[count:].sort().values, order[:count]
    return replace(task, test=task.test.subset(rest), server=task.test.subset(own))


class ServerData:
    """Service that presents samples of the server as those of a client.

    Args:
        host: the model and the task.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._own: ClientData | None = None
        self._benchmarks: dict[int, ClientData] = {}

    def client(self, train: ClientData, test: ClientData, round: int, *path: int | str) -> Client:
        """Return samples as those of a client with the run's model and an empty memory.

        Args:
            train, test: the samples.
            round: number of the round.
            path: name of the random stream within the round.
        """
        host = self._host
        return Client(
            0,
            round,
            lambda: derive(host.seed, "server data", round, *path),
            host.model,
            host.task,
            (train, test).__getitem__,
            Memory(),
        )

    def placed(self, x: Samples, y: Samples) -> ClientData:
        """Return columns on the model's device."""
        device = self._host.model.device
        return ClientData(place(x, device), place(y, device), torch.arange(length(x)), device)

    def own(self) -> tuple[ClientData, ClientData]:
        """Return the labelled samples of the server's own: those that it trains on, and those held out.

        Raises:
            ConfigError: there are none, or too few.
        """
        own = self._host.task.server
        if own is None:
            raise ConfigError(f"task {self._host.task.name!r} has no samples of the server; call reserve in the method's fit_task")
        if len(own) < HELD_OUT:
            raise ConfigError(
                f"the server trains on a part of the test set of task {self._host.task.name!r}, which is "
                f"too small; give it at least {2 * HELD_OUT} samples"
            )
        self._own = self._own or self.placed(own.x, own.y)
        held = len(own) // HELD_OUT
        return self._own.part(torch.arange(held, len(own))), self._own.part(torch.arange(held))

    def benchmark(self, most: int) -> ClientData:
        """Return at most `most` of the task's test samples, the same ones in every round."""
        if most not in self._benchmarks:
            test = self._host.task.test
            order = torch.randperm(len(test), generator=torch_rng(self._host.seed, "benchmark"))[:most]
            self._benchmarks[most] = self.placed(*ClientData(test.x, test.y, order).at(order.sort().values))
        return self._benchmarks[most]


def server_data_service(host: Host) -> ServerData:
    """Return the service of a worker; nothing is read before its first use."""
    return ServerData(host)


def as_client(fed: Federation, x: Samples, y: Samples, *path: int | str) -> Client:
    """Return samples that the server has, trees of columns in memory, as the training samples of a client in this round.

    Args:
        fed: the federation.
        x, y: inputs and targets of N samples.
        path: name of the random stream within the round.
    """
    service = fed.engine.services[ServerData]
    data = service.placed(x, y)
    return service.client(data, data.part(torch.arange(0)), fed.round, *path)


def server_client(fed: Federation, *path: int | str) -> Client:
    """Return the server's own samples in this round as those of a client; the held-out ones are its test samples."""
    service = fed.engine.services[ServerData]
    return service.client(*service.own(), fed.round, *path)


def benchmark_client(fed: Federation, most: int) -> Client:
    """Return at most `most` test samples of the task, the same ones in every round, as the test samples of a client."""
    service = fed.engine.services[ServerData]
    data = service.benchmark(most)
    return service.client(data.part(torch.arange(0)), data, fed.round, "benchmark")


def server_score(server: Client, params: Params, model: Resident | None = None) -> tuple[float, float]:
    """Return (accuracy, mean loss) on the server's test samples; accuracy is 0 without classes."""
    sums = server.evaluate(params, server.test, model=model)
    count = max(float(sums["count"]), 1.0)
    return float(sums.get("correct", 0.0)) / count, float(sums["loss"]) / count


def best_epoch(
    server: Client, start: Params, optimizer: Optimizer, epochs: int, batch_size: int, model: Resident | None = None
) -> tuple[float, Params]:
    """Train on the server's samples; return accuracy and parameters of the epoch with the highest held-out accuracy - mean loss.

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
    scores = [server_score(server, params, model) for params in ends]
    (accuracy, _), params = max(zip(scores, ends, strict=True), key=lambda entry: entry[0][0] - entry[0][1])
    return accuracy, params.to(start.vector.device)
