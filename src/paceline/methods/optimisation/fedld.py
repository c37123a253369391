"""FedLD ("Tackling Data Heterogeneity in Federated Learning via Loss Decomposition", MICCAI 2024, arXiv 2408.12300): a margin penalty
at the clients, and aggregation along the cohort's principal directions.

    client:  L = CE(z, y) + lambda log(1 + |softmax(z)|_F^2), the norm over the whole batch
    server, in each layer, with the M updates g_i as rows of G and k = floor(keep M):
             H = G G' / M = E diag(s) E';   w_j = G' e_j;   u = sum_{j <= k} s_j / sum(s) (1/M) sum_i sign<g_i, w_j> |g_i| w_j / |w_j|
             theta <- theta + u          (times server_lr, which is 1 by default)

This is the paper's rule: each update is projected onto every w_j, rescaled to |g_i| s_j / sum(s), and the sums are averaged. As
<g_i, w_j> = M s_j E_ij, |w_j|^2 = M s_j and |g_i|^2 = M H_ii, u is a linear combination of the updates whose coefficients follow from H.
The first round is the mean of the updates.

The server of FedLD sees every update, that of FedLDSum sums only. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.blocks.running import weights
from paceline.core.client import Client, Hooks
from paceline.core.errors import NonFiniteError
from paceline.core.federation import Federation
from paceline.core.hooks import NO_HOOKS, Loss
from paceline.core.losses import scores
from paceline.core.method import NonNegative, P, Positive, PositiveShare, Share, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.methods.optimisation.fedavg import FedAvg

TINY = 1e-12


def confidence(outputs: Tensor, per_sample: bool = False) -> Tensor:
    """Return log(1 + |softmax(z)|_F^2) of a batch z, shape [B, C, ...], or the mean over its samples of log(1 + |p_b|^2)."""
    square = outputs.softmax(1).square()
    return square.flatten(1).sum(1).log1p().mean() if per_sample else square.sum().log1p()


def combined(g: Tensor, keep: float) -> Tensor:
    """Return u, shape [d] (float64), of the updates g of one layer, shape [M, d]; their mean if no direction is kept."""
    g = g.double()
    clients = len(g)
    kept = int(keep * clients + 1e-9)
    gram = g @ g.T / clients
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    if kept < 1 or g.shape[1] == 1 or not total > TINY**2:
        return g.mean(0)
    lengths = (clients * gram.diagonal()).clamp(min=0).sqrt()
    coefficients = torch.zeros(clients, dtype=torch.float64, device=g.device)
    for s, e in zip(values[:kept], vectors.T[:kept], strict=True):
        if s <= TINY * total:  # a direction without extent
            break
        sign = torch.where(e.abs() * (clients * s).sqrt() > 1e-7 * lengths, e.sign(), 0.0)  # <g_i, w_j> = M s_j E_ij, or 0
        coefficients += s / total * (sign * lengths).mean() * e / (clients * s).sqrt()
    return coefficients @ g


@node
class FedLDState(State):
    """The model, and the moving mean of its changes: where a tensor's is 0, its updates are averaged."""

    history: Params


@dataclass(frozen=True)
class FedLDSum(FedAvg[P]):
    """FedAvg with FedLD's margin penalty.

    Args:
        margin: lambda, weight of the penalty on confident outputs.
        per_sample: take the penalty of each sample and average, so that it does not depend on the batch size.
    """

    paper: ClassVar[str] = "arXiv 2408.12300 (MICCAI 2024)"
    headline: ClassVar[str] = "the penalty lowers the confidence of the outputs at the same accuracy"
    needs_classes: ClassVar[bool] = True

    lr: NonNegative[float] | None = 0.01
    batch_size: Positive[int] | None = 50
    momentum: Share = 0.5
    weight_decay: NonNegative[float] = 5e-4
    margin: NonNegative[float] = 0.1
    per_sample: bool = False

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Add the penalty to the task's loss."""
        if not self.margin:
            return NO_HOOKS
        return Hooks(
            loss=partial(_penalised, client.problem.loss, self.margin, self.per_sample, getattr(client.problem, "output", None))
        )


def _penalised(loss: Loss, margin: float, per_sample: bool, name: str | int | None, outputs: Any, targets: Any) -> Tensor:
    return loss(outputs, targets) + margin * confidence(scores(outputs, name), per_sample)


@dataclass(frozen=True)
class FedLD(FedLDSum[FedLDState]):
    """A margin penalty, and aggregation along principal directions of the updates.

    Args:
        keep: share of the cohort's directions that are kept.
        renorm: ``none`` (as published: u is shorter than the mean), or ``mean``: scale u to the length of the mean, in each layer.
    """

    reveals: ClassVar[str] = "every update"
    headline: ClassVar[str] = "more accurate and robust than FedAvg, FedProx, FedBN and FedPAC across levels of heterogeneity"
    differs: ClassVar[str] = "running statistics are averaged, as principal directions could make a variance negative"
    sum_only: ClassVar[str] = "fedldsum"

    keep: PositiveShare = 0.8
    renorm: Literal["none", "mean"] = "none"

    def init(self, fed: Federation) -> FedLDState:
        """Start without history."""
        params = fed.init_params()
        return FedLDState(params=params, history=params.zeros())

    def round(self, fed: Federation, state: FedLDState) -> FedLDState:
        """Collect the updates and combine them layer by layer."""
        replies = fed.each(self.submit, state.params, over=fed.sample())
        fine = [r for _, r in sorted(replies.items()) if r.finite]
        fed.last.notes["refused"] = float(len(replies) - len(fine))
        if not fine:
            raise NonFiniteError(f"round {fed.round}: none of {len(replies)} updates is finite; lower the learning rates")
        fine = [r for r in fine if bool(r.vector.any())] or fine
        step = state.params.zeros()
        for entry in step.layout.entries:
            g = torch.stack([reply[entry.name].flatten() for reply in fine]).double()
            u = mean = g.mean(0)
            if entry.kind == "param" and bool(state.history[entry.name].any()):
                u = combined(g, self.keep)
                u = u * (mean.norm() / u.norm().clamp(min=TINY)) if self.renorm == "mean" else u
            step[entry.name].copy_(u.view(entry.shape))
        history = 0.99 * state.history + 0.01 * step if fed.round > 1 else step
        moved = step + (self.server_lr - 1.0) * weights(step)  # running statistics move by all of it
        return replace(state, params=state.params + moved, history=history)

    @on_client(each=True)
    def submit(self, client: Client, message: Params) -> Params:
        """Train locally; return the change."""
        return client.sgd(message, **self.local(client), hooks=self.hooks(client, message)).params - message
