"""The benchmark of a server: the task's test samples, on which a method may judge clients' models."""

from __future__ import annotations

import torch

from paceline.core.columns import length, map_tree
from paceline.core.evaluation import Evaluation
from paceline.core.federation import Federation
from paceline.core.params import Params, Resident
from paceline.core.placement import upload
from paceline.core.random import derive, torch_rng
from paceline.core.samples import ClientData
from paceline.core.services import Host
from paceline.core.task import Task

__all__ = ["BenchmarkData", "benchmark_data", "benchmark_data_service"]


class BenchmarkData:
    """The test samples of a run's task, and a module to evaluate models on them.

    Args:
        model: the module.
        task: the task.
        seed: of the run, which draws the samples.
    """

    def __init__(self, model: Resident, task: Task, seed: int) -> None:
        self.model, self.task, self._seed = model, task, seed

    def samples(self, most: int) -> ClientData:
        """Return at most `most` test samples, the same ones in every round."""
        order = torch.randperm(length(self.task.test.y), generator=torch_rng(self._seed, "benchmark"))[:most]
        return ClientData(self.task.test.x, self.task.test.y, order.sort().values)

    def loss(self, params: Params, most: int) -> float:
        """Return the mean loss of a model on at most `most` test samples."""
        held = self.samples(most)
        x, y = (map_tree(lambda part: upload(part, self.model.device), column) for column in held.at(held.index))
        data = ClientData(x, y, upload(torch.arange(len(held)), self.model.device))
        seed = derive(self._seed, "benchmark")
        sums = Evaluation(self.model, params, self.task, data, seed=lambda: seed).run()
        return float(sums["loss"]) / max(int(sums["count"]), 1)


def benchmark_data_service(host: Host) -> BenchmarkData:
    """Return the service; nothing is read before its first use."""
    return BenchmarkData(host.model, host.task, host.seed)


def benchmark_data(fed: Federation) -> BenchmarkData:
    """Return the samples of a federation's server."""
    return fed.engine.services[BenchmarkData]
