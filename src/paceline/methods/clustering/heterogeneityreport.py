"""How unlike the clients are, for this task ("Redefining non-IID Data in Federated Learning for Computer Vision Tasks",
arXiv 2503.14553, 2025): FedAvg that measures, from sums alone, how clients' embeddings are distributed over common clusters.

    psi(x)    input of the last layer of the global model
    centres   k-means over all clients: counts and sums of each cluster are sums over clients
    P_m       share of each cluster on client m;  r is its mean, weighted by samples
    report    mean and deviation over clients of KL(P_m || r), and of the loss of the global model

The paper clusters in one place. Here the server publishes centres, and sees summed counts and embeddings of clusters, and sums over
clients of KL, loss and their squares. The model is that of FedAvg. Clients store no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import Positive, State, on_client
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.models.split import penultimate

_BATCH = 500


@dataclass(frozen=True)
class HeterogeneityReport(FedAvg[State]):
    """FedAvg with a report on the heterogeneity of embeddings, in the notes of a round.

    Args:
        clusters: K.
        every: report after each of so many rounds; every report is an extra exchange of `iterations` + 2 sums with all clients.
        iterations: steps of k-means.
    """

    family: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "arXiv 2503.14553"
    headline: ClassVar[str] = "losses rise by up to 60 % where clients differ in embeddings of the task instead of labels"
    differs: ClassVar[str] = "clusters are found by federated k-means on the global model's embeddings"
    reveals: ClassVar[str] = "sums of updates, and of counts and embeddings of clusters"

    clusters: Positive[int] = 10
    every: Positive[int] = 10
    iterations: Positive[int] = 5

    def round(self, fed: Federation, state: State) -> State:
        """Run a round of FedAvg; add the report to its notes where one is due."""
        state = super().round(fed, state)
        if fed.round % self.every == 0:
            last = fed.last
            last.notes.update(self.report(fed, state.params))
            fed.last = last
        return state

    def report(self, fed: Federation, params: Params) -> dict[str, float]:
        """Return ``heterogeneity`` (mean KL in nats), ``client_loss``, and the deviation of each over clients."""
        everyone = fed.available()
        whole = fed.mean(self.spread, params, over=everyone)
        deviation = (whole.square - whole.mean**2).clamp(min=0).sqrt()
        drawn = torch.randn(self.clusters, len(whole.mean), generator=torch_rng(fed.seed, "centres", fed.round))
        centres = whole.mean + deviation * drawn
        for _ in range(self.iterations):
            found = fed.mean(self.assign, (params, centres), over=everyone)
            there = (found.share > 0).unsqueeze(1)
            centres = torch.where(there, found.part / torch.where(there, found.share.unsqueeze(1), 1.0), centres)
        ratio = fed.mean(self.assign, (params, centres), over=everyone).share
        unlike = fed.mean(self.measure, (params, centres, ratio), over=everyone)
        told: dict[str, float] = {}
        for name, key in (("heterogeneity", "kl"), ("client_loss", "loss")):
            mean, square = unlike.fields[key], unlike.fields[f"{key}_square"]
            told |= {name: mean, f"{name}_deviation": math.sqrt(max(square - mean**2, 0.0))}
        return told

    @on_client(bounds={"mean": math.inf, "square": math.inf})
    def spread(self, client: Client, message: Params) -> Update:
        """Return the mean and the mean square of this client's embeddings, each of shape [d]."""
        psi = embeddings(client, message)
        return Update(mean=_mean(psi), square=_mean(psi**2), weight=client.num_samples)

    @on_client(bounds={"share": 1.0, "part": math.inf})
    def assign(self, client: Client, message: tuple[Params, Tensor]) -> Update:
        """Return the share of each cluster, shape [K], and the share times its mean embedding, shape [K, d]."""
        params, centres = message
        psi = embeddings(client, params)
        hot = nearest_centre(psi, centres.to(psi))
        part = hot.T @ psi / max(len(psi), 1)
        return Update(share=_mean(hot), part=part, weight=client.num_samples)

    @on_client(bounds={"kl": 32.0, "kl_square": 1024.0, "loss": 64.0, "loss_square": 4096.0})
    def measure(self, client: Client, message: tuple[Params, Tensor, Tensor]) -> Update:
        """Return KL(P || r) of this client, its loss, and their squares."""
        params, centres, ratio = message
        psi = embeddings(client, params)
        p = _mean(nearest_centre(psi, centres.to(psi))).double().cpu()
        kl = float(torch.where(p > 0, p * (p.clamp(min=1e-12) / ratio.double().cpu().clamp(min=1e-12)).log(), 0.0).sum())
        sums = client.evaluate(params, client.train)
        loss = float(sums["loss"]) / max(int(sums["count"]), 1)
        return Update(kl=kl, kl_square=kl**2, loss=loss, loss_square=loss**2, weight=min(client.num_samples, 1))


@torch.no_grad()
def embeddings(client: Client, params: Params) -> Tensor:
    """Return psi of this client's training samples, shape [n, d]; of a client without samples, d is that of any other."""
    client.load(params)
    module, data = client.model.module.eval(), client.train
    parts = [penultimate(module, x).flatten(1) for x, _ in data.batches(_BATCH)]
    client.flops += client.model.flops * len(data)
    if parts:
        return torch.cat(parts)
    x, _ = data.at(torch.zeros(1, dtype=torch.int64, device=data.device))
    return penultimate(module, x).flatten(1)[:0]


def nearest_centre(psi: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre of each row as a row of zeros and a one, shape [n, K]."""
    away = (psi**2).sum(1, keepdim=True) - 2 * psi @ centres.T + (centres**2).sum(1)
    return torch.nn.functional.one_hot(away.argmin(1), len(centres)).to(psi)


def _mean(rows: Tensor) -> Tensor:
    return rows.sum(0) / max(len(rows), 1)
