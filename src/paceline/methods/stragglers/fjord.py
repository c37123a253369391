"""FjORD's ordered dropout (Horvath et al., "FjORD: Fair and Accurate FL under heterogeneous targets", NeurIPS 2021).

A client of width p trains the first floor(p n_l) units of each layer, so that smaller models are nested in larger
ones. By default only stragglers shrink, with a fixed p (as in the comparison); ``nested=True`` is the full method, in
which every client draws p for each batch from the tiers up to its own.
The server sees sums. A client stores its times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client, LocalOptions
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.submodels.cut import TIERS
from paceline.submodels.service import submodels, train_submodel


@dataclass(frozen=True)
class Fjord(SelfPruning):
    """Slow clients train the leading part of the network.

    Args:
        nested: every client draws a width for each batch, up to its own; batches are drawn with replacement across steps,
            and momentum is not carried over.
    """

    paper: ClassVar[str] = "Horvath et al., NeurIPS 2021"
    headline: ClassVar[str] = "far above its baselines on CNNs and RNNs, with small models nested in the large one"
    nested: bool = False

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Select the first units."""
        return {group: torch.arange(count) for group, count in counts.items()}

    @on_client(peer_record="report")
    def train(self, client: Client, message: Params) -> Update:
        """Train with a fixed width, or with one drawn for each batch."""
        if not self.nested:
            return super().train(client, message)
        p = client.memory["fraction"] = self.fraction(client) or self.smallest
        client.memory["trained"] = client.round
        tiers = [t for t in TIERS if self.smallest <= t <= p]
        size = self.batch_size or client.problem.batch_size
        options: LocalOptions = {**self.local(client), "steps": 1}
        params, draws, hooks = message, client.stream("widths"), self.hooks(client, message)
        for _ in range(self.epochs * -(-client.num_samples // size)):
            width = tiers[int(torch.randint(len(tiers), (), generator=draws))]
            params = params + train_submodel(client, params, submodels(client).cutter.first(width), hooks=hooks, **options)
        mask = submodels(client).cutter.first(p).mask()
        if self.merge == "masked":
            return Update(delta=params - message, kept=p, weight={"delta": mask * float(client.num_samples), "kept": 1})
        return Update(delta=params - message, kept=p, weight=client.num_samples)
