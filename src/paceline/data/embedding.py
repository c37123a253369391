"""Clusters of samples by the embeddings of a task, and how they are dealt to clients ("Redefining non-IID Data in Federated Learning
for Computer Vision Tasks", arXiv 2503.14553, 2025): what differs between clients is what matters to the task, not a class label.

    embed     psi(x), the input of the last layer of a network that was trained for the task
    cluster   k-means into K clusters; N_k is the size of cluster k, r_k its share
    deal      rows P_m ~ Dirichlet(alpha r);  sizes n solve P' n = N in the least-squares sense, in whole numbers;
              accept them if n_m >= least, and no cluster is exceeded; client m receives floor(n_m P_mk) samples of cluster k

`alpha` is the total concentration: with K clusters each parameter of the law is about alpha / K, so alpha = 1 is far more skewed than
the usual Dirichlet(1, ..., 1). Samples that the sizes leave over are not used. Clusters do not depend on the run's seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paceline.core.checked import Checked
from paceline.core.errors import ConfigError, DataError
from paceline.core.fields import Positive, PositiveShare
from paceline.core.fingerprint import digest
from paceline.core.importing import import_extra, is_import_path, load_built_in, load_named
from paceline.core.task import Task
from paceline.data.cache import cache_folder, load_arrays, save_arrays
from paceline.data.raw import Array

__all__ = [
    "EMBEDDINGS",
    "Dealing",
    "EmbeddingLaw",
    "cluster",
    "clusters_of",
    "deal",
    "embed",
    "in_order",
    "inputs",
    "network_digest",
]

EMBEDDINGS = {"network": "paceline.tasks.embeddings:network", "inputs": "paceline.data.embedding:inputs"}
"""Embeddings by name, with their import paths; ``labels`` has none."""

_SEED = 42
_WIDE, _REDUCED, _MANY = 4096, 128, 100_000
"""Embeddings of more values are reduced to so many by PCA; more samples are clustered in batches."""

_TRIES, _BATCH, _STEPS = 10_000, 200, 500
"""Draws of sizes by the pseudo-inverse; afterwards sizes of at least `least` are searched in so many gradient steps."""


@dataclass(frozen=True)
class EmbeddingLaw(metaclass=Checked):
    """Value of the partition ``embedding:ALPHA[,KEY=VALUE...]``.

    Args:
        alpha: total concentration of the Dirichlet law.
        by: ``network`` (the task's model, trained centrally once), ``inputs``, ``labels`` (the usual notion, dealt in the same way),
            or ``package.module:function``, which takes the task and returns embeddings of its training samples, [N, ...].
        clusters: K; with by=labels the number of classes.
        least: fewest samples of a client.
        use: largest share of the samples that is dealt, for comparisons at the same amount of data.
    """

    alpha: Positive[float]
    by: str = "network"
    clusters: Positive[int] = 10
    least: Positive[int] = 128
    use: PositiveShare = 1.0


@dataclass(frozen=True)
class Dealing:
    """How many samples of each cluster each client receives.

    Args:
        proportions: P, the drawn mixtures, shape [M, K].
        sizes: n, shape [M] (int64).
        counts: floor(n P), shape [M, K] (int64).
    """

    proportions: Array
    sizes: Array
    counts: Array


def inputs(task: Task) -> Tensor:
    """Return the inputs themselves as embeddings, shape [N, ...]."""
    return task.train.tensors("partition embedding with by=inputs")[0].float()


def embed(task: Task, by: str) -> Tensor:
    """Return the embeddings of a task's training samples, shape [N, d].

    Raises:
        ConfigError: there is no such embedding, or it does not return one row for each sample.
    """
    if by not in EMBEDDINGS and not is_import_path(by):
        known = ", ".join([*EMBEDDINGS, "labels"])
        raise ConfigError(f"partition embedding: by={by} is not one of {known}, and not a function as package.module:function")
    make = load_built_in(EMBEDDINGS[by], f"embedding {by!r}") if by in EMBEDDINGS else load_named(by, "embedding")
    found = torch.as_tensor(make(task)).detach().cpu().float()
    if found.dim() < 2 or len(found) != len(task.train):
        raise ConfigError(
            f"embedding {by!r} returned shape {list(found.shape)} for {len(task.train)} samples; it must return a row for each"
        )
    return found.flatten(1)


def cluster(embeddings: Tensor, clusters: int) -> tuple[Array, Array]:
    """Return the k-means cluster of each row, shape [N] (int64), and the centres, shape [K, d] (of reduced embeddings, if wide).

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DataError: there are fewer different rows than clusters.
    """
    sklearn = import_extra("sklearn.cluster", "clustering")
    x = embeddings.numpy().astype(np.float64)
    if not np.isfinite(x).all() or len(np.unique(x, axis=0)) < clusters:
        raise DataError(f"partition embedding: {len(x)} embeddings are not finite, or fewer than clusters={clusters} are different")
    if x.shape[1] > _WIDE:
        reduction = import_extra("sklearn.decomposition", "clustering").PCA
        x = reduction(min(_REDUCED, len(x)), svd_solver="randomized", random_state=_SEED).fit_transform(x)
    kind = sklearn.MiniBatchKMeans if len(x) > _MANY else sklearn.KMeans
    found = kind(clusters, init="k-means++", n_init=4, random_state=_SEED).fit(x)
    return found.labels_.astype(np.int64), found.cluster_centers_


def clusters_of(task: Task, law: EmbeddingLaw, least: int = 1) -> Array:
    """Return the cluster of each training sample, numbered by first occurrence, shape [N] (int64); cached by the samples.

    Args:
        task: the task.
        law: embedding, and number of clusters.
        least: clusters with fewer samples are joined with the nearest of the others.
    """
    trained = network_digest(task) if law.by == "network" else ""
    sources = [task.fingerprint["train"], law.by, law.clusters, trained, "v1"]
    path = cache_folder() / "clusters" / f"{digest(*sources)[:24]}.npz"
    if is_import_path(law.by) or not path.exists():
        which, centres = cluster(embed(task, law.by), law.clusters)
        stored = {"which": which, "centres": centres}
        if not is_import_path(law.by):  # a user's function may change
            save_arrays(path, stored)
    else:
        stored = load_arrays(path)
    which, centres = stored["which"], stored["centres"]
    large = np.bincount(which, minlength=len(centres)) >= least
    if large.any() and not large.all():
        away = ((centres[:, None] - centres[None]) ** 2).sum(-1) + np.where(large, 0.0, np.inf)
        which = np.where(large, np.arange(len(centres)), away.argmin(1))[which]
    return in_order(which)


def network_digest(task: Task) -> str:
    """Return the digest of what a task's network learns from its samples: its layers, initial weights, and loss."""
    made = task.build(0)
    return digest(made, repr(made), task.loss)


def in_order(which: Array) -> Array:
    """Return labels renumbered by first occurrence, so that equal clusters have equal numbers.

    Example:
        >>> in_order(np.array([3, 3, 1, 7, 1])).tolist()
        [0, 0, 1, 2, 1]
    """
    _, first, place = np.unique(which, return_index=True, return_inverse=True)
    return first.argsort().argsort()[place].astype(np.int64)


def _whole(values: Array) -> Array:
    """Return values cut to whole numbers, but those within 1e-6 of one rounded to it."""
    near = np.rint(values)
    return np.where(np.abs(values - near) < 1e-6, near, np.floor(values)).astype(np.int64)


def solved(proportions: Array, sizes: Array) -> Array:
    """Return the whole client sizes n with P' n = N in the least-squares sense, shape [..., M] (int64).

    Args:
        proportions: P, shape [..., M, K].
        sizes: N, shape [K].
    """
    return _whole(np.linalg.pinv(np.swapaxes(proportions, -1, -2)) @ sizes.astype(np.float64))


def deal(sizes: Array, clients: int, law: EmbeddingLaw, rng: np.random.Generator) -> Dealing:
    """Draw how many samples of each cluster each client receives.

    Where 10,000 draws have no acceptable solution, sizes of at least `least` are fitted to further draws by projected gradient
    descent, and what exceeds `least` is scaled down until no cluster is exceeded.

    Args:
        sizes: samples of each cluster, all above 0, shape [K].
        clients: M.
        law: concentration, fewest samples and share to use.
        rng: random stream.

    Raises:
        ConfigError: no acceptable sizes were found, or `use` is too small for clients of the fewest samples.
    """
    total, law_of_rows = int(sizes.sum()), law.alpha * sizes / sizes.sum()
    if law.use < 1 and (law.least + len(sizes)) * clients > law.use * total:
        raise ConfigError(
            f"partition embedding: use={law.use:g} of {total} samples is too few for {clients} clients with least={law.least}; "
            f"use fewer clients, a smaller least=..., or a larger use"
        )
    rounds = _TRIES // _BATCH if law.least * clients <= total else 0
    for _ in range(rounds):
        drawn = rng.dirichlet(law_of_rows, size=(_BATCH, clients))
        if not np.isfinite(drawn).all():
            raise ConfigError(f"partition embedding: concentration {law.alpha:g} is too small to draw proportions")
        n = solved(drawn, sizes)
        fine = (n >= law.least).all(1) & (n.sum(1) <= total) & ((n[..., None] * drawn).sum(1) <= sizes + 1e-6).all(1)
        fine &= (_whole(n[..., None] * drawn).sum(2) >= law.least).all(1)
        if fine.any():
            first = int(fine.argmax())
            return _dealt(drawn[first], n[first], law, total)
    for drawn in rng.dirichlet(law_of_rows, size=(_BATCH if rounds else 0, clients)):
        low = float(law.least + len(sizes))  # rounding down takes less than 1 of each cluster
        room = sizes - low * drawn.sum(0)
        if (room >= 0).all():
            more = _fitted(drawn, sizes, low) - low
            taken = more @ drawn
            scale = min(1.0, float(np.min(np.where(taken > 0, room / np.where(taken > 0, taken, 1.0), 1.0))))
            return _dealt(drawn, _whole(low + scale * more), law, total)
    raise ConfigError(
        f"partition embedding: {total} samples in {len(sizes)} clusters cannot be dealt to {clients} clients with at least "
        f"{law.least} each at alpha={law.alpha:g}; use fewer clients, a smaller least=..., or a larger alpha"
    )


def _fitted(proportions: Array, sizes: Array, low: float) -> Array:
    """Return the minimum of |P' n - N|^2 over n >= low, by projected gradient descent."""
    n = np.full(len(proportions), max(low, sizes.sum() / len(proportions)))
    rate = 1 / np.linalg.norm(proportions @ proportions.T, 2)
    for _ in range(_STEPS):
        n = np.maximum(low, n - rate * proportions @ (proportions.T @ n - sizes))
    return n


def _dealt(proportions: Array, n: Array, law: EmbeddingLaw, total: int) -> Dealing:
    """Return the dealing of sizes, scaled down above their minimum to the share of samples to use."""
    low = np.minimum(n, law.least + proportions.shape[1])
    if n.sum() > law.use * total:
        n = _whole(low + (n - low) * (law.use * total - low.sum()) / (n - low).sum())
    return Dealing(proportions, n, _whole(n[:, None] * proportions))
