"""FedSA ("FedSA: A Unified Representation Learning via Semantic Anchors for Prototype-based Federated Learning",
AAAI 2025, arXiv 2501.05496): clients of any architecture train their features towards one common anchor per class.

With features f, head h, anchors A [C, d] and margin g, a client minimises CE(h(f), y) plus
    lambda_R    mean |f - A_y|^2 / d                                            (pull)
    lambda_MCL  CE(-delta, y),  delta_c = |f - A_c| + g [c = y]                 (margin contrast)
    lambda_CC   mean_c CE(h(A_c), c), over all classes                          (calibration of the head)
    g = max(gap(own class means of the last round), gap(A)),  gap(X) = mean_c min_{c' != c} |X_c - X_c'|
The server, with P_c the mean of the class means of the cohort's clients that have class c:
    A_c <- beta A_c + (1 - beta) P_c;   A^0 is a random two-layer projection of Gaussian rows

The server sees sums of class means and how many clients have each class. A client stores its network and its class
means, which are computed after training, in one pass; the reference averages features during training, which stateless
hooks cannot do. The cap on g is our addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.prototypes import ClassSums, distances, nearest
from paceline.core.client import Client, ClientData, Hooks
from paceline.core.federation import Federation
from paceline.core.hooks import Objective
from paceline.core.method import NonNegative, Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.random import derive
from paceline.core.tree import Tree, node
from paceline.methods.personalisation.ownmodels import OwnModels, named
from paceline.models.split import features, scored


@node
class ClassAnchorState:
    """Current and initial anchors, the last prototype of each class (all [C, d]), and which classes have had one ([C])."""

    anchors: Tensor
    first: Tensor
    prototypes: Tensor
    known: Tensor


def gap(rows: Tensor) -> float:
    """Return the mean distance of a row to its nearest other row; -inf for fewer than two rows."""
    if len(rows) < 2:
        return -math.inf
    far = distances(rows, rows) + torch.diag(rows.new_full((len(rows),), torch.inf))
    return float(far.min(1).values.mean())


def pull(f: Tensor, anchors: Tensor, y: Tensor) -> Tensor:
    """Return L_R, the mean squared difference to the anchor of the own class."""
    return (f - anchors[y]).square().mean()


def contrast(f: Tensor, anchors: Tensor, y: Tensor, margin: Tensor | float) -> Tensor:
    """Return L_MCL: cross-entropy of negative distances, with the margin added to that of the true class."""
    own = (y.unsqueeze(1) == torch.arange(len(anchors), device=y.device)).float()
    return F.cross_entropy(-(distances(f, anchors) + margin * own), y)


def projected(classes: int, width: int, seed: int) -> Tensor:
    """Return A^0, shape [classes, width]: Gaussian rows through Linear, BatchNorm over the rows and ReLU, twice."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive(seed, "anchors"))
        layers = [m for _ in range(2) for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())]
        out: Tensor = nn.Sequential(*layers)(torch.randn(classes, width))
    return out


