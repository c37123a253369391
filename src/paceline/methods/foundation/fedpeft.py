"""FedPEFT (Sun et al., "Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated Learning",
arXiv 2210.01708).

A pretrained model is frozen; theta, a small part of it or a small added module, is trained and exchanged:
    theta <- theta + sum_u n_u (theta_u - theta) / sum_u n_u
Any other method does the same on a task loaded with the option ``peft=...``.

The server sees the weighted sum of updates of theta. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from paceline.core.method import Method, Positive, Share
from paceline.core.optimizers import AdamW, Optimizer
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.models.tuning import Prototype, Tuning
from paceline.tasks.tuning import tune


@dataclass(frozen=True)
class FedPEFT(FedAvg):
    """FedAvg of biases, adapters, prompts, scales and shifts, LoRA factors, or the head alone.

    Args:
        peft: the part to train; ``lora`` needs the extra ``peft``.
        width: bottleneck width of adapters.
        tokens: number of prompts.
        deep: new prompts before each block, instead of at the input only.
        rank, alpha, dropout: of LoRA.
        targets: name suffixes of the layers that LoRA changes; empty means the attention projections.
        with_head: also train the head; None does so except with LoRA.
        adam: train with AdamW instead of SGD.
    """

    family: ClassVar[str] = "foundation"
    paper: ClassVar[str] = "Sun et al., arXiv 2210.01708"
    headline: ClassVar[str] = "the accuracy of full tuning at under 0.3 % of its bytes"

    momentum: Share = 0.9
    peft: Prototype = "bias"
    width: Positive[int] = 8
    tokens: Positive[int] = 10
    deep: bool = True
    rank: Positive[int] = 4
    alpha: Positive[float] = 8.0
    dropout: Share = 0.0
    targets: tuple[str, ...] = ()
    with_head: bool | None = None
    adam: bool = False

    def local_optimizer(self) -> Optimizer:
        """Return the clients' optimizer."""
        return AdamW(self.lr, weight_decay=self.weight_decay) if self.adam else super().local_optimizer()

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Freeze all parameters except theta."""
        return self, tune(task, self.tuning())

    def tuning(self) -> Tuning:
        """Return the configuration of the trained part."""
        lora = (self.rank, self.alpha, self.dropout, self.targets)
        return Tuning(self.peft, self.width, self.tokens, self.deep, *lora, self.with_head)
