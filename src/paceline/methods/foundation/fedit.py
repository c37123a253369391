"""FedIT (Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", arXiv 2305.05644).

Each target layer W_0 of a frozen language model becomes W_0 + (alpha / r) B A, and theta is all A and B:
    client: AdamW from theta on the mean cross-entropy of the scored tokens
    server: theta <- sum_u n_u theta_u / sum_u n_u, for A and for B
The product of the means is not the mean of the products; the gap |mean B_u A_u - mean B mean A|_F can be reported.

The server sees the weighted sum of updates of theta (and, for the gap, of products). Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.methods.foundation.fedpeft import FedPEFT
from paceline.models.tuning import Prototype


def products(params: Params) -> dict[str, Tensor]:
    """Return B A of each layer, by the layer's name."""
    ends = {n: n.partition(".lora_A.") for n in params if ".lora_A." in n}
    return {place: params[f"{place}.lora_B.{end}"] @ params[name] for name, (place, _, end) in ends.items()}


def gap(means: dict[str, Tensor], params: Params) -> float:
    """Return the Frobenius norm, over all layers, of the mean of products minus the product of means."""
    apart = [means[n].double() - p.double() for n, p in products(params).items()]
    return float(torch.stack([a.square().sum() for a in apart]).sum().sqrt()) if apart else 0.0


@dataclass(frozen=True)
class FedIT(FedPEFT):
    """FedAvg of LoRA factors, trained with AdamW.

    The authors' example: rank=8, alpha=16, dropout=0.05, epochs=2 on the four attention projections. With dropout, clients train
    one at a time; so do real language models, whose batches are truncated to their longest text.

    Args:
        lr: learning rate of AdamW.
        decay: decay the learning rate linearly to 0 over a local training.
        monitor: report the gap of averaged factors (``lora_gap``); clients then also send the products.
    """

    paper: ClassVar[str] = "Zhang et al., arXiv 2305.05644"
    differs: ClassVar[str] = "no dropout, one local epoch, prompts not scored; the authors' code: 0.05, 10 epochs, prompts scored"
    headline: ClassVar[str] = "answers preferred to those of a model tuned on one client's instructions alone"

    lr: NonNegative[float] | None = 3e-4
    momentum: Share = 0.0
    peft: Prototype = "lora"
    rank: Positive[int] = 16
    alpha: Positive[float] = 16.0
    adam: bool = True
    decay: bool = True
    monitor: bool = False

    def round(self, fed: Federation, state: State) -> State:
        """Average the cohort's factors."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        params = state.params + self.server_lr * mean.delta
        if self.monitor:
            fed.last.notes["lora_gap"] = gap(mean.products, state.params + mean.delta)
        return State(params=params)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train; return the change of the factors, and their products if `monitor` is set."""
        local = client.sgd(message, **self.local(client))
        also: dict[str, Tree] = {"products": products(local.params)} if self.monitor else {}
        return Update(delta=local.params - message, loss=local.loss, **also, weight=client.num_samples)

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer."""
        return replace(super().local_optimizer(), schedule=(lambda step, steps: 1 - step / steps) if self.decay else None)
