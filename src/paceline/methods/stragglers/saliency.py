"""Summed saliency: stragglers keep the units that matter to all clients, the idea of SSFL (Ohib et al., "SSFL: Discovering Sparse
Unified Subnetworks at Initialization for Efficient Federated Learning", 2024), which computes one mask for all clients, once.

Every few rounds the clients form a secure mean of the saliencies of all units, each client's as a part of its layer's largest:

    s_j = sum over bundle(j) of |gradient * weight|;  keep the p n_l highest of each layer

The gradient is that of the loss on all training samples. The mask of a width is the same for all stragglers, so smaller models
are nested in larger ones. The server sees sums of updates and of saliencies. A client stores its times and the saliencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import Positive, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.submodels.select import Rank, select
from paceline.submodels.service import submodels


@node
class SaliencyState(State):
    """The model, and the mean saliency of each unit, by group; empty before the first round."""

    saliency: dict[str, Tensor]


@dataclass(frozen=True)
class Saliency(SelfPruning):
    """Slow clients train the part of the network that is most salient for all.

    Args:
        every: rounds between two sums of saliencies.
    """

    paper: ClassVar[str] = "Ohib et al., arXiv 2405.09037"
    headline: ClassVar[str] = "on CIFAR-10 a fifth fewer errors than the best sparse rival, at half of the dense traffic"
    differs: ClassVar[str] = "only stragglers drop, and whole units; saliencies are summed again every few rounds, not once"
    reveals: ClassVar[str] = "sums of updates and of saliencies"
    client_state: ClassVar[str] = "its times and the mean saliencies"

    every: Positive[int] = 10

    def check(self, fed: Federation) -> list[str]:
        """Return the options that do not fit."""
        segments = "segmented=true needs scores that clients can compute themselves, and saliencies are of all clients; use clip"
        return super().check(fed) + [segments] * self.segmented

    def init(self, fed: Federation) -> State:
        """Start without saliencies."""
        return SaliencyState(params=fed.init_params(), saliency={})

    def round(self, fed: Federation, state: State) -> State:
        """Sum saliencies if they are due; train, and average the updates."""
        assert isinstance(state, SaliencyState)
        cohort, mean = fed.sample(), state.saliency
        if not mean or self.due(fed.round):
            mean = dict(fed.mean(self.rate, state.params, over=cohort, deadline=math.inf).saliency)
        update = fed.mean(self.train, (state.params, mean), over=cohort, deadline=self.waits(fed))
        return replace(state, params=state.params + self.server_lr * update.delta, saliency=mean)

    def due(self, round: int) -> bool:
        """Return whether saliencies are summed in a round."""
        return (round - 1) % self.every == 0

    def is_open(self, round: int) -> bool:
        """Return whether all clients take part: also where saliencies are summed, as such a sum is not repeated without some of them."""
        return super().is_open(round) or self.due(round)

    @on_client(bounds={"saliency": 1.0})
    def rate(self, client: Client, message: Params) -> Update:
        """Return the saliency of each unit, as a part of the largest in its layer."""
        scorer = submodels(client).scorer
        sums = scorer.total(client.gradient(message) * message) if client.num_samples else scorer.total(message.zeros())
        return Update(saliency={g: s / s.max().clamp(min=1e-30) for g, s in sums.items()}, weight=client.num_samples)

    @on_client(peer_record="report")
    def train(self, client: Client, message: Any) -> Update:
        """Train the full model, or its most salient part; the message is the model and the mean saliencies."""
        params, client.memory["saliency"] = message
        return super().train(client, params)

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Keep the units with the highest saliencies; of equal ones, those with the lowest numbers."""
        return select(client.memory["saliency"], counts, torch.Generator(), by=Rank())
