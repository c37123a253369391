"""Shared parts of CLIP and its baselines: a slow client identifies itself and trains a smaller network.

Before each round the clients exchange the duration of their last full-size round (encrypted under secure aggregation).
A client among the slowest `straggler_share` picks the largest tier p that lets it finish with the others, trains the
sub-model selected by `keep`, and returns a full-size update that is zero where it trained nothing. Subclasses select the units.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from paceline.core.client import Client
from paceline.core.method import Minority, NonNegative, PositiveShare, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.submodels.controller import Controller
from paceline.submodels.cut import TIERS
from paceline.submodels.policy import CostModel, compute_fraction, find_stragglers, network_fraction
from paceline.submodels.service import submodels, train_submodel

_SELF = -1  # key of the client's own times among those of its peers


@dataclass(frozen=True)
class SelfPruning(FedAvg):
    """FedAvg in which slow clients shrink their own model.

    Args:
        straggler_share: phi, the share of clients that count as slow; if most clients could skip a round, a sum would expose those
            that do not.
        network: also prune for a slow link: the padded upload has a fixed size, so compute must shrink.
        smallest: smallest fraction of units that is kept.
        warmup: initial rounds in which every client trains the full model, to measure times.
        merge: ``zero`` divides by all weights; ``masked`` by the weights of the clients that trained the coordinate, which
            is exact but doubles the upload.
        adaptive: estimate times robustly over rounds, and change p with hysteresis (see `Controller`).
        rescale: multiply a sub-model's activations by 1/p in training.
    """

    family: ClassVar[str] = "stragglers"
    reveals: ClassVar[str] = "sums of updates"
    keeps: ClassVar[str] = "its own times"
    keeps_times: ClassVar[bool] = True

    straggler_share: Minority = 0.2
    network: bool = True
    smallest: PositiveShare = 0.5
    warmup: NonNegative[int] = 2
    merge: Literal["zero", "masked"] = "zero"
    adaptive: bool = False
    rescale: bool = False

    @abstractmethod
    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Return the indices of the units to keep for each group, ``counts[group]`` of them."""

    @on_client
    def report(self, client: Client, message: None) -> list[float]:
        """Return the last round's seconds (compute scaled to full size, transfers); empty before the first round."""
        if client.times is None:
            return []
        compute, network = client.times
        return [compute / submodels(client).cost(client.memory.get("fraction", 1.0)), network]

    @on_client(tells="report")
    def train(self, client: Client, message: Params) -> Update:
        """Train the full model, or the part of it that fits into the round."""
        p = self.fraction(client)
        if p == 0.0:
            return Update(
                delta=message.zeros(), kept=p, weight=0 if self.merge == "zero" else {"delta": message.zeros(), "kept": 0}
            )
        client.memory["fraction"], client.memory["trained"], hooks = p, client.round, self.hooks(client, message)
        if p == 1.0:
            delta = client.sgd(message, **self.local(client), hooks=hooks).params - message
            mask = delta.zeros() + 1.0
        else:
            cutter = submodels(client).cutter
            sub = cutter.cut(self.keep(client, message, cutter.keep(p), p))
            delta, mask = train_submodel(client, message, sub, self.rescale, hooks, **self.local(client)), sub.mask()
        self.learn(client, message, delta, mask, p)
        n = client.num_samples
        if self.merge == "masked":
            return Update(delta=delta, kept=p, weight={"delta": mask * float(n), "kept": 1})
        return Update(delta=delta, kept=p, weight=n)

    def learn(self, client: Client, params: Params, delta: Params, mask: Params, p: float) -> None:
        """Update state after local training: `delta` is the change on the coordinates where `mask` is 1. No-op by default."""

    def fraction(self, client: Client) -> float:
        """Return p for this round: 1 unless this client is slow; 0 to skip the round (adaptive only)."""
        if client.times is None or client.round <= self.warmup:
            return 1.0
        costs = {p: submodels(client).cost(p) for p in TIERS if p >= self.smallest}
        told = {peer: (record[0], record[1]) for peer, record in client.peers.items() if len(record) == 2 and min(record) >= 0}
        compute, network = self.report(client, None)
        if self.adaptive:
            return self.adapt(client, costs, {peer: sum(record) for peer, record in told.items()})
        found = find_stragglers({**told, _SELF: (compute, network)}, self.straggler_share)
        if self.network:
            slow, target = _SELF in found.compute | found.network, found.total_target
            return network_fraction(CostModel(compute), costs, network, target, self.smallest) if slow else 1.0
        slow = _SELF in found.compute
        return compute_fraction(CostModel(compute), costs, found.compute_target, self.smallest) if slow else 1.0

    def adapt(self, client: Client, costs: dict[float, float], totals: dict[int, float]) -> float:
        """Return p from estimates that are robust to churn and changing links (`Controller`)."""
        assert client.times is not None
        controller, memory = Controller(costs, share=self.straggler_share), client.memory
        state, last = memory.get("pace", controller.start()), float(memory["fraction"])
        if memory["trained"] > state["round"] and last in costs:
            state = controller.observe(state, memory["trained"], last, *client.times)
        state = controller.hear(state, client.round, {**totals, _SELF: controller.full_total(state)})
        decision, memory["pace"] = controller.decide(state, client.round)
        return decision.fraction
