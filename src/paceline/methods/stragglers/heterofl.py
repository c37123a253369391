"""HeteroFL (Diao et al., "Computation and Communication Efficient FL for Heterogeneous Clients", ICLR 2021), where each
client chooses its width itself, from its own speed and down to one half; the paper assigns widths down to 1/16.

A client of width p trains the leading ceil(p n_l) units of each layer, with activations scaled by 1/p. Its loss covers
only the classes in its data, and of the output layer only their rows are merged. With S(i) the clients that trained i:

    w_i <- mean over S(i) of w_{u,i}, all clients counting equally;  w_i is unchanged where S(i) is empty

No client trains running statistics (BatchNorm): batches are normalised by their own, and evaluations compute them anew.
The server sees sums of updates and of weights per coordinate, so how many clients have each width and each class. A
client stores its width and times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.layout import Entry
from paceline.core.losses import scores
from paceline.core.method import Method, on_client
from paceline.core.nested import PartialModel
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.stragglers.selfpruning import NESTING, SelfPruning


def absent_classes(client: Client) -> Tensor:
    """Return a mask of the classes that none of a client's samples has, shape [classes]."""
    return client.train.class_counts(client.problem) == 0


def output_layer(params: Params, classes: int) -> list[Entry]:
    """Return the last weight matrix and its bias if they have one row per class; else nothing."""
    last = next(e for e in reversed(params.layout.entries) if e.kind == "param" and len(e.shape) > 1)
    bias = f"{last.name.rpartition('.')[0]}.bias".lstrip(".")
    return [e for e in params.layout.entries if e.name in (last.name, bias) and e.shape[0] == classes]


@dataclass(frozen=True)
class HeteroFL(SelfPruning):
    """Static widths with nested sub-models; with ``merge="zero"`` counts are by samples and over all clients.

    Args:
        masked_loss: exclude classes that a client does not have from its loss.
        own_rows: merge only the rows of the output layer that belong to classes of the client.
        importance: weight of a client in a coordinate's mean: ``uniform``, or by ``samples``.
        static: do not train running statistics; compute them for evaluations (the task's ``buffers="recompute"``).
    """

    paper: ClassVar[str] = "Diao et al., ICLR 2021"
    headline: ClassVar[str] = "clients of very different capacity train one global model, with less computation and traffic"
    differs: ClassVar[str] = "clients choose their widths by their speed, from 1 to 0.5; the paper assigns them, from 1 to 1/16"
    reveals: ClassVar[str] = "sums of updates and of weights per coordinate"
    client_state: ClassVar[str] = "its width and its times"
    rounds_up: ClassVar[bool] = True

    rescale: bool = True
    masked_loss: bool = True
    own_rows: bool = True
    importance: Literal["uniform", "samples"] = "uniform"
    static: bool = True

    @property
    def masked(self) -> bool:
        """Whether the mean of a coordinate is over the clients that trained it."""
        return self.merge != "zero"

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Keep running statistics out of the training."""
        return self, replace(task, buffers="recompute") if self.static and task.buffers == "average" else task

    def fraction(self, client: Client) -> float:
        """Choose the width once, after the warm-up, and store it; an adaptive client may change it."""
        if self.adaptive:
            return super().fraction(client)
        if "width" not in client.memory:
            p = super().fraction(client)
            if client.round <= self.warmup:
                return p
            client.memory["width"] = p
        return float(client.memory["width"])

    def check(self, fed: Federation) -> list[str]:
        """Return the options that do not fit segmented uploads."""
        rows = ["segmented=true has one weight for each segment; set own_rows=false"] if self.segmented and self.own_rows else []
        return super().check(fed) + rows

    @on_client(peer_record="report", nested=replace(NESTING, rounds_up=True))
    def train_part(self, client: Client, message: PartialModel) -> Update:
        """Train the part of the model that this client received."""
        return super().train_part(client, message)

    def weight(self, client: Client) -> float:
        """Return the weight of a client: 1, or its samples; 0 without samples."""
        return self.counted(client) if self.importance == "samples" else min(client.num_samples, 1)

    def keep(self, client: Client, params: Params, counts: dict[str, int], p: float) -> dict[str, Tensor]:
        """Select the first units."""
        return {group: torch.arange(count) for group, count in counts.items()}

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return the masked loss: the outputs of classes that the client does not have are set to 0."""
        if not (self.masked_loss and client.num_samples and client.problem.num_classes):
            return Hooks()
        absent, base = absent_classes(client), client.problem.loss

        def loss(outputs: Any, y: Tensor) -> Tensor:
            out = scores(outputs)
            return base(out.masked_fill(absent[: out.shape[1]].view(-1, *[1] * (out.dim() - 2)), 0.0), y)

        return Hooks(loss=loss)

    def weights(self, client: Client, mask: Params) -> Any:
        """Return the counts of each coordinate: none for the output rows of classes that the client does not have."""
        n = self.counted(client)
        if not self.masked:
            return n
        counts = mask * float(self.weight(client))
        if self.own_rows and n:
            for entry in output_layer(counts, client.problem.num_classes):
                counts[entry.name][absent_classes(client).to(counts.vector.device)] = 0.0
        return {"delta": counts, "kept": 1}
