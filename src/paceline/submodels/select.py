"""Selection of the units to keep: rules with one interface, from random dropout to invariant dropout.

A rule is called as ``rule(scores, counts, rng, previous)`` and returns, for each group, the units to keep, ascending.
Low scores are dropped first; NaN scores are unknown. Every rule returns exactly ``counts[group]`` units, so a
sub-model's widths depend only on its kept fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.core.errors import ConfigError, SubmodelError, UnknownNameError

__all__ = [
    "RULES",
    "Kept",
    "Ordered",
    "RandomDrop",
    "Rank",
    "Rule",
    "Threshold",
    "explore",
    "next_threshold",
    "rule",
    "select",
]

Kept = dict[str, Tensor]
"""Units to keep, ascending, by group."""


class Rule(Protocol):
    """A selection rule."""

    def __call__(
        self,
        scores: Mapping[str, Tensor],
        counts: Mapping[str, int],
        rng: torch.Generator,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Kept:
        """Choose the units to keep.

        Args:
            scores: for each group, one score per unit.
            counts: number of units to keep in each group (`Cutter.keep`).
            rng: random generator.
            previous: the units kept last time.
        """


def _each(
    choose: Callable[[Tensor, int, Tensor], Tensor],
    scores: Mapping[str, Tensor],
    counts: Mapping[str, int],
    previous: Mapping[str, Tensor] | None,
) -> Kept:
    """Call ``choose(scores, number to drop, dropped last time) -> units to drop`` for every group."""
    kept = {}
    for group, count in counts.items():
        if group not in scores:
            raise SubmodelError(f"the scores of group {group!r} are missing; pass scores.unknown(sizes) if none are known")
        score = scores[group].detach().cpu().double()
        if not 1 <= count <= len(score):
            raise SubmodelError(f"group {group!r} has {len(score)} units and cannot retain {count}")
        before = torch.zeros(len(score), dtype=torch.bool)
        if previous is not None and group in previous:
            before[:] = True
            before[previous[group].cpu()] = False
        stays = torch.ones(len(score), dtype=torch.bool)
        stays[choose(score, len(score) - count, before)] = False
        kept[group] = torch.nonzero(stays).flatten()
    return kept


@dataclass(frozen=True)
class RandomDrop:
    """Random (federated) dropout: drop random units, drawn anew on every call."""

    def __call__(
        self,
        scores: Mapping[str, Tensor],
        counts: Mapping[str, int],
        rng: torch.Generator,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Kept:
        """Choose the units to keep (see `Rule`)."""
        return _each(lambda s, n, _: torch.randperm(len(s), generator=rng)[:n], scores, counts, previous)


@dataclass(frozen=True)
class Ordered:
    """Ordered dropout (FjORD): keep the first units of every group. Smaller models are nested in larger ones."""

    def __call__(
        self,
        scores: Mapping[str, Tensor],
        counts: Mapping[str, int],
        rng: torch.Generator,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Kept:
        """Choose the units to keep (see `Rule`)."""
        return _each(lambda s, n, _: torch.arange(len(s) - n, len(s)), scores, counts, previous)


@dataclass(frozen=True)
class Rank:
    """Drop the lowest scores; equivalent to raising a threshold until enough units qualify.

    On ties (scores within `tolerance`, absolute plus relative) units that were dropped last time are dropped first, then
    those with the highest index, so that equal scores result in ordered dropout. Unknown units get the score of a random
    known unit; if none is known, the selection is random.
    """

    tolerance: float = 1e-9

    def __call__(
        self,
        scores: Mapping[str, Tensor],
        counts: Mapping[str, int],
        rng: torch.Generator,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Kept:
        """Choose the units to keep (see `Rule`)."""

        def choose(score: Tensor, number: int, before: Tensor) -> Tensor:
            if number == 0:
                return torch.empty(0, dtype=torch.int64)
            score = _filled(score, rng)
            edge = score.sort().values[number - 1]
            apart = self.tolerance * (1.0 + abs(float(edge)))
            sure = torch.nonzero(score < edge - apart).flatten()
            tied = torch.nonzero((score - edge).abs() <= apart).flatten().flip(0)
            tied = torch.cat([tied[before[tied]], tied[~before[tied]]])
            return torch.cat([sure, tied[: number - len(sure)]])

        return _each(choose, scores, counts, previous)


@dataclass(frozen=True)
class Threshold:
    """FLuID's selection among the units whose score is at most a threshold.

    Units are dropped in this order, at random within each class: units dropped last time that still qualify, other units
    that qualify, any others. With a `step`, the threshold is first increased by it until enough units qualify.

    Args:
        start: threshold, one for all groups or by group; None uses each group's smallest score.
        step: increment; 0 leaves the threshold unchanged (FLuID within a round).
        tolerance: absolute tolerance of the comparison.
    """

    start: float | Mapping[str, float] | None = None
    step: float = 0.0
    tolerance: float = 1e-9

    def __call__(
        self,
        scores: Mapping[str, Tensor],
        counts: Mapping[str, int],
        rng: torch.Generator,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Kept:
        """Choose the units to keep (see `Rule`)."""
        kept: Kept = {}
        for group, count in counts.items():
            start = self.start[group] if isinstance(self.start, Mapping) else self.start

            def choose(score: Tensor, number: int, before: Tensor, start: float | None = start) -> Tensor:
                score = score.nan_to_num(nan=math.inf)
                at = float(score.min()) if start is None else start
                edge = float(score.sort().values[number - 1]) if number else at
                if self.step and math.isfinite(edge):
                    at += self.step * max(0, math.ceil((edge - at - self.tolerance) / self.step))
                fits = score <= at + self.tolerance
                order = torch.randperm(len(score), generator=rng)
                rank = 2 - fits[order].long() - (fits & before)[order].long()
                return order[torch.sort(rank, stable=True).indices][:number]

            kept |= _each(choose, scores, {group: count}, previous)
        return kept


def next_threshold(threshold: float, scores: Tensor, number: int, step: float) -> float:
    """Return FLuID's threshold for the next rounds: one step higher, unless `number` units already qualify.

    Args:
        threshold: current threshold.
        scores: scores of a group's units, shape [n].
        number: units to drop.
        step: increment of the threshold.
    """
    return threshold if int((scores <= threshold + 1e-9).sum()) >= number else threshold + step


def _filled(score: Tensor, rng: torch.Generator) -> Tensor:
    blank = score.isnan()
    known = score[~blank]
    if len(known) == 0:
        return torch.rand(len(score), generator=rng, dtype=score.dtype)
    drawn = known[torch.randint(len(known), (len(score),), generator=rng)]
    return torch.where(blank, drawn, score)


def explore(
    kept: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    round: int,
    rng: torch.Generator,
    every: int = 5,
    share: float = 0.1,
) -> Kept:
    """Every few rounds, restore some of the dropped units, drawn at random, in place of the lowest kept ones.

    A client never trains dropped units, so without exploration a dropped unit would remain dropped. As many units are
    removed as restored, so the widths do not change.

    Args:
        kept: selection of the rule.
        scores: scores by which kept units are removed; unknown ones are removed last.
        round: current round, from 1.
        rng: random generator.
        every: rounds between two explorations; 0 for never.
        share: fraction of the dropped units that is restored, rounded up.
    """
    if every == 0 or round % every:
        return dict(kept)
    out = {}
    for group, units in kept.items():
        score = scores[group].detach().cpu().nan_to_num(nan=math.inf)
        stays = torch.zeros(len(score), dtype=torch.bool)
        stays[units.cpu()] = True
        dropped = torch.nonzero(~stays).flatten()
        number = min(math.ceil(share * len(dropped) - 1e-9), len(units))
        back = dropped[torch.randperm(len(dropped), generator=rng)[:number]]
        ranked = units.cpu()[torch.sort(score[units.cpu()], stable=True).indices]
        stays[ranked[:number]] = False
        stays[back] = True
        out[group] = torch.nonzero(stays).flatten()
    return out


RULES: dict[str, Callable[..., Rule]] = {
    "random": RandomDrop,
    "ordered": Ordered,
    "rank": Rank,
    "threshold": Threshold,
    "invariant": lambda **options: Threshold(**{"start": 0.5, **options}),
}
"""Rules by name. ``invariant`` is FLuID's choice on the server; its scores are False where `Scorer.invariant`
is True."""


def rule(name: str, **options: Any) -> Rule:
    """Return the rule `name`.

    Raises:
        UnknownNameError: unknown rule.
        ConfigError: unknown option.
    """
    if name not in RULES:
        raise UnknownNameError("selection rule", name, RULES)
    try:
        return RULES[name](**options)
    except TypeError as error:
        raise ConfigError(f"rule {name!r}: {error}") from error


def select(
    scores: Mapping[str, Tensor],
    counts: Mapping[str, int],
    rng: torch.Generator,
    previous: Mapping[str, Tensor] | None = None,
    by: str | Rule = "rank",
) -> Kept:
    """Choose the units to retain.

    Args:
        scores: score of each unit by group, shape [n]; NaN if unknown. Low scores are dropped first.
        counts: number of units to retain, by group.
        rng: generator for ties and random rules.
        previous: units retained last time, by group; None in the first round.
        by: a rule, or its name (see `Rule`).

    Returns:
        indices of the retained units by group, sorted.

    Raises:
        SubmodelError: a group has no scores or too few units.
        UnknownNameError: unknown rule.
    """
    chosen = rule(by) if isinstance(by, str) else by
    return chosen(scores, counts, rng, previous)
