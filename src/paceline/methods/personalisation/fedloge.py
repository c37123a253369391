"""FedLoGe ("FedLoGe: Joint Local and Generic Federated Learning under Long-tailed Data", ICLR 2024, arXiv 2401.08977): a backbone
trained against a fixed sparse simplex, and two heads beside it whose row lengths tell how frequent a class is, globally and locally.

    S [C, d]: 60 % zeros, rows of length rho, as far apart as possible; never trained
    client:    h = f_theta(x);  theta steps along CE(S h, y);  W_g, W_k along CE(W_g h + b_g, y), CE(W_k h + b_k, y), h constant
    server:    theta, W_g <- sum_k n_k (theta_k, W_g,k) / sum_k n_k;   W_k stays on the client
    global:    argmax_c  s W_g[c] h / |W_g[c]|^q + b_g[c]
    personal:  argmax_c  |W_k[c]| W_g[c] h + W_k[c] h + b_k[c],  over the classes of the client

The server sees the weighted sum of backbones and global heads. A client stores its head W_k; class counts never leave it, so
that classes that no client has remain in the global model. Their rows only step away from features, and do not win once it has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.architectures import architectures, frozen
from paceline.blocks.etf import sparse_frame
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.prototypes import FAR
from paceline.core.client import Client, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.hooks import Objective
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.tree import Tree, node
from paceline.core.update import Update
from paceline.models.split import features, head, head_name, join, scored, take

_SHORTEST = 1e-3
"""Least row length that a realignment divides by."""


def realigned(weight: Tensor, scale: float = 1.7, power: float = 1.0) -> Tensor:
    """Return s W[c] / |W[c]|^q for each row of a head, shape [C, d]."""
    lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=_SHORTEST)
    out: Tensor = scale * weight / lengths**power
    return out


def localised(common: Tensor, own: Tensor) -> Tensor:
    """Return the rows of the global head, shape [C, d], each times the length of the client's own row."""
    out: Tensor = common * torch.linalg.vector_norm(own, dim=1, keepdim=True)
    return out


@node
class FedLoGeState(State):
    """The backbone with the head W_g, the frame S, shape [C, d], and the name of the head's layer."""

    frame: Tensor
    head: str


