"""Common part of both forms of FedD2S ("FedD2S: Personalized Data-Free Federated Knowledge Distillation", arXiv 2402.10846, 2024).

Clients and server teach each other by features and soft labels of one depth, and the deepest shared blocks are withdrawn one
after the other, so that they become personal.

With h^l the output of block l of a client's network, c^l a linear classifier on it, G^l the server's network from there on, and
l(t) = max(l_min, L - floor(t / R_d)):

    client:  L = CE(f(x), y) + lambda_1 T^2 KL(y_g || softmax(c^l(h^l) / T)) + lambda_2 CE(c^l(h^l), y)
             uploads h^l, y and s = softmax(c^l(h^l) / T)
    server:  L_G = CE(G^l(h^l), y) + mu T^2 KL(s || softmax(G^l(h^l) / T));   y_g = softmax(G^l(h^l) / T) for the next training

G^l consists of the layers above block l and of G^L, so it begins with what the server has learnt at larger depths.

`FedD2S` is the published form, `FedD2SSum` needs sums only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor

from paceline.blocks.architectures import architectures
from paceline.blocks.depths import TappedChain, UpperNetworks
from paceline.blocks.knowledge import ClassKnowledge, DepthKnowledge, SoftLabels, learning_from, represent, teaching
from paceline.blocks.server_data import as_client
from paceline.core.client import AdamW, Client, ClientData, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State
from paceline.core.params import Params, Resident
from paceline.core.tree import node
from paceline.methods.personalisation.ownmodels import OwnModels


@node
class D2SState(State):
    """The server's networks; soft labels of each class, and of each client's own samples."""

    classes: SoftLabels
    own: dict[int, SoftLabels] = field(default_factory=dict)


@dataclass(frozen=True)
class MutualDistillation(OwnModels[D2SState]):
    """Common part of both forms: distillation at one depth, at clients and server.

    Args:
        distill: lambda_1, weight of the server's soft labels.
        tap_weight: lambda_2, weight of the labels for the classifier at the depth.
        mutual: mu, weight of the clients' soft labels at the server.
        temperature: T.
        period: R_d, rounds between two withdrawals; None is `planned` / (2 (L - 1)); 0 never withdraws a block.
        planned: R, rounds that are planned.
        least: l_min, blocks that are never withdrawn.
        dropped: the blocks that are withdrawn, the deepest first; all above `least` by default.
        fade: factor of a soft label's weight for each round that it is old.
        server_lr, server_epochs, server_batch_size: of the server's training, by Adam.
    """

    paper: ClassVar[str] = "arXiv 2402.10846 (2024)"
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    changes_model: ClassVar[bool] = True
    headline: ClassVar[str] = (
        "more accurate personal models than federated baselines, faster and with less difference between clients"
    )

    lr: NonNegative[float] | None = 0.01
    epochs: Positive[int] = 2
    batch_size: Positive[int] | None = 32
    momentum: Share = 0.9
    distill: NonNegative[float] = 1.0
    tap_weight: NonNegative[float] = 0.5
    mutual: NonNegative[float] = 1.0
    temperature: Positive[float] = 2.0
    period: NonNegative[int] | None = None
    planned: Positive[int] = 100
    least: Positive[int] = 2
    dropped: tuple[int, ...] = ()
    fade: Share = 0.9
    server_lr: NonNegative[float] = 1e-3
    server_epochs: Positive[int] = 5
    server_batch_size: Positive[int] = 64

    def check(self, fed: Federation) -> list[str]:
        """Require chains of blocks whose features have the same shapes."""
        try:
            shapes = {text: self.chain(fed, text).shapes[self.least - 1 :] for text in self.models or ("",)}
        except ConfigError as error:
            return [str(error)]
        blocks = min(len(self.chain(fed, text).ends) for text in self.models or ("",))
        if any(not self.least < block <= blocks for block in self.dropped):
            return [f"{self.slug()}: dropped={list(self.dropped)} must be blocks above least={self.least}; the deepest is {blocks}"]
        same = len({repr(found) for found in shapes.values()}) == 1
        return ([] if same else [f"features of the architectures have different shapes: {shapes}"]) + self.lost(fed)

    def tapped(self, place: Client | Federation, text: str) -> tuple[Resident, Params]:
        """Return the module of an architecture with classifiers at all depths, and its initial parameters."""
        return architectures(place).extended(text, TappedChain, self.least)

    def chain(self, fed: Federation, text: str) -> TappedChain:
        """Return the module alone."""
        return cast(TappedChain, self.tapped(fed, text)[0].module)

    def own(self, client: Client) -> tuple[Resident, Params]:
        """Return, on a client, its module with classifiers at all depths, and its parameters."""
        model, initial = self.tapped(client, client.assigned(self.models or ("",)))
        kept = client.memory.get("network")
        return model, initial.to(model.device) if kept is None else kept

    def depth(self, after: int, blocks: int) -> int:
        """Return l(t), the depth of a round.

        Args:
            after: t, completed rounds.
            blocks: L, number of blocks.
        """
        period = max(1, self.planned // (2 * max(blocks - 1, 1))) if self.period is None else self.period
        dropped = sorted(self.dropped or range(blocks, self.least, -1), reverse=True)[: after // period if period else 0]
        return max(set(range(1, blocks + 1)) - set(dropped), default=1)

    def now(self, fed: Federation) -> int:
        """Return the depth of this round."""
        return self.depth(fed.round - 1, len(self.chain(fed, (self.models or ("",))[0]).ends))

    def upper(self, fed: Federation) -> tuple[Resident, Params]:
        """Return the server's module, and its initial parameters."""
        return architectures(fed).extended((self.models or ("",))[0], UpperNetworks, self.least)

    def init(self, fed: Federation) -> D2SState:
        """Start with untrained networks of the server, and no soft labels."""
        classes, _ = self.shape(fed)
        return D2SState(params=self.upper(fed)[1], classes=SoftLabels.none(classes, classes))

    def learn(self, client: Client, depth: int, taught: SoftLabels, by_class: bool) -> tuple[Resident, Params]:
        """Train the client's network; return the module and its parameters.

        Args:
            client: the client.
            depth: l.
            taught: soft labels; their keys are classes, or positions in the client's samples.
            by_class: which of both.
        """
        (model, params), data = self.own(client), client.train
        if not isinstance(data.x, Tensor) or not isinstance(data.y, Tensor):
            raise ConfigError(f"{self.slug()} requires one tensor of inputs and one of targets in memory")
        weight, keys = taught.weights(client.round, self.fade), taught.keys
        if not by_class and len(data):
            keys = torch.where(weight > 0, data.index[keys.clamp(max=len(data) - 1)], -1)
        objective = learning_from(
            client.problem.loss, depth, (keys, taught.scores, weight), by_class, self.distill, self.tap_weight, self.temperature
        )
        numbered = ClientData(data.x, (data.y, torch.arange(len(data.y), device=data.device)), data.known, data.device)
        trained = client.sgd(params, model=model, data=numbered, hooks=Hooks(objective=objective), **self.local(client))
        self.keep(client, trained.params)
        return model, trained.params

    def class_means(self, client: Client, depth: int, taught: SoftLabels) -> ClassKnowledge:
        """Train; return the sums of features and soft labels of each class."""
        model, params = self.learn(client, depth, taught, by_class=True)
        client.flops += model.flops * client.num_samples
        return ClassKnowledge.of(*represent(model, params, depth, client.train, self.temperature))

    def teach(self, fed: Federation, state: D2SState, depth: int, told: DepthKnowledge) -> tuple[Params, Tensor]:
        """Train G^l; return the server's parameters and its scores of everything that it received, [R, C]."""
        model, size = self.upper(fed)[0], self.server_batch_size
        believed = self.temperature * told.soft.clamp(min=1e-12).log()
        targets = (told.classes, believed, told.weights / told.weights.mean())
        params = (
            as_client(fed, told.features, targets, "distillation")
            .sgd(
                state.params,
                model=model,
                optimizer=AdamW(self.server_lr),
                hooks=Hooks(objective=teaching(depth, self.mutual, self.temperature)),
                epochs=self.server_epochs,
                batch_size=size,
                alone=True,
            )
            .params
        )
        model.load(params)
        model.module.eval()
        with torch.no_grad():
            parts = [model.module(h.to(model.device), depth).cpu() for h in torch.split(told.features, size)]
        return params, torch.cat(parts)
