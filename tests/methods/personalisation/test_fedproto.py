"""FedProto against its formulas, and the local baseline."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paceline.models.split import features
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays
from tests.methods.resuming import assert_resumes


def test_prototypes_are_means_over_all_samples(networks):
    _, run, kept = networks("fedproto", rounds=1, partition="groups:0-1/1-2", models=())
    split, task = run.fed.engine.setup.split, run.task
    by_class = {c: [] for c in range(3)}
    for client, params in kept.items():
        module = task.build(0)
        for name, p in module.named_parameters():
            p.data = params[name].clone()
        rows = split(client)[0]
        with torch.no_grad():
            for f, y in zip(features(module, task.train.x[rows]), task.train.y[rows], strict=True):
                by_class[int(y)].append(f.numpy())
    for c, rows in by_class.items():
        np.testing.assert_allclose(run.state.prototypes[c], np.mean(rows, 0), atol=1e-5)
    assert run.state.known.tolist() == [True, True, True, False]


def test_a_class_that_is_missing_in_a_cohort_keeps_its_prototype(task):
    values = {"method": "fedproto", "task": "blobs", "clients": 6, "cohort": 6, "rounds": 2, "partition": "groups:0-1/1-2"}
    run = prepare(RunConfig.build(values | {"vectorize": "off"}), task=task)
    run.step()
    before, table = run.state, run.fed.engine.setup.split.table(task)
    run.fed.sample = lambda: [client for client in range(6) if not table[client, 0]]
    run.step()
    after = run.state
    assert after.known.tolist() == [True, True, True, False]
    assert torch.equal(after.prototypes[0], before.prototypes[0])
    assert not torch.equal(after.prototypes[1], before.prototypes[1])


def test_the_first_round_is_local_training_and_the_second_is_pulled(networks):
    for rounds, same in ((1, True), (2, False)):
        _, _, plain = networks("localonly", rounds=rounds)
        _, _, proto = networks("fedproto", rounds=rounds)
        assert all(torch.allclose(plain[c].vector, proto[c].vector, atol=1e-7) for c in plain) == same


def test_a_pulled_step_by_hand(networks, task):
    """One full-batch step of round 2 from the networks of round 1."""
    options = {"batch_size": 1000, "lr": 0.1, "strength": 2.0}
    _, first, before = networks("fedproto", models=(), rounds=1, options=options)
    _, _, after = networks("fedproto", models=(), rounds=2, options=options)
    centres, known = first.state.prototypes, first.state.known.float()
    for client in range(6):
        module = task.build(0)
        for name, p in module.named_parameters():
            p.data = before[client][name].clone()
        rows = first.fed.engine.setup.split(client)[0]
        x, y = task.train.x[rows], task.train.y[rows]
        f = features(module, x)
        loss = F.cross_entropy(module(x), y) + 2.0 * (((f - centres[y]) ** 2).mean(1) * known[y]).mean()
        loss.backward()
        for name, p in module.named_parameters():
            assert torch.allclose(p.data - 0.1 * p.grad, after[client][name], atol=1e-6)


@pytest.mark.parametrize("predict", ["prototype", "head"])
def test_learns(networks, predict):
    assert networks("fedproto", rounds=15, options={"predict": predict})[0].accuracy > 0.7


@pytest.mark.parametrize("method", ["fedproto", "localonly"])
def test_resume_gives_the_same_bits(tmp_path, task, method):
    assert_resumes(tmp_path, task, method=method, options={"models": ["mlp:hidden=8", "mlp:hidden=6-8"]})


@pytest.mark.parametrize("method", ["fedproto", "fedsa", "fedgh", "localonly"])
def test_one_architecture_is_the_tasks_own_where_it_is_named(networks, method):
    """A model that is named alone is every client's."""
    *_, kept = networks(method, models=("mlp:hidden=16-8",), rounds=1)
    assert {tuple(t.shape for _, t in network.items()) for network in kept.values()} == {
        ((16, 12), (16,), (8, 16), (8,), (4, 8), (4,))
    }


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedproto", {}),
        ("fedghsum", {"form": "prototypes"}),
        ("fedsa", {"weighted": True}),
        ("fedd2ssum", {"least": 1, "server_lr": 0.1}),
    ],
)
def test_class_sums_of_large_features_are_not_clipped_under_masks(task, method, options):
    """Sums over a client's samples grow with their number and with the features."""
    large, ends = dataclasses.replace(task, train=Arrays(1e3 * task.train.x, task.train.y)), []
    for aggregation in ("plain", "secure-arithmetic"):
        values = {"method": method, "task": "blobs", "clients": 3, "cohort": 3, "rounds": 1, "options": options | {"lr": 0.0}}
        run = prepare(RunConfig.build(values | {"vectorize": "off", "aggregation": aggregation}), task=large)
        run.go()
        ends.append(next(getattr(run.state, name) for name in ("prototypes", "params") if hasattr(run.state, name)))
    plain, masked = (getattr(end, "vector", end) for end in ends)
    torch.testing.assert_close(masked, plain, rtol=1e-5, atol=1e-3)
