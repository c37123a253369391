"""FedGELA: the simplex frame, the stretch, and what trains."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.blocks.etf import frame, simplex
from paceline.core.client import Client
from paceline.core.errors import PlanError
from paceline.methods.personalisation.fedgela import stretch
from paceline.models.split import body_layout, take
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.resuming import assert_resumes

M3 = simplex(torch.eye(3))


def test_the_simplex_of_the_identity():
    a, b = 0.816497, -0.408248
    np.testing.assert_allclose(M3, [[a, b, b], [b, a, b], [b, b, a]], atol=1e-6)
    np.testing.assert_allclose(M3.T @ M3, np.where(np.eye(3) == 1, 1.0, -0.5), atol=1e-6)


def test_a_drawn_frame():
    m = frame(32, 10, 3)
    assert m is frame(32, 10, 3)
    assert not torch.equal(m, frame(32, 10, 4))
    np.testing.assert_allclose(m.T @ m, np.where(np.eye(10) == 1, 1.0, -1 / 9), atol=1e-6)


def test_the_stretch_and_its_logits():
    psi = stretch(torch.tensor([30, 10, 0]))
    assert psi.tolist() == [2.25, 0.75, 0.0]
    h = torch.tensor([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(h @ M3, [[0.816497, -0.408248, -0.408248]], atol=1e-6)
    local = h @ (M3 * psi)
    np.testing.assert_allclose(local, [[1.837117, -0.306186, 0.0]], atol=1e-6)
    y = torch.tensor([0])
    assert float(F.cross_entropy(local, y)) == pytest.approx(0.244155, abs=1e-6)
    assert float(F.cross_entropy(h @ M3, y)) == pytest.approx(0.462265, abs=1e-6)
    np.testing.assert_allclose(torch.softmax(local, 1), [[0.783366, 0.091863, 0.124771]], atol=1e-6)


def test_other_powers():
    assert stretch(torch.tensor([5, 5, 5])).tolist() == [1.0, 1.0, 1.0]
    assert stretch(torch.tensor([30, 10, 0]), power=0.0).tolist() == [1.5, 1.5, 0.0]
    root = stretch(torch.tensor([9, 1]), power=0.5)
    np.testing.assert_allclose(root, [1.5, 0.5], atol=1e-6)


def test_a_missing_class_does_not_push_the_features():
    h = torch.randn(4, 3, requires_grad=True)
    (h @ (M3 * stretch(torch.tensor([3, 1, 0]))))[:, 2].sum().backward()
    assert torch.equal(h.grad, torch.zeros(4, 3))


def run_gela(task, rounds=1, **changes):
    values = {"method": "fedgela", "task": "blobs", "clients": 2, "cohort": 2, "rounds": rounds, "vectorize": "off", **changes}
    run = prepare(RunConfig.build(values), task=task)
    run.go()
    return run


def test_the_head_is_the_frame_from_first_to_last():
    run = run_gela(make_task(), rounds=3, options={"epochs": 1})
    start = run.method.init(run.fed).params
    for params in (start, run.state.params):
        assert torch.equal(params["4.weight"], frame(8, 4, 0).T)
        assert torch.equal(params["4.bias"], torch.zeros(4))
    assert not torch.equal(start["0.weight"], run.state.params["0.weight"])


@pytest.mark.parametrize("stretched", [True, False])
def test_a_round_against_plain_torch(stretched):
    """One full-batch step of momentum SGD at each client, and the mean weighted by samples."""
    task = make_task()
    options = {"epochs": 1, "batch_size": 1000, "lr": 0.1, "temperature": 0.5, "clip": 0.2, "stretched": stretched}
    run = run_gela(task, partition="groups:0-2/1-3", options=options)
    start, m = run.method.init(run.fed).params, frame(8, 4, 0)
    total, samples = torch.zeros_like(start.vector), 0
    for client in range(2):
        rows = run.fed.engine.setup.split(client)[0]
        x, y = task.train.x[rows], task.train.y[rows]
        module = task.build(0)
        for name, p in module.named_parameters():
            p.data = start[name].clone()
        psi = stretch(torch.bincount(y, minlength=4)) if stretched else torch.ones(4)
        F.cross_entropy(module[:-1](x) @ (m * psi) / 0.5, y).backward()
        body = [p for n, p in module.named_parameters() if not n.startswith("4.")]
        nn.utils.clip_grad_norm_(body, 0.2)
        new = start.clone()
        for name, p in module.named_parameters():
            if not name.startswith("4."):
                new[name].copy_(p.data - 0.1 * (p.grad + 1e-4 * p.data))
        total += len(rows) * new.vector
        samples += len(rows)
    np.testing.assert_allclose(run.state.params.vector, total / samples, atol=1e-6)


def test_balanced_clients_train_as_with_the_plain_frame():
    """psi = 1 everywhere: the same bits as without it."""
    task = make_task()
    runs = [run_gela(task, partition="groups:0-3", clients=4, cohort=4, options={"stretched": s}) for s in (True, False)]
    assert runs[0].state.params.sha256() == runs[1].state.params.sha256()
    skewed = [run_gela(task, partition="groups:0-1/1-3", options={"stretched": s}) for s in (True, False)]
    assert skewed[0].state.params.sha256() != skewed[1].state.params.sha256()


def test_sample_weights():
    """Clients of 100 and 300 samples weigh 1 to 3."""
    from paceline.aggregation.plain import mean_of
    from paceline.core.update import Update

    mean = mean_of({0: Update(delta=torch.tensor([0.0]), weight=100), 1: Update(delta=torch.tensor([4.0]), weight=300)})
    assert mean.delta.item() == 3.0


def test_only_the_backbone_travels(monkeypatch):
    from paceline.core.federation import Federation

    seen, ask = [], Federation.mean
    monkeypatch.setattr(Federation, "mean", lambda self, fn, message, **o: seen.append(message) or ask(self, fn, message, **o))
    run = run_gela(make_task(), options={"epochs": 1})
    body, _ = seen[0]
    assert list(body) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    module = make_task().build(0)
    assert torch.equal(body.vector, take(run.method.init(run.fed).params, body_layout(module)).vector)


def with_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.parametrize("buffers", ["average", "recompute"])
def test_learns_with_classes_apart_and_judges_personal_models(federate, buffers):
    import dataclasses

    task = dataclasses.replace(make_task(model=with_norm), buffers=buffers)
    common = {"task": task, "method": "fedgela", "partition": "shards:2", "clients": 8, "cohort": 8, "rounds": 8}
    assert federate(**common, options={"epochs": 2}).accuracy > 0.8
    personal = federate(**common, evaluation="clients", options={"epochs": 2})
    assert personal.accuracy > 0.85


def test_missing_classes_cannot_win_personally(task):
    from paceline.run import RunConfig

    values = {"method": "fedgela", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 1, "partition": "groups:0/1/2/3"}
    run = prepare(RunConfig.build(values | {"evaluation": "clients"}), task=task)
    assert run.go().accuracy == 1.0  # whoever has one class answers it always


@pytest.mark.parametrize("feature_norm", ["none", "l2"])
def test_secure_sums_with_a_drop_out(federate, feature_norm):
    common = {
        "method": "fedgela",
        "clients": 10,
        "cohort": 10,
        "rounds": 2,
        "options": {"epochs": 1, "feature_norm": feature_norm, "energy": 9.0},
        "secure": {"threshold": 5, "gamma": 0.05},
    }

    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("secagg.masked", "train")

    arithmetic = federate(aggregation="secure-arithmetic", drop=drop, **common)
    secure = federate(aggregation="secure", drop=drop, **common)
    assert secure.model_sha256 == arithmetic.model_sha256
    assert secure.history[1]["dropped"] == 1


def test_narrow_features_are_refused(config):
    narrow = make_task(model=lambda: nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 4)))
    with pytest.raises(PlanError, match="at least 4 numbers"):
        prepare(config(method="fedgela"), task=narrow)


def test_resume_gives_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="fedgela", options={"epochs": 1}, evaluation="clients")


def test_fine_tuning_before_use(federate):
    common = {"partition": "shards:2", "clients": 8, "cohort": 8, "rounds": 4, "evaluation": "clients"}
    tuned, plain = federate(method="finetuned", **common), federate(method="fedavg", **common)
    assert tuned.model_sha256 == plain.model_sha256
    assert tuned.accuracy > plain.accuracy


def test_a_client_is_judged_by_its_scaled_frame_without_the_classes_that_it_lacks(task, monkeypatch):
    """A logit is psi_c h . m_c; that of an absent class is never the largest, though all others may be negative."""
    seen, evaluate = [], Client.evaluate

    def spy(self, params, data, **options):
        seen.append((self, options))
        return evaluate(self, params, data, **options)

    monkeypatch.setattr(Client, "evaluate", spy)
    values = {
        "method": "fedgela",
        "task": "blobs",
        "clients": 6,
        "cohort": 6,
        "rounds": 1,
        "partition": "shards:2",
        "vectorize": "off",
    }
    run = prepare(RunConfig.build(values | {"options": {"epochs": 1}, "evaluation": "clients", "client_test": 0.2}), task=task)
    run.go()
    m, lacking = run.state.params["4.weight"].T, 0
    for client, options in seen:
        counts = torch.bincount(client.train.y[client.train.index], minlength=4)
        x, body = task.test.x[:20], options["model"].module
        with torch.no_grad():
            logits, h = options["outputs"](body, x), run.method.represent(body, x)
        for c in range(4):
            if counts[c]:
                torch.testing.assert_close(logits[:, c], float(4 * counts[c] / counts.sum()) * (h @ m[:, c]), atol=1e-3, rtol=1e-3)
            else:
                lacking += 1
                assert (logits[:, c] < -1e3).all()
    assert lacking
