"""Algorithms of the partitioners: from labels to the client of each sample."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paceline.core.errors import ConfigError, EmptyClientError
from paceline.core.wording import setting
from paceline.data.embedding import deal
from paceline.data.raw import Array

__all__ = ["ASSIGN", "Wanted", "group_of", "long_tail"]


@dataclass(frozen=True)
class Wanted:
    """Input of a partitioner.

    Args:
        labels: class of each sample, shape [N].
        classes: number of classes.
        clients: number of clients.
        value: parsed value after the colon.
        fill: whether empty clients must be filled.
        rng: random stream of the partition.
        owner: natural client (domain) of each sample, shape [N], or None.
    """

    labels: Array
    classes: int
    clients: int
    value: Any
    fill: bool
    rng: np.random.Generator
    owner: Array | None = None


def _iid(want: Wanted) -> tuple[Array, int]:
    turn = np.arange(len(want.labels)) % want.clients
    return want.rng.permutation(turn), 0


def _dirichlet(want: Wanted) -> tuple[Array, int]:
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    without = (want.labels < 0) | (want.labels >= want.classes)
    for rows in (*(np.flatnonzero(want.labels == value) for value in range(want.classes)), np.flatnonzero(without)):
        if len(rows):
            client_of[want.rng.permutation(rows)] = _shares(want, len(rows))
    return client_of, _fill(client_of, want) if want.fill else 0


def _quantity(want: Wanted) -> tuple[Array, int]:
    client_of = want.rng.permutation(_shares(want, len(want.labels)))
    return client_of, _fill(client_of, want) if want.fill else 0


def _shares(want: Wanted, samples: int) -> Array:
    """Return the client of each of `samples` samples, by proportions drawn from Dirichlet(value)."""
    ends = np.cumsum(want.rng.dirichlet(np.full(want.clients, want.value)))
    if not math.isfinite(ends[-1]):
        raise ConfigError(f"concentration {want.value:g} is too small to draw proportions; use 0.001 or more")
    places = (np.arange(samples) + want.rng.random()) / samples  # evenly spaced, from a random start
    return np.searchsorted(ends / ends[-1], places, side="right").clip(max=want.clients - 1).astype(np.int64)


def _fill(client_of: Array, want: Wanted) -> int:
    """Give each empty client one sample of the currently largest client; return the number of moved samples."""
    sizes = np.bincount(client_of, minlength=want.clients)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return 0
    largest = [(-int(n), int(k)) for k, n in enumerate(sizes) if n > 1]
    heapq.heapify(largest)
    give = np.zeros(want.clients, dtype=np.int64)
    for _ in range(len(empty)):
        negative, client = heapq.heappop(largest)
        give[client] += 1
        if negative < -2:
            heapq.heappush(largest, (negative + 1, client))
    rows = want.rng.permutation(len(client_of))
    rows = rows[np.argsort(client_of[rows], kind="stable")]  # by client, at random within each
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    rank = np.arange(len(rows)) - first[client_of[rows]]
    taken = rows[rank < give[client_of[rows]]]
    client_of[want.rng.permutation(taken)] = empty
    return len(empty)


def _shards(want: Wanted) -> tuple[Array, int]:
    """Assign `k` different classes to each client, and to each class about the same number of clients.

    Clients are processed in blocks in which every class occurs equally often: a block traverses a random order of the
    classes in steps of k.
    """
    k, classes = int(want.value), want.classes
    if k > classes:
        raise ConfigError(f"shards:{k}: there are only {classes} classes")
    if k * want.clients < classes:
        raise ConfigError(
            f"shards:{k}: {want.clients} clients with {k} of {classes} classes each leave classes without a client; "
            f"use shards:{-(-classes // want.clients)} or more clients"
        )
    block = classes // math.gcd(classes, k)
    blocks = -(-want.clients // block)
    orders = want.rng.permuted(np.broadcast_to(np.arange(classes), (blocks, classes)), axis=1)
    steps = (np.arange(block)[:, None] * k + np.arange(k)) % classes
    has = orders[:, steps].reshape(-1, k)[: want.clients]
    # the last block may be truncated; in order, all classes occur before any is repeated
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    who = np.repeat(np.arange(want.clients), k)
    by_class = np.argsort(has.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(has.reshape(-1), minlength=classes))
    for value in range(classes):
        rows = want.rng.permutation(np.flatnonzero(want.labels == value))
        holders = want.rng.permutation(who[by_class[(ends[value - 1] if value else 0) : ends[value]]])
        client_of[rows] = holders[np.arange(len(rows)) % len(holders)]
    return client_of, 0


def group_of(clients: int, groups: int) -> Array:
    """Return the group of each client: contiguous groups of nearly equal size."""
    return np.arange(clients) * groups // clients


def _groups(want: Wanted) -> tuple[Array, int]:
    """Split each class equally among the clients of its groups; other samples are omitted."""
    groups: tuple[tuple[int, ...], ...] = want.value
    wrong = sorted({c for classes in groups for c in classes if c >= want.classes})
    if wrong or want.clients < len(groups):
        fault = f"class {wrong[0]} does not exist" if wrong else f"{want.clients} clients cannot form {len(groups)} groups"
        raise ConfigError(f"partition groups: {fault}")
    group = group_of(want.clients, len(groups))
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    for value in range(want.classes):
        holders = np.flatnonzero([value in groups[g] for g in group])
        if len(holders):
            rows = want.rng.permutation(np.flatnonzero(want.labels == value))
            client_of[rows] = want.rng.permutation(holders)[np.arange(len(rows)) % len(holders)]
    return client_of, 0


def long_tail(most: int, factor: float, classes: int) -> list[int]:
    """Return the number of samples of each class, n_c = floor(most * factor ** (c / (classes - 1))).

    Example:
        >>> long_tail(100, 0.01, 3)
        [100, 10, 1]
    """
    return [math.floor(most * factor ** (c / max(classes - 1, 1)) + 1e-9) for c in range(classes)]


def _longtail(want: Wanted) -> tuple[Array, int]:
    """Select a long-tailed subset of the classes, as large as the data permit, and split it (Dirichlet or iid)."""
    factor, alpha = want.value
    have = np.array([np.count_nonzero(want.labels == c) for c in range(want.classes)])
    shares = np.array([factor ** (c / max(want.classes - 1, 1)) for c in range(want.classes)])
    counts = long_tail(int((have / shares).min()), factor, want.classes)
    kept = np.sort(
        np.concatenate([want.rng.permutation(np.flatnonzero(want.labels == c))[: max(n, 1)] for c, n in enumerate(counts)])
    )
    tail = replace(want, labels=want.labels[kept], value=alpha)
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    client_of[kept], moved = _iid(tail) if alpha is None else _dirichlet(tail)
    return client_of, moved


def _domains(want: Wanted) -> tuple[Array, int]:
    """Split the samples of each domain over a group of clients of its own (Dirichlet or iid)."""
    assert want.owner is not None
    present = np.unique(want.owner)
    if want.clients < len(present):
        raise ConfigError(
            f"partition domains: {want.clients} clients are too few for {len(present)} domains, each with its own clients"
        )
    group, total = group_of(want.clients, len(present)), 0
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    for number, domain in enumerate(present):
        rows, members = np.flatnonzero(want.owner == domain), np.flatnonzero(group == number)
        if want.fill and len(rows) < len(members):
            raise EmptyClientError(
                f"partition domains: {len(rows)} samples of domain {domain} are too few for its {len(members)} clients; use fewer "
                f"clients, or set {setting('allow_empty', True)}"
            )
        own = replace(want, labels=want.labels[rows], clients=len(members), owner=None)
        which, moved = _iid(own) if want.value is None else _dirichlet(own)
        client_of[rows], total = members[which], total + moved
    return client_of, total


def _embedding(want: Wanted) -> tuple[Array, int]:
    """Deal the samples of each cluster; the rest is omitted."""
    dealt = deal(np.bincount(want.labels, minlength=want.classes), want.clients, want.value, want.rng)
    client_of = np.full(len(want.labels), -1, dtype=np.int64)
    for number in range(want.classes):
        rows = want.rng.permutation(np.flatnonzero(want.labels == number))
        holders = np.repeat(np.arange(want.clients), dealt.counts[:, number])
        client_of[rows[: len(holders)]] = holders
    return client_of, 0


ASSIGN: dict[str, Callable[[Wanted], tuple[Array, int]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "quantity": _quantity,
    "groups": _groups,
    "longtail": _longtail,
    "domains": _domains,
    "embedding": _embedding,
}
"""Partitioner functions by name; each returns the client of each sample and the number of moved samples."""
