"""How unlike the clients of a partition are, in any labelling of the samples: classes, or clusters of a task's embeddings."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from paceline.core.metrics import adjusted_rand
from paceline.core.task import Task
from paceline.data.partition import Partition, partition_labels
from paceline.data.raw import Array

__all__ = ["between_share", "heterogeneity", "histograms", "mutual_information", "task_similarity", "unlikeness"]


def histograms(split: Partition, labels: Array) -> Array:
    """Return the number of samples of each label on each client, shape [M, K] (int64).

    Args:
        split: the partition.
        labels: label of each training sample of the task, shape [N]; whole numbers from 0.
    """
    labels = np.asarray(labels)
    who, kinds = np.repeat(np.arange(len(split)), split.sizes.numpy()), int(labels.max(initial=0)) + 1
    return np.bincount(who * kinds + labels[split.order.numpy()], minlength=len(split) * kinds).reshape(len(split), kinds)


def heterogeneity(split: Partition, labels: Array) -> float:
    """Return mean_m KL(P_m || r) in nats: 0 where all clients have the mixture r of the whole data; clients without samples do not count.

    Args:
        split: the partition.
        labels: label of each training sample of the task, shape [N].
    """
    counts = histograms(split, labels).astype(np.float64)
    counts = counts[counts.sum(1) > 0]
    mixtures = counts / counts.sum(1, keepdims=True)
    whole = np.bincount(labels, minlength=counts.shape[1]) / len(labels)
    ratio = np.where(mixtures > 0, mixtures / np.where(whole > 0, whole, 1.0), 1.0)
    return float((mixtures * np.log(ratio)).sum(1).mean())


def unlikeness(split: Partition, task: Task) -> dict[str, float]:
    """Return the `heterogeneity` of a partition: ``kl_classes`` if the task has class labels (or owners), ``kl_clusters`` if the partition
    is by embeddings."""
    labels, classes = partition_labels(task)
    found = {"kl_classes": heterogeneity(split, labels)} if classes and labels.ndim == 1 else {}
    return found if split.clusters is None else found | {"kl_clusters": heterogeneity(split, split.clusters.numpy())}


def between_share(split: Partition, embeddings: Tensor) -> float:
    """Return the share of the variance of embeddings that lies between clients: 0 for equal means, 1 if each client is one point.

    Args:
        split: the partition.
        embeddings: shape [N, d], of the training samples of the task.
    """
    x = embeddings.double().numpy()[split.order.numpy()]
    who = np.repeat(np.arange(len(split)), split.sizes.numpy())
    sizes = np.maximum(split.sizes.numpy(), 1)[:, None]
    means = np.stack([np.bincount(who, weights=column, minlength=len(split)) for column in x.T], 1) / sizes
    whole = ((x - x.mean(0)) ** 2).sum()
    return float(1 - ((x - means[who]) ** 2).sum() / whole) if whole > 0 else 0.0


def mutual_information(a: Array, b: Array) -> float:
    """Return the mutual information of two labellings, divided by the mean of their entropies: 1 for equal ones, 0 if independent.

    Example:
        >>> mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
        1.0
    """
    (_, i), (_, j) = (np.unique(labels, return_inverse=True) for labels in (a, b))
    table = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(table, (i, j), 1 / len(i))

    def entropy(share: Array) -> float:
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())

    rows, columns, both = (entropy(part) for part in (table.sum(1), table.sum(0), table.reshape(-1)))
    return 1.0 if rows + columns == 0 else 2 * (rows + columns - both) / (rows + columns)


def task_similarity(a: Array, b: Array) -> dict[str, float]:
    """Return how much two tasks' clusters of the same samples agree: ``adjusted_rand`` and ``mutual_information``.

    Args:
        a, b: cluster of each sample, shape [N], see `paceline.data.embedding.clusters_of`.
    """
    return {
        "adjusted_rand": adjusted_rand(np.asarray(a).tolist(), np.asarray(b).tolist()),
        "mutual_information": mutual_information(a, b),
    }
