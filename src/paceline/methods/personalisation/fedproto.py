"""FedProto (Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022).

    client:  L = CE(h(f(x)), y) + lambda / (B d) * sum_i |f(x_i) - P_{y_i}|^2   over classes with a global prototype
    server:  P_c = sum_m sum of features of class c / sum_m n_{m,c}

The server sees sums of features and counts by class. A client stores its network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.prototypes import ClassSums, nearest
from paceline.core.client import Client, ClientData, Hooks
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, on_client
from paceline.core.params import Params
from paceline.core.tree import Tree, node
from paceline.methods.personalisation.ownmodels import OwnModels, named
from paceline.models.split import features, scored


@node
class ProtoState:
    """Global prototypes, shape [C, d], and which classes have one, shape [C]."""

    prototypes: Tensor
    known: Tensor


@dataclass(frozen=True)
class FedProto(OwnModels[ProtoState]):
    """Exchange class prototypes, averaged over clients, instead of models.

    Args:
        strength: lambda, weight of the distance to the global prototypes.
        predict: by the nearest global ``prototype`` (as published) or by the client's own ``head``.
    """

    paper: ClassVar[str] = "Tan et al., AAAI 2022"
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    headline: ClassVar[str] = "outperforms several baselines on heterogeneous data and networks, uploading one vector per class"
    reveals: ClassVar[str] = "class sums of features"

    strength: NonNegative[float] = 1.0
    predict: Literal["prototype", "head"] = "prototype"

    def init(self, fed: Federation) -> ProtoState:
        """Start without prototypes."""
        classes, width = self.shape(fed)
        return ProtoState(prototypes=torch.zeros(classes, width), known=torch.zeros(classes, dtype=torch.bool))

    def round(self, fed: Federation, state: ProtoState) -> ProtoState:
        """Replace the prototypes of all classes present in the cohort."""
        total = fed.sum(self.train, state, over=fed.sample())
        seen = total.present
        return ProtoState(prototypes=torch.where(seen.unsqueeze(1), total.means(), state.prototypes), known=seen | state.known)

    @on_client(bounds={"sums": math.inf})
    def train(self, client: Client, message: ProtoState) -> ClassSums:
        """Train with the prototype loss; return the class sums of the trained network's features."""
        model, params = self.own(client)
        centres, known, strength = message.prototypes, message.known.float(), self.strength

        def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            f = features(module, x)
            pull = ((f - centres[y]).square().mean(1) * known[y]).mean()
            return F.cross_entropy(scored(module, f), y) + strength * pull

        trained = client.sgd(params, model=model, hooks=Hooks(objective=objective), **self.local(client))
        self.keep(client, trained.params)
        return self.class_sums(client, model, trained.params)

    def model(self, state: ProtoState) -> Params:
        """Return the shared prototypes as named parameters."""
        return named(prototypes=state.prototypes)

    def personal(self, state: ProtoState, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Send the prototypes to all clients."""
        return [(state, clients)]

    def assess(self, client: Client, message: ProtoState, data: ClientData) -> dict[str, Any]:
        """Evaluate the client's network by the nearest prototype, or with its head."""
        model, params = self.own(client)
        if self.predict == "head":
            return client.evaluate(params, data, model=model)
        return client.evaluate(
            params, data, model=model, outputs=lambda m, x: nearest(features(m, x), message.prototypes, message.known)
        )
