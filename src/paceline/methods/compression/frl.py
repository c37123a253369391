"""FRL (Mozaffari et al., "Every Vote Counts: Ranking-Based Training of Federated Learning to Resist Poisoning Attacks",
USENIX Security 2023).

Weights w = +- sqrt(2 / fan_in) are frozen; only scores s of the n edges of a layer are learnt, and only their order is
sent: R lists edges from least to most important, and the position of an edge in R is its vote.
    client: s[R_j] <- q_j (q: sorted initial scores);   m = 1 for the top ceil(k n) scores
            SGD on s with ds = w * dL/d(w * m), also for masked edges;   R_u = argsort s
    server: R <- argsort sum_u argsort R_u   (ties: lowest edge first; clients without samples do not vote)

The server sees the exact sum of positions (or, to check that they are permutations, each client's own). Clients store
no state.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.blocks.ranks import PackedRanks, pack, positions, unpack
from paceline.core.client import SGD, Client, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.layout import Layout
from paceline.core.method import Method, NonNegative, Positive, PositiveShare, Share, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.models.supermasks import MaskOn, Ranks, mask, network, placed, slope, without_offsets


def last_position(layout: Layout) -> float:
    """Return the largest vote: the last position among the edges of the largest layer."""
    return max(entry.size for entry in layout.entries) - 1


@node
class FrlState:
    """The seed of the frozen weights, the global ranking of each layer, and the masked weights."""

    seed: int
    ranks: Ranks
    params: Params


@dataclass(frozen=True)
class FRL(Method[FrlState]):
    """Vote on the edges of a frozen random network.

    Args:
        lr: learning rate of the scores; annealed over the epochs by a cosine.
        decay: factor on `lr` per round.
        epochs, batch_size, momentum, weight_decay: of the local SGD.
        keep: k, the share of the edges of each layer that the mask keeps.
        mask_on: ``signed`` scores (the paper), ``abs`` values, or as in the released code a mask on absolute scores that
            are ranked with their signs, which keeps both ends of the ranking.
        top: share of the ranking that is voted for (Sparse-FRL); other edges get position 0.
    """

    family: ClassVar[str] = "compression"
    paper: ClassVar[str] = "Mozaffari et al., USENIX Security 2023"
    reveals: ClassVar[str] = "sums of votes"
    sends_model: ClassVar[bool] = False
    headline: ClassVar[str] = "an attacker has one bounded vote; an upload is a permutation instead of floats"

    lr: NonNegative[float] = 0.4
    decay: NonNegative[float] = 0.999
    epochs: Positive[int] = 2
    batch_size: Positive[int] | None = 8
    momentum: Share = 0.9
    weight_decay: NonNegative[float] = 1e-4
    keep: PositiveShare = 0.5
    mask_on: MaskOn = "signed"
    top: PositiveShare = 1.0

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Freeze all parameters except matrices and filters; raise `ConfigError` if the model has running statistics."""
        module = task.build(0)
        if any(b.is_floating_point() for b in module.buffers()):
            raise ConfigError(f"{self.slug()} needs a model without running statistics (BatchNorm); use norm=group or none")
        names = [n for n, p in module.named_parameters() if p.dim() > 1]
        return self, replace(task, model=functools.partial(without_offsets, task.model), trainable=names)

    def init(self, fed: Federation) -> FrlState:
        """Draw weights and an initial ranking from the run's seed."""
        layout = fed.init_params().layout
        return self._state(layout, fed.seed, network(layout, fed.seed, self.mask_on)[2])

    def _state(self, layout: Layout, seed: int, ranks: Ranks) -> FrlState:
        frozen, scores, _ = network(layout, seed, self.mask_on)
        return FrlState(seed, ranks, frozen * mask(placed(layout, ranks, scores), self.keep, self.mask_on))

    def round(self, fed: Federation, state: FrlState) -> FrlState:
        """Sum the cohort's votes; exclude sums that cannot come from permutations."""
        total = fed.sum(self.vote, (state.seed, packed(state.ranks)), over=fed.sample())
        cheated = [n for n, p in total["positions"].items() if not self._fair(p, total["voters"])]
        fed.last.notes["refused_sums"] = float(len(cheated))
        won = {n: torch.argsort(p, stable=True) for n, p in total["positions"].items() if total["voters"] and n not in cheated}
        return self._state(state.params.layout, state.seed, {**state.ranks, **won})

    def _fair(self, total: Tensor, voters: int) -> bool:
        """Return whether summed positions have the total and the range of sums of permutations."""
        n = len(total)
        cut = self._cut(n)
        right = int(total.sum()) == voters * (n * (n - 1) - cut * (cut - 1)) // 2
        return right and int(total.min()) >= 0 and int(total.max()) <= voters * (n - 1)

    def _cut(self, n: int) -> int:
        return int((1 - self.top) * n)

    @on_client(bounds={"positions": last_position})
    def vote(self, client: Client, message: tuple[int, PackedRanks]) -> dict[str, Any]:
        """Train scores; return the position of each edge, or zeros and no voter if there are no samples."""
        votes = {n: positions(r) for n, r in self.learn(client, message).items()}
        voters = min(client.num_samples, 1)
        votes = {n: torch.where(p < self._cut(len(p)), 0, p * voters) for n, p in votes.items()}
        return {
            "positions": {n: p.to(torch.int16 if len(p) <= 2**15 else torch.int32) for n, p in votes.items()},
            "voters": voters,
        }

    def learn(self, client: Client, message: tuple[int, PackedRanks]) -> Ranks:
        """Train scores from the global ranking; return the client's own ranking of each layer."""
        seed, sent = message
        layout, keep, on = client.model.layout, self.keep, self.mask_on
        frozen, scores, _ = network(layout, seed, on)
        ranks = {n: unpack(sent[n], e.size) for n, e in layout.by_name.items()}
        frozen = frozen.to(client.device)
        start = placed(layout, ranks, scores).to(client.device)

        def anneal(step: int, steps: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * (step * self.epochs // steps) / self.epochs))

        optimizer = SGD(self.lr * self.decay ** (client.round - 1), self.momentum, weight_decay=self.weight_decay, schedule=anneal)
        hooks = Hooks(direction=lambda gradient, at: frozen * gradient(frozen * mask(at, keep, on)) * slope(at, on))
        local = client.sgd(start, optimizer=optimizer, hooks=hooks, epochs=self.epochs, batch_size=self.batch_size)
        learnt = local.params.map(torch.abs) if on == "abs" else local.params
        return {n: torch.argsort(learnt[n].reshape(-1).cpu(), stable=True) for n in layout.by_name}


def packed(ranks: Ranks) -> PackedRanks:
    """Return rankings packed into the fewest bits per value."""
    return {n: pack(r, len(r)) for n, r in ranks.items()}
