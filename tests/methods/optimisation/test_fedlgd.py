"""FedLGD: the sheet's numbers, the derived gradient, fixed labels and sizes, FedAvg on the synthetic samples, and absent classes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.blocks.contrastive import contrast_with
from paceline.blocks.distilled import class_statistics
from paceline.core.client import ClientData
from paceline.core.errors import PlanError
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation import fedlgd
from paceline.methods.optimisation.fedlgd import FedLGD
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size

SHORT = {"per_class": 3, "global_per_class": 2, "warm_up": 2, "refine": 1, "global_steps": 2, "image_lr": 0.1, "strength": 1.0}
CLIENTS = {"clients": 4, "cohort": 4, "rounds": 3}


def prepared(method, task=None, split=None, **values):
    made = RunConfig.build({"task": "own", "vectorize": "off", **CLIENTS, **values})
    return prepare(made, task=task or make_task(), method=method, split=split)


def finished(method, task=None, split=None, **values):
    run = prepared(method, task, split, **values)
    return run, run.go()


def pictures(count=96, classes=4):
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 1, 8, 8, generator=stream), torch.arange(count) % classes
    for k, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        x[y == k, :, row : row + 4, column : column + 4] += 2.0

    def model():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)
        )

    return pl.Task.from_tensors(x, y, model, test=0.25)


def test_synthetic_samples_are_updated_in_the_rounds_of_the_sheet():
    method = FedLGD(gap=5, updates=10)
    assert [t for t in range(100) if method.due(t)] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert [t for t in range(9) if FedLGD(gap=3, updates=1).due(t)] == [0, 3]


def test_the_gradient_is_the_mean_update_over_the_rate(monkeypatch):
    """theta = (1, 2) and clients at (0.9, 2.1) and (0.7, 1.9) with a rate of 0.01 give (20, 0)."""
    seen = []
    monkeypatch.setattr(fedlgd, "match_gradient", lambda images, labels, module, g, **_: seen.append(g) or (images, []))
    run = prepared(FedLGD(**SHORT, lr=0.01))
    layout = run.fed.init_params().layout
    state = run.method.init(run.fed)
    theta = [torch.full((layout.size,), v) for v in (1.0, 0.9, 0.7)]
    delta = (Params(theta[1] - theta[0], layout) + Params(theta[2] - theta[0], layout)) * 0.5
    run.method.distil(run.fed, state, delta)
    assert seen[0].keys() == layout.by_name.keys()
    assert all(torch.allclose(g, torch.tensor(20.0), atol=1e-4) for g in seen[0].values())


def test_after_one_step_it_is_the_true_gradient(monkeypatch):
    """One client, one full batch without momentum."""
    seen = []

    def matched(images, labels, module, g, **options):
        assert all(torch.equal(parameter, start[name]) for name, parameter in module.named_parameters()), "at the old model"
        seen.append((g, images, labels))
        return images, []

    monkeypatch.setattr(fedlgd, "match_gradient", matched)
    options = SHORT | {"global_per_class": 1, "batch_size": 1000, "lr": 0.05}
    run = prepared(FedLGD(**options), clients=1, cohort=1)
    start = run.fed.init_params()
    run.step()
    g, shared, labels = seen[0]
    own = run.fed.engine.memories[0]["images"]
    task = run.fed.engine.setup.task
    module = task.build(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
    y = torch.cat([torch.arange(4).repeat_interleave(3), labels])
    F.cross_entropy(module(torch.cat([own, shared])), y).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(g[name], parameter.grad, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class OnSynthetic(pl.methods.FedAvg):
    """FedAvg with equal weights on samples that are given for each client."""

    @on_client
    def train(self, client, message):
        x = IMAGES[client.id]
        data = ClientData(x, torch.arange(4).repeat_interleave(3), torch.arange(len(x)))
        return Update(delta=client.sgd(message, data=data, **self.local(client)).params - message, weight=1)


IMAGES = {}


def test_without_the_servers_samples_it_is_fedavg_on_the_clients():
    options = SHORT | {"global_per_class": 0, "refine": 0, "batch_size": 5, "lr": 0.1, "epochs": 2}
    run, _ = finished(FedLGD(**options), split=by_size([40, 10, 20, 30]))
    IMAGES.update({client: run.fed.engine.memories[client]["images"] for client in range(4)})
    other, _ = finished(OnSynthetic(lr=0.1, batch_size=5, epochs=2), split=by_size([40, 10, 20, 30]))
    assert torch.equal(run.state.params.vector, other.state.params.vector)
    assert not torch.equal(run.state.params.vector, run.fed.init_params().vector)


def test_sizes_are_fixed_and_labels_are_those_of_the_classes(monkeypatch):
    seen, local = [], pl.core.client.Client.sgd

    def watched(self, start, **options):
        if "data" in options:
            seen.append(options["data"].y)
        return local(self, start, **options)

    monkeypatch.setattr(pl.core.client.Client, "sgd", watched)
    run, _ = finished(FedLGD(**SHORT, gap=2), rounds=4)
    assert run.state.images.shape == (8, 12)
    assert all(memory["images"].shape == (12, 12) for memory in run.fed.engine.memories.values())
    wanted = torch.cat([torch.arange(4).repeat_interleave(3), torch.arange(4).repeat_interleave(2)])
    assert len(seen) == 16
    assert all(torch.equal(y, wanted) for y in seen)


def test_samples_change_only_where_it_is_due():
    run, seen = prepared(FedLGD(**SHORT, gap=2, updates=1), rounds=5), []
    for _ in range(5):
        run.step()
        seen.append((run.state.images.clone(), run.fed.engine.memories[0]["images"].clone()))
    assert [not torch.equal(a[0], b[0]) for a, b in pairwise(seen)] == [False, True, False, False]
    assert [not torch.equal(a[1], b[1]) for a, b in pairwise(seen)] == [False, True, False, False]


def test_the_contrast_is_left_out_where_the_update_is_a_gradient():
    one, other = (prepared(FedLGD(**SHORT | {"strength": s}, gap=2)) for s in (0.0, 5.0))
    for due in (True, False):
        one.step()
        other.step()
        assert torch.equal(one.state.params.vector, other.state.params.vector) == due
    assert torch.equal(one.state.images, other.state.images)


@pytest.mark.parametrize("on", [True, False])
def test_options_reach_the_parts_and_the_global_model_refines(monkeypatch, on):
    """Round 1 makes samples by random networks, round 2 has the contrast, and round 3 refines by the model that it begins with."""
    seen, task = {"contrast": [], "features": [], "gradient": [], "by_total": []}, pictures()

    def contrast(*given):
        seen["contrast"].append(given[3:])
        return contrast_with(*given)

    def features_matched(images, labels, real, embed, **options):
        seen["features"].append((options, [embed(step)(task.test.x).detach().clone() for step in (0, 1)]))
        return images, []

    def gradient_matched(images, labels, module, g, **options):
        seen["gradient"].append(options)
        return images, []

    def statistics(x, y, classes, by_total=False):
        seen["by_total"].append(by_total)
        return class_statistics(x, y, classes, by_total)

    made = (contrast, features_matched, gradient_matched, statistics)
    for name, part in zip(("contrast_with", "match_features", "match_gradient", "class_statistics"), made, strict=True):
        monkeypatch.setattr(fedlgd, name, part)
    fields = SHORT | {
        "strength": 0.3,
        "temperature": 0.2,
        "image_momentum": 0.7,
        "image_lr": 0.4,
        "augment": on,
        "official_stats": on,
    }
    run = prepared(FedLGD(**fields, gap=2), task, clients=1, cohort=1)
    run.step()
    run.step()
    begins = dict(run.state.params.items())
    run.step()
    assert seen["contrast"] == [(0.3, 0.2)]
    assert seen["gradient"] == [{"steps": 2, "lr": 0.4, "momentum": 0.7}] * 2
    assert seen["by_total"] == [on, on]
    (warm, random), (refined, fixed) = seen["features"]
    for options, steps in ((warm, 2), (refined, 1)):
        assert (options["steps"], options["lr"], options["momentum"], options["augment"] is not None) == (steps, 0.4, 0.7, on)
    assert not torch.allclose(*random)
    module = task.build(0)
    module.load_state_dict(begins)
    torch.testing.assert_close(fixed[0], module[:-1](task.test.x))
    assert torch.equal(*fixed)


def test_classes_that_a_client_lacks_are_left_out():
    """Client 0 has classes 0 and 1 only, and nobody has class 3."""
    task = make_task()
    y = task.train.y
    rows = [torch.nonzero(torch.isin(y, torch.tensor(own))).flatten()[k::2] for k, own in enumerate([[0, 1], [0, 1, 2]])]
    offsets = torch.tensor([0, len(rows[0]), len(rows[0]) + len(rows[1])])
    split = pl.data.Partition("lacking", torch.cat(rows), offsets, offsets[1:].clone())
    run = prepared(FedLGD(**SHORT), task, split, clients=2, cohort=2, rounds=6)
    run.step()
    first = run.fed.engine.memories[0]["images"].clone()
    shared = run.state.images.clone()
    assert run.state.known.tolist() == [True, True, True, False]
    assert not first[6:].any(), "a normal distribution without deviation"
    for _ in range(5):
        run.step()
    assert run.fed.engine.memories[0]["images"][6:].equal(first[6:])
    assert not run.fed.engine.memories[0]["images"][:6].equal(first[:6])
    assert run.state.images[6:].equal(shared[6:])


@pytest.mark.parametrize("batch_size", [3, 8])
def test_a_single_anchor_passes_a_model_with_batch_norm(batch_size):
    """All clients have class 2 alone, with one global sample; of four rows the last batch is one or all."""
    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
    rows = torch.nonzero(task.train.y == 2).flatten()
    split = pl.data.Partition("one class", rows, torch.tensor([0, 20, len(rows)]), torch.tensor([20, len(rows)]))
    method = FedLGD(**SHORT | {"global_per_class": 1}, batch_size=batch_size)
    run, _ = finished(method, task, split, clients=2, cohort=2, rounds=2)
    assert run.state.known.tolist() == [False, False, True, False]
    assert run.state.params.vector.isfinite().all()


def test_the_server_starts_from_the_mean_of_the_statistics():
    """Many samples of a class have the mean of the clients' means, whatever their numbers of samples."""
    options = SHORT | {"global_per_class": 4000, "updates": 0, "global_steps": 0, "warm_up": 0, "strength": 0.0}
    run = prepared(FedLGD(**options), split=by_size([60, 20, 20, 40]), rounds=1)
    run.step()
    task, means, spreads = run.fed.engine.setup.task, [], []
    for client in range(4):
        rows = run.fed.engine.setup.split(client)[0]
        x, y = task.train.x[rows].numpy(), task.train.y[rows].numpy()
        means.append([x[y == c].mean(0) for c in range(4)])
        spreads.append([x[y == c].std(0) for c in range(4)])
    images = run.state.images.view(4, 4000, 12).numpy()
    np.testing.assert_allclose(images.mean(1), np.mean(means, 0), atol=0.1)
    np.testing.assert_allclose(images.std(1), np.mean(spreads, 0), atol=0.1)


