"""Detection of stragglers, and the size of the model that a straggler trains.

All decisions are made by a client alone, from times received from its neighbours and its own measurements. Times are
in seconds: ``compute`` is the local training, ``transfer`` download and upload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from paceline.core.errors import ConfigError
from paceline.submodels.cut import TIERS

__all__ = [
    "CostModel",
    "StragglerSet",
    "choose",
    "compute_fraction",
    "cutoff",
    "find_stragglers",
    "fluid_fraction",
    "fluid_full_time",
    "network_fraction",
    "steps_within",
]


@dataclass(frozen=True)
class StragglerSet:
    """Slow clients, and the pace of the others.

    Args:
        compute, network: clients that are slow in training, and in transfer.
        compute_target, network_target, total_target: T*, the largest time of the others, in training,
            transfer and their sum.
    """

    compute: frozenset[int]
    network: frozenset[int]
    compute_target: float
    network_target: float
    total_target: float


def cutoff(times: Iterable[float], share: float = 0.2) -> float:
    """Return T*, the cut-off time: the largest time outside the slowest `share`.

    Args:
        times: seconds of each client; NaN and negative values are ignored.
        share: share of the clients that counts as slow, in [0, 1); at least one client, if there are two.

    Raises:
        ConfigError: no times are given, or `share` is not in [0, 1).

    Example:
        >>> cutoff([1.0, 2.0, 3.0, 4.0, 10.0])
        4.0
    """
    ranked = sorted(t for t in times if t >= 0.0)  # drops NaN as well
    if not ranked or not 0.0 <= share < 1.0:
        raise ConfigError(f"a cut-off requires at least one time and a share in [0, 1), not {len(ranked)} times and {share}")
    slow = max(1, int(share * len(ranked) + 1e-9)) if share > 0 and len(ranked) > 1 else 0
    return ranked[len(ranked) - 1 - slow]


def find_stragglers(times: Mapping[int, tuple[float, float]], share: float = 0.2, guard: float = 1.1) -> StragglerSet:
    """Find the stragglers among clients' (compute, transfer) times.

    A client is slow if it is in the slowest `share` and above `guard` times T*, so that a homogeneous fleet has no
    stragglers. A quantile is used instead of a mean: a client that lies about its time shifts the cut-off by one rank.

    Args:
        times: by client, including this client's own.
        share: φ, fraction of clients regarded as slow.
        guard: factor by which a straggler must exceed T*.
    """
    compute, network, total = (
        cutoff([f(*t) for t in times.values()], share) for f in (lambda c, _: c, lambda _, n: n, lambda c, n: c + n)
    )
    return StragglerSet(
        frozenset(u for u, (c, _) in times.items() if c > guard * compute),
        frozenset(u for u, (_, n) in times.items() if n > guard * network),
        compute,
        network,
        total,
    )


def fluid_fraction(ratio: float) -> float:
    """Return FLuID's kept fraction for ρ = next slowest time / straggler's time."""
    steps = ((0.9, 0.95), (0.8, 0.85), (0.7, 0.75), (0.6, 0.65))
    return next((p for least, p in steps if ratio >= least - 1e-9), 0.5)


def fluid_full_time(time: float, fraction: float) -> float:
    """Return FLuID's estimate of a former straggler's time with the full model."""
    return time / fraction * 1.15


@dataclass(frozen=True)
class CostModel:
    """Training time as a function of the sub-model's cost: T(p) = a * c(p) + s.

    Args:
        a: seconds for the full model's FLOPs.
        s: seconds that do not depend on the model.
    """

    a: float
    s: float = 0.0

    def seconds(self, cost: float) -> float:
        """Return the time at cost c(p)."""
        return self.a * cost + self.s

    @staticmethod
    def fit(measured: Sequence[tuple[float, float]]) -> CostModel:
        """Fit ``seconds(c) = a c + s`` with a, s >= 0 by least squares; with only one cost, s is 0.

        Args:
            measured: (relative cost c(p), seconds) of each measured round.

        Raises:
            ConfigError: no measurements.

        Example:
            >>> CostModel.fit([(1.0, 5.0), (0.5, 3.0)])
            CostModel(a=4.0, s=1.0)
        """
        if not measured:
            raise ConfigError("a cost model requires at least one measured round")
        n = len(measured)
        mean_c, mean_t = sum(c for c, _ in measured) / n, sum(t for _, t in measured) / n
        spread = sum((c - mean_c) ** 2 for c, _ in measured)
        if spread > 1e-12:
            a = sum((c - mean_c) * (t - mean_t) for c, t in measured) / spread
            s = mean_t - a * mean_c
            if a < 0.0:
                return CostModel(0.0, mean_t)
            if s >= 0.0:
                return CostModel(a, s)
        return CostModel(sum(c * t for c, t in measured) / sum(c * c for c, _ in measured))


def choose(seconds: Callable[[float], float], target: float, tiers: Sequence[float] = TIERS, least: float = 0.5) -> float:
    """Return the largest tier p >= `least` with ``seconds(p) <= target``, otherwise the smallest permitted tier.

    Args:
        seconds: predicted time of a sub-model that retains the fraction p of its units.
        target: time that a round may take, in seconds.
        tiers: fractions to choose from.
        least: smallest permitted fraction.

    Raises:
        ConfigError: no tier is at least `least`.

    Example:
        >>> choose(lambda p: 10 * p, target=8.0, tiers=(1.0, 0.75, 0.5))
        0.75
    """
    allowed = sorted((p for p in tiers if p >= least - 1e-9), reverse=True)
    if not allowed:
        raise ConfigError(f"no tier of {list(tiers)} is at least {least}; lower least")
    return next((p for p in allowed if seconds(p) <= target * (1.0 + 1e-9)), allowed[-1])


def compute_fraction(model: CostModel, costs: Mapping[float, float], target: float, least: float = 0.5) -> float:
    """Return the kept fraction that meets T* in training time: the largest p with a c(p) + s <= T*.

    Args:
        model: cost model of this client.
        costs: c(p) by tier (`Cutter.cost`).
        target: T* of training.
        least: smallest permitted p.
    """
    return choose(lambda p: model.seconds(costs[p]), target, tuple(costs), least)


def network_fraction(
    model: CostModel,
    costs: Mapping[float, float],
    transfer: float,
    target: float,
    least: float = 0.5,
    shares: Mapping[float, float] | None = None,
) -> float:
    """Return the kept fraction that meets T* in training plus transfer.

    Without `shares` the upload is padded to full size, so a slow link can only be compensated by less computation: the
    client prunes more than its speed requires. With `shares` (segmented uploads) the transfer shrinks as well, and fewer
    units are lost for the same round time.

    Args:
        model: cost model of this client.
        costs: c(p) by tier.
        transfer: seconds of the full-size transfer.
        target: T* of training plus transfer.
        least: smallest permitted p.
        shares: by tier, bytes sent over full-size bytes (`Cutter.share`).
    """
    sent = shares or {}
    return choose(lambda p: model.seconds(costs[p]) + transfer * sent.get(p, 1.0), target, tuple(costs), least)


def steps_within(steps: int, done: float, elapsed: float, budget: float, after: float = 0.3) -> int:
    """Return the total number of steps to take when training slows down within a round.

    Once the fraction `after` of the steps is done and the forecast exceeds the budget, the number of steps is reduced (the
    update's weight is the number of samples seen) instead of cutting another model.

    Args:
        steps: planned steps.
        done: steps so far, in `elapsed` seconds; a smaller batch is a part of one.
        elapsed: seconds since the first step.
        budget: seconds for all steps.
        after: fraction of the steps before which no decision is made.
    """
    if done < max(1, math.ceil(after * steps)) or elapsed / done * steps <= budget:
        return steps
    return max(math.floor(done), int(budget / elapsed * done))
