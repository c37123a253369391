"""The partition by domains: groups of clients, each with the samples of one domain."""

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError, DataError, EmptyClientError
from paceline.data import partition_task
from paceline.data.partition import canonical, parse_partition
from paceline.tasks import Arrays, Task, blobs


def domains(sizes=(60, 30, 90), codes=(4, 0, 2), classes=3):
    owner = torch.tensor(codes).repeat_interleave(torch.tensor(sizes))
    owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(0))]
    data = Arrays(torch.zeros(len(owner), 2), torch.arange(len(owner)) % classes, owner, tuple("abcde"))
    return Task("domains", data, data, lambda: torch.nn.Linear(2, classes), num_classes=classes)


@pytest.mark.parametrize("spec", ["domains", "domains:0.4"])
def test_each_group_has_the_samples_of_one_domain(spec):
    task = domains()
    split = partition_task(task, spec, 9, seed=3)
    assert split.groups == (0,) * 3 + (1,) * 3 + (2,) * 3
    for group, code in enumerate((0, 2, 4)):
        rows = torch.cat([split[client] for client in range(3 * group, 3 * group + 3)])
        assert sorted(rows.tolist()) == torch.nonzero(task.train.owner == code).flatten().tolist()
    assert (split.sizes > 0).all()


def test_shares_are_equal_without_a_concentration_and_skewed_with_one():
    task = domains((300, 300, 300))
    even, skewed = (partition_task(task, spec, 9, seed=1) for spec in ("domains", "domains:0.1"))
    assert even.sizes.tolist() == [100] * 9
    assert (skewed.table(task).max(1) / skewed.sizes.numpy()).mean() > 0.7 > (even.table(task).max(1) / 100).mean()


def test_one_client_for_each_domain_is_the_natural_partition():
    task = domains()
    own, natural = partition_task(task, "domains", 3), partition_task(task, "natural", 3)
    assert [sorted(a.tolist()) for a in own] == [sorted(b.tolist()) for b in natural]


def test_seeds_and_spellings():
    task = domains()
    orders = [
        partition_task(task, spec, 6, seed=seed).order.tolist() for spec, seed in (("domains", 0), ("domains", 0), ("domains", 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert canonical("domains:0.50") == "domains:0.5"
    assert canonical("domains") == "domains"
    assert parse_partition("domains") == ("domains", None)


def test_refusals():
    with pytest.raises(ConfigError, match="2 clients are too few for 3 domains"):
        partition_task(domains(), "domains", 2)
    with pytest.raises(DataError, match="no natural clients"):
        partition_task(blobs(), "domains", 4)
    with pytest.raises(EmptyClientError, match="domain 0"):
        partition_task(domains((60, 2, 90)), "domains", 9)
    with pytest.raises(ConfigError, match="domains"):
        partition_task(domains(), "domains:", 6)
    with pytest.raises(ConfigError, match="domains"):
        partition_task(domains(), "domains:-1", 6)


def test_samples_that_were_moved_are_counted_over_all_domains():
    """With three classes and little mixing, at least two of five clients of each domain would be empty."""
    assert partition_task(domains(), "domains:0.01", 15).moved >= 6


def test_empty_clients_where_they_are_allowed():
    split = partition_task(domains((60, 2, 90)), "domains", 9, allow_empty=True)
    assert sorted(split.sizes[:3].tolist()) == [0, 1, 1]
    assert int(split.sizes.sum()) == 152


def test_tests_of_clients_are_of_their_domain():
    task = domains()
    split = partition_task(task, "domains", 6, client_test=0.2)
    for client, group in enumerate(split.groups):
        train, test = split(client)
        assert len(test) > 0
        assert set(task.train.owner[torch.cat([train, test])].tolist()) == {(0, 2, 4)[group]}
    assert np.isclose(sum(len(split(c)[1]) for c in range(6)) / 180, 0.2, atol=0.02)
