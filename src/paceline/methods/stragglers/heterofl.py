"""HeteroFL (Diao et al., "Computation and Communication Efficient FL for Heterogeneous Clients", ICLR 2021).

Each client has one fixed width, chosen from its own speed, and trains the leading sub-matrices of that width. Each
coordinate is averaged over the clients that have it, activations are scaled by 1/p in training, and a client's loss
covers only the classes present in its data.
The server sees sums of updates and of weights per coordinate. A client stores its width and times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from paceline.core.client import Client, Hooks
from paceline.core.params import Params
from paceline.methods.stragglers.fjord import Fjord


@dataclass(frozen=True)
class HeteroFL(Fjord):
    """Static widths with nested sub-models.

    Args:
        masked_loss: exclude classes that a client does not have from its loss.
    """

    paper: ClassVar[str] = "Diao et al., ICLR 2021"
    headline: ClassVar[str] = "clients of very different capacity train one global model, with less computation and traffic"
    client_state: ClassVar[str] = "its width and its times"

    merge: Literal["zero", "masked"] = "masked"
    rescale: bool = True
    masked_loss: bool = True

    def fraction(self, client: Client) -> float:
        """Choose the width once, after the warm-up, and store it."""
        if "width" not in client.memory:
            p = super().fraction(client)
            if client.round <= self.warmup:
                return p
            client.memory["width"] = p
        return float(client.memory["width"])

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return the masked loss: the outputs of classes that the client does not have are set to 0."""
        if not (self.masked_loss and client.num_samples):
            return Hooks()
        labels, base = client.train.y[client.train.index].reshape(-1), client.problem.loss
        absent = torch.bincount(labels, minlength=client.problem.num_classes) == 0
        return Hooks(loss=lambda out, y: base(out.masked_fill(absent[: out.shape[1]], 0.0), y))