@dataclass(frozen=True)
class FedLoGe(LocalTraining[FedLoGeState]):
    """One training for a global model that is fair to rare classes, and a model of each client.

    Args:
        zeros: beta, share of the entries of S that are 0.
        length: rho, length of the rows of S; it scales the backbone's gradients.
        frame_steps, frame_lr: of Adam, which forms S once on the server.
        head_rate: factor of lr for both heads.
        scale, power: s and q of the global head's realignment.
        judge: the global model has the ``realigned`` head, W_g as it was trained (``raw``), or the ``frame`` S.
        tuning_epochs: passes in which a client trains |W_k| W_g on the fixed backbone before use.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "arXiv 2401.08977 (ICLR 2024)"
    headline: ClassVar[str] = (
        "global and personal models of long-tailed data from one training, 4 and 8 points above FedAvg on CIFAR-100"
    )
    differs: ClassVar[str] = (
        "S has no bias, and a low bias, in place of large negative weights, excludes the classes that a client lacks"
    )
    client_state: ClassVar[str] = "its own head"
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    lr: NonNegative[float] | None = 0.03
    epochs: Positive[int] = 5
    batch_size: Positive[int] | None = 8
    momentum: Share = 0.5
    zeros: Share = 0.6
    length: Positive[float] = 0.1
    frame_steps: NonNegative[int] = 10_000
    frame_lr: Positive[float] = 1e-4
    head_rate: Positive[float] = 1.0
    scale: Positive[float] = 1.7
    power: NonNegative[float] = 1.0
    judge: Literal["realigned", "raw", "frame"] = "realigned"
    tuning_epochs: NonNegative[int] = 0

    def check(self, fed: Federation) -> list[str]:
        """Require a head with a bias, by which absent classes are excluded."""
        try:
            layer = head(architectures(fed).resident().module)
        except ConfigError as error:
            return [str(error)]
        biased = frozen(fed, "fedloge", ("head",))
        return (
            biased if layer.bias is not None else ["fedloge needs a head with a bias; build the model's last layer with bias=True"]
        )

    def init(self, fed: Federation) -> FedLoGeState:
        """Build the frame."""
        module = architectures(fed).resident().module
        layer = head(module)
        frame = sparse_frame(
            layer.in_features, layer.out_features, fed.seed, self.zeros, self.length, self.frame_steps, self.frame_lr
        )
        return FedLoGeState(params=fed.init_params(), frame=frame.T.contiguous(), head=head_name(module))

    def round(self, fed: Federation, state: FedLoGeState) -> FedLoGeState:
        """Average backbones and global heads; clients may join in any round, so all receive the frame."""
        mean = fed.mean(self.train, (state.params, state.frame), over=fed.sample())
        return FedLoGeState(params=state.params + mean.delta, frame=state.frame, head=state.head)

    @on_client
    def train(self, client: Client, message: tuple[Params, Tensor]) -> Update:
        """Train backbone and both heads; store the own head and return the change of the rest."""
        params, frame = message
        model, initial = architectures(client).two_headed(params.layout)
        own = client.memory.get("head", {name: initial[name].to(client.device) for name in initial if name not in params})
        start = join(join(initial.to(client.device), params), own)
        model.load_buffers(client.local_buffers)
        local = client.sgd(start, model=model, hooks=Hooks(objective=self.objective(frame)), **self.local(client))
        if client.model.stateful:
            client.memory["_buffers"] = model.local_buffers()
        client.memory["head"] = {name: local.params[name].clone() for name in own}
        return Update(delta=take(local.params, params.layout) - params, loss=local.loss, weight=client.num_samples)

    def objective(self, frame: Tensor) -> Objective:
        """Return the sum of the three losses, in which the heads' features are constants."""
        rate = self.head_rate

        def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            h, layer = features(module, x), head(module)
            fixed = h.detach()
            weight, bias = cast("Tensor", layer.own_weight), cast("Tensor", layer.own_bias)
            own = F.linear(fixed.to(layer.weight.dtype), weight, bias).float()
            heads = F.cross_entropy(scored(module, fixed), y) + F.cross_entropy(own, y)
            return F.cross_entropy(h @ frame.T, y) + rate * heads

        return objective

    def model(self, state: FedLoGeState) -> Params:
        """Return the backbone with the head selected by `judge`."""
        params, weight = state.params, f"{state.head}.weight"
        if self.judge == "frame":
            return join(params, {weight: state.frame, f"{state.head}.bias": params[f"{state.head}.bias"] * 0.0})
        return params if self.judge == "raw" else join(params, {weight: realigned(params[weight], self.scale, self.power)})

    def personal(self, state: FedLoGeState, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Send the backbone and the global head as it was trained."""
        return [(state.params, clients)]

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Join both heads, which are linear in the same features; the client's absent classes never win."""
        name = head_name(client.model.module)
        weight, bias = f"{name}.weight", f"{name}.bias"
        counts = client.train.class_counts(client.problem)
        missing, kept = FAR * (counts == 0).float(), client.memory.get("head")
        if kept is None:  # a client that never trained
            return join(message, {bias: message[bias] - missing})
        own, own_bias = kept[f"{name}.own_weight"], kept[f"{name}.own_bias"]
        adapted = self.tuned(client, join(message, {weight: localised(message[weight], own)}))[weight]
        return join(message, {weight: adapted + own, bias: own_bias - missing})

    def tuned(self, client: Client, params: Params) -> Params:
        """Train the head of `params` without its bias for `tuning_epochs`."""
        if not self.tuning_epochs:
            return params

        def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(features(module, x).detach() @ head(module).weight.float().T, y)

        options = self.local(client) | {"epochs": self.tuning_epochs}
        return client.sgd(params, hooks=Hooks(objective=objective), **options).params
