"""FedAgain ("Robust Federated Anomaly Detection Using Dual-Signal Autoencoders", arXiv 2510.06230, 2025): two signals say how far
each client is trusted.

    e_c     = L(w; X_c)                               loss of the received model on the client's data, before training
    w_c     = local training from w
    delta_c = 1 - cos(w, w_c)                         over trainable parameters
    tau_c   = 1 / ((e_c + eps) (delta_c + eps)),      p_c = tau_c / sum_j tau_j
    w      <- sum_c p_c w_c

In the published form the server sees every update and every e_c. In the sum-only form a client computes its own tau_c: a first sum
counts the clients in each interval of log tau, the second is the mean weighted by tau, relative to the largest interval that occurs.

Smooth corruptions (blur, low contrast) are easy to reconstruct: they lower e_c and raise the trust in their client. A client that
hardly trains has delta_c near 0 and takes most of the weight, unless `most` or `floor` limits that. A client can lie about e_c;
`benchmark=server` measures the trained models on samples of the server instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.blocks.local_training import LocalTraining
from paceline.blocks.server_data import benchmark_client, server_score
from paceline.core.client import AdamW, Client
from paceline.core.errors import NonFiniteError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, PositiveShare, State, on_client
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params
from paceline.core.tree import Tree

EPS = 1e-6
_LOW, _BINS = -40, 80
"""Intervals of log tau of length 1, for the sum-only form."""


def divergence(before: Tensor, after: Tensor) -> float:
    """Return 1 - cos of two vectors, as half the squared distance of their directions: in float64, exact 0 for equal ones.

    Example:
        >>> round(divergence(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), 6)
        0.292893
    """
    a, b = (v.double() / torch.linalg.vector_norm(v.double()).clamp(min=1e-300) for v in (before, after))
    return float((a - b).square().sum() / 2)


def trust(errors: Tensor, divergences: Tensor) -> Tensor:
    """Return tau of each client, shape [n] (float64). An error below 0, which only a loss of one's own or a lie can be, counts as 0.

    Example:
        >>> trust(torch.tensor([0.02, 0.08]), torch.tensor([0.01, 0.04])).tolist()
        [4999.2501..., 312.4882...]
    """
    return 1 / ((errors.double().clamp(min=0) + EPS) * (divergences.double() + EPS))


def standardised(values: Tensor) -> Tensor:
    """Return (x - mean) / deviation; 0 where all are equal."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-12)


def robust_error(errors: Tensor) -> Tensor:
    """Return 1 + |e - median| / (1.4826 MAD), so that clients that are too easy to reconstruct lose trust too."""
    away = (errors - errors.quantile(0.5)).abs()
    return 1 + away / (1.4826 * away.quantile(0.5)).clamp(min=1e-12)


