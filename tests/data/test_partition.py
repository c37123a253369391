"""Partitions: who gets what, for every partitioner, and every refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import ConfigError, DataError, EmptyClientError, UnknownNameError
from paceline.data import partition_task
from paceline.data.partition import canonical, parse_partition
from paceline.data.plots import plot_partition
from paceline.tasks import Arrays, Task, blobs
from tests.work import steps

SPECS = ["iid", "dirichlet:0.3", "shards:2", "quantity:0.5"]


def owned(owner: list[int], in_time: bool = False, names: tuple[str, ...] = ()) -> Task:
    codes = torch.tensor(owner)
    data = Arrays(torch.zeros(len(codes), 3), torch.arange(len(codes)) % 2, codes, names)
    return Task("owned", data, data, lambda: torch.nn.Linear(3, 2), num_classes=2, in_time=in_time)


@pytest.mark.parametrize("spec", SPECS)
def test_every_sample_goes_to_one_client_and_none_is_empty(spec):
    task = blobs(samples=300)
    split = partition_task(task, spec, 20, seed=3)
    assert len(split) == split.num_clients == 20
    assert sorted(split.order.tolist()) == list(range(300))
    assert int(split.sizes.min()) >= 1
    assert int(split.sizes.sum()) == 300


@pytest.mark.parametrize("spec", SPECS)
def test_the_seed_decides_everything(spec):
    task = blobs(samples=300)
    first, again, other = (partition_task(task, spec, 10, seed=s, client_test=0.2) for s in (1, 1, 2))
    assert torch.equal(first.order, again.order)
    assert torch.equal(first.cuts, again.cuts)
    assert not torch.equal(first.order, other.order)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["iid", "dirichlet", "quantity"]),
    st.floats(0.01, 100),
    st.integers(1, 60),
    st.integers(0, 99),
    st.floats(0, 0.9),
)
def test_nothing_is_lost_whatever_the_numbers(name, alpha, clients, seed, share):
    task = blobs(samples=60)
    spec = name if name == "iid" else f"{name}:{alpha}"
    split = partition_task(task, spec, clients, seed, client_test=share)
    rows = torch.cat([torch.cat(split(k)) for k in range(clients)])
    assert sorted(rows.tolist()) == list(range(60))
    assert all(len(split(k)[0]) >= 1 for k in range(clients))


def test_iid_sizes_differ_by_one_at_most():
    sizes = partition_task(blobs(samples=103), "iid", 10).sizes
    assert int(sizes.max() - sizes.min()) == 1


def test_the_table_counts_classes():
    task = blobs(samples=200)
    split = partition_task(task, "dirichlet:0.5", 8)
    table = split.table(task)
    assert table.shape == (8, 4)
    for k in range(8):
        assert np.array_equal(table[k], np.bincount(task.train.y[split[k]].numpy(), minlength=4))


def test_shards_give_each_client_so_many_classes():
    task = blobs(samples=400, classes=10)
    table = partition_task(task, "shards:2", 15).table(task)
    assert ((table > 0).sum(1) == 2).all()
    assert ((table > 0).sum(0) == 3).all()


def test_a_small_alpha_is_more_one_sided_than_a_large_one():
    task = blobs(samples=4000, classes=10)
    small, large = (partition_task(task, f"dirichlet:{a}", 20).table(task) for a in (0.1, 100))
    one_sided = [float((t.max(1) / t.sum(1)).mean()) for t in (small, large)]
    assert one_sided[0] > 0.45 > 0.2 > one_sided[1]


def test_quantity_keeps_the_mix_and_skews_the_sizes():
    task = blobs(samples=4000)
    split = partition_task(task, "quantity:0.5", 10)
    assert int(split.sizes.max()) > 3 * int(split.sizes.min())
    largest = split.table(task)[int(split.sizes.argmax())]
    assert largest.max() / largest.sum() < 0.35


def test_filling_moves_one_sample_each_from_the_largest():
    task = blobs(samples=60)
    left = partition_task(task, "quantity:0.02", 50, seed=1, allow_empty=True)
    filled = partition_task(task, "quantity:0.02", 50, seed=1)
    empty = int((left.sizes == 0).sum())
    assert empty > 0
    assert filled.moved == empty
    assert left.moved == 0
    assert (filled.sizes[left.sizes == 0] == 1).all()
    assert int((left.sizes - filled.sizes).clamp(min=0).sum()) == empty


def test_client_test_sets_a_share_of_each_client_aside():
    split = partition_task(blobs(samples=100), "iid", 5, client_test=0.2)
    for k in range(5):
        train, test = split(k)
        assert (len(train), len(test)) == (16, 4)
        assert train.dtype == test.dtype == torch.int64
    assert len(partition_task(blobs(samples=100), "iid", 5)(0)[1]) == 0


def test_natural_clients_are_the_owners():
    split = partition_task(owned([2, 0, 2, 5, 0], names=tuple("abcdef")), "natural", 3)
    assert split.owners == ("a", "c", "f")
    assert [sorted(rows.tolist()) for rows in split] == [[1, 4], [0, 2], [3]]


def test_fewer_clients_than_owners_are_a_seeded_choice():
    task = owned([k // 2 for k in range(40)])
    chosen = {partition_task(task, "natural", 5, seed=s).owners for s in range(4)}
    assert len(chosen) > 1
    assert all(len(set(owners)) == 5 for owners in chosen)
    assert partition_task(task, "natural", 5, seed=1).owners == partition_task(task, "natural", 5, seed=1).owners


def test_tests_of_a_client_in_time_are_its_last_samples():
    train, test = partition_task(owned([0] * 10, in_time=True), "natural", 1, client_test=0.3)(0)
    assert train.tolist() == list(range(7))
    assert test.tolist() == [7, 8, 9]


def test_training_samples_that_overlap_tests_are_omitted():
    """A sample shares content with the three that follow it; the second client is too short for both parts."""
    task = replace(owned([0] * 20 + [1] * 4, in_time=True), overlap=3)
    split = partition_task(task, "natural", 2, client_test=0.2)
    train, test = split(0)
    assert (train.tolist(), test.tolist()) == (list(range(13)), list(range(16, 20)))
    assert [len(rows) for rows in split(1)] == [4, 0]
    assert split.sizes.tolist() == [17, 4]
    mixed = partition_task(replace(task, in_time=False), "iid", 3, client_test=0.1, seed=1)
    for client in range(3):
        train, test = mixed(client)
        assert len(test) == 1
        assert (train - test).abs().min() > 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dirichlet:0.1", "dirichlet:0.10"),
        ("dirichlet:1", "dirichlet:1.0"),
        ("longtail:0.5/0.3", "longtail:0.50/.3"),
        ("groups:0-1/1-2", "groups:0,1/1,2"),
    ],
)
def test_equal_values_split_equally_however_they_are_written(one, other):
    task = blobs(samples=120)
    assert canonical(one) == one  # so its split is that of earlier versions
    assert torch.equal(partition_task(task, one, 4).order, partition_task(task, other, 4).order)
    assert canonical("dirichlet:0.12") != canonical("dirichlet:0.1")


def test_more_clients_than_owners_says_how_many_there_are():
    with pytest.raises(ConfigError, match=r"has 3 natural clients, but 4 were requested"):
        partition_task(owned([0, 1, 2]), "natural", 4)
    with pytest.raises(DataError, match="no natural clients"):
        partition_task(blobs(), "natural", 4)


@pytest.mark.parametrize(
    ("spec", "near"),
    [("dirichlt:1", "dirichlet"), ("shard:2", "shards"), ("naturl", "natural"), ("IDD", "iid")],
)
def test_an_unknown_name_suggests_the_nearest(spec, near):
    with pytest.raises(UnknownNameError, match=f"did you mean .*{near}"):
        partition_task(blobs(), spec, 4)


@pytest.mark.parametrize(
    "spec",
    [
        "dirichlet",
        "dirichlet:",
        "dirichlet:x",
        "dirichlet:0",
        "dirichlet:-1",
        "dirichlet:nan",
        "dirichlet:inf",
        "shards:1.5",
        "shards:0",
        "shards:9",
        "shards",
        "quantity:-2",
        "iid:3",
        "natural:1",
    ],
)
def test_a_bad_number_is_refused(spec):
    with pytest.raises(ConfigError):
        partition_task(blobs(), spec, 4)


@pytest.mark.parametrize(("clients", "share"), [(0, 0.0), (4, 1.0), (4, -0.1), (4, float("nan"))])
def test_bad_arguments_are_refused(clients, share):
    with pytest.raises(ConfigError):
        partition_task(blobs(), "iid", clients, client_test=share)


@pytest.mark.parametrize("spec", SPECS)
def test_more_clients_than_samples(spec):
    with pytest.raises(EmptyClientError):
        partition_task(blobs(samples=20), spec, 30)
    split = partition_task(blobs(samples=20), spec, 30, allow_empty=True)
    assert len(split) == 30
    assert int(split.sizes.sum()) == 20


@pytest.mark.parametrize("client", [-1, 4])
def test_there_is_no_such_client(client):
    with pytest.raises(IndexError):
        partition_task(blobs(), "iid", 4)(client)


@pytest.mark.parametrize("spec", ["iid", "quantity:1"])
def test_a_million_clients_are_no_burden(spec):
    y = torch.arange(1_000_000) % 2
    data = Arrays(torch.zeros(1_000_000, 1), y)
    task = Task("many", data, data, lambda: torch.nn.Linear(1, 2), num_classes=2)
    split, _ = steps(2_000_000, partition_task, task, spec, 1_000_000)  # half a million where the empty ones are filled
    assert [len(split(k)[0]) for k in (0, 999_999)] == [1, 1]


def test_the_rows_of_many_come_as_one_table_where_they_are_equally_many():
    split = partition_task(blobs(samples=300), "iid", 10, seed=1, client_test=0.2)
    table = split.together([7, 2, 4])
    assert torch.equal(table, torch.stack([split(k)[0] for k in (7, 2, 4)]))
    uneven = partition_task(blobs(samples=300), "quantity:0.5", 10, seed=1)
    assert uneven.together(range(10)) is None
    assert torch.equal(uneven.together([3]), uneven(3)[0][None])


def test_a_task_without_classes_is_counted_and_drawn_by_samples(tmp_path):
    x = torch.randn(40, 3)
    task = Task("quantity", Arrays(x, x.sum(1)), Arrays(x, x.sum(1)), lambda: torch.nn.Linear(3, 1), loss="mse")
    split = partition_task(task, "quantity:1", 4)
    assert split.table(task).tolist() == [[n] for n in split.sizes.tolist()]
    assert plot_partition(tmp_path / "a.png", split, task).stat().st_size > 1000
    with pytest.raises(DataError, match="needs one class label per sample"):
        partition_task(task, "shards:2", 4)


def test_owners_that_are_not_drawn_belong_to_nobody():
    owner = [c % 6 for c in range(60)]
    split = partition_task(owned(owner, names=tuple("abcdef")), "natural", 2, seed=4)
    assert split.sizes.tolist() == [10, 10]
    for client, name in enumerate(split.owners):
        assert {owner[row] for row in split[client].tolist()} == {"abcdef".index(name)}
    assert len(set(split.order.tolist())) == 20
    whole = partition_task(owned(owner), "natural", client_test=0.2)
    assert whole.owners == tuple("012345")
    assert whole.groups == ()


@pytest.mark.parametrize(("reach", "held"), [(1, 0.3), (3, 0.3), (3, 0.05), (9, 0.1)])
def test_overlaps_of_many_clients_by_a_slow_loop(reach, held):
    """Clients of 1 to 30 samples in random order: one that is too short for both parts has no tests, and its neighbours do not change."""
    sizes = [1, 7, 2, 30, 4, 19, 1, 12]
    owner = np.random.default_rng(reach).permutation(np.repeat(np.arange(8), sizes)).tolist()
    task = replace(owned(owner), overlap=reach)
    plain = partition_task(owned(owner), "natural", client_test=held, seed=2)
    split = partition_task(task, "natural", client_test=held, seed=2)
    short = 0
    for client in range(8):
        train, test = (rows.tolist() for rows in plain(client))
        assert len(test) == min(max(round(sizes[client] * held), 1), sizes[client] - 1)
        far = [row for row in train if all(abs(row - other) > reach for other in test)]
        wanted = (train + test, []) if test and not far else (far, test)
        short += test != [] and not far
        assert tuple(rows.tolist() for rows in split(client)) == wanted
        assert split.num_train(client) == len(wanted[0])
    assert short < 8


def test_a_quarter_of_four_is_held_out_and_none_of_one():
    for size, share, held in ((4, 0.25, 1), (1, 0.9, 0), (2, 0.01, 1), (10, 0.25, 2), (10, 0.35, 4), (3, 0.99, 2), (5, 0.0, 0)):
        train, test = partition_task(owned([0] * size), "natural", client_test=share)(0)
        assert (len(train), len(test)) == (size - held, held)


@pytest.mark.parametrize(
    ("text", "parsed", "spelt"),
    [
        ("groups:0-2/3", ((0, 1, 2), (3,)), "groups:0-2/3"),
        ("groups: 4 , 2,2/1-1", ((4, 2), (1,)), "groups:4,2/1"),
        ("groups:0,1,3,4,5/7", ((0, 1, 3, 4, 5), (7,)), "groups:0-1,3-5/7"),
        ("longtail:1", (1.0, None), "longtail:1"),
        ("longtail:0.050/2.0", (0.05, 2.0), "longtail:0.05/2"),
        ("shards:3", 3.0, "shards:3"),
        ("quantity:1e-3", 0.001, "quantity:0.001"),
        ("iid", None, "iid"),
    ],
)
def test_values_are_read_and_spelt(text, parsed, spelt):
    assert parse_partition(text)[1] == parsed
    assert canonical(text) == spelt


@pytest.mark.parametrize("spec", ["longtail:1.01", "longtail:-0.1", "longtail:0.5/inf", "groups:1-", "groups:-1", "groups:2-1"])
def test_values_outside_are_refused(spec):
    with pytest.raises(ConfigError, match="partition"):
        parse_partition(spec)


def test_the_table_counts_all_rows_of_each_class():
    task = blobs(samples=120)
    split = partition_task(task, "dirichlet:0.4", 7, seed=5, client_test=0.2)
    labels = task.train.y.numpy()
    slow = [[int((labels[split[k].numpy()] == c).sum()) for c in range(task.num_classes)] for k in range(7)]
    assert split.table(task).tolist() == slow
    assert [split.num_train(k) for k in range(7)] == [len(split(k)[0]) for k in range(7)]


def test_sizes_and_rows_of_several_clients_are_those_of_each():
    split = partition_task(blobs(samples=200), "quantity:0.5", 12, seed=3)
    clients = [7, 0, 11, 3]
    assert split.nums_train(clients) == [split.num_train(client) for client in clients] == [len(split(c)[0]) for c in clients]
    assert split.nums_train([]) == []
    even = partition_task(blobs(samples=200), "iid", 10, seed=3)
    some = even.together([9, 0, 4])
    assert some is not None
    assert torch.equal(some, torch.stack([even(client)[0] for client in (9, 0, 4)]))
