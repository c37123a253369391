"""Random (federated) dropout (Caldas et al., "Expanding the Reach of Federated Learning", 2018), on stragglers.

A straggler drops (1 - p) n_l random units of each layer, drawn anew every round; with ``segmented`` all stragglers drop the same
units in a round. The server sees sums. A client stores its times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import State
from paceline.core.params import Params
from paceline.core.random import derive
from paceline.core.tree import Tree
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

    def order(self, fed: Federation, state: State) -> Tree:
        """Return scores drawn for this round."""
        return round_order(submodels(fed).cutter.groups, fed.round)

    def expected_order(self, client: Client, message: dict[str, Any]) -> Tree:
        """Return the scores that every party draws for this round, so that the server cannot choose them."""
        return round_order(submodels(client).cutter.groups, client.round)


def round_order(groups: Mapping[str, int], round: int) -> dict[str, Tensor]:
    """Return random scores of the units, by group; they depend on the round only."""
    draws = torch.Generator().manual_seed(derive(0, "order", round))
    return {group: torch.rand(size, generator=draws) for group, size in groups.items()}
