"""FLuID (Wang et al., "FLuID: Mitigating Stragglers in FL using Invariant Dropout", NeurIPS 2023). Not secure. A full-size
time is estimated from the FLOPs of the sub-model; the paper takes 1.15 times its time / p.

The server sees every update. It finds the invariant neurons, all of whose weights satisfy |w_u - w| <= th |w| for at
least 75 % of the non-stragglers, and sends each straggler a model without them. Each coordinate is averaged over the
clients that trained it. A neuron's score is the largest |w_u - w| / |w| of its weights over all non-stragglers; the
threshold of a layer starts at its smallest score, averaged over rounds 2 and 3, and grows by `step` until enough neurons
qualify.
The server sees every client's update and time. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.blocks.running import stepped
from paceline.core.client import Client
from paceline.core.federation import Federation, WithOwn
from paceline.core.method import NonNegative, Positive, PositiveShare, Share, State, on_client
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.core.tree import node
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.submodels.merge import masked_mean
from paceline.submodels.policy import cutoff, fluid_fraction
from paceline.submodels.scores import steady_mask
from paceline.submodels.select import Threshold, select
from paceline.submodels.service import Submodels, fit_submodel, submodels


@node
class FluidState(State):
    """The model; full-size times and last kept units by client; thresholds by layer; invariance scores."""

    times: dict[int, float]
    kept: dict[int, Any]
    thresholds: dict[str, float]
    scores: dict[str, Any]
    rounds: int


@dataclass(frozen=True)
class Fluid(FedAvg[FluidState]):
    """Invariant dropout selected by the server.

    Args:
        straggler_share: share of clients that count as stragglers.
        quorum: share of the non-stragglers for which a weight must be invariant.
        step: increment of a layer's threshold while too few neurons qualify.
        every: rounds between increments.
        warmup: initial rounds in which every client trains the full model.
        smallest: smallest fraction of units that is kept.
    """

    family: ClassVar[str] = "stragglers"
    paper: ClassVar[str] = "Wang et al., NeurIPS 2023"
    differs: ClassVar[str] = "a straggler's full-size time is its time / (FLOPs share); the paper takes 1.15 times its time / p"
    headline: ClassVar[str] = "slow phones no longer delay the round, at the accuracy of training the full model"
    reveals: ClassVar[str] = "every update and its time"
    sum_only: ClassVar[str] = "clip"

    straggler_share: Share = 0.2
    quorum: Share = 0.75
    step: Positive[float] = 0.2
    every: Positive[int] = 2
    warmup: NonNegative[int] = 3
    smallest: PositiveShare = 0.5

    def init(self, fed: Federation) -> FluidState:
        """Start without times or thresholds."""
        return FluidState(params=fed.init_params(), times={}, kept={}, thresholds={}, scores={}, rounds=0)

    def round(self, fed: Federation, state: FluidState) -> FluidState:
        """Send sub-models to stragglers, average by coordinate, and determine the invariant neurons."""
        parts = submodels(fed)
        cohort, params = fed.sample(), state.params
        widths = self.widths(state, cohort)
        kept = {c: self.choose(fed, parts, state, c, p) for c, p in widths.items()}
        sent = {c: {"params": parts.cut(kept[c]).extract(params), "kept": kept[c]} if c in kept else params for c in cohort}
        replies = fed.each(self.train_part, None, over=cohort, each_message=sent)
        limits = params.map(torch.abs) * self.limits(parts, state)
        total, weights, steady = params.zeros(), params.zeros(), params.zeros()
        worst: dict[str, Tensor] = {}
        voters = 0
        for client, (delta, samples) in replies.items():
            sub = parts.cut(kept[client]) if client in kept else None
            total = total + float(samples) * (sub.scatter(delta) if sub else delta)
            weights = weights + float(samples) * (sub.mask(params.vector.device) if sub else params.zeros() + 1.0)
            if sub is None and samples:  # a client without samples does not vote
                voters += 1
                steady = steady + steady_mask(delta, limits, 1.0)
                for group, score in parts.scorer.score(delta, params, eps=0.0).items():
                    worst[group] = torch.maximum(worst.get(group, score), score)
        invariant = parts.scorer.invariant(steady, voters, self.quorum)
        trained = {c: seconds for c, seconds in fed.last.arrived.items() if c in replies and replies[c][1]}
        times = {c: seconds / parts.cost(widths.get(c, 1.0)) for c, seconds in trained.items()}
        return FluidState(
            params=stepped(params, masked_mean(total, weights), self.server_lr),
            times={**state.times, **times},
            kept={**state.kept, **kept},
            thresholds=self.thresholds(state, parts, {g: float(score.min()) for g, score in worst.items()}, invariant),
            scores={group: 1.0 - units.float() for group, units in invariant.items()} if voters else state.scores,
            rounds=state.rounds + 1,
        )

    @on_client(each=True)
    def train_part(self, client: Client, message: WithOwn[None, Params | dict[str, Any]]) -> tuple[Params, int]:
        """Train the received full model or sub-model; return its change and the number of samples."""
        own = message["own"]
        if isinstance(own, Params):
            return client.sgd(own, **self.local(client)).params - own, client.num_samples
        sub = submodels(client).cut(own["kept"])
        trained = fit_submodel(client, own["params"], sub, **self.local(client))
        return trained.params - own["params"], client.num_samples

    def widths(self, state: FluidState, cohort: list[int]) -> dict[int, float]:
        """Return the kept fraction of each straggler in the cohort, from FLuID's table of ratios."""
        times = {c: state.times[c] for c in cohort if c in state.times}
        if state.rounds < self.warmup or len(times) < 2:
            return {}
        target = cutoff(times.values(), self.straggler_share)
        return {c: max(fluid_fraction(target / t), self.smallest) for c, t in times.items() if t > 1.1 * target}

    def choose(self, fed: Federation, parts: Submodels, state: FluidState, client: int, p: float) -> dict[str, Any]:
        """Select the units to keep: invariant neurons are dropped first, then random ones."""
        rng = torch_rng(fed.seed, "fluid", fed.round, client)
        return select(state.scores, parts.cutter.keep(p), rng, state.kept.get(client), by=Threshold(start=0.5))

    def limits(self, parts: Submodels, state: FluidState) -> Params:
        """Return the threshold of each coordinate, that of the layer it feeds; 0 before thresholds exist."""
        out = state.params.zeros()
        for entry in out.layout.entries:
            groups = [axis.group for axis in parts.cutter.graph.axes[entry.name] if axis.group is not None]
            if groups:
                out[entry.name].fill_(state.thresholds.get(groups[0], 0.0))
        return out

    def thresholds(
        self, state: FluidState, parts: Submodels, low: dict[str, float], invariant: dict[str, Tensor]
    ) -> dict[str, float]:
        """Return the next thresholds: measured in rounds 2 and 3, then increased until enough neurons qualify."""
        if state.rounds < 1 or not low:
            return state.thresholds
        if state.rounds < self.warmup:
            return {g: (state.thresholds.get(g, value) + value) / 2 for g, value in low.items()}
        if state.rounds % self.every:
            return state.thresholds
        needed = {g: parts.cutter.groups[g] - count for g, count in parts.cutter.keep(self.smallest).items()}
        return {g: th + (self.step if int(invariant[g].sum()) < needed[g] else 0.0) for g, th in state.thresholds.items()}
