"""Seeded partitioners of samples over clients, with a result that needs no object per client.

iid                 random shares of equal size
dirichlet:ALPHA     each class is split by proportions drawn from Dirichlet(ALPHA, ..., ALPHA)
shards:K            each client has K classes; a class is split equally among its clients
quantity:ALPHA      the class mix of iid; sizes are proportions drawn from Dirichlet(ALPHA, ..., ALPHA)
groups:0-4/5-9      groups of clients, each with its classes; a class is split equally among its clients
                    (``groups:0-3,8/4-9`` may overlap; classes without clients are omitted)
longtail:IF/ALPHA   class c has n * IF^(c / (C - 1)) samples, others are omitted; then dirichlet:ALPHA,
                    or iid without ALPHA
natural             the data's own clients (writers, roles, sites)
domains, domains:ALPHA
                    the data's own domains (vendors, scanners), each split over a group of clients: in random shares of equal
                    size, or by Dirichlet(ALPHA) over classes
embedding:ALPHA[,by=network|inputs|labels][,clusters=10][,least=128][,use=1]
                    clusters of a task's embeddings, dealt by mixtures drawn from Dirichlet(ALPHA x share of each cluster), see
                    `paceline.data.embedding`; samples that remain are omitted
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import ConfigError, DataError, EmptyClientError
from paceline.core.random import numpy_rng
from paceline.core.samples import Split
from paceline.core.task import Task
from paceline.core.wording import setting
from paceline.data.assign import ASSIGN, Wanted, group_of
from paceline.data.embedding import clusters_of, in_order
from paceline.data.spelling import canonical, parse_partition

__all__ = ["Partition", "canonical", "parse_partition", "partition_labels", "partition_task"]


@dataclass(frozen=True)
class Partition(Split):
    """The samples of each client, all in three tensors: a million clients are no burden.

    Client k has the rows ``order[offsets[k] : offsets[k + 1]]``; those from ``cuts[k]`` on are its test samples. A call
    with a client's id returns its (train, test) rows.

    Args:
        name: as parsed, such as ``dirichlet:0.3``.
        order: rows of the task's training data, client by client, shape [samples] (int64).
        offsets: shape [clients + 1] (int64).
        cuts: shape [clients] (int64).
        owners: name of each client, if the partition is natural.
        moved: number of samples moved from large clients to otherwise empty ones.
        groups: true group of each client, if the partition has groups.
        clusters: cluster of each training sample of the task, shape [N] (int64), if the partition is by embeddings.
    """

    name: str
    order: Tensor
    offsets: Tensor
    cuts: Tensor
    owners: tuple[str, ...] = ()
    moved: int = 0
    groups: tuple[int, ...] = ()
    clusters: Tensor | None = None

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.cuts)

    @property
    def sizes(self) -> Tensor:
        """Number of samples of each client (train and test), shape [clients]."""
        return self.offsets.diff()

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: int) -> Tensor:
        """Return all rows of a client, as a view."""
        first, _, last = self._bounds(client)
        return self.order[first:last]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[k] for k in range(len(self)))

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's (train, test) rows, as views."""
        first, cut, last = self._bounds(client)
        return self.order[first:cut], self.order[cut:last]

    def num_train(self, client: int) -> int:
        """Return the number of training samples of a client."""
        return int(self._arrays[2][client])

    def nums_train(self, clients: Sequence[int]) -> list[int]:
        """Return the number of training samples of each of some clients."""
        counts: list[int] = self._arrays[2][np.asarray(clients, dtype=np.int64)].tolist()
        return counts

    def together(self, clients: Sequence[int]) -> Tensor | None:
        """Return the training rows of several clients at once.

        Args:
            clients: ids of clients.

        Returns:
            rows, shape [K, n], int64; None if the clients have different numbers of samples.
        """
        offsets, _, counts = self._arrays
        which = np.asarray(clients)
        size = counts[which[0]]
        if (counts[which] != size).any():
            return None
        places = offsets[which][:, None] + np.arange(size)
        return self.order.index_select(0, torch.from_numpy(places.reshape(-1))).view(places.shape)

    def _bounds(self, client: int) -> tuple[int, int, int]:
        offsets, cuts, _ = self._arrays  # reading NumPy scalars is faster
        if not 0 <= client < cuts.shape[0]:
            raise IndexError(f"client {client} does not exist; clients are 0 to {len(self) - 1}")
        return int(offsets[client]), int(cuts[client]), int(offsets[client + 1])

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        offsets, cuts = self.offsets.numpy(), self.cuts.numpy()
        return offsets, cuts, cuts - offsets[:-1]

    def table(self, task: Task) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Return the number of samples of each class on each client, shape [clients, classes] (int64).

        Of a task without classes, there is one column.
        """
        who = np.repeat(np.arange(len(self)), self.sizes.numpy())
        labels, classes = partition_labels(task)
        classes = max(classes, 1)
        cells = np.bincount(who * classes + labels[self.order.numpy()], minlength=len(self) * classes)
        return cells.reshape(len(self), classes)


def partition_task(
    task: Task,
    spec: str,
    clients: int | None = None,
    seed: int = 0,
    allow_empty: bool = False,
    client_test: float = 0.0,
    client_samples: int | None = None,
) -> Partition:
    """Split a task's training samples over clients.

    Every sample belongs to exactly one client, except for those omitted by ``groups``, ``longtail``, ``embedding`` and `client_samples`,
    and by ``natural`` with fewer `clients` than in the data, which draws that many of them by `seed`.

    Args:
        task: provides training labels and owners.
        spec: the partitioner, see the module docstring.
        clients: number of clients; None means all natural clients.
        seed: seed of the run.
        allow_empty: permit clients without samples. Otherwise dirichlet and quantity give each of them one sample of the
            client that has most at that time, counted in `moved`.
        client_test: fraction of each client's samples reserved for its tests, at least one of two. They are drawn at random;
            for natural clients whose samples are ordered in time they are the last ones. Training samples that share
            content with them (`Task.overlap`) are omitted; a client without others has no tests.
        client_samples: maximum number of samples per client including tests; the others are omitted.

    Raises:
        ConfigError: invalid values.
        EmptyClientError: a client would have no samples.
        DataError: natural clients or class labels are required and missing.
    """
    name, value = parse_partition(spec)
    if not 0 <= client_test < 1:
        raise ConfigError(f"client_test={client_test} must be at least 0 and below 1")
    if clients is not None and clients < 1:
        raise ConfigError(f"clients={clients} must be at least 1")
    owners: tuple[str, ...] = ()
    rng = numpy_rng(seed, "partition", canonical(spec))
    if name in ("natural", "domains") and task.train.owner is None:
        raise DataError(f"task {task.name!r} has no natural clients; use iid, dirichlet:ALPHA, shards:K or quantity:ALPHA")
    if name == "natural":
        client_of, owners = _natural(task, clients, rng)
        count, moved = len(owners), 0
    else:
        if clients is None:
            raise ConfigError(f"partition {spec!r} needs a number of clients; set clients=")
        count = clients
        if not allow_empty and count > len(task.train):
            raise EmptyClientError(
                f"{len(task.train)} samples are too few for {count} clients; "
                f"use fewer clients, or set {setting('allow_empty', True)}"
            )
        labels, classes = partition_labels(task)
        by_class = name in {"dirichlet", "shards", "groups", "longtail"} or (name == "domains" and value is not None)
        by_class |= name == "embedding" and value.by == "labels"
        if by_class and (not classes or labels.ndim != 1 or labels.dtype.kind not in "iu"):
            raise DataError(
                f"partition {spec!r} needs one class label per sample, which {task.name} does not have; use iid or quantity:ALPHA"
            )
        if name == "embedding":
            labels = in_order(labels) if by_class else clusters_of(task, value, count)
            classes = int(labels.max()) + 1
        owner = task.train.owner.numpy() if name == "domains" and task.train.owner is not None else None
        client_of, moved = ASSIGN[name](Wanted(labels, classes, count, value, not allow_empty, rng, owner))
    in_time = name == "natural" and task.in_time
    order, offsets = _sorted(client_of, count, None if in_time else rng)
    if client_samples is not None:
        order, offsets = _capped(order, offsets, client_samples)
    sizes = np.diff(offsets)
    if not allow_empty and (sizes == 0).any():
        empty = np.flatnonzero(sizes == 0)
        raise EmptyClientError(
            f"partition {spec!r} leaves {len(empty)} of {count} clients without samples (for example client {empty[0]}); "
            f"use fewer clients, or set {setting('allow_empty', True)}"
        )
    held = np.minimum(np.maximum(np.rint(sizes * client_test), client_test > 0), np.maximum(sizes - 1, 0))
    if task.overlap and client_test:
        order, offsets, held = _apart(order, offsets, held, task.overlap)
    cuts = offsets[1:] - held.astype(np.int64)
    number = len(value) if name == "groups" else len(torch.unique(task.train.owner)) if name == "domains" else 0
    groups = tuple(group_of(count, number).tolist()) if number else ()
    arrays = torch.from_numpy(order), torch.from_numpy(offsets), torch.from_numpy(cuts)
    return Partition(spec, *arrays, owners, moved, groups, torch.from_numpy(labels) if name == "embedding" else None)


def partition_labels(task: Task) -> tuple[Any, int]:
    """Return the labels used by partitioners: each sample's class, or its owner (a text's kind) if targets are sequences."""
    y, owner = task.train.y, task.train.owner
    one = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() and task.num_classes > 0
    if not one and owner is not None:
        return owner.numpy(), len(task.train.owners)
    return (y.numpy(), task.num_classes) if one else (np.zeros(len(task.train), dtype=np.int64), 0)


def _capped(order: Any, offsets: Any, most: int) -> tuple[Any, Any]:
    """Keep the first `most` rows of each client."""
    sizes = np.minimum(np.diff(offsets), most)
    kept = [order[start : start + size] for start, size in zip(offsets[:-1], sizes, strict=True)]
    return np.concatenate(kept), np.concatenate([[0], np.cumsum(sizes)])


def _apart(order: Any, offsets: Any, held: Any, reach: int) -> tuple[Any, Any, Any]:
    """Omit training rows at most `reach` away from one of the client's test rows; without other rows, hold none out."""
    kept, counts = [], held.astype(np.int64)
    for client, (start, end) in enumerate(itertools.pairwise(offsets)):
        train, test = order[start : end - counts[client]], order[end - counts[client] : end]
        known = np.sort(test)
        after = known[np.minimum(np.searchsorted(known, train), len(known) - 1)] if len(known) else train + reach + 1
        before = known[np.maximum(np.searchsorted(known, train, side="right") - 1, 0)] if len(known) else after
        far = (np.abs(after - train) > reach) & (np.abs(before - train) > reach)
        if len(test) and not far.any():
            kept.append(order[start:end])
            counts[client] = 0
        else:
            kept.append(np.concatenate([train[far], test]))
    return np.concatenate(kept), np.concatenate([[0], np.cumsum([len(rows) for rows in kept])]).astype(np.int64), counts


def _natural(
    task: Task, clients: int | None, rng: np.random.Generator
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], tuple[str, ...]]:
    """Return the client of each sample, -1 for omitted ones, and the clients' names."""
    assert task.train.owner is not None
    owner = task.train.owner.numpy()
    present = np.unique(owner)
    if clients is not None and clients > len(present):
        raise ConfigError(
            f"task {task.name!r} has {len(present)} natural clients, but {clients} were requested; set clients to {len(present)}"
        )
    chosen = present if clients is None else np.sort(rng.permutation(present)[:clients])
    place = np.full(int(present.max()) + 1, -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    named = task.train.owners
    return place[owner], tuple(str(named[i]) if i < len(named) else str(i) for i in chosen.tolist())


def _sorted(
    client_of: np.ndarray[tuple[int], np.dtype[np.int64]], count: int, rng: np.random.Generator | None
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return rows client by client, shuffled within each client by `rng` if given, and the offset of each client."""
    rows = np.arange(len(client_of)) if rng is None else rng.permutation(len(client_of))
    rows = rows[client_of[rows] >= 0]
    order = rows[np.argsort(client_of[rows], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(client_of[rows], minlength=count))])
    return order.astype(np.int64), offsets.astype(np.int64)