@dataclass(frozen=True)
class TrustWeighted(LocalTraining[State]):
    """Base of both forms.

    Args:
        lr: of the clients.
        epochs: E, local passes.
        optimizer: of the clients, ``adam`` (without memory between rounds) or ``sgd``.
        most: p_max: no client counts for more than this share; what is cut off remains with w. None is no limit.
        by_samples: multiply tau by the number of samples.
    """

    family: ClassVar[str] = "robust"
    paper: ClassVar[str] = "arXiv 2510.06230"
    headline: ClassVar[str] = "detects 16 kinds of corruption better than FedAvg, with up to 14.49 % more precision"

    lr: NonNegative[float] | None = 1e-3
    epochs: Positive[int] = 3
    batch_size: Positive[int] | None = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    most: PositiveShare | None = None
    by_samples: bool = False

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer."""
        return AdamW(self.lr, weight_decay=self.weight_decay) if self.optimizer == "adam" else super().local_optimizer()

    def learn(self, client: Client, start: Params) -> tuple[Params, float]:
        """Return the trained parameters, and e_c, measured before."""
        sums = client.evaluate(start, client.train)
        return client.sgd(start, **self.local(client)).params, float(sums["loss"]) / max(int(sums["count"]), 1)


@dataclass(frozen=True)
class FedAgain(TrustWeighted):
    """Weight clients by trust: a low benchmark error, and a small divergence.

    Args:
        benchmark: e_c is the received model's loss on the ``client``'s data, which it reports itself, or the trained model's loss
            on `benchmark_samples` test samples of the ``server``.
        benchmark_samples: of the server.
        error: of tau: ``plain``, or ``robust-z``, which distrusts unusually low errors too.
        rule: ``product`` (tau); ``softmax``: p = softmax(-alpha z(e) - beta z(delta)), z standardised over the cohort; or ``equal``:
            FedAvg.
        alpha, beta: of the softmax.
        floor: replace divergences below a tenth of their median by that.
    """

    reveals: ClassVar[str] = "every update and benchmark error"
    differs: ClassVar[str] = (
        "e is measured in evaluation mode, and delta without running statistics; the authors' code does neither"
    )
    sum_only: ClassVar[str] = "fedagainsum"

    benchmark: Literal["client", "server"] = "client"
    benchmark_samples: Positive[int] = 200
    error: Literal["plain", "robust-z"] = "plain"
    rule: Literal["product", "softmax", "equal"] = "product"
    alpha: NonNegative[float] = 1.0
    beta: NonNegative[float] = 1.0
    floor: bool = False

    def round(self, fed: Federation, state: State) -> State:
        """Collect updates and errors; step along the mean weighted by trust."""
        replies = fed.each(self.train, state.params, over=fed.sample())
        fine = {c: r for c, r in sorted(replies.items()) if bool(torch.isfinite(r["delta"].vector).all())}
        if self.benchmark == "server":
            held = benchmark_client(fed, self.benchmark_samples)
            measured = {c: server_score(held, state.params + r["delta"])[1] for c, r in fine.items()}
        else:
            measured = {c: r["error"] for c, r in fine.items()}
        if not fine:
            raise NonFiniteError(f"round {fed.round}: none of {len(replies)} updates is finite; lower the learning rates")
        fine = {c: r for c, r in fine.items() if math.isfinite(measured[c])}
        fed.last.notes["refused"] = float(len(replies) - len(fine))
        fine = {c: r for c, r in fine.items() if r["samples"]}  # without samples the error is undefined
        if not fine:
            return state
        g = torch.stack([r["delta"].vector for r in fine.values()]).double()
        errors = [measured[c] for c in fine]
        samples = torch.tensor([float(r["samples"]) for r in fine.values()], dtype=torch.float64)
        share = self.shares(state.params, g, torch.tensor(errors, dtype=torch.float64), samples)
        fed.last.notes.update({f"weight_{c}": float(p) for c, p in zip(fine, share, strict=True)})
        if not bool(torch.isfinite(share).all()):
            return state
        fed.last.notes["effective_clients"] = float(1 / share.square().sum())
        relative = share / share.max()  # equal shares are exactly 1, so that the mean has the bits of FedAvg's
        delta = relative @ g / relative.sum() if self.most is None else share @ g
        return State(params=state.params + Params(delta.float(), state.params.layout))

    def shares(self, params: Params, g: Tensor, errors: Tensor, samples: Tensor) -> Tensor:
        """Return p of each client, shape [n], for updates g [n, d] (float64), errors [n] and numbers of samples [n]."""
        split = params.layout.num_params
        before = params.vector[:split].double()
        apart = torch.tensor([divergence(before, before + row[:split]) for row in g], dtype=torch.float64)
        if self.floor:
            apart = apart.clamp(min=float(apart.quantile(0.5)) / 10)
        errors = robust_error(errors) if self.error == "robust-z" else errors
        if self.rule == "softmax":
            tau = (-self.alpha * standardised(errors) - self.beta * standardised(apart)).softmax(0)
        else:
            tau = trust(errors, apart) if self.rule == "product" else torch.ones_like(apart)
        tau = tau * samples if self.by_samples else tau
        share = tau / tau.sum()
        return share if self.most is None else share.clamp(max=self.most)

    @on_client(each=True)
    def train(self, client: Client, message: Params) -> Tree:
        """Train; return the change, the benchmark error and the number of samples."""
        local, error = self.learn(client, message)
        return {"delta": local - message, "error": error, "samples": client.num_samples}


@dataclass(frozen=True)
class FedAgainSum(TrustWeighted):
    """The sum-only form: clients compute their own trust, and the server sees how it is distributed, and weighted sums."""

    reveals: ClassVar[str] = "a histogram of trust, sums of weighted updates and of weights"
    client_state: ClassVar[str] = "its update of the round, until it is sent"
    differs: ClassVar[str] = "a client computes its own trust, which an honest client does as FedAgain does"

    def round(self, fed: Federation, state: State) -> State:
        """Find the largest trust that occurs; average the updates, weighted by trust relative to it."""
        counts = fed.sum(self.train, state.params, over=fed.sample())
        cohort, lost = sorted(fed.last.arrived), fed.last.dropped
        if not bool(counts.any()):
            return state
        top = float(_LOW + int(counts.nonzero().max()) + 1)
        limit, total = 1.0, 0.0
        if self.most is not None:
            total = fed.sum(self.weight, (top, 1.0), over=cohort)
            limit, cohort = self.most * total, [client for client in cohort if client in fed.last.arrived]
        summed = fed.sum(self.send, (top, limit), over=cohort)
        fed.last.dropped.update(lost)
        whole = max(summed["weight"], total)
        return State(params=state.params + summed["delta"] / whole) if whole > 0 else state

    @on_client(bounds={"value": 1})
    def train(self, client: Client, message: Params) -> Tensor:
        """Train and store the change; return the interval of log tau as one of 80 counts, none of them without samples."""
        local, error = self.learn(client, message)
        split = message.layout.num_params
        apart = divergence(message.vector[:split], local.vector[:split])
        tau = float(trust(torch.tensor(error), torch.tensor(apart, dtype=torch.float64)))
        log = math.log(max(tau * (client.num_samples if self.by_samples else 1), 1e-17)) if math.isfinite(tau) else -math.inf
        client.memory["update"] = {"delta": local - message, "log": log, "round": client.round}
        place = min(max(math.floor(log) - _LOW, 0), _BINS - 1) if math.isfinite(log) else 0
        counts = torch.zeros(_BINS, dtype=torch.int64)
        counts[place] = int(client.num_samples > 0 and math.isfinite(log))
        return counts

    @on_client(bounds={"value": 1.0})
    def weight(self, client: Client, message: tuple[float, float]) -> float:
        """Return tau relative to exp(top), at most the limit; 0 without samples, or without an update of this round."""
        top, limit = message
        own = client.memory.get("update")
        if own is None or own["round"] != client.round or not client.num_samples:
            return 0.0
        return min(math.exp(min(own["log"] - top, 0.0)), limit)

    @on_client(bounds={"weight": 1.0})
    def send(self, client: Client, message: tuple[float, float]) -> dict[str, Any]:
        """Return the weight, and the stored change times the weight, and forget it.

        The product is formed here, as the weights of a secure mean may be whole numbers only.
        """
        weight, own = self.weight(client, message), client.memory.get("update")
        client.memory["update"] = None
        delta = client.model.snapshot().zeros() if own is None else own["delta"]
        return {"delta": weight * delta, "weight": weight}
