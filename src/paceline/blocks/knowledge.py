"""What clients and server exchange in distillation at a depth of the network: features with soft labels, and scores in return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.blocks.distillation import soft_targets_loss
from paceline.core.client import ClientData
from paceline.core.hooks import Loss, Objective
from paceline.core.params import Params, Resident
from paceline.core.tree import node

__all__ = ["ClassKnowledge", "DepthKnowledge", "SoftLabels", "learning_from", "represent", "teaching"]


@node
class SoftLabels:
    """The server's scores, [R, C], of samples or classes with the given keys, [R], and the round of each, [R]; 0 where it has none."""

    keys: Tensor
    scores: Tensor
    made: Tensor

    @staticmethod
    def none(rows: int, classes: int) -> SoftLabels:
        """Return soft labels without content."""
        return SoftLabels(torch.arange(rows), torch.zeros(rows, classes), torch.zeros(rows, dtype=torch.int64))

    @staticmethod
    def of_samples(keys: Tensor, scores: Tensor, round: int, rows: int) -> SoftLabels:
        """Return those of a client's samples with a fixed number of rows, so that clients can train as one."""
        keys, rest = keys.cpu(), rows - len(keys)
        made = F.pad(torch.full_like(keys, round), (0, rest))
        return SoftLabels(F.pad(keys, (0, rest)), F.pad(scores, (0, 0, 0, rest)), made)

    def renewed(self, told: DepthKnowledge, scores: Tensor, round: int, temperature: float) -> SoftLabels:
        """Return those of classes: the weighted mean of those of received features; classes without any keep theirs."""
        soft = told.weights.unsqueeze(1) * (scores / temperature).softmax(1)
        total = torch.zeros_like(self.scores).index_add_(0, told.classes, soft)
        mass = total.sum(1, keepdim=True)
        fresh = temperature * (total / mass.clamp(min=1e-12)).clamp(min=1e-12).log()
        seen = mass.squeeze(1) > 0
        return SoftLabels(self.keys, torch.where(seen.unsqueeze(1), fresh, self.scores), torch.where(seen, round, self.made))

    def weights(self, round: int, fade: float) -> Tensor:
        """Return the weight of each row in a round: `fade` for each round that it is old, and 0 where there is none."""
        return torch.where(self.made > 0, fade ** (round - 1 - self.made).clamp(min=0), 0.0)


@node
class DepthKnowledge:
    """Features h, [R, ...], classes [R] and soft labels [R, C] of samples or classes, with their weights and keys, [R]."""

    features: Tensor
    classes: Tensor
    soft: Tensor
    weights: Tensor
    keys: Tensor

    @staticmethod
    def joined(parts: Sequence[DepthKnowledge]) -> DepthKnowledge:
        """Return all rows of several clients, in their order."""
        names = ("features", "classes", "soft", "weights", "keys")
        return DepthKnowledge(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in names))


@node
class ClassKnowledge:
    """Sums of features, [C, ...], and of soft labels, [C, C], of the samples of each class, and their numbers, [C]; they add up."""

    sums: Tensor
    soft: Tensor
    counts: Tensor

    @staticmethod
    def of(h: Tensor, y: Tensor, soft: Tensor) -> ClassKnowledge:
        """Return the sums over samples with features h, classes y and soft labels."""
        classes = soft.shape[1]
        sums, beliefs = (part.new_zeros(classes, *part.shape[1:]).index_add_(0, y, part) for part in (h, soft))
        return ClassKnowledge(sums, beliefs, torch.bincount(y, minlength=classes))

    def means(self) -> DepthKnowledge:
        """Return the means of all classes that have samples, with their numbers as weights."""
        here = self.counts.nonzero().flatten()
        counts = self.counts[here].to(self.sums.dtype)
        features = self.sums[here] / counts.view(-1, *[1] * (self.sums.dim() - 1))
        return DepthKnowledge(features, here, self.soft[here] / counts.unsqueeze(1), counts, here)


def learning_from(
    loss: Loss,
    depth: int,
    taught: tuple[Tensor, Tensor, Tensor],
    by_class: bool,
    strength: float,
    tap_weight: float,
    temperature: float,
) -> Objective:
    """Return the objective of a `TappedChain` that learns from labels and, up to a depth, from soft labels.

    Its targets are (labels, rows of the task's samples). The depth's classifier and the blocks below it learn from both; the blocks
    above it from the labels alone.

    Args:
        loss: mean loss of the chain's outputs.
        depth: of the classifier.
        taught: keys [R], scores [R, C] and weights [R]; keys are classes or rows.
        by_class: which of both.
        strength: weight of the soft labels.
        tap_weight: weight of the labels for the classifier.
        temperature: of the soft labels.
    """
    keys, scores, weight = taught

    def objective(module: Any, x: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        y, row = target
        h = module.lower(x, depth)
        total = loss(module.upper(h, depth), y)
        if not strength and not tap_weight:
            return total
        z = module.tap(h, depth)
        match = ((y if by_class else row).unsqueeze(1) == keys).float()
        apart = soft_targets_loss(z, match @ scores, temperature, weight=match @ weight)
        return total + strength * apart + tap_weight * F.cross_entropy(z, y)

    return objective


def teaching(depth: int, strength: float, temperature: float) -> Objective:
    """Return the objective of `UpperNetworks`, with targets (labels, scores whose softmax at the temperature is believed, weights).

    Args:
        depth: of the features.
        strength: weight of the believed soft labels.
        temperature: of them.
    """

    def objective(module: Any, h: Tensor, target: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        (y, believed, weight), z = target, module(h, depth)
        apart = soft_targets_loss(z, believed, temperature, weight=weight)
        return (weight * F.cross_entropy(z, y, reduction="none")).mean() + strength * apart

    return objective


@torch.no_grad()
def represent(model: Resident, params: Params, depth: int, data: ClientData, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features [N, ...], classes [N] and soft labels [N, C] of samples, in evaluation mode.

    Args:
        model: its module is a `TappedChain`.
        params: its parameters.
        depth: of the features, and of the classifier that gives the soft labels.
        data: samples.
        temperature: of the soft labels.
    """
    module: Any = model.module
    model.load(params)
    module.eval()
    found = [(module.lower(x, depth), y) for x, y in data.batches(256)]
    if not found:
        empty = torch.zeros(0, *module.shapes[depth - 1], device=model.device)
        return empty, torch.zeros(0, dtype=torch.int64, device=model.device), empty.new_zeros(0, module.classes)
    h, y = (torch.cat(column) for column in zip(*found, strict=True))
    return h.float(), y, (module.tap(h, depth) / temperature).softmax(1)
