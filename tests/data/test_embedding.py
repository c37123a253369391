"""Partitions by embeddings: the sheet's numbers, the law's limits, equal draws for labels and embeddings, and measures by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, DataError, EmptyClientError, UnknownNameError
from paceline.data import Partition, parse_partition, partition_task
from paceline.data.embedding import EmbeddingLaw, _fitted, _whole, cluster, clusters_of, deal, embed, in_order, solved
from paceline.data.heterogeneity import between_share, heterogeneity, histograms, mutual_information, task_similarity, unlikeness
from paceline.data.partition import canonical
from paceline.models.pretraining import pretrain
from paceline.models.split import penultimate
from paceline.tasks import Arrays, load_task
from paceline.tasks.embeddings import network
from paceline.tasks.shading import shaded
from tests.conftest import make_task

P = np.array([[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]])
EVEN = np.full(10, 600)


def one_hot(task):
    return torch.nn.functional.one_hot(task.train.y, 4)


def too_few(task):
    return task.train.x[:5]


def smooth_mlp():
    """Return the layers of `make_task` with another activation, which has the same initial weights."""
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def first_two(task):
    return task.train.x[:, :2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))


def law(alpha, **more):
    return EmbeddingLaw(alpha, **{"least": 40, **more})


def rng(seed=0):
    return np.random.default_rng(seed)


def test_sizes_solve_the_equations_and_use_every_sample():
    n = solved(P, np.array([700, 800]))
    assert n.tolist() == [500, 500, 500]
    assert _whole(n[:, None] * P).tolist() == [[250, 250], [400, 100], [50, 450]]
    assert _whole(np.array([2.9999999, 2.99, -0.5, 3.0000001])).tolist() == [3, 2, -1, 3]


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0, 1e6])
@pytest.mark.parametrize("clients", [3, 8, 20])
def test_no_cluster_is_exceeded_and_no_client_is_below_the_minimum(alpha, clients):
    sizes = np.array([700, 300, 650, 80, 900])
    dealt = deal(sizes, clients, law(alpha), rng(clients))
    assert (dealt.counts >= 0).all()
    assert (dealt.counts.sum(0) <= sizes).all()
    assert (dealt.counts.sum(1) >= 40).all()
    np.testing.assert_allclose(dealt.proportions.sum(1), 1)
    np.testing.assert_array_equal(dealt.counts, np.floor(dealt.sizes[:, None] * dealt.proportions + 1e-6))
    assert np.abs(dealt.counts / dealt.counts.sum(1, keepdims=True) - dealt.proportions).max() < 0.1


def test_the_limits_of_the_concentration():
    sizes = np.array([2400, 1200, 600, 1200, 600])
    mixed = deal(sizes, 6, law(1e6), rng())
    assert np.abs(mixed.counts / mixed.counts.sum(1, keepdims=True) - sizes / 6000).max() < 0.02
    pure = [deal(EVEN, 6, law(0.05), rng(seed)).proportions.max(1).mean() for seed in range(5)]
    assert min(pure) > 0.8


def test_divergence_falls_with_the_concentration():
    means = []
    for alpha in (0.1, 1, 10, 100):
        found = []
        for seed in range(3):
            p = deal(EVEN, 4, law(alpha), rng(seed)).proportions
            found.append((p * np.log(np.maximum(10 * p, 1e-300))).sum(1).mean())
        means.append(np.mean(found))
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.5
    assert means[-1] < 0.1


def test_the_fit_with_a_minimum_is_that_of_bounded_least_squares():
    for seed in range(5):
        p, sizes = rng(seed).dirichlet(np.full(4, 0.3), size=7), rng(seed + 9).integers(100, 900, 4)
        exact = optimize.lsq_linear(p.T, sizes, bounds=(50, np.inf)).x
        ours = _fitted(p, sizes, 50.0)
        assert (ours >= 50).all()
        assert np.linalg.norm(p.T @ ours - sizes) <= np.linalg.norm(p.T @ exact - sizes) + 1e-3 * sizes.sum()


def test_a_share_of_the_samples_is_used_and_impossible_wishes_are_refused():
    dealt = deal(EVEN, 6, law(1.0, use=0.3), rng(2))
    assert 0.27 * 6000 < dealt.counts.sum() <= 0.3 * 6000
    assert (dealt.counts.sum(1) >= 40).all()
    whole = deal(EVEN, 6, law(1.0), rng(2))
    np.testing.assert_array_equal(dealt.proportions, whole.proportions)
    with pytest.raises(ConfigError, match=r"use=0.3 .* too few"):
        deal(EVEN, 6, law(1.0, use=0.3, least=300), rng())
    for wish in ({"clients": 6, "law": law(0.5, least=1001)}, {"clients": 6, "law": law(0.01, least=700)}):
        with pytest.raises(ConfigError, match="cannot be dealt"):
            deal(EVEN, rng=rng(), **wish)


def test_one_hot_labels_give_the_partition_by_labels_exactly():
    task = make_task(600)
    y = torch.tensor([3, 1, 2])[torch.arange(600) % 3]  # one class is missing, and the first one is not 0
    task = replace(task, train=Arrays(task.train.x, y))
    spec = "embedding:0.5,least=20,clusters=3"
    splits = [partition_task(task, f"{spec},by={by}", 5, seed=3) for by in ("labels", f"{__name__}:one_hot")]
    assert torch.equal(splits[0].order, splits[1].order)
    assert torch.equal(splits[0].offsets, splits[1].offsets)
    assert torch.equal(splits[0].clusters, splits[1].clusters)
    assert not torch.equal(splits[0].order, partition_task(task, f"{spec},by=labels", 5, seed=4).order)


def test_rows_are_disjoint_reproducible_and_as_dealt():
    task = make_task(600)
    split, again = (partition_task(task, "embedding:0.7,by=inputs,least=20,clusters=5", 6, seed=1) for _ in range(2))
    assert torch.equal(split.order, again.order)
    assert len(split.order.unique()) == len(split.order) <= 600
    assert int(split.order.min()) >= 0
    assert int(split.order.max()) < 600
    assert int(split.sizes.min()) >= 20
    table = histograms(split, split.clusters.numpy())
    assert table.sum() == len(split.order)
    whole = torch.bincount(split.clusters).numpy()
    assert (table.sum(0) <= whole).all()
    cut = next(number for number in range(5) if table[:, number].sum() < whole[number])
    members = torch.nonzero(split.clusters == cut).flatten()
    assert not torch.isin(members[: int(table[:, cut].sum())], split.order).all()
    held = partition_task(task, "embedding:0.7,by=inputs,least=20,clusters=5", 6, seed=1, client_test=0.25)
    assert sum(len(held(k)[1]) for k in range(6)) > 0.2 * len(split.order)


def test_clusters_are_those_of_the_embedding_numbered_by_first_occurrence(monkeypatch):
    task = make_task(200)
    which = clusters_of(task, EmbeddingLaw(1.0, by=f"{__name__}:first_two", clusters=3))
    centres = np.stack([first_two(task).numpy()[which == k].mean(0) for k in range(3)])
    away = ((first_two(task).numpy()[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(which, away.argmin(1))
    assert which[0] == 0
    assert in_order(np.array([9, 2, 9, 4])).tolist() == [0, 1, 0, 2]
    wide = torch.randn(50, 5000)
    wide[:25] += 3
    which, centres = cluster(wide, 2)
    assert sorted(np.bincount(which)) == [25, 25]
    assert centres.shape == (2, 50)
    monkeypatch.setattr("paceline.data.embedding._MANY", 20)
    assert sorted(np.bincount(cluster(wide, 2)[0])) == [25, 25]
    even = torch.rand(80, 2)
    np.testing.assert_array_equal(cluster(even, 7)[0], cluster(even, 7)[0])


def test_clusters_are_stored_by_all_that_they_depend_on(monkeypatch):
    """Samples, embedding, number of clusters; and what a network learns: layers, weights and loss."""
    made, task = [], make_task(60)

    def embed(task, by):
        made.append(by)
        return task.train.x

    monkeypatch.setattr("paceline.data.embedding.embed", embed)
    tasks = [task, make_task(64), replace(task, loss=torch.nn.functional.multi_margin_loss), replace(task, model=smooth_mlp)]
    wishes = [(one, {"clusters": 3}) for one in tasks] + [(task, {"clusters": 4}), (task, {"by": "inputs", "clusters": 3})]
    for _ in range(2):
        for one, wish in wishes:
            assert clusters_of(one, EmbeddingLaw(1.0, **wish)).max() == wish["clusters"] - 1
    assert len(made) == len(wishes)


def test_small_clusters_join_the_nearest():
    x = torch.cat([torch.zeros(30, 2), torch.full((30, 2), 10.0), torch.full((3, 2), 8.0)])
    x = torch.cat([x + 0.1 * torch.randn(63, 2)] * 2)
    task = pl.Task.from_tensors(x, torch.arange(126) % 2, lambda: nn.Linear(2, 2), test=0.5)
    task = replace(task, train=Arrays(x[:63], torch.arange(63) % 2))
    wish = EmbeddingLaw(1.0, by="inputs", clusters=3)
    assert np.bincount(clusters_of(task, wish)).tolist() == [30, 30, 3]
    assert np.bincount(clusters_of(task, wish, least=5)).tolist() == [30, 33]
    for clients, clusters in ((3, 3), (4, 2)):  # fewer samples than clients
        split = partition_task(task, "embedding:100,by=inputs,clusters=3,least=3", clients)
        assert len(split.clusters.unique()) == clusters


def test_embeddings_by_a_network_follow_the_task_and_are_trained_once(monkeypatch):
    task = make_task(300)
    passes = []

    def counted(module, x, y, **more):
        passes.append(len(x))
        return pretrain(module, x, y, **more)

    monkeypatch.setattr("paceline.tasks.embeddings.pretrain", counted)
    first = embed(task, "network")
    assert first.shape == (300, 8)
    assert torch.equal(network(task), first)
    assert passes == [200]
    split = clusters_of(task, EmbeddingLaw(1.0, clusters=4))
    assert task_similarity(split, task.train.y.numpy())["adjusted_rand"] > 0.6


def test_the_last_layer_s_input_of_any_module():
    x = torch.randn(3, 2, 4, 4)
    chain = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 1))
    assert torch.equal(penultimate(chain, x), chain[:2](x))
    assert torch.equal(penultimate(nn.Flatten(), x), x.flatten(1))


def split_of(*clients):
    sizes = torch.tensor([len(rows) for rows in clients])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return Partition("made", torch.tensor([row for rows in clients for row in rows]), offsets, offsets[1:].clone())


def test_measures_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    split = split_of([0, 1, 3], [2], [4, 5])
    p = [(2 / 3, 1 / 3), (1.0,), (1.0,)]
    wanted = np.mean([sum(v * np.log(v / 0.5) for v in row) for row in p])
    assert heterogeneity(split, labels) == pytest.approx(wanted)
    assert heterogeneity(split_of([0, 3], [], [1, 4]), labels) == 0
    assert heterogeneity(split_of([0, 3], [], [1, 2]), labels) == pytest.approx(np.log(2) / 2)  # r is that of all samples
    x = torch.tensor([[0.0], [0.0], [2.0], [4.0], [4.0], [4.0]])
    inside = 2 * (4 / 3) ** 2 + (8 / 3) ** 2
    assert between_share(split, x) == pytest.approx(1 - inside / float(((x - x.mean()) ** 2).sum()))
    assert between_share(split_of([0, 1], [3, 4, 5]), x) == pytest.approx(1)
    a, b = rng().integers(0, 4, 300), rng(1).integers(0, 3, 300)
    for one, other in ((a, b), (a, (a > 1).astype(int)), (b, b)):
        assert mutual_information(one, other) == pytest.approx(normalized_mutual_info_score(one, other))
    assert mutual_information(np.zeros(5, int), np.zeros(5, int)) == 1.0
    assert abs(task_similarity(a, b)["adjusted_rand"]) < 0.05
    task = make_task(300)
    found = unlikeness(partition_task(task, "embedding:0.5,by=labels,least=10", 4), task)
    assert found["kl_classes"] == pytest.approx(found["kl_clusters"])
    assert set(unlikeness(partition_task(task, "iid", 4), task)) == {"kl_classes"}


def test_the_value_is_read_and_checked():
    assert parse_partition("embedding:0.5,by=labels,least=50")[1] == EmbeddingLaw(0.5, by="labels", least=50)
    assert canonical("embedding:0.50,by=inputs") == canonical("embedding:0.5") == "embedding:0.5"
    for text in ("embedding", "embedding:0", "embedding:0.5,clusters=0", "embedding:x", "embedding:1,use=2"):
        with pytest.raises(ConfigError, match=r"partition.*embedding"):
            parse_partition(text)
    with pytest.raises((ConfigError, UnknownNameError), match="least"):
        parse_partition("embedding:0.5,leats=3")
    task = make_task(300)
    with pytest.raises(ConfigError, match="by=nothing"):
        partition_task(task, "embedding:0.5,by=nothing", 4)
    with pytest.raises(ConfigError, match="a row for each"):
        embed(task, f"{__name__}:too_few")
    with pytest.raises((ConfigError, EmptyClientError), match="least"):
        partition_task(task, "embedding:0.5,by=labels", 4)
    with pytest.raises(DataError, match="one class label"):
        partition_task(replace(task, train=Arrays(task.train.x, task.train.x)), "embedding:0.5,by=labels", 4)
    with pytest.raises(DataError, match="clusters=400"):
        partition_task(task, "embedding:0.5,by=inputs,clusters=400", 4)


def test_the_shade_does_not_depend_on_the_class():
    task = load_task("shading", of="digits", limit=400, tests=50)
    assert (task.train.x.shape, task.train.y.shape) == ((400, 1, 8, 8), (400, 8, 8))
    lit, shade = shaded(torch.ones(2, 1, 3, 3), torch.tensor([0.0, np.pi / 2]), torch.tensor([1.0, 0.5]))
    wanted = torch.tensor([0.15, 0.5, 0.85]).expand(3, 3)
    torch.testing.assert_close(shade, torch.stack([wanted, wanted.T]))
    torch.testing.assert_close(lit[:, 0], torch.stack([wanted, 0.5 * wanted.T]))
    assert 0 <= float(task.train.y.min()) < float(task.train.y.max()) <= 1
    light = cluster(task.train.y.flatten(1), 4)[0]
    assert abs(task_similarity(light, task.train.owner.numpy())["adjusted_rand"]) < 0.05
    values = {"clients": 2, "rounds": 2, "partition": "embedding:5,by=labels,least=20", "options": {"epochs": 3, "momentum": 0.9}}
    result = pl.run("fedavg", task, **values)
    assert result.metric == "rmse"
    assert result.history[-1]["rmse"] < result.history[0]["rmse"] < 0.4
