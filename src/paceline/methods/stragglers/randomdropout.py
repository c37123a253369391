"""Random (federated) dropout (Caldas et al., "Expanding the Reach of Federated Learning", 2018), on stragglers.

A straggler drops (1 - p) n_l random units of each layer, drawn anew every round; with ``segmented`` all stragglers drop the same
units in a round. The server sees sums. A client stores its times.

A weight between two cut layers is trained in p^2 of the rounds only, so what slow clients alone know is learnt late. Two merges
compensate for it, with m the mask of the trained coordinates and d the change on them:

    unbiased: send m d / q, with q the probability that m is 1 (Horvitz and Thompson, 1952)
    stale:    send h = m d + (1 - m) h, the client's latest change of each coordinate (as MIFA, Gu et al., NeurIPS 2021, for clients)

The upload is padded to full size in any case. With ``stale`` a client also stores h.
"""

from __future__ import annotations

import math
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
from paceline.submodels.merge import filled, inclusion
from paceline.submodels.scores import unknown
from paceline.submodels.select import RandomDrop
from paceline.submodels.service import submodels

_OLD = 10
"""Rounds after which a client's last update is not repeated."""


@dataclass(frozen=True)
class RandomDropout(SelfPruning):
    """Slow clients train a random part of the network."""

    paper: ClassVar[str] = "Caldas et al., arXiv 1812.07210"
    differs: ClassVar[str] = "only stragglers drop units, and nothing is compressed; in the paper all clients do"
    headline: ClassVar[str] = "with compression: up to 28 times less upload and 1.7 times less computation, at equal quality"
    client_state: ClassVar[str] = "its own times; with merge=stale stragglers also their last update"
    draws: ClassVar[bool] = True

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Draw the units to keep."""
        return RandomDrop()(unknown(submodels(client).cutter.groups), counts, client.stream("select"))

    def balanced(self, client: Client, delta: Params, mask: Params, p: float) -> Params:
        """Return the update to send, with compensation for the coordinates that this client trains rarely."""
        memory = client.memory
        if self.merge == "unbiased" and p < 1.0:
            cutter = submodels(client).cutter
            return delta / inclusion(cutter.graph, delta, cutter.keep(p, self.rounds_up))
        if self.merge == "stale" and (p < 1.0 or client.round <= self.warmup or "slow" in memory):
            if p < 1.0:
                memory["slow"] = True
                if client.round - memory.get("sent", -math.inf) <= _OLD:
                    delta = filled(delta, mask, memory["stale"])
            memory["stale"], memory["sent"] = delta, client.round
        return delta

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
