"""Shared parts of CLIP and its baselines: a slow client identifies itself and trains a smaller network.

Before each round the clients exchange the duration of their last full-size round (encrypted under secure aggregation, and
padded). A client without samples reports none, like one that has not trained yet: its time says nothing about a device.
A client among the slowest `straggler_share` picks the largest tier p that lets it finish with the others, trains the
sub-model selected by `keep`, and returns a full-size update that is zero where it trained nothing. Subclasses select the units.

With ``segmented`` the units have a public order, the same for all clients. A client then receives and sends only the part
of the model that it trains, and the server learns how large this part is (its tier).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from paceline.core.client import Client
from paceline.core.declarations import Nesting
from paceline.core.federation import Federation
from paceline.core.method import Minority, NonNegative, PositiveShare, State, on_client
from paceline.core.nested import PartialModel
from paceline.core.params import Params
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.submodels.controller import Controller
from paceline.submodels.cut import TIERS
from paceline.submodels.nesting import leading_units
from paceline.submodels.pacing import adapted_fraction, note_done, pace, planned_limit
from paceline.submodels.policy import CostModel, compute_fraction, find_stragglers, network_fraction
from paceline.submodels.service import submodels, train_submodel

NESTING = Nesting("tier", "expected_order", TIERS)
"""Tiers of the sub-models; a layer keeps floor(p n) units."""

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
            is exact but doubles the upload. None is the method's own choice. Where units are drawn at random, slow clients may
            also compensate for what they train rarely: with ``unbiased`` they divide each coordinate by the probability with
            which they train it, with ``stale`` they repeat their last update of the coordinates that they did not train.
        adaptive: estimate times robustly over rounds, change p with hysteresis, end a training early if it takes too long, and sit
            out rounds that are too short, at most three in a row (see `Controller`).
        rescale: multiply a sub-model's activations by 1/p in training.
        segmented: slow clients also receive and send only the part that they train; the mean of a coordinate is then over the
            clients whose part has it.
    """

    family: ClassVar[str] = "stragglers"
    reveals: ClassVar[str] = "sums of updates; with merge=masked also weights per coordinate, with segmented each client's part"
    client_state: ClassVar[str] = "its own times"
    records_times: ClassVar[bool] = True
    paced_by: ClassVar[tuple[str, ...]] = ("fraction", "trained", "cost", "share", "heard", "done", "pace", "budget")
    width_key: ClassVar[str | None] = "fraction"
    rounds_up: ClassVar[bool] = False
    """Whether a layer keeps ceil(p n) units instead of floor(p n)."""
    draws: ClassVar[bool] = False
    """Whether `keep` draws the units of a layer at random, all with the same probability."""

    straggler_share: Minority = 0.2
    network: bool = True
    smallest: PositiveShare = 0.5
    warmup: NonNegative[int] = 2
    merge: Literal["zero", "masked", "unbiased", "stale"] | None = None
    adaptive: bool = False
    rescale: bool = False
    segmented: bool = False

    def check(self, fed: Federation) -> list[str]:
        """Return the options that do not fit each other."""
        if self.smallest < min(TIERS):
            return [f"smallest={self.smallest} is below the smallest part that clients train, {min(TIERS)} of the units"]
        if self.segmented and self.merge == "zero":
            return ["segmented=true has one mean for each segment of the model; leave merge unset"]
        if self.merge in ("unbiased", "stale") and not self.draws:
            return [f"merge={self.merge} needs units that are drawn at random, so that all are trained; use randomdropout"]
        if self.segmented and self.merge == "stale":
            return ["merge=stale sends updates of the whole model, segmented=true only a part; use merge=unbiased"]
        return []

    def round(self, fed: Federation, state: State) -> State:
        """Average the cohort's updates, or those of each segment of the model."""
        deadline = self.waits(fed)
        if self.segmented:
            model = PartialModel(params=state.params, order=self.order(fed, state))
            mean = fed.mean(self.train_part, model, over=fed.sample(), deadline=deadline)
        else:
            mean = fed.mean(self.train, state.params, over=fed.sample(), deadline=deadline)
        return replace(state, params=state.params + self.server_lr * mean.delta)

    def waits(self, fed: Federation) -> float | None:
        """Return the deadline of this round: none (infinity) if it is open to all, else the federation's (None)."""
        return math.inf if self.is_open(fed.round) else None

    def is_open(self, round: int) -> bool:
        """Return whether a round waits for all clients, and nobody sits it out."""
        return self.adaptive and Controller({}).is_open(round)

    @abstractmethod
    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Return the indices of the units to keep for each group, ``counts[group]`` of them."""

    def order(self, fed: Federation, state: State) -> Tree:
        """Return the public scores of the units, by group; empty for the order of the units in their layers."""
        return {}

    def expected_order(self, client: Client, message: dict[str, Any]) -> Tree:
        """Return, on a client, the scores that it expects from the server; None if it cannot compute them. See `Nesting`."""
        return {}

    @property
    def masked(self) -> bool:
        """Whether the mean of a coordinate is over the clients that trained it."""
        return self.merge == "masked"

    def cost(self, client: Client, p: float) -> float:
        """Return the expected work of a round at p, relative to that at p = 1."""
        return submodels(client).cost(p, self.rounds_up)

    def shares(self, client: Client) -> dict[float, float] | None:
        """Return the fraction of the bytes that is sent, by tier; None if uploads are padded."""
        cutter = submodels(client).cutter
        size = cutter.layout.size
        return {p: cutter.first(p, self.rounds_up).layout.size / size for p in TIERS} if self.segmented else None

    def weight(self, client: Client) -> float:
        """Return the weight of a client in the mean of each coordinate that it trained."""
        return self.counted(client)

    def counted(self, client: Client) -> int:
        """Return the number of samples by which an update counts: fewer if the training ended early."""
        n = client.num_samples
        done: float = client.memory.get("done", 1.0)
        return min(n, max(1, round(n * done)))

    def weights(self, client: Client, mask: Params) -> Any:
        """Return the weight of an update that was trained on the coordinates where `mask` is 1."""
        n = self.counted(client)
        return {"delta": mask * float(n), "kept": 1} if self.masked else n

    @on_client
    def report(self, client: Client, message: None) -> list[float]:
        """Return seconds at full size (compute, transfers): of the last round, or estimates; empty without samples or a round.

        Raises `Declined` to sit the round out (adaptive only).
        """
        if client.times is None:
            return []
        if self.adaptive:
            state = pace(client, self.controller(client), asked=not self.segmented and not self.is_open(client.round))
            return [state["compute"], state["transfer"]] if state["seen"] else []
        compute, network = client.times
        return [compute / client.memory.get("cost", 1.0), network / client.memory.get("share", 1.0)]

    @on_client(peer_record="report")
    def train(self, client: Client, message: Params) -> Update:
        """Train the full model, or the part of it that fits into the round."""
        p = self.fraction(client)
        client.memory["fraction"], client.memory["trained"] = p, client.round
        delta, mask = self.fit(client, message, p, lambda counts: self.keep(client, message, counts, p))
        self.learn(client, message, delta, mask, p)
        return Update(delta=self.balanced(client, delta, mask, p), kept=p, weight=self.weights(client, mask))

    def tier(self, client: Client, message: None) -> float:
        """Return the fraction of the units that this client trains in the round, from the times of earlier rounds."""
        return self.fraction(client)

    @on_client(peer_record="report", nested=NESTING)
    def train_part(self, client: Client, message: PartialModel) -> Update:
        """Train the part of the model that this client received, or the part of it that the client asked for."""
        p, memory = message.fraction, client.memory
        memory["fraction"], memory["trained"], memory["share"] = p, client.round, message.share
        memory["heard"] = dict(client.peers)  # tiers are declared before the records of a round arrive
        groups = submodels(client).cutter.groups if p < 1.0 else {}
        delta, mask = self.fit(client, message.params, p, lambda counts: leading_units(message.order, groups, counts))
        return Update(delta=self.balanced(client, delta, mask, p), kept=p, weight=self.weight(client))

    def fit(
        self, client: Client, params: Params, p: float, units: Callable[[dict[str, int]], dict[str, Tensor]]
    ) -> tuple[Params, Params]:
        """Train a fraction p of the model; return the update and 1 on the trained coordinates, both of full size.

        Args:
            client: the client.
            params: the model, which may be 0 outside the trained part.
            p: fraction of the units.
            units: returns the units to train, from their number by group.
        """
        client.memory["cost"], hooks, local = self.cost(client, p), self.hooks(client, params), self.local(client)
        if self.adaptive:
            local["limit"] = planned_limit(client)
        if p == 1.0:
            delta = client.sgd(params, **local, hooks=hooks).params - params
            mask = delta.zeros() + 1.0
        else:
            cutter = submodels(client).cutter
            sub, scale = cutter.cut(units(cutter.keep(p, self.rounds_up))), 1 / p if self.rescale else 1.0
            delta, mask = train_submodel(client, params, sub, scale, hooks, **local), sub.mask()
        if self.adaptive:
            note_done(client, self.epochs * client.num_samples)
        return delta, mask

    def balanced(self, client: Client, delta: Params, mask: Params, p: float) -> Params:
        """Return the update to send, from the change `delta` on the coordinates where `mask` is 1."""
        return delta

    def learn(self, client: Client, params: Params, delta: Params, mask: Params, p: float) -> None:
        """Update state after local training: `delta` is the change on the coordinates where `mask` is 1. No-op by default."""

    def fraction(self, client: Client) -> float:
        """Return p for this round: 1 unless this client is slow; raise `Declined` to sit it out (adaptive only)."""
        if client.times is None or (client.round <= self.warmup and not self.adaptive):
            return 1.0
        records = client.memory.get("heard", {}) if self.segmented else client.peers
        told = {peer: (record[0], record[1]) for peer, record in records.items() if len(record) == 2 and min(record) >= 0}
        if self.adaptive:
            totals, heard = {peer: sum(record) for peer, record in told.items()}, client.round
            if self.segmented:  # tiers are declared before the records of a round arrive
                heard = int(client.memory.get("trained", 0))
            return adapted_fraction(client, self.controller(client), totals, heard, asked=not self.is_open(client.round))
        costs, (compute, network) = self.costs(client), self.report(client, None)
        found = find_stragglers({**told, _SELF: (compute, network)}, self.straggler_share)
        if self.network:
            slow, target = _SELF in found.compute | found.network, found.total_target
            return network_fraction(CostModel(compute), costs, network, target, self.smallest, self.shares(client)) if slow else 1.0
        slow = _SELF in found.compute
        return compute_fraction(CostModel(compute), costs, found.compute_target, self.smallest) if slow else 1.0

    def costs(self, client: Client) -> dict[float, float]:
        """Return the tiers of this client, with the relative work of each."""
        return {p: self.cost(client, p) for p in TIERS if p >= self.smallest}

    def controller(self, client: Client) -> Controller:
        """Return the rules by which a client adapts."""
        return Controller(self.costs(client), self.shares(client), share=self.straggler_share, warm_up=self.warmup)
