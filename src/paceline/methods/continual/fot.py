"""FOT (Bakman et al., "Federated Orthogonal Training: Mitigating Global Catastrophic Forgetting", ICLR 2024).

For each layer, with its weight as a matrix [out, d] and Q [d, r] an orthonormal basis of the inputs of old tasks:
    D <- mean(w_u) - w;   D <- D - D Q Q^T;   w <- w + D
At the end of a task, with X [d, m] the layer's inputs at the client's last model and G [m, s] Gaussian:
    client: X <- X - Q Q^T X;   A_u = X G;   rho_u = |residual X| / |X|
    server: rho = sum m_u rho_u / sum m_u;   e' = (rho - (1 - eps)) / rho;   U S V^T = sum A_u
            r smallest with sum_{i<=r} S_i^2 / sum S_i^2 > e';   Q <- orth [Q, U_:r];   eps <- eps + eps_inc

The server sees sums of updates, and once per task sums of sketches: random mixtures of inputs. Clients store no state.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.blocks.local_training import LocalTraining
from paceline.core.client import Client
from paceline.core.columns import call
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.models.inputs import layer_inputs, reading_layers

Bases = dict[str, Tensor]


@node
class FotState(State):
    """The model, the protected input subspace of each layer by weight name, [d, r], and eps."""

    bases: Bases
    eps: float


def project(delta: Params, bases: Bases) -> Params:
    """Return an update without the part that would change outputs on protected inputs."""
    out = delta.clone()
    for name, q in bases.items():
        flat = out[name].view(len(out[name]), -1)
        flat.sub_((flat.double() @ q.double() @ q.T.double()).float())
    return out


def wanted(rho: float, eps: float) -> float:
    """Return e': the share of the residual to cover so that `eps` of the total is covered."""
    return (rho - (1 - eps)) / rho if rho > 0 else 0.0


def expand(basis: Tensor | None, sketch: Tensor, share: float, at_least_one: bool = False) -> Tensor | None:
    """Return the basis extended by the leading directions of a sketch [d, s] that hold more than `share` of its energy."""
    u, s, _ = torch.linalg.svd(sketch.double(), full_matrices=False)
    energy = s.square().cumsum(0) / s.square().sum().clamp(min=1e-300)
    rank = int((energy <= share).sum()) + 1 if share > 0 else int(at_least_one)
    rank = min(rank, int((s > 1e-12 * s[0]).sum()))
    if not rank:
        return basis
    old = sketch.new_zeros(len(sketch), 0) if basis is None else basis
    grown: Tensor = torch.linalg.qr(torch.cat([old.double(), u[:, :rank]], 1)[:, : len(sketch)]).Q
    return grown.float().contiguous()  # the strides of a restored checkpoint: they affect the last bits of products


