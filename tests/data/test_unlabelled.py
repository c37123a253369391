"""Partitions of data of which some samples have no label."""

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.data import partition_task

Y = torch.arange(240) % 3
Y[::4] = -100


def task(ignored=None):
    y = Y if ignored is None else torch.where(Y < 0, ignored, Y)
    x = torch.randn(240, 8, generator=torch.Generator().manual_seed(0))
    return pl.Task.from_tensors(
        x, y, lambda: nn.Linear(8, 3), test=(x[:30], torch.arange(30) % 3), num_classes=3, ignore_index=ignored
    )


@pytest.mark.parametrize("ignored", [None, 255])
@pytest.mark.parametrize("fill", [0, 4, 7])
def test_samples_without_a_label_are_spread_whatever_lies_in_memory(ignored, fill, monkeypatch):
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *args, **options: np.full_like(empty(*args, **options), fill))
    split = partition_task(task(ignored), "dirichlet:5.0", 5, 0)
    rows = [split[k] for k in range(5)]
    assert sorted(torch.cat(rows).tolist()) == list(range(240))
    held = [int((Y[part] < 0).sum()) for part in rows]
    assert sum(held) == 60
    assert max(held) < 60


def test_a_long_tail_is_of_labelled_samples():
    split = partition_task(task(), "longtail:0.5", 4, 0)
    kept = Y[torch.cat([split[k] for k in range(4)])]
    assert torch.bincount(kept[kept >= 0], minlength=3).tolist() == [60, 42, 30]
    assert (kept >= 0).all()
