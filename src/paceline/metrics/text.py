"""BLEU and ROUGE of token sequences, from sums over sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.metrics.base import TokenMetric, ratio

__all__ = ["Bleu", "Rouge", "common_subsequence", "matches"]


@dataclass(frozen=True)
class Bleu(TokenMetric):
    """Corpus BLEU with one reference: brevity penalty times the geometric mean of n-gram precisions (Papineni et al., 2002).

    Args:
        order: longest n-grams.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ConfigError(f"metric 'bleu': order={self.order} is below 1")

    def count(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return matching and predicted n-grams of each order [order], and tokens of predictions and targets."""
        pairs = [matches(outputs, targets, n) for n in range(1, self.order + 1)]
        return {
            "hits": torch.stack([hits.sum() for hits, _, _ in pairs]),
            "found": torch.stack([found.sum() for _, found, _ in pairs]),
            "length": (outputs >= 0).sum(),
            "true_length": (targets >= 0).sum(),
        }

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return BLEU between 0 and 1; 0 where n-grams of an order never match."""
        hits, found = total["hits"].double(), total["found"].double()
        length, true = int(total["length"]), int(total["true_length"])
        if not true:
            return {"bleu": math.nan}
        if not length or not bool((hits > 0).all()):
            return {"bleu": 0.0}
        penalty = min(0.0, 1 - true / length)
        return {"bleu": math.exp(penalty + float((hits / found).log().mean()))}


@dataclass(frozen=True)
class Rouge(TokenMetric):
    """ROUGE: F1 of n-grams or of the longest common subsequence of a prediction and its target, averaged over sentences.

    Args:
        kind: ``1`` or ``2`` for n-grams of that length, ``l`` for the longest common subsequence.
    """

    kind: Literal["1", "2", "l"] = "l"

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return f"rouge{self.kind}"

    def count(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return summed precision, recall and F1 of the sentences, and their count."""
        if self.kind == "l":
            hits, found, true = common_subsequence(outputs, targets), (outputs >= 0).sum(1), (targets >= 0).sum(1)
        else:
            hits, found, true = matches(outputs, targets, int(self.kind))
        known = (targets >= 0).any(1)
        return {
            "precision": (ratio(hits, found) * known).sum(),
            "recall": (ratio(hits, true) * known).sum(),
            "f1": (ratio(2 * hits, found + true) * known).sum(),
            "count": known.sum(),
        }

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean F1, and mean precision and recall."""
        count = int(total["count"])
        f1, precision, recall = (float(total[n]) / count if count else math.nan for n in ("f1", "precision", "recall"))
        return {self.figure: f1, f"{self.figure}_precision": precision, f"{self.figure}_recall": recall}


def matches(outputs: Tensor, targets: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return matching, predicted and true n-grams of each sentence, each [N]; an n-gram matches as often as both have it.

    Args:
        outputs: predicted tokens, shape [N, S]; -1 after the end.
        targets: true tokens, shape [N, T]; -1 after the end.
        n: length of the n-grams.
    """
    if min(outputs.shape[1], targets.shape[1]) < n:
        return tuple(((t >= 0).sum(1) - n + 1).clamp(min=0) * keep for t, keep in ((outputs, 0), (outputs, 1), (targets, 1)))  # type: ignore[return-value]
    ours, theirs = outputs.unfold(1, n, 1), targets.unfold(1, n, 1)
    found, true = (ours >= 0).all(2), (theirs >= 0).all(2)
    earlier = _equal(ours, ours).tril(-1) & found[:, None]
    rank = earlier.sum(2)  # how often this n-gram came before
    there = (_equal(ours, theirs) & true[:, None]).sum(2)
    return ((rank < there) & found).sum(1), found.sum(1), true.sum(1)


def common_subsequence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the length of the longest common subsequence of each sentence, [N]."""
    row = torch.zeros(len(targets), targets.shape[1] + 1, dtype=torch.int64, device=targets.device)
    for token in outputs.unbind(1):
        step = row[:, :-1] + ((targets == token[:, None]) & (token[:, None] >= 0))
        row = torch.cat([row[:, :1], torch.maximum(row[:, 1:], step)], 1).cummax(1).values
    return row[:, -1]


def _equal(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return which n-grams are equal, [N, A, B]."""
    same = ours[:, :, None, 0] == theirs[:, None, :, 0]
    for k in range(1, ours.shape[2]):
        same &= ours[:, :, None, k] == theirs[:, None, :, k]
    return same
