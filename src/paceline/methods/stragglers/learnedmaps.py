"""The server's part of FedConv: trained operators between models of different widths, and trained aggregation weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from paceline.blocks.generated_weights import GeneratedModel, ServerTraining, WeightedSum, fit_generator
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.running import with_statistics
from paceline.blocks.server_data import best_epoch, reserve, server_client
from paceline.blocks.weight_convolutions import KernelStart, WeightConvolution
from paceline.core.client import AdamW, Client
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, PositiveShare, S
from paceline.core.params import Params, Resident
from paceline.core.random import torch_rng
from paceline.models.split import join
from paceline.submodels.cut import SubModel
from paceline.submodels.service import submodels

__all__ = ["LearnedMaps"]


@dataclass(frozen=True)
class LearnedMaps(LocalTraining[S]):
    """Base of methods whose server trains operators between models on samples of its own.

    Args:
        shrink: s, the width of class e is s^e.
        classes: width class e of each client, assigned in turn.
        server_samples: samples of V, taken from the test set, which is then evaluated without them.
        server_batch: batch size on the server.
        map_epochs, map_lr: of operators: half the epochs after round 5; the rate is halved every 25 rounds, down to 1e-4.
        weight_epochs, weight_lr: of aggregation weights.
        weight_start: their initial values: ``ones`` (FedAvg) or ``normal`` (as the released code).
        activations: how often the activation of generated weights is applied; 0 for linear operators.
        kernel_start: initial kernels of operators, see `KernelStart`.
        restarts: largest number of new attempts at a training that ends below its least accuracy.
    """

    shrink: PositiveShare = 0.75
    classes: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
    server_samples: Positive[int] = 200
    server_batch: Positive[int] = 32
    map_epochs: NonNegative[int] = 20
    map_lr: NonNegative[float] = 1e-3
    weight_epochs: NonNegative[int] = 20
    weight_lr: NonNegative[float] = 1e-3
    weight_start: Literal["ones", "normal"] = "ones"
    activations: NonNegative[int] = 2
    kernel_start: KernelStart = "mean"
    restarts: NonNegative[int] = 3

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Give the server samples of its own."""
        return self, reserve(task, self.server_samples)

    def check(self, fed: Federation) -> list[str]:
        """Require a width class for the clients."""
        if not self.classes or min(self.classes) < 0:
            return [f"{self.slug()} needs width classes of at least 0, such as classes=[0, 1, 2], not {list(self.classes)}"]
        return []

    def part(self, place: Client | Federation, label: int) -> SubModel:
        """Return the shapes of a width class, as its first units."""
        return submodels(place).cutter.first(self.shrink**label)

    def label(self, client: int) -> int:
        """Return a client's width class."""
        return self.classes[client % len(self.classes)]

    def tuned(
        self, fed: Federation, params: Params, name: str, epochs: int, lr: float, model: Resident | None = None, client: int = 0
    ) -> Params:
        """Train a model on V."""
        server = server_client(fed, name, client)
        return best_epoch(server, params, AdamW(lr), epochs, self.server_batch, model)[1] if epochs else params

    def rate(self, fed: Federation) -> float:
        """Return the rate of phi and xi in this round."""
        return max(self.map_lr * 0.5 ** ((fed.round - 1) // 25), min(self.map_lr, 1e-4))

    def mapped(
        self,
        fed: Federation,
        name: tuple[str, int],
        source: Params,
        onto: Params,
        label: int,
        stored: Params | None,
        least: float,
    ) -> tuple[Params, Params]:
        """Train an operator from `stored`, or anew; return `onto` with the parameters that it makes of `source`, and the operator.

        Args:
            fed: the federation.
            name: of the random stream.
            source, onto: models before and after; running statistics are those of `onto`.
            label: width class of the smaller model.
            stored: the operator's last parameters, if it has any.
            least: accuracy below which it is trained anew.
        """
        server, part = server_client(fed), self.part(fed, label)
        operator, here = (
            WeightConvolution(source.layout, onto.layout, self.activations, self.kernel_start),
            source.to(server.device),
        )
        net = part.resident().module if onto.layout.digest == part.layout.digest else server.model.module
        module = GeneratedModel(net, onto, operator, lambda maps: maps(here))
        epochs = self.map_epochs if fed.round <= 5 else -(-self.map_epochs // 2)
        found = fit_generator(
            module,
            lambda attempt: server_client(fed, *name, attempt),
            lambda attempt, fresh: fresh if stored is None or attempt else stored,
            ServerTraining(AdamW(self.rate(fed)), epochs, self.server_batch, least, self.restarts),
        )
        return operator.fill(here, onto.to(server.device)).to(onto.vector.device), found

    def weighted(
        self, fed: Federation, mean: Params, full: Mapping[int, tuple[int, Params]], stored: Mapping[int, Tensor]
    ) -> tuple[Params, dict[int, Tensor]]:
        """Train the aggregation weights; return the aggregated model and the weights of these clients.

        Args:
            fed: the federation.
            mean: mean of the models, weighted by samples; the result of weights of 1.
            full: samples and model of each client.
            stored: weights of clients of earlier rounds, shape [number of parameters].
        """
        server, size, total = server_client(fed), mean.layout.num_params, sum(count for count, _ in full.values())
        if self.weight_start == "ones" and not self.weight_epochs:
            return mean, {}
        rows = torch.stack([count / total * params.vector[:size] for count, params in full.values()])
        generator = WeightedSum(rows.to(server.device), mean.layout)

        def start(attempt: int, fresh: Params) -> Params:
            old = [stored[k] if k in stored and not attempt else self.first_weights(fed, k, attempt, size) for k in full]
            return Params(torch.cat(old), fresh.layout)

        how = ServerTraining(AdamW(self.weight_lr), self.weight_epochs, self.server_batch, 0.5, self.restarts)
        module = GeneratedModel(server.model.module, mean, generator, lambda total: total())
        found = fit_generator(module, lambda attempt: server_client(fed, "weights", attempt), start, how)
        with torch.no_grad():
            params = join(mean, generator())
        return params, {k: row.clone() for k, row in zip(full, found.vector.view(len(full), size), strict=True)}

    def first_weights(self, fed: Federation, client: int, attempt: int, size: int) -> Tensor:
        """Return initial aggregation weights of a client, shape [size]."""
        if self.weight_start == "ones":
            return torch.ones(size)
        return torch.randn(size, generator=torch_rng(fed.seed, "weights", fed.round, client, attempt))

    def counted_anew(self, fed: Federation, params: Params) -> Params:
        """Return a model with the running statistics of V."""
        server: Client = server_client(fed, "statistics")
        return with_statistics(params, server.statistics(params.to(server.device)).to(params.vector.device))
