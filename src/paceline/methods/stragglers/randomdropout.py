"""Random (federated) dropout (Caldas et al., "Expanding the Reach of Federated Learning", 2018), on stragglers.

A straggler drops (1 - p) n_l random units of each layer, drawn anew every round. The server sees sums. A client stores
its times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from paceline.core.client import Client
from paceline.core.params import Params
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.submodels.scores import unknown
from paceline.submodels.select import RandomDrop
from paceline.submodels.service import submodels


@dataclass(frozen=True)
class RandomDropout(SelfPruning):
    """Slow clients train a random part of the network."""

    paper: ClassVar[str] = "Caldas et al., arXiv 1812.07210"
    differs: ClassVar[str] = "only stragglers drop units, and nothing is compressed; in the paper all clients do"
    headline: ClassVar[str] = "with compression: up to 28 times less upload and 1.7 times less computation, at equal quality"

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Draw the units to keep."""
        return RandomDrop()(unknown(submodels(client).cutter.groups), counts, client.stream("select"))