@dataclass(frozen=True)
class FedSA(OwnModels[ClassAnchorState]):
    """Train features towards common semantic anchors.

    Args:
        pull, contrast, calibration: lambda_R, lambda_MCL and lambda_CC.
        beta: momentum of the anchors; 1 - beta is the weight of new prototypes.
        begin: initial anchors: ``projected`` (non-negative, for features that end in ReLU) or ``normal``.
        weighted: weight class means by samples, instead of equally per client.
        least: samples of a class that a client needs before it sends the class mean; 2 protects single samples.
        predict: by the nearest ``prototype`` (as published), the nearest ``anchor`` or the client's ``head``.
    """

    paper: ClassVar[str] = "arXiv 2501.05496 (AAAI 2025)"
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    headline: ClassVar[str] = "outperforms prototype methods such as FedProto and FedTGP, uploading one vector per class"
    reveals: ClassVar[str] = "sums of class means"
    client_state: ClassVar[str] = "its own network and class means"

    pull: NonNegative[float] = 1.0
    contrast: NonNegative[float] = 1.0
    calibration: NonNegative[float] = 1.0
    beta: Share = 0.9999
    begin: Literal["projected", "normal"] = "projected"
    weighted: bool = False
    least: Positive[int] = 1
    predict: Literal["prototype", "anchor", "head"] = "prototype"

    def init(self, fed: Federation) -> ClassAnchorState:
        """Draw the initial anchors."""
        classes, width = self.shape(fed)
        anchors = projected(classes, width, fed.seed)
        if self.begin == "normal":
            drawn = torch.Generator().manual_seed(derive(fed.seed, "anchors"))
            anchors = F.normalize(torch.randn(classes, width, generator=drawn))
        return ClassAnchorState(anchors, anchors, torch.zeros_like(anchors), torch.zeros(classes, dtype=torch.bool))

    def round(self, fed: Federation, state: ClassAnchorState) -> ClassAnchorState:
        """Train the cohort towards the anchors, and move the anchors towards its prototypes."""
        total = fed.sum(self.train, (state.anchors, 10 * gap(state.first)), over=fed.sample())
        seen, means = total.present.unsqueeze(1), total.means()
        anchors = torch.where(seen, self.beta * state.anchors + (1 - self.beta) * means, state.anchors)
        fed.last.notes["anchor_shift"] = float(torch.linalg.vector_norm(anchors - state.first))
        prototypes = torch.where(seen, means, state.prototypes)
        return ClassAnchorState(anchors, state.first, prototypes, state.known | total.present)

    @on_client(bounds={"sums": math.inf})
    def train(self, client: Client, message: tuple[Tensor, float]) -> ClassSums:
        """Train with the three auxiliary terms; return the class means."""
        anchors, cap = message
        model, params = self.own(client)
        mine = client.memory.get("means")
        margin = min(max(0.0 if mine is None else gap(mine), gap(anchors)), cap)
        trained = client.sgd(params, model=model, hooks=Hooks(objective=self.objective(anchors, margin)), **self.local(client))
        self.keep(client, trained.params)
        found = self.class_sums(client, model, trained.params)
        client.memory["means"] = found.means()[found.present]
        enough = (found.counts >= self.least).long()
        told = ClassSums(found.sums * enough.unsqueeze(1), found.counts * enough)
        return told if self.weighted else told.unweighted()

    def objective(self, anchors: Tensor, margin: float) -> Objective:
        """Return the local objective; terms of weight 0 are omitted."""
        classes = torch.arange(len(anchors), device=anchors.device)

        def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            f = features(module, x)
            loss = F.cross_entropy(scored(module, f), y)
            if self.pull:
                loss = loss + self.pull * pull(f, anchors, y)
            if self.contrast:
                loss = loss + self.contrast * contrast(f, anchors, y, margin)
            if self.calibration:
                loss = loss + self.calibration * F.cross_entropy(scored(module, anchors), classes)
            return loss

        return objective

    def model(self, state: ClassAnchorState) -> Params:
        """Return the shared anchors and prototypes as named parameters."""
        return named(anchors=state.anchors, prototypes=state.prototypes)

    def personal(self, state: ClassAnchorState, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Send anchors and prototypes to all clients."""
        return [(state, clients)]

    def assess(self, client: Client, message: ClassAnchorState, data: ClientData) -> dict[str, Any]:
        """Evaluate the client's network with the classifier selected by `predict`."""
        model, params = self.own(client)
        if self.predict == "head":
            return client.evaluate(params, data, model=model)
        by_anchor = self.predict == "anchor"
        centres = message.anchors if by_anchor else message.prototypes
        known = torch.ones_like(message.known) if by_anchor else message.known
        return client.evaluate(params, data, model=model, outputs=lambda m, x: nearest(features(m, x), centres, known))
