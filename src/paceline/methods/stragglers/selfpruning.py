"""Shared parts of CLIP and its baselines: a slow client identifies itself and trains a smaller network.

Before each round the clients exchange the duration of their last full-size round (encrypted under secure aggregation).
A client among the slowest `straggler_share` picks the largest tier p that lets it finish with the others, trains the
sub-model selected by `keep`, and returns a full-size update that is zero where it trained nothing. Subclasses select the units.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
            is exact but doubles the upload. None is the method's own choice.
        adaptive: estimate times robustly over rounds, and change p with hysteresis (see `Controller`).
        rescale: multiply a sub-model's activations by 1/p in training.
    """

    family: ClassVar[str] = "stragglers"
    reveals: ClassVar[str] = "sums of updates"
    client_state: ClassVar[str] = "its own times"
    records_times: ClassVar[bool] = True
    width_key: ClassVar[str | None] = "fraction"
    rounds_up: ClassVar[bool] = False
    """Whether a layer keeps ceil(p n) units instead of floor(p n)."""

    straggler_share: Minority = 0.2
    network: bool = True
    smallest: PositiveShare = 0.5
    warmup: NonNegative[int] = 2
    merge: Literal["zero", "masked"] | None = None
    adaptive: bool = False
    rescale: bool = False

    @abstractmethod
    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Return the indices of the units to keep for each group, ``counts[group]`` of them."""

    @property
    def masked(self) -> bool:
        """Whether the mean of a coordinate is over the clients that trained it."""
        return self.merge == "masked"

    def cost(self, client: Client, p: float) -> float:
        """Return the expected work of a round at p, relative to that at p = 1."""
        return submodels(client).cost(p, self.rounds_up)

    def weights(self, client: Client, mask: Params) -> Any:
        """Return the weight of an update that was trained on the coordinates where `mask` is 1."""
        n = client.num_samples
        return {"delta": mask * float(n), "kept": 1} if self.masked else n

    @on_client
    def report(self, client: Client, message: None) -> list[float]:
        """Return the last round's seconds (compute scaled to full size, transfers); empty before the first round."""
        if client.times is None:
            return []
        compute, network = client.times
        return [compute / client.memory.get("cost", 1.0), network]

    @on_client(peer_record="report")
    def train(self, client: Client, message: Params) -> Update:
        """Train the full model, or the part of it that fits into the round."""
        p = self.fraction(client)
        if p == 0.0:
            return Update(delta=message.zeros(), kept=p, weight={"delta": message.zeros(), "kept": 0} if self.masked else 0)
        client.memory["fraction"], client.memory["trained"], hooks = p, client.round, self.hooks(client, message)
        client.memory["cost"] = self.cost(client, p)
        if p == 1.0:
            delta = client.sgd(message, **self.local(client), hooks=hooks).params - message
            mask = delta.zeros() + 1.0
        else:
            cutter = submodels(client).cutter
            sub, scale = cutter.cut(self.keep(client, message, cutter.keep(p, self.rounds_up), p)), 1 / p if self.rescale else 1.0
            delta, mask = train_submodel(client, message, sub, scale, hooks, **self.local(client)), sub.mask()
        self.learn(client, message, delta, mask, p)
        return Update(delta=delta, kept=p, weight=self.weights(client, mask))

    def learn(self, client: Client, params: Params, delta: Params, mask: Params, p: float) -> None:
        """Update state after local training: `delta` is the change on the coordinates where `mask` is 1. No-op by default."""

    def fraction(self, client: Client) -> float:
        """Return p for this round: 1 unless this client is slow; 0 to skip the round (adaptive only)."""
        if client.times is None or client.round <= self.warmup:
            return 1.0
        costs = {p: self.cost(client, p) for p in TIERS if p >= self.smallest}
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