@dataclass(frozen=True)
class FOT(LocalTraining[FotState]):
    """Project updates so that outputs on old tasks' inputs do not change; on a task without stages this is FedAvg.

    Args:
        server_lr: step along the mean update.
        eps: share of the energy of a task's inputs to protect; the paper uses 0.87 to 0.96.
        eps_inc: increment of eps per task.
        rounds_per_task: rounds of each task; None uses the sequence's own.
        protect_head: protect the last layer; None does so unless each task has its own outputs.
        weigh: weight clients equally (``uniform``, as published) or by ``samples``.
        rho: ratio of norms (as published) or of energies, which matches the definition of the coverage.
        sketch: columns of a sketch per input of a linear layer; a convolution has one per input.
        most_columns: maximum number of columns of a sketch.
        at_least_one: add a direction even if the coverage suffices, as the released code does.
        last_cohort: cohort size in a task's last round, which sketches; None uses the usual size.
    """

    family: ClassVar[str] = "continual"
    paper: ClassVar[str] = "Bakman et al., ICLR 2024"
    reveals: ClassVar[str] = "sums of updates; once per task, sums of random mixtures of inputs"
    headline: ClassVar[str] = "forgetting falls from 8-33 points to 0.2-2 points, without replay, with one extra upload per task"

    server_lr: NonNegative[float] = 1.0
    eps: Share = 0.95
    eps_inc: NonNegative[float] = 0.0
    rounds_per_task: Positive[int] | None = None
    protect_head: bool | None = None
    weigh: Literal["uniform", "samples"] = "uniform"
    rho: Literal["norm", "energy"] = "norm"
    sketch: Positive[int] = 5
    most_columns: Positive[int] = 4096
    at_least_one: bool = False
    last_cohort: Positive[int] | None = None

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Read the rounds per stage from a task sequence, and leave separate heads unprotected."""
        rounds = self.rounds_per_task or getattr(task, "rounds_each", None)
        shared = self.protect_head if self.protect_head is not None else getattr(task, "heads", None) is None
        return dataclasses.replace(self, rounds_per_task=rounds, protect_head=shared), task

    def init(self, fed: Federation) -> FotState:
        """Start with no protected subspace."""
        return FotState(params=fed.init_params(), bases={}, eps=self.eps)

    def round(self, fed: Federation, state: FotState) -> FotState:
        """Average and project; in a task's last round also extend the protected subspaces."""
        last = self.rounds_per_task is not None and fed.round % self.rounds_per_task == 0
        message = (state.params, state.bases if last else None)
        mean = fed.mean(self.train, message, over=fed.sample(self.last_cohort if last else None))
        moved = state.params + self.server_lr * project(mean.delta, state.bases)
        if not last:
            return dataclasses.replace(state, params=moved)
        bases = dict(state.bases)
        for name, sketch in mean.sketch.items():
            found = expand(bases.get(name), sketch, wanted(mean.rho[name], state.eps), self.at_least_one)
            if found is not None:
                bases[name] = found
        for name, q in bases.items():
            fed.last.notes[f"capacity_{name}"] = q.shape[1] / q.shape[0]
        return FotState(moved, bases, state.eps + self.eps_inc)

    @on_client(bounds={"sketch": 8.0})
    def train(self, client: Client, message: tuple[Params, Bases | None]) -> Update:
        """Train; given bases, also sketch the layers' inputs, per sample and weighted by samples, so that sketches add up."""
        (params, bases), n = message, client.num_samples
        local = client.sgd(params, **self.local(client))
        own = n if self.weigh == "samples" else min(n, 1)
        delta = local.params - params
        if bases is None:
            return Update(delta=delta, loss=local.loss, weight=own)
        sketches, rhos = self._sketch(client, local.params, bases)
        weights = {"delta": own, "loss": own, "sketch": n, "rho": n}
        return Update(delta=delta, loss=local.loss, sketch=sketches, rho=rhos, weight=weights)

    @torch.no_grad()
    def _sketch(self, client: Client, params: Params, bases: Bases) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return A / n and rho of each protected layer."""
        client.load(params)
        module = client.model.module.eval()
        layers = reading_layers(module)
        names = [n for n in layers if n in params and (self.protect_head or n != list(layers)[-1])]
        width = {n: params[n][0].numel() for n in names}
        columns = {n: min(width[n] * (self.sketch if params[n].dim() == 2 else 1), self.most_columns) for n in names}
        sketches = {n: torch.zeros(width[n], columns[n], device=client.device) for n in names}
        streams = {n: client.stream("sketch", n) for n in names}
        left, all_ = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        with layer_inputs(module) as seen:
            for x, _ in client.train.batches(256):
                seen.clear()
                call(module, x)
                for n in names:
                    rows = torch.cat(seen.get(n, [torch.zeros(0, width[n], device=client.device)]))
                    all_[n] += float(rows.double().square().sum())
                    if n in bases:
                        rows = rows - rows @ bases[n] @ bases[n].T
                    left[n] += float(rows.double().square().sum())
                    noise = torch.randn(len(rows), columns[n], generator=streams[n]).to(client.device)
                    sketches[n].addmm_(rows.T, noise, alpha=1 / client.num_samples)
        power = 1.0 if self.rho == "energy" else 0.5
        return sketches, {n: (left[n] / all_[n]) ** power if all_[n] else 0.0 for n in names}
