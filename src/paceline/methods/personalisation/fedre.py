"""FedRE ("FedRE: A Representation Entanglement Framework for Model-Heterogeneous Federated Learning", CVPR 2026,
arXiv 2511.22265): clients with different backbones each upload one random mixture of their class means, with its soft label.

    client:  h_k <- h;  E epochs of SGD on backbone F_k and head h_k;  p_{k,c} = mean of F_k(x) over its own samples of class c
             u_c ~ U(0, 1),  w_c = u_c / sum_c' u_c';   r_k = sum_c w_c p_{k,c},  t_k = sum_c w_c e_c,  over its own classes
    server:  for random batches of tuples:  h <- h - eta_s grad sum_k CE(h(r_k), t_k)

As published (`FedRE`) the server sees every client's tuples. `FedRESum` is sum-only: each client sends the gradient of its own
tuples at the head that it received, so a round is one step of the server, equal to FedRE's with all tuples in one batch.
A client stores its network; its backbone never leaves it. Mixtures of one class are plain class means (see `least_classes`),
and those of many rounds together determine the means of a client whose features no longer change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, State, on_client
from paceline.core.params import Params, Resident
from paceline.core.random import torch_rng
from paceline.core.samples import labelled
from paceline.core.task import Task
from paceline.core.tree import node
from paceline.methods.personalisation.commonhead import CommonHead, head_step
from paceline.models.split import features


@node
class Entangled:
    """Mixed features, shape [V, d], and their soft labels, shape [V, C]."""

    features: Tensor
    labels: Tensor


def entangle(rows: Tensor, classes: Tensor, draws: Tensor, num_classes: int) -> Entangled:
    """Return convex combinations of rows and of their one-hot classes.

    Args:
        rows: class means, or features, shape [m, d].
        classes: of the rows, shape [m].
        draws: weights before they are divided by their sum, shape [V, m].
        num_classes: C.

    Example:
        >>> found = entangle(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2]), torch.tensor([[0.3, 0.9]]), 3)
        >>> found.features.tolist(), found.labels.tolist()
        ([[0.25, 1.5]], [[0.25, 0.0, 0.75]])
    """
    weights = draws / draws.sum(1, keepdim=True)
    return Entangled(weights @ rows, weights @ F.one_hot(classes, num_classes).to(rows.dtype))


@dataclass(frozen=True)
class EntangledHead(CommonHead):
    """Common part of both forms: local training and the mixtures.

    Args:
        views: V, tuples of a client in each round, with weights of their own.
        mix_over: mix the ``class_means``, or the features of single ``samples``.
        subset: with mix_over=samples, how many random samples are mixed; all if None.
        least_classes: clients with fewer classes train, but upload nothing; 2 excludes plain class means.
        send_head: clients begin each round with the server's head; otherwise with their own.
        halve_every: halve `server_lr` after so many rounds; 0 leaves it.
    """

    paper: ClassVar[str] = "arXiv 2511.22265 (CVPR 2026)"
    headline: ClassVar[str] = (
        "best balance of accuracy, bytes and resistance to inversion, with one uploaded vector for each client"
    )

    lr: NonNegative[float] | None = 0.06
    batch_size: Positive[int] | None = 32
    views: Positive[int] = 1
    mix_over: Literal["class_means", "samples"] = "class_means"
    subset: Positive[int] | None = None
    least_classes: Positive[int] = 1
    send_head: bool = True
    halve_every: NonNegative[int] = 0

    def fit_task(self, task: Task) -> tuple[EntangledHead, Task]:
        """Return both as they are.

        Raises:
            ConfigError: no client can have `least_classes`.
        """
        if self.least_classes > task.num_classes:
            raise ConfigError(f"least_classes={self.least_classes}, but the task has {task.num_classes} classes; lower it")
        return self, task

    def step(self, fed: Federation) -> float:
        """Return eta_s of this round."""
        return self.server_lr * 0.5 ** ((fed.round - 1) // self.halve_every if self.halve_every else 0)

    def tuples(self, client: Client, theta: Params) -> Entangled:
        """Train the client's network; return its mixtures, none for fewer than two samples."""
        model, params = self.trained(client, theta if self.send_head else None)
        num_classes, width = theta["weight"].shape
        counts = client.train.class_counts(client.problem)
        if client.num_samples < 2 or int((counts > 0).sum()) < self.least_classes:
            return Entangled(theta.vector.new_zeros(0, width), theta.vector.new_zeros(0, num_classes))
        if self.mix_over == "class_means":
            found = self.class_sums(client, model, params)
            rows, classes = found.means()[found.present], found.present.nonzero().flatten()
        else:
            rows, classes = self.drawn(client, model, params)
        draws = torch.rand(self.views, len(rows), generator=client.stream("weights")).clamp(min=1e-7)
        return entangle(rows, classes, draws.to(rows.device), num_classes)

    @torch.no_grad()
    def drawn(self, client: Client, model: Resident, params: Params) -> tuple[Tensor, Tensor]:
        """Return features and classes of the samples to mix."""
        model.load(params)
        model.module.eval()
        order = torch.randperm(client.num_samples, generator=client.stream("samples"))[: self.subset]
        client.flops += model.flops * len(order)
        parts = [client.train.rows(part) for part in torch.split(order.to(client.device), 500)]
        z, y = torch.cat([features(model.module, x) for x, _ in parts]), torch.cat([y for _, y in parts])
        known = labelled(client.problem, y)
        return z[known], y[known]


@dataclass(frozen=True)
class FedRE(EntangledHead):
    """The published form: the server trains the head on every client's tuples.

    Args:
        head_batch: B_h, tuples of a step; its loss is a sum, so larger batches take larger steps.
        server_epochs: passes over the tuples of a round.
    """

    reveals: ClassVar[str] = "every client's mixed features and their soft labels"
    sum_only: ClassVar[str] = "fedresum"

    head_batch: Positive[int] = 32
    server_epochs: Positive[int] = 1

    def round(self, fed: Federation, state: State) -> State:
        """Collect tuples and train the head on them, batch by batch."""
        replies = fed.each(self.train, state.params, over=fed.sample())
        told, theta = [replies[client] for client in sorted(replies)], state.params
        rows, labels = torch.cat([r.features for r in told]), torch.cat([r.labels for r in told])
        generator = torch_rng(fed.seed, "tuples", fed.round)
        for _ in range(self.server_epochs):
            for batch in torch.split(torch.randperm(len(rows), generator=generator).to(rows.device), self.head_batch):
                theta = theta - self.step(fed) * head_step(theta, rows[batch], labels[batch])
        return State(params=theta)

    @on_client(each=True)
    def train(self, client: Client, message: Params) -> Entangled:
        """Train; return the tuples."""
        return self.tuples(client, message)


@dataclass(frozen=True)
class FedRESum(EntangledHead):
    """The sum-only form: one step along the sum of the clients' gradients of the head."""

    reveals: ClassVar[str] = "summed head gradients"

    def round(self, fed: Federation, state: State) -> State:
        """Step along the summed gradient."""
        return State(params=state.params - self.step(fed) * fed.sum(self.train, state.params, over=fed.sample()))

    @on_client(bounds={"value": 256.0})
    def train(self, client: Client, message: Params) -> Params:
        """Train; return the gradient of the client's own tuples at the head that it received."""
        found = self.tuples(client, message)
        return head_step(message, found.features, found.labels)
