"""Masking graph: complete for small cohorts, a k-regular ring above, and the choice of k and t."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRINDING", "Parameters", "least_owners", "neighbours", "parameters", "permutation", "shortfall"]

GRINDING = 64
"""log2 of the number of graphs that a malicious server may try, with advertisements of corrupt clients made to fit.

The seed of a sparse graph is the hash of all advertised keys, so whoever owns some of the keys can search for a
graph that surrounds a victim. Privacy of a sparse graph is therefore computed for 2^-(sigma + GRINDING) per graph.
"""


def permutation(ids: Sequence[int], seed: bytes) -> list[int]:
    """Return the ids in the order determined by a seed (Fisher-Yates, driven by SHA-256); deterministic on every machine."""
    order, counter = list(ids), 0
    for i in range(len(order) - 1, 0, -1):
        limit = 2**64 - 2**64 % (i + 1)  # rejection sampling: larger draws would bias towards small indices
        while True:
            draw = int.from_bytes(hashlib.sha256(seed + counter.to_bytes(8, "little")).digest()[:8], "little")
            counter += 1
            if draw < limit:
                break
        j = draw % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def neighbours(order: Sequence[int], k: int) -> dict[int, list[int]]:
    """Return each client's neighbours, ascending: those at most k/2 places away on the ring, or all others if k >= n - 1."""
    n = len(order)
    if k >= n - 1:
        return {c: sorted(v for v in order if v != c) for c in order}
    half = (k + 1) // 2
    steps = [d for d in range(-half, half + 1) if d]
    return {c: sorted({order[(i + d) % n] for d in steps} - {c}) for i, c in enumerate(order)}


@dataclass(frozen=True)
class Parameters:
    """Number of neighbours k of each client, and the threshold t of shares that rebuild a secret."""

    neighbours: int
    threshold: int


@lru_cache(maxsize=64)
def parameters(
    n: int,
    gamma: float = 0.1,
    delta: float = 0.1,
    active: bool = True,
    sigma: int = 40,
    eta: int = 30,
    complete_up_to: int = 50,
    grinding: int = GRINDING,
) -> Parameters:
    """Return the smallest even k, and for it the smallest t > k/2, that meet the privacy and correctness targets.

    With c = gamma n corrupt and D = delta n dropped clients, and neighbours drawn without replacement:
    privacy n P[X_c >= t] <= 2^-sigma (active: X_c >= 2t - k); correctness n P[X_a < t] <= 2^-eta;
    connectivity of the honest survivors n (gamma + delta)^(k/2) <= 2^-sigma. Privacy and connectivity get half
    of 2^-sigma each. An active server can choose the best of 2^grinding graphs, which is added to sigma.

    Args:
        n: size of the cohort.
        gamma, delta: fractions of corrupt and of dropped clients.
        active: whether the server may deviate from the protocol.
        sigma, eta: exponents of the failure probabilities.
        complete_up_to: cohorts up to this size use the complete graph, t = n/2 + 1 (active 2n/3 + 1).
        grinding: see `GRINDING`; applies to an active server only.
    """
    if n <= complete_up_to:
        return _complete(n, active)
    corrupt, gone = math.ceil(gamma * n - 1e-9), math.ceil(delta * n - 1e-9)
    people, exponent = math.log2(n), sigma + (grinding if active else 0)
    for k in range(2, n - 1, 2):
        if people + k / 2 * math.log2(max(gamma + delta, 1e-300)) > -exponent - 1:
            continue
        captured = _log2_tails(n - 1, corrupt, k)
        lost = _log2_heads(n - 1, n - 1 - gone, k)
        for t in range(k // 2 + 1, k + 1):
            if people + captured[2 * t - k if active else t] > -exponent - 1:
                continue
            if people + lost[t - 1] <= -eta:
                return Parameters(k, t)
            break  # a larger t only increases the loss of rounds
    return _complete(n, active)


def shortfall(n: int, k: int, t: int, gamma: float, delta: float, active: bool, sigma: int, grinding: int = GRINDING) -> str:
    """Return why a graph with k neighbours and threshold t does not protect n clients as required; empty if it does.

    Checks the conditions of `parameters` for sizes chosen by another party.
    """
    corrupt, needed = math.ceil(gamma * n - 1e-9), 2 * t - k if active else t
    if k >= n - 1:
        if corrupt >= needed:
            return (
                f"with t={t}, k={k}, {needed} corrupt clients of {n} could open an update, but {corrupt} must be tolerated; raise t"
            )
        return ""
    people, exponent = math.log2(n), sigma + (grinding if active else 0)
    if needed < 1 or people + _log2_tails(n - 1, corrupt, k)[min(needed, k)] > -exponent - 1:
        return f"t={t} of k={k} neighbours is too low for {corrupt} corrupt clients of {n} at 2^-{sigma}; raise t"
    if people + k / 2 * math.log2(max(gamma + delta, 1e-300)) > -exponent - 1:
        return f"k={k} neighbours may leave the honest survivors of {n} clients unconnected at 2^-{sigma}; raise k"
    return ""


def least_owners(n: int, k: int, t: int, gamma: float) -> int:
    """Return how many of an owner's k neighbours have to own a segment of the model as well.

    At least t of the k neighbours help to remove the owner's mask, so at least o + t - k of the o neighbours that own the segment
    do. If these are more than the corrupt ones, an honest owner is among the helpers. At most ceil(gamma n) clients of a complete
    graph are corrupt. In a sparse graph fewer than 2t - k of the neighbours are, except with the probability for which
    `parameters` computes k and t, so o = t suffices.

    Args:
        n: size of the cohort.
        k: neighbours of each client.
        t: the threshold.
        gamma: fraction of corrupt clients.

    Example:
        >>> least_owners(8, 7, 6, 0.1)
        3
    """
    return t if k < n - 1 else min(t, k - t + math.ceil(gamma * n - 1e-9) + 1)


def _complete(n: int, active: bool) -> Parameters:
    t = 2 * n // 3 + 1 if active else n // 2 + 1
    return Parameters(max(n - 1, 1), max(1, min(t, n - 1)))  # no client holds a share of its own secrets


@lru_cache(maxsize=8)
def _log2_factorials(n: int) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, n + 1)))])
    return sums


def _log2_masses(total: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return log2 P[X = x] for x = 0 .. drawn (hypergeometric): `drawn` of `total` items are drawn, `marked` of which count."""
    fact = _log2_factorials(total)

    def choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
        at = np.minimum(k, n)
        return np.where(k <= n, fact[n] - fact[at] - fact[n - at], -np.inf)

    x = np.arange(drawn + 1)
    whole = choose(total, np.array([drawn]))[0]
    out: NDArray[np.float64] = choose(marked, x) + choose(total - marked, drawn - x) - whole
    return out


def _log2_tails(total: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return log2 P[X >= x] for x = 0 .. drawn."""
    return np.logaddexp2.accumulate(_log2_masses(total, marked, drawn)[::-1])[::-1]


def _log2_heads(total: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return log2 P[X <= x] for x = 0 .. drawn."""
    return np.logaddexp2.accumulate(_log2_masses(total, marked, drawn))