@pytest.mark.parametrize("start", ["real", "noise", "statistics"])
def test_starts(start):
    run, _ = finished(FedLGD(**SHORT | {"warm_up": 0, "refine": 0}, start=start), rounds=1)
    images = run.fed.engine.memories[2]["images"]
    rows = run.fed.engine.setup.split(2)[0]
    x, y = run.fed.engine.setup.task.train.x[rows], run.fed.engine.setup.task.train.y[rows]
    among = [(x == image).all(1) & (y == k // 3) for k, image in enumerate(images)]
    assert all(bool(found.any()) for found in among) == (start == "real")
    far = (images.view(4, 3, 12).mean(1) - torch.stack([x[y == c].mean(0) for c in range(4)])).norm(dim=1).mean()
    assert (float(far) < 4) == (start != "noise")


def test_pictures_are_matched_and_learnt_from():
    options = SHORT | {"warm_up": 40, "refine": 5, "global_steps": 10, "image_lr": 0.3, "lr": 0.1, "epochs": 8, "gap": 3}
    _, outcome = finished(FedLGD(**options), pictures(), rounds=6)
    first, *rest = outcome.history
    assert first["note_matching_after"] < 0.5 * first["note_matching_before"]
    assert first["note_distance_after"] < first["note_distance_before"]
    assert "note_distance_after" not in rest[0]
    assert "note_distance_after" in rest[2]
    assert outcome.accuracy > 0.6


def test_the_spread_of_features_is_that_of_the_clients_models(monkeypatch):
    """Two clients; client 1 lacks class 3, so that class does not count."""
    local, ends = pl.core.client.Client.sgd, {}

    def watched(self, start, **options):
        trained = local(self, start, **options)
        ends[self.id] = trained.params.clone()
        return trained

    monkeypatch.setattr(pl.core.client.Client, "sgd", watched)
    task = make_task()
    y = task.train.y
    half = len(y) // 2
    rows = [torch.arange(half), half + torch.nonzero(y[half:] < 3).flatten()]
    offsets = torch.tensor([0, len(rows[0]), len(rows[0]) + len(rows[1])])
    split = pl.data.Partition("lacking", torch.cat(rows), offsets, offsets[1:].clone())
    _, outcome = finished(FedLGD(**SHORT, watch=True, lr=0.3, epochs=3), task, split, clients=2, cohort=2, rounds=1)
    module, means = task.build(0), []
    for client in (0, 1):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(ends[client][name])
            h, labels = module[:-1](task.train.x[rows[client]]), y[rows[client]]
        means.append(torch.stack([F.normalize(h[labels == c].mean(0), dim=0) for c in range(3)]))
    wanted = (1 - ((means[0] + means[1]) / 2).square().sum(1)).mean()
    assert outcome.history[0]["note_feature_spread"] == pytest.approx(float(wanted), abs=1e-5)


def test_refusals():
    codes = pl.Task.from_tensors(
        torch.randint(5, (40, 3)), torch.arange(40) % 2, lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    )
    with pytest.raises(PlanError, match="one tensor of floats"):
        prepared(FedLGD(), codes)


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "fedlgd", options=SHORT | {"watch": True})
