"""FedGELA ("Federated Learning with Bilateral Curation for Partially Class-Disjoint Data", NeurIPS 2023,
arXiv 2405.18972): one fixed simplex frame as the classifier of all clients, scaled by each client's class frequencies.

    M = sqrt(C / (C - 1)) U (I - 11'/C),  U orthonormal columns [d, C]:  unit vectors, pairwise inner product -1/(C - 1)
    psi_{k,c} = C n_{k,c} / n_k;   a client trains the backbone on CE(h (M diag(psi_k)) / T, y)
    theta = sum_k n_k theta_k / sum_k n_k;   global logits h M, personal ones h M diag(psi_k), absent classes excluded

The server sees the weighted sum of backbones. Class counts never leave a client. Clients store no state: a personal
model is the global one after local training, evaluated with psi_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.architectures import architectures, frozen
from paceline.blocks.etf import frame
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.prototypes import FAR
from paceline.core.client import Client, ClientData, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.personalisation.ownmodels import clipped
from paceline.models.split import features, head, head_name, join, take


def stretch(counts: Tensor, power: float = 1.0) -> Tensor:
    """Return psi from class counts [C]: C n_c^q / sum n_c^q; 0 for absent classes."""
    share = torch.where(counts > 0, (counts / counts.sum()).double() ** power, 0.0)
    return (len(counts) * share / share.sum()).float()


@dataclass(frozen=True)
class FedGELA(LocalTraining):
    """A fixed simplex classifier, scaled by local class frequencies.

    Args:
        temperature: T, used in training only.
        power: q of psi; 1 follows the counts, 0 weights present classes equally.
        feature_norm: ``none`` does not normalise features (the model may end in BatchNorm); ``l2`` scales them to length
            sqrt(energy).
        energy: E_H, squared length of normalised features.
        clip: maximum gradient norm; 0 disables clipping.
        stretched: scale the classifier by psi; False trains on the plain frame.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "arXiv 2405.18972 (NeurIPS 2023)"
    sends_model: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    headline: ClassVar[str] = "3.9 % above FedAvg and 1.5 % above the best baseline on partially class-disjoint data"

    epochs: Positive[int] = 10
    momentum: Share = 0.9
    weight_decay: NonNegative[float] = 1e-4
    temperature: Positive[float] = 1.0
    power: NonNegative[float] = 1.0
    feature_norm: Literal["none", "l2"] = "none"
    energy: Positive[float] = 1.0
    clip: NonNegative[float] = 20.0
    stretched: bool = True

    def check(self, fed: Federation) -> list[str]:
        """Require features at least as wide as the number of classes."""
        try:
            layer = head(architectures(fed).resident().module)
        except ConfigError as error:
            return [str(error)]
        if layer.in_features >= layer.out_features:
            return frozen(fed, "fedgela", ("head", "body"))
        return [f"fedgela needs features of at least {layer.out_features} numbers, one for each class, not {layer.in_features}"]

    def init(self, fed: Federation) -> State:
        """Replace the weights of the model's head by the frame."""
        module, params = architectures(fed).resident().module, fed.init_params()
        layer, name = head(module), head_name(module)
        parts = {f"{name}.weight": frame(layer.in_features, layer.out_features, fed.seed).T}
        if layer.bias is not None:
            parts[f"{name}.bias"] = torch.zeros(layer.out_features)
        return State(params=join(params, parts))

    def round(self, fed: Federation, state: State) -> State:
        """Average the cohort's backbones."""
        body = take(state.params, architectures(fed).body().layout)
        mean = fed.mean(self.train, (body, fed.seed), over=fed.sample())
        return State(params=join(state.params, body + mean.delta))

    @on_client
    def train(self, client: Client, message: tuple[Params, int]) -> Update:
        """Train the backbone with the scaled frame as classifier."""
        body, seed = message
        layer = head(client.model.module)
        trained = self.fit(client, body, frame(layer.in_features, layer.out_features, seed).to(client.device))
        return Update(delta=trained - body, weight=client.num_samples)

    def fit(self, client: Client, body: Params, frame: Tensor) -> Params:
        """Return the backbone after local training."""
        classifier, represent = frame * self.psi(client) / self.temperature, self.represent

        def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(represent(module, x) @ classifier, y)

        hooks = Hooks(objective=objective, correct=clipped(self.clip))
        return client.sgd(body, model=architectures(client).body(), hooks=hooks, **self.local(client)).params

    def represent(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the features, normalised for ``feature_norm=l2``."""
        h = features(module, x)
        return math.sqrt(self.energy) * F.normalize(h) if self.feature_norm == "l2" else h

    def psi(self, client: Client) -> Tensor:
        """Return this client's scale of each class, shape [C]; 1 if it has no samples at all."""
        counts = client.train.class_counts(client.problem)
        return stretch(counts, self.power) if self.stretched and bool(counts.any()) else torch.ones_like(counts).float()

    def assess(self, client: Client, message: Params, data: ClientData) -> dict[str, Any]:
        """Evaluate the global backbone after local training, with psi and without the classes absent on this client."""
        model, psi = architectures(client).body(), self.psi(client)
        frame = message[f"{head_name(model.module)}.weight"].T
        body = self.fit(client, take(message, model.layout), frame)
        classifier, missing = frame * psi, FAR * (psi == 0).float()
        return client.evaluate(body, data, model=model, outputs=lambda m, x: self.represent(m, x) @ classifier - missing)
