"""FedIns ("Towards Instance-adaptive Inference for Federated Learning", ICCV 2023, arXiv 2308.06051): clients train a small pool of
scales, shifts, keys and heads around a frozen backbone, of which every picture uses the members that fit it.

    client:  L = (1 - lambda) CE(scores, y) + lambda (1 - match)        (`paceline.models.pool`); E passes of SGD
    server:  pool <- pool + (1/N) sum_u (pool_u - pool)
             with mask_unused:  member j <- member j + sum_u c_uj (member_uj - member_j) / sum_u c_uj

Members that no sample of a batch uses have gradient 0. c_uj is how many of its samples use member j after a client's training, at least
1 if the training changed the member, and otherwise 0.

The server sees sums of updates of the pool, and with mask_unused of the counts. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.blocks.local_training import LocalTraining
from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.tasks.tuning import tune_pool


@dataclass(frozen=True)
class FedIns(LocalTraining):
    """Instance-adaptive inference by a pool around a frozen model.

    Args:
        members: M, size of the pool.
        selected: K, members that a sample uses; all of them is federated tuning of scales and shifts.
        match: lambda.
        spread: deviation of the initial scales and shifts.
        mask_unused: average a member over the clients that use it, by their counts.
    """

    family: ClassVar[str] = "foundation"
    paper: ClassVar[str] = "arXiv 2308.06051 (ICCV 2023)"
    headline: ClassVar[str] = "6.64 points more accurate than the best rival on Tiny-ImageNet, with under 15 % of its communication"
    differs: ClassVar[str] = (
        "steps are taken on batches, in which each sample chooses its own members, instead of on single samples"
    )
    reveals: ClassVar[str] = "sums of updates of the pool, and with mask_unused of the counts of its use"

    lr: NonNegative[float] | None = 0.01
    epochs: Positive[int] = 10
    batch_size: Positive[int] | None = 32
    members: Positive[int] = 25
    selected: Positive[int] = 3
    match: Share = 0.1
    spread: NonNegative[float] = 0.02
    mask_unused: bool = False

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Freeze the model and put the pool around it."""
        return self, tune_pool(task, self.members, self.selected, self.spread)

    def round(self, fed: Federation, state: State) -> State:
        """Average the pools, as a whole or member by member."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        if not self.mask_unused:
            return State(params=state.params + mean.delta)
        names = [f"member_{j}" for j in range(self.members)]
        fed.last.notes["unused"] = float(sum(mean.weight[name] == 0 for name in names))
        moved = torch.stack([mean.fields[name] for name in names])
        return State(params=state.params + from_members(moved, state.params))

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the pool; return its change."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        delta = local.params - message
        if not self.mask_unused:
            return Update(delta=delta, loss=local.loss, weight=min(client.num_samples, 1))
        moved, used = by_member(delta, self.members), self.used(client, local.params)
        counts = torch.maximum(used, (moved != 0).any(1)) * (moved != 0).any(1)
        names = [f"member_{j}" for j in range(self.members)]
        weight = dict(zip(names, counts.tolist(), strict=True)) | {"loss": min(client.num_samples, 1)}
        return Update(**dict(zip(names, moved, strict=True)), loss=local.loss, weight=weight)

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return the loss of a batch."""
        loss, share = client.problem.loss, self.match

        def objective(net: Any, x: Any, y: Any) -> Tensor:
            scores, match = net.matched(x)
            total: Tensor = (1 - share) * loss(scores, y) + share * (1 - match.mean())
            return total

        return Hooks(objective=objective)

    @torch.no_grad()
    def used(self, client: Client, params: Params) -> Tensor:
        """Return how many of the client's samples use each member, int64 [M]."""
        client.load(params)
        module: Any = client.model.module.eval()
        counts = torch.zeros(self.members, dtype=torch.int64, device=client.device)
        for x, _ in client.train.batches(256):
            counts += (module.choose(x)[0] > 0).sum(0)
        client.flops += client.model.flops * client.num_samples / 2  # the query alone
        return counts


def by_member(params: Params, members: int) -> Tensor:
    """Return the values of each member, shape [M, d / M]; every tensor of a pool has the members as its first dimension."""
    return torch.cat([value.reshape(members, -1) for _, value in params.items()], 1)


def from_members(rows: Tensor, like: Params) -> Params:
    """Return the values of each member, [M, d / M], as parameters of a pool."""
    out, at = like.zeros(), 0
    for _, value in out.items():
        size = value[0].numel()
        value.copy_(rows[:, at : at + size].reshape(value.shape))
        at += size
    return out
