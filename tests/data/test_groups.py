"""Partitions that leave samples out: groups of clients, long tails, and small clients."""

import numpy as np
import pytest

from paceline.core.errors import ConfigError
from paceline.data import partition_task
from paceline.data.assign import long_tail
from paceline.tasks import blobs


@pytest.fixture
def ten():
    return blobs(samples=1000, classes=10)


def test_groups_own_their_classes(ten):
    split = partition_task(ten, "groups:0-3/4-6/7-9", 15, seed=1)
    assert split.groups == (0,) * 5 + (1,) * 5 + (2,) * 5
    table = split.table(ten)
    for first, classes in ((0, range(0, 4)), (5, range(4, 7)), (10, range(7, 10))):
        assert (table[first : first + 5, list(classes)] == 20).all()
        assert table[first : first + 5].sum() == 100 * len(classes)


def test_groups_may_overlap_and_leave_classes_out(ten):
    split = partition_task(ten, "groups:0-2,8/2-5", 4)
    table = split.table(ten)
    assert (table[:, 2] == 25).all()
    assert table[:, 6].sum() == table[:, 7].sum() == table[:, 9].sum() == 0
    assert table[2:, 8].sum() == 0
    assert len(split.order) == 700


@pytest.mark.parametrize("spec", ["groups:", "groups:0-x", "groups:3-1", "groups:0-3/8-10", "groups:0/1/2/3/4/5"])
def test_wrong_groups_are_told(ten, spec):
    with pytest.raises(ConfigError, match="groups"):
        partition_task(ten, spec, 5)


def test_the_long_tail_of_the_literature():
    assert long_tail(5000, 0.02, 10) == [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]


@pytest.mark.parametrize("spec", ["longtail:0.05", "longtail:0.05/0.5"])
def test_a_long_tail_is_cut_from_the_data(ten, spec):
    split = partition_task(ten, spec, 10, seed=2)
    assert split.table(ten).sum(0).tolist() == long_tail(100, 0.05, 10)
    assert split.groups == ()
    spread = split.table(ten).max(1) / split.sizes.numpy()
    assert (spread.mean() > 0.4) == (spec != "longtail:0.05")


@pytest.mark.parametrize("spec", ["longtail:", "longtail:2", "longtail:0", "longtail:0.5/0", "longtail:0.5/x"])
def test_wrong_tails_are_told(ten, spec):
    with pytest.raises(ConfigError, match="longtail"):
        partition_task(ten, spec, 5)


def test_clients_can_be_kept_small(ten):
    whole = partition_task(ten, "dirichlet:0.5", 10, seed=3, client_test=0.25)
    small = partition_task(ten, "dirichlet:0.5", 10, seed=3, client_test=0.25, client_samples=40)
    assert small.sizes.tolist() == np.minimum(whole.sizes.numpy(), 40).tolist()
    for k in range(10):
        assert set(small[k].tolist()) <= set(whole[k].tolist())
        assert len(small(k)[1]) == round(0.25 * len(small[k]))
