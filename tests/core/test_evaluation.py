"""Evaluation where a sample has a sequence of targets, some of which are not scored."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.evaluation import Evaluation, evaluate, evaluate_together
from paceline.core.layout import Layout
from paceline.core.metrics import figures
from paceline.core.params import Params, Resident
from paceline.core.samples import ClientData
from paceline.tasks import Arrays, Task, blobs


class Table(nn.Module):
    """Scores [N, C, T] of tokens [N, T]."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.rows[x].transpose(1, 2)


def test_targets_below_zero_are_left_out_and_each_other_one_counts():
    x = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]])
    y = torch.tensor([[-100, 2, 0], [1, -100, -100], [-100, -100, -100]])
    task = Task("t", Arrays(x, y), Arrays(x, y), Table, 3)
    module = Table()
    layout = Layout.of(module)
    params = Params.of(module, layout)
    model = Resident(module, layout)
    data = ClientData(x, y, torch.arange(3))
    sums = evaluate(model, task, data, batch_size=2)
    out = module(x).transpose(1, 2)[y >= 0]
    assert sums["count"] == 3
    assert sums["loss"] == pytest.approx(float(F.cross_entropy(out, y[y >= 0]).detach()) * 3, rel=1e-6)
    assert sums["correct"] == int((out.argmax(1) == y[y >= 0]).sum())
    assert sums["class_count"].tolist() == [1, 1, 1]
    assert figures(sums)["accuracy"] == pytest.approx(sums["correct"] / 3)
    together = evaluate_together([Evaluation(model, params, task, data)] * 2)
    assert [s["loss"] for s in together] == pytest.approx([sums["loss"]] * 2)


def test_a_pass_is_no_wider_than_the_cache_and_the_sums_stay_the_same(monkeypatch):
    x, y = torch.randn(64, 20), torch.arange(64) % 4
    task = Task("t", Arrays(x, y), Arrays(x, y), lambda: nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 4)), 4)
    module = task.build(0)
    seen = []
    module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    whole = evaluate(Resident(module, Layout.of(module)), task, ClientData(x, y, torch.arange(64)))
    assert max(seen) == 64
    seen.clear()
    monkeypatch.setattr("paceline.core.evaluation._BYTES", 50 * 4 * 16)
    model = Resident(module, Layout.of(module))
    parts = evaluate(model, task, ClientData(x, y, torch.arange(64)))
    assert max(seen) == 16
    assert model.widths == {((20,), True): 50 * 4}
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert parts["correct"] == whole["correct"]
    assert torch.equal(parts["class_correct"], whole["class_correct"])


def test_counts_of_several_passes_are_those_of_all_samples():
    task = blobs(samples=700)
    module = task.build(0)
    model = Resident(module, Layout.of(module), "cpu")
    sums = evaluate(model, task, ClientData(task.train.x, task.train.y, torch.arange(len(task.train))), batch_size=64)
    right = model.module(task.train.x).argmax(1) == task.train.y
    assert sums["class_correct"].tolist() == torch.bincount(task.train.y[right], minlength=task.num_classes).tolist()
    assert sums["class_count"].tolist() == torch.bincount(task.train.y, minlength=task.num_classes).tolist()
    assert (sums["correct"], sums["count"]) == (int(right.sum()), len(task.train))
