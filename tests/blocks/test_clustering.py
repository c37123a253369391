"""Angles, temperature and clusters: the worked numbers, and scikit-learn where it is installed."""

import numpy as np
import pytest
import torch

from paceline.blocks.clustering import (
    average_linkage,
    cluster,
    cosine_distances,
    project,
    settle,
    silhouette,
    temperature,
)
from paceline.core.errors import ConfigError, MissingExtraError


def test_opposite_updates():
    gamma = cosine_distances(torch.tensor([[1.0, 0], [1, 0], [-1, 0]]))
    assert gamma.tolist() == [[0, 0, 2], [0, 0, 2], [2, 2, 0]]
    assert float(gamma.norm()) == pytest.approx(4)
    assert temperature(gamma) == pytest.approx(0.816497, abs=1e-6)


def test_angles():
    gamma = cosine_distances(torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]]))
    np.testing.assert_allclose(gamma, [[0, 0.2, 1], [0.2, 0, 0.4], [1, 0.4, 0]], atol=1e-6)
    assert temperature(gamma) == pytest.approx(0.316228, abs=1e-6)
    p3 = (2 * (0.2**3 + 1 + 0.4**3) / (3 * 2 * 8)) ** (1 / 3)
    assert temperature(gamma, 3.0) == pytest.approx(p3, abs=1e-6)


def test_temperature_sees_directions_only():
    g = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    scaled = g * torch.tensor([[1.0], [5], [0.1], [2], [30], [7]])
    assert temperature(cosine_distances(scaled)) == pytest.approx(temperature(cosine_distances(g)), abs=1e-6)
    assert temperature(cosine_distances(torch.ones(4, 3))) == pytest.approx(0, abs=1e-6)
    halves = torch.tensor([[1.0], [1], [-1], [-1]])
    assert temperature(cosine_distances(halves)) > temperature(cosine_distances(torch.tensor([[1.0], [1], [1], [-1]])))


def test_a_zero_update_is_at_distance_one():
    gamma = cosine_distances(torch.tensor([[0.0, 0], [1, 0], [0, 0]]))
    assert gamma.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_a_sketch_keeps_angles():
    rng = torch.Generator().manual_seed(1)
    g = torch.nn.functional.normalize(torch.randn(5, 4000, generator=rng) + torch.randn(4000, generator=rng))
    sketched = torch.stack([project(u, 1024, seed=3) for u in g])
    np.testing.assert_allclose(cosine_distances(sketched), cosine_distances(g), atol=4 / 1024**0.5)
    assert torch.equal(project(g[0], 8, seed=3), project(g[0], 8, seed=3))
    assert not torch.equal(project(g[0], 8, seed=3), project(g[0], 8, seed=4))


def blobs(sizes, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    centres = np.repeat([[3 * k, k % 2] for k in range(len(sizes))], sizes, axis=0)
    points = centres + rng.normal(scale=spread, size=centres.shape)
    return np.linalg.norm(points[:, None] - points[None], axis=2), np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("sizes", [(5, 5), (3, 7, 5), (4, 4, 4, 4)])
def test_average_linkage_finds_blobs(sizes):
    distances, true = blobs(sizes)
    assert average_linkage(distances) == true.tolist()


def test_average_linkage_and_silhouette_against_scikit_learn():
    sk, metrics = pytest.importorskip("sklearn.cluster"), pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        distances, _ = blobs((6, 5, 7), seed, spread=1.0)
        best = {}
        for k in range(2, 9):
            labels = sk.AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(distances)
            best[k] = (metrics.silhouette_score(distances, labels, metric="precomputed"), labels)
            assert silhouette(distances, labels.tolist()) == pytest.approx(best[k][0])
        expected = max(best.values(), key=lambda found: found[0])[1]
        assert metrics.adjusted_rand_score(expected, average_linkage(distances)) == 1.0


@pytest.mark.parametrize("backend", ["hdbscan", "kmeans", "meanshift", "affinity"])
def test_the_other_backends_find_clear_blobs(backend):
    pytest.importorskip("sklearn")
    distances, true = blobs((5, 5, 5))
    before = distances.copy()
    found = cluster(distances, backend, clusters=3, least=3)
    from paceline.core.metrics import adjusted_rand

    assert adjusted_rand(found, true.tolist()) == 1.0
    assert np.array_equal(distances, before)


def test_noise_and_small_clusters_join_the_nearest():
    distances, _ = blobs((4, 4, 2))
    assert settle([0, 0, 0, -1, 1, 1, 1, 1, 2, 2], distances, least=3) == [0] * 4 + [1] * 6
    assert settle([0, 0, 0, 0, 1, 1, 1, 1, -1, -1], distances, least=2, noise_apart=True) == [0] * 4 + [1] * 4 + [2] * 2
    assert settle([5, 5, 5, 5, 3, 3, 3, 3, 3, 3], distances, least=3) == [0] * 4 + [1] * 6
    assert settle([-1] * 10, distances, least=3) == [0] * 10
    assert settle([0] * 9 + [1], distances, least=2) == [0] * 10


def test_unknown_and_missing_backends(monkeypatch):
    with pytest.raises(ConfigError, match="hdbscan"):
        cluster(np.zeros((3, 3)), "dbscan")
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"paceline\[clustering\]"):
        cluster(np.zeros((3, 3)), "hdbscan")
    assert cluster(np.abs(np.subtract.outer([0.0, 0.1, 5.0, 5.1], [0.0, 0.1, 5.0, 5.1]))) == [0, 0, 1, 1]
