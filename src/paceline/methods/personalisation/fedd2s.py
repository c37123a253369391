"""FedD2S as published ("FedD2S: Personalized Data-Free Federated Knowledge Distillation", arXiv 2402.10846, 2024).

    client:  trains with the soft labels y_g of its own samples;   uploads h^l, y and softmax(c^l(h^l) / T) of up to q samples
    server:  trains G^l on all of them;   y_g = softmax(G^l(h^l) / T)

`MutualDistillation` has the losses and the depth l of each round. The server sees features of single samples; with
``knowledge=classes`` each client's class means. A client stores its network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from paceline.blocks.knowledge import DepthKnowledge, SoftLabels, represent
from paceline.core.client import Client
from paceline.core.federation import Federation, WithOwn
from paceline.core.method import Positive, on_client
from paceline.methods.personalisation.mutualdistillation import D2SState, MutualDistillation


@dataclass(frozen=True)
class FedD2S(MutualDistillation):
    """The published form: the server trains on what each client sends.

    Args:
        knowledge: features of single ``samples``, or each client's means of ``classes``.
        samples: q, largest number of samples that a client sends.
    """

    reveals: ClassVar[str] = "features and soft labels of single samples, or every client's class means"
    sum_only: ClassVar[str] = "fedd2ssum"

    knowledge: Literal["samples", "classes"] = "samples"
    samples: Positive[int] = 256

    def round(self, fed: Federation, state: D2SState) -> D2SState:
        """Collect features and soft labels, train on them, and store the answers of the server."""
        depth, cohort, single = self.now(fed), fed.sample(), self.knowledge == "samples"
        none = SoftLabels.none(self.samples if single else 0, state.classes.scores.shape[1])
        own = {client: state.own.get(client, none) for client in cohort}
        replies = fed.each(self.train, (depth, none if single else state.classes), over=cohort, each_message=own)
        fed.last.notes["depth"] = float(depth)
        sound = {c: told for c, told in sorted(replies.items()) if bool(torch.isfinite(told.features).all()) and len(told.classes)}
        if not sound:
            return state
        told = DepthKnowledge.joined(list(sound.values()))
        params, scores = self.teach(fed, state, depth, told)
        if not single:
            return replace(state, params=params, classes=state.classes.renewed(told, scores, fed.round, self.temperature))
        parts = zip(sound.items(), torch.split(scores, [len(one.classes) for one in sound.values()]), strict=True)
        fresh = {client: SoftLabels.of_samples(one.keys, part, fed.round, self.samples) for (client, one), part in parts}
        return replace(state, params=params, own={**state.own, **fresh})

    @on_client(each=True)
    def train(self, client: Client, message: WithOwn[tuple[int, SoftLabels], SoftLabels]) -> DepthKnowledge:
        """Train; return features and soft labels of some samples, or their means by class."""
        depth, common = message["all"]
        if self.knowledge == "classes":
            return self.class_means(client, depth, common).means()
        model, params = self.learn(client, depth, message["own"], by_class=False)
        keys = torch.randperm(client.num_samples, generator=client.stream("upload"))[: self.samples].sort().values
        client.flops += model.flops * len(keys)
        h, y, soft = represent(model, params, depth, client.train.part(keys), self.temperature)
        return DepthKnowledge(h, y, soft, torch.ones_like(y, dtype=h.dtype), keys)
