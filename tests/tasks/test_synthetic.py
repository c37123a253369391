"""Blobs: seeded, balanced, learnable."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.tasks import blobs


def test_the_seed_decides_the_blobs():
    assert torch.equal(blobs(seed=1).train.x, blobs(seed=1).train.x)
    assert not torch.equal(blobs(seed=1).train.x, blobs(seed=2).train.x)


def test_shapes_and_balance():
    task = blobs(samples=90, features=5, classes=3)
    assert task.train.x.shape == (90, 5)
    assert len(task.test) == 30
    assert task.train.y.bincount().tolist() == [30, 30, 30]


def test_blobs_are_learnt():
    task = blobs()
    module = task.build(0)
    optimiser = torch.optim.SGD(module.parameters(), lr=task.lr)
    for _ in range(60):
        optimiser.zero_grad()
        task.loss(module(task.train.x), task.train.y).backward()
        optimiser.step()
    assert float((module(task.test.x).argmax(1) == task.test.y).float().mean()) > 0.8


@pytest.mark.parametrize("wrong", [{"samples": 2}, {"features": 0}, {"classes": 0}])
def test_impossible_blobs_are_refused(wrong):
    with pytest.raises(ConfigError):
        blobs(**wrong)
