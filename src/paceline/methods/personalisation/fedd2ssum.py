"""FedD2S ("FedD2S: Personalized Data-Free Federated Knowledge Distillation", arXiv 2402.10846, 2024) from sums only.

    client:  trains with the soft labels y_g of its classes;   uploads sums of h^l and softmax(c^l(h^l) / T), and counts, by class
    server:  trains G^l on the means of each class;   y_g = softmax(G^l(h^l) / T)

`MutualDistillation` has the losses and the depth l of each round. The server sees sums of features and soft labels by class.
A client stores its network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from paceline.blocks.knowledge import ClassKnowledge, SoftLabels
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.methods.personalisation.mutualdistillation import D2SState, MutualDistillation


@dataclass(frozen=True)
class FedD2SSum(MutualDistillation):
    """The sum-only form: the server trains on the class means of the whole cohort."""

    reveals: ClassVar[str] = "sums of features and soft labels by class"

    def round(self, fed: Federation, state: D2SState) -> D2SState:
        """Sum features and soft labels by class, and train on their means."""
        depth = self.now(fed)
        told = fed.sum(self.train, (depth, state.classes), over=fed.sample()).means()
        fed.last.notes["depth"] = float(depth)
        if not len(told.classes):
            return state
        params, scores = self.teach(fed, state, depth, told)
        return replace(state, params=params, classes=state.classes.renewed(told, scores, fed.round, self.temperature))

    @on_client(bounds={"sums": 256.0, "soft": 256.0})
    def train(self, client: Client, message: tuple[int, SoftLabels]) -> ClassKnowledge:
        """Train; return the sums of features and soft labels of each class."""
        return self.class_means(client, *message)
