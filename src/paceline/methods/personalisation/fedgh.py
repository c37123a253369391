"""FedGH ("FedGH: Heterogeneous Federated Learning with Generalized Global Header", ACM MM 2023, arXiv 2303.13137):
clients with different backbones upload one mean feature per class, on which the server trains their common head.

    client:  head <- theta; E epochs of SGD on backbone and head; v_k^s = mean of F_k(x) over its own samples of class s
    server:  for every pair (v, s):  theta <- theta - eta_s * grad CE(H_theta(v), s)

As published (`FedGH`) the server sees every client's class means. `FedGHSum` is sum-only: each client sends the head
gradient summed over its own pairs, or the class means are summed over clients and the server trains on their means.
A client stores its network; its backbone never leaves it. Pairs are shuffled with the round's seed (our addition).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.blocks.prototypes import ClassSums
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.methods.personalisation.commonhead import CommonHead, head_step
from paceline.models.split import join


def head_gradient(theta: Params, means: Tensor, classes: Tensor) -> Params:
    """Return the gradient of sum_i CE(W v_i + b, s_i) for means [n, d] and classes [n]."""
    return head_step(theta, means, F.one_hot(classes, len(theta["weight"])).to(means.dtype))


def train_head(theta: Params, pairs: Iterable[tuple[Tensor, Tensor]], lr: float, frozen: Tensor | None = None) -> Params:
    """Return the head after one SGD step for each (mean [d], class []); the rows marked `frozen` do not change."""
    start = theta
    for mean, label in pairs:
        theta = theta - lr * head_gradient(theta, mean.unsqueeze(0), label.reshape(1))
    if frozen is not None and bool(frozen.any()):
        theta = join(theta, {n: torch.where(frozen.view(-1, *[1] * (v.dim() - 1)), start[n], v) for n, v in theta.items()})
    return theta


@dataclass(frozen=True)
class ClassMeansHead(CommonHead):
    """Common part of both forms: the server's head is trained on class means.

    Args:
        freeze_absent: do not update the rows of classes that no client of the cohort has.
        batch_means: average batch means, as the released code does, instead of the true class means.
    """

    paper: ClassVar[str] = "arXiv 2303.13137 (ACM MM 2023)"
    headline: ClassVar[str] = "up to 8.87 % more accurate than the best of seven baselines, with up to 85.53 % less traffic"

    momentum: Share = 0.9
    weight_decay: NonNegative[float] = 1e-3
    clip: NonNegative[float] = 50.0
    freeze_absent: bool = False
    batch_means: bool = False

    def learn(self, client: Client, theta: Params) -> ClassSums:
        """Train the client's network from the common head; return its class means, each class with count 1."""
        model, params = self.trained(client, theta)
        batch = self.batch_size or client.problem.batch_size
        return self.class_sums(client, model, params, batch if self.batch_means else None).unweighted()

    def shuffled(self, fed: Federation, means: Tensor, classes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the (mean, class) pairs in this round's random order."""
        order = torch.randperm(len(classes), generator=torch_rng(fed.seed, "pairs", fed.round))
        return [(means[i], classes[i]) for i in order.tolist()]


@dataclass(frozen=True)
class FedGH(ClassMeansHead):
    """The published form: the server trains the head on every client's class means.

    Args:
        shuffle: process the pairs in random order; otherwise by client and class.
    """

    reveals: ClassVar[str] = "every client's class means"
    sum_only: ClassVar[str] = "fedghsum"

    shuffle: bool = True

    def round(self, fed: Federation, state: State) -> State:
        """Collect class means and train the head on them, pair by pair."""
        replies = fed.each(self.represent, state.params, over=fed.sample())
        told = [replies[client] for client in sorted(replies)]
        means, classes = torch.cat([r["means"] for r in told]), torch.cat([r["classes"] for r in told])
        pairs = self.shuffled(fed, means, classes) if self.shuffle else list(zip(means, classes, strict=True))
        absent = torch.bincount(classes, minlength=len(state.params["weight"])) == 0
        return State(params=train_head(state.params, pairs, self.server_lr, absent if self.freeze_absent else None))

    @on_client(each=True)
    def represent(self, client: Client, message: Params) -> dict[str, Tensor]:
        """Train; return the class means and their class labels."""
        found = self.learn(client, message)
        return {"means": found.sums[found.present], "classes": found.present.nonzero().flatten()}


@dataclass(frozen=True)
class FedGHSum(ClassMeansHead):
    """The sum-only forms.

    Args:
        form: ``gradient``: one step along the gradient summed over all pairs; ``prototypes``: the server trains on class
            means averaged over clients, which loses their variance.
        exchanges: gradient steps per round; each is a separate exchange.
    """

    reveals: ClassVar[str] = "summed head gradients, or sums of class means"
    client_state: ClassVar[str] = "its own network and class means"

    form: Literal["gradient", "prototypes"] = "gradient"
    exchanges: Positive[int] = 1

    def round(self, fed: Federation, state: State) -> State:
        """Update the head from sums."""
        theta, cohort = state.params, fed.sample()
        if self.form == "prototypes":
            total = fed.sum(self.prototypes, theta, over=cohort)
            pairs = self.shuffled(fed, total.means()[total.present], total.present.nonzero().flatten())
            return State(params=train_head(theta, pairs, self.server_lr, ~total.present if self.freeze_absent else None))
        for exchange in range(self.exchanges):
            gradient = fed.sum(self.gradient, (theta, exchange == 0), over=cohort)
            theta = theta - self.server_lr * gradient
            cohort = [client for client in cohort if client in fed.last.arrived]  # the others have no means of this round
        return State(params=theta)

    @on_client(bounds={"sums": math.inf})
    def prototypes(self, client: Client, message: Params) -> ClassSums:
        """Train; return the class means."""
        return self.learn(client, message)

    @on_client(bounds={"value": 256.0})
    def gradient(self, client: Client, message: tuple[Params, bool]) -> Params:
        """Train in the first exchange; return the head's gradient summed over the client's own class means."""
        theta, first = message
        if first:
            client.memory["means"] = self.learn(client, theta)
        found: ClassSums = client.memory["means"]
        return head_gradient(theta, found.sums[found.present], found.present.nonzero().flatten())
