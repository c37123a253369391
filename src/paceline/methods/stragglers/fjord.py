"""FjORD's ordered dropout on stragglers alone, as its rivals compare with it; ``nested=True`` is the method as published
(Horvath et al., "FjORD: Fair and Accurate FL under heterogeneous targets", NeurIPS 2021), without its self-distillation.

A client of width p trains the first floor(p n_l) units of each layer, so that smaller models are nested in larger ones.
With ``nested``, every client draws a width for each batch from the tiers up to its own, and each coordinate is averaged
over the clients whose own width covers it. By default only stragglers shrink, with a fixed p, and the mean is that of CLIP.
The server sees sums, and with ``nested`` those of weights per coordinate. A client stores its times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client, LocalOptions
from paceline.core.params import Params
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.submodels.cut import TIERS
from paceline.submodels.service import submodels, train_submodel


@dataclass(frozen=True)
class Fjord(SelfPruning):
    """Slow clients train the leading part of the network.

    Args:
        nested: every client draws a width for each batch, up to its own; batches are drawn with replacement across steps,
            and momentum is not carried over. The merge is then ``masked`` unless `merge` says otherwise.
    """

    paper: ClassVar[str] = "Horvath et al., NeurIPS 2021"
    headline: ClassVar[str] = "far above its baselines on CNNs and RNNs, with small models nested in the large one"
    differs: ClassVar[str] = "only stragglers shrink, with a fixed width; nested=true is the published method, without distillation"
    nested: bool = False

    @property
    def masked(self) -> bool:
        """Whether the mean of a coordinate is over the clients that trained it."""
        return self.merge == "masked" or (self.nested and self.merge is None)

    def widths(self, p: float) -> list[float]:
        """Return the widths that a client of width p draws from."""
        return [t for t in TIERS if self.smallest <= t <= p]

    def cost(self, client: Client, p: float) -> float:
        """Return the expected work of a round at p, relative to that at p = 1."""
        return self._drawn(client, self.widths(p)) if self.nested else super().cost(client, p)

    def _drawn(self, client: Client, widths: list[float]) -> float:
        one = submodels(client).cost
        return fmean(map(one, widths)) / fmean(map(one, self.widths(1.0)))

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Select the first units."""
        return {group: torch.arange(count) for group, count in counts.items()}

    def fraction(self, client: Client) -> float:
        """Return p for this round; a client that draws widths never skips a round."""
        return super().fraction(client) or (self.smallest if self.nested else 0.0)

    def fit(
        self, client: Client, params: Params, p: float, units: Callable[[dict[str, int]], dict[str, Tensor]]
    ) -> tuple[Params, Params]:
        """Train with a fixed width, or with one drawn for each batch."""
        if not self.nested:
            return super().fit(client, params, p, units)
        tiers, drawn, start = self.widths(p), list[float](), params
        size = self.batch_size or client.problem.batch_size
        options: LocalOptions = {**self.local(client), "steps": 1}
        draws, hooks = client.stream("widths"), self.hooks(client, start)
        for _ in range(self.epochs * -(-client.num_samples // size)):
            drawn.append(tiers[int(torch.randint(len(tiers), (), generator=draws))])
            params = params + train_submodel(client, params, submodels(client).cutter.first(drawn[-1]), hooks=hooks, **options)
        client.memory["cost"] = self._drawn(client, drawn or tiers)
        return params - start, submodels(client).cutter.first(p).mask()
