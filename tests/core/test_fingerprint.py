"""A task's fingerprint: the same for the same samples, another one for any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.fingerprint import digest
from paceline.tasks import Arrays, load_task
from paceline.tasks.blackbox import quadratic
from paceline.tasks.sequence import permuted, split_classes
from tests.conftest import make_task


def changed(task, other):
    assert task.fingerprint.keys() == other.fingerprint.keys()
    return {name for name, value in task.fingerprint.items() if other.fingerprint[name] != value}


def flipped(tensor, place):
    out = tensor.clone()
    out.view(-1)[place] = out.view(-1)[place] + 1
    return out


def test_equal_samples_have_equal_fingerprints_whatever_else_differs():
    other = replace(make_task(), name="elsewhere", notes="n", info={"path": "/x"}, lr=3.0, model=nn.Identity)
    assert changed(make_task(), other) == set()
    assert set(other.fingerprint) == {"train", "test", "classes"}
    assert all(len(value) == 64 for value in other.fingerprint.values())


@pytest.mark.parametrize("place", [0, -1])
def test_any_value_counts(task, place):
    train = task.train
    assert changed(task, replace(task, train=replace(train, x=flipped(train.x, place)))) == {"train"}
    assert changed(task, replace(task, train=replace(train, y=flipped(train.y, place)))) == {"train"}
    assert changed(task, replace(task, test=replace(task.test, y=flipped(task.test.y, place)))) == {"test"}
    owned = replace(task, train=replace(train, owner=torch.zeros(len(train), dtype=torch.int64), owners=["a", "b"]))
    assert changed(task, owned) == {"train"}
    assert changed(owned, replace(owned, train=replace(owned.train, owners=["a", "c"]))) == {"train"}
    assert changed(task, replace(task, num_classes=5)) == {"classes"}
    assert changed(task, replace(task, classes=["a", "b", "c", "d"])) == {"classes"}


def test_order_shape_and_type_count(task):
    train = task.train
    for x in (train.x.flip(0), train.x.double(), train.x.view(-1, 3, 4), train.x[:-1]):
        y = train.y[: len(x)]
        assert changed(task, replace(task, train=Arrays(x, y))) == {"train"}


def test_what_a_kind_of_task_adds_counts(task):
    sequence = permuted(task, stages=2)
    assert changed(sequence, replace(sequence, stage=sequence.stage.flip(0))) == {"stage"}
    split = split_classes(task, stages=2)
    assert changed(split, replace(split, heads=~split.heads)) == {"heads"}
    assert changed(quadratic(dim=4), quadratic(dim=4)) == set()
    assert changed(quadratic(dim=4), quadratic(dim=4, seed=1)) == {"train", "test"}


@pytest.mark.slow
def test_hidden_models_of_a_black_box_count():
    options = {"of": "digits", "clients": 2, "epochs": 1, "limit": 200}
    first = load_task("attack", **options)
    assert changed(first, load_task("attack", **options)) == set()
    assert changed(first, load_task("attack", **options, picture=1)) >= {"objective"}
    with torch.no_grad():
        next(first.objective.modules[1].parameters()).add_(1)
    again = replace(first)
    assert changed(load_task("attack", **options), again) == {"objective"}


def test_large_and_strided_tensors_are_digested_piece_by_piece_to_the_same_value():
    large = torch.arange(6_000_000, dtype=torch.float32).view(3000, 2000)
    assert digest(large) == digest(large.clone()) == digest(large.t().contiguous().t())
    assert digest(large) != digest(flipped(large, 5_999_999))
    assert digest(torch.zeros(0, 3)) != digest(torch.zeros(0, 4))
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    assert digest(torch.ones(2, dtype=torch.bfloat16)) == digest(torch.ones(2, dtype=torch.bfloat16))


def test_values_of_all_kinds_are_told_apart():
    class Own:
        def __init__(self, x):
            self.x, self.me = x, self

    made = [None, True, 1, 1.0, "1", b"1", [1], [[1]], ["1"], {"a": 1}, {"a": 2}, {1, 2}, {1, 3}, nn.Linear(1, 1), np.ones(2)]
    made += [
        np.ones(2, dtype=np.float32),
        np.zeros(2),
        Own(1),
        Own(2),
        torch.nn.functional.relu,
        ["a", "bc"],
        ["ab", "c"],
        range(2),
    ]
    assert len({digest(value) for value in made}) == len(made)
    assert digest({3, 1, 2}) == digest({1, 2, 3})
