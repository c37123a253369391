"""Distances between updates, and clustering: average linkage implemented here, or scikit-learn's algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import ConfigError, MissingExtraError
from paceline.core.random import torch_rng

__all__ = ["Backend", "average_linkage", "cluster", "cosine_distances", "project", "settle", "silhouette", "temperature"]

Array = np.ndarray[Any, np.dtype[Any]]
Backend = Literal["average", "hdbscan", "kmeans", "meanshift", "affinity"]


def cosine_distances(updates: Tensor) -> Tensor:
    """Return the matrix Gamma of pairwise cosine distances, shape [n, n] (float64).

    Args:
        updates: one update per client, shape [n, d]; a zero update is at distance 1 from all others.

    Example:
        >>> cosine_distances(torch.eye(2)).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    norms = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    unit = (updates / norms.clamp(min=1e-12)).double()
    gamma: Tensor = (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)
    return gamma


def temperature(gamma: Tensor, p: float = 2.0) -> float:
    """Return T of Gamma [n, n]."""
    n = len(gamma)
    most: float = (n * (n - 1) * 2**p) ** (1 / p)
    return float(torch.linalg.vector_norm(gamma.flatten(), p)) / most


def project(unit: Tensor, width: int, seed: int) -> Tensor:
    """Return R u, a random projection that approximately preserves distances.

    Args:
        unit: a vector u, shape [d].
        width: number of dimensions after the projection.
        seed: determines R [width, d], with Gaussian entries of variance 1 / width; identical on all parties of a run.

    Returns:
        shape [width].
    """
    rng = torch_rng(seed, "sketch")
    out = torch.empty(width)
    for i in range(width):  # row by row: R itself would be large
        out[i] = torch.randn(unit.numel(), generator=rng).to(unit.device) @ unit
    sketch: Tensor = out / width**0.5
    return sketch


def cluster(distances: Array, backend: Backend = "average", clusters: int = 3, least: int = 3) -> list[int]:
    """Return a label for each point; -1 is noise.

    Args:
        distances: symmetric, shape [n, n].
        backend: ``average`` selects the number of clusters by silhouette; ``kmeans`` and ``meanshift`` cluster the
            matrix's rows; ``affinity`` uses negative distances as similarities.
        clusters: number of clusters of kmeans.
        least: smallest cluster of hdbscan.

    Raises:
        MissingExtraError: scikit-learn is required and not installed.
        ConfigError: unknown backend.
    """
    if backend == "average":
        return average_linkage(distances)
    if backend not in ("hdbscan", "kmeans", "meanshift", "affinity"):
        raise ConfigError(f"clustering backend {backend!r} must be average, hdbscan, kmeans, meanshift or affinity")
    try:
        import sklearn.cluster as sk
    except ImportError:
        raise MissingExtraError("scikit-learn", "clustering") from None
    if len(distances) < max(clusters if backend == "kmeans" else least, 2):
        return [0] * len(distances)
    if backend == "hdbscan":
        model = sk.HDBSCAN(metric="precomputed", min_cluster_size=least, copy=True)
    elif backend == "kmeans":
        model = sk.KMeans(clusters, n_init=10, random_state=0)
    elif backend == "meanshift":
        model = sk.MeanShift()
    else:
        model = sk.AffinityPropagation(affinity="precomputed", random_state=0)
    labels = model.fit_predict(-distances if backend == "affinity" else distances)
    return [int(label) for label in labels]


def average_linkage(distances: Array, most: int = 8) -> list[int]:
    """Return the cluster of each point by average linkage; the number of clusters maximises the silhouette.

    Args:
        distances: pairwise distances, shape [n, n].
        most: maximum number of clusters; the minimum is 2.
    """
    groups = [[i] for i in range(len(distances))]
    best, labels = -np.inf, [0] * len(distances)
    while len(groups) > 2:
        means = np.array([[distances[np.ix_(a, b)].mean() for b in groups] for a in groups])
        np.fill_diagonal(means, np.inf)
        i, j = sorted(np.unravel_index(means.argmin(), means.shape))
        groups[i] += groups.pop(j)
        if len(groups) <= most:
            found = _labels(groups, len(distances))
            score = silhouette(distances, found)
            if score > best:
                best, labels = score, found
    return labels


def _labels(groups: Sequence[Sequence[int]], n: int) -> list[int]:
    out = [0] * n
    for label, group in enumerate(sorted(groups, key=min)):
        for i in group:
            out[i] = label
    return out


def silhouette(distances: Array, labels: Sequence[int]) -> float:
    """Return the mean over points of (b - a) / max(a, b): a is the mean distance within the cluster, b to the nearest other one."""
    which = np.asarray(labels)
    scores = []
    for i in range(len(which)):
        own = which == which[i]
        if own.sum() == 1:
            scores.append(0.0)
            continue
        a = distances[i, own].sum() / (own.sum() - 1)
        b = min(distances[i, which == other].mean() for other in set(labels) - {labels[i]})
        scores.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return float(np.mean(scores))


def settle(labels: Sequence[int], distances: Array, least: int, noise_apart: bool = False) -> list[int]:
    """Return labels 0, 1, ... in which every cluster has at least `least` points, or all 0 if only one would remain.

    Points of smaller clusters, and noise, join the cluster with the smallest mean distance.

    Args:
        labels: label of each point; -1 is noise.
        distances: pairwise distances, shape [n, n].
        least: minimum number of points of a cluster.
        noise_apart: make noise a separate cluster instead.
    """
    given = np.asarray(labels)
    large = [k for k in dict.fromkeys(given.tolist()) if (k >= 0 or noise_apart) and (given == k).sum() >= least]
    if len(large) < 2:
        return [0] * len(given)
    out = given.copy()
    for i in range(len(given)):
        if given[i] not in large:
            out[i] = min(large, key=lambda k: distances[i, given == k].mean())
    return [large.index(int(k)) for k in out]
