"""The report on heterogeneity: FedAvg's model, and k-means and divergences of sums against those of pooled samples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import paceline as pl
from paceline.core.random import torch_rng
from paceline.models.split import penultimate
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size


def finished(method, split=None, **values):
    config = {"method": "fedavg", "task": "own", "clients": 4, "cohort": 4, "rounds": 3, "vectorize": "off", **values}
    run = prepare(RunConfig.build(config), task=make_task(), method=method, split=split)
    return run, run.go()


def test_the_report_is_that_of_pooled_samples():
    split = by_size([20, 50, 0, 90])
    run, result = finished(pl.methods.HeterogeneityReport(every=3, clusters=12, iterations=3), split, cohort=2)
    task, model, params = run.task, run.task.build(0), run.state.params
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(params[name])
        rows = [split(k)[0] for k in range(4)]
        own = [penultimate(model, task.train.x[r]).double().numpy() for r in rows if len(r)]
        pooled = np.concatenate(own)
        drawn = torch.randn(12, 8, generator=torch_rng(0, "centres", 3)).double().numpy()
        centres = pooled.mean(0) + pooled.std(0) * drawn

        def shares(points):
            away = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
            return np.bincount(away, minlength=12) / len(points), away

        for _ in range(3):
            _, which = shares(pooled)
            centres = np.stack([pooled[which == k].mean(0) if (which == k).any() else centres[k] for k in range(12)])
        whole, _ = shares(pooled)
        kl = [sum(p * np.log(p / r) for p, r in zip(shares(points)[0], whole, strict=True) if p > 0) for points in own]
        losses = [float(F.cross_entropy(model(task.train.x[r]), task.train.y[r])) for r in rows if len(r)]
    last = result.history[-1]
    assert last["note_heterogeneity"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert last["note_heterogeneity_deviation"] == pytest.approx(np.std(kl), rel=1e-3)
    assert last["note_client_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert last["note_client_loss_deviation"] == pytest.approx(np.std(losses), rel=1e-3)


def test_the_model_is_fedavg_s_bit_for_bit_and_reports_come_when_they_are_due():
    one, result = finished(pl.methods.HeterogeneityReport(every=2), rounds=4, cohort=2, clients=6)
    two, _ = finished(pl.methods.FedAvg(), rounds=4, cohort=2, clients=6)
    assert torch.equal(one.state.params.vector, two.state.params.vector)
    assert ["note_heterogeneity" in record for record in result.history] == [False, True, False, True]


def test_it_is_large_where_clients_have_few_classes():
    found = [
        finished(pl.methods.HeterogeneityReport(every=3), partition=split, rounds=6, clients=8, cohort=8)[1].history[-1][
            "note_heterogeneity"
        ]
        for split in ("iid", "shards:1")
    ]
    assert found[1] > 3 * found[0] > 0


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    masked = assert_masks_change_nothing(make_task(), "heterogeneityreport", options={"every": 3, "clusters": 3, "iterations": 1})
    assert 0 <= masked.history[-1]["note_heterogeneity"] < 2
