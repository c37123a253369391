"""FOT: projections, coverage, sketches, and old inputs that see nothing of later rounds."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.data import Partition
from paceline.engines.worker import Worker
from paceline.methods.continual.fot import FOT, expand, project, wanted
from paceline.run import RunConfig, prepare
from paceline.tasks.sequence import forgetting, permuted, split_classes
from tests.conftest import make_task
from tests.methods.resuming import assert_resumes, states_of

LAYOUT = Layout.build([("w", (2, 3), "param"), ("free", (2,), "param")])


def bias_free():
    return nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))


@pytest.fixture
def sequence():
    return permuted(make_task(model=bias_free), stages=3, rounds_each=2)


def step_through(task, rounds, each=None, **changes):
    """Run round by round; return the run and the states after each."""
    return states_of(task, rounds, each, **{"method": "fot", "clients": 4, "cohort": 4, **changes})


def test_projection_by_hand():
    delta = Params(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), LAYOUT)
    q = torch.eye(3)[:, :2]
    out = project(delta, {"w": q})
    assert out["w"].tolist() == [[0, 0, 3], [0, 0, 6]]
    assert out["free"].tolist() == [7, 8]
    assert delta["w"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert project(out, {"w": q})["w"].equal(out["w"])
    skew = torch.linalg.qr(torch.randn(3, 2)).Q
    assert float((project(delta / 8, {"w": skew})["w"] @ skew).abs().max()) < 1e-6


def test_coverage_by_hand():
    rho = float(np.average([0.5, 0.8], weights=[100, 300]))
    assert rho == pytest.approx(0.725)
    share = wanted(rho, 0.9)
    assert share == pytest.approx(0.862069, abs=1e-6)
    assert expand(None, torch.diag(torch.tensor([3.0, 2.0, 1.0])), share).shape == (3, 2)
    assert expand(None, torch.diag(torch.tensor([3.0, 2.0, 1.0])), 0.6).shape == (3, 1)


def test_sum_of_sketches_by_hand():
    a = torch.tensor([[3.0, 0], [0, 0], [0, 1]]) + torch.tensor([[0.0, 0], [2, 0], [0, 0]])
    s = torch.linalg.svdvals(a)
    assert s.tolist() == pytest.approx([3.605551, 1.0], abs=1e-5)
    energy = s.square().cumsum(0) / s.square().sum()
    assert energy.tolist() == pytest.approx([0.928571, 1.0], abs=1e-6)
    assert expand(None, a, 0.93).shape == (3, 2)
    assert expand(None, a, 0.92).shape == (3, 1)


def test_nothing_is_added_where_enough_is_covered_unless_asked_for():
    old = torch.eye(4)[:, :1]
    sketch = torch.diag(torch.tensor([0.0, 2.0, 1.0, 0.0]))
    assert expand(old, sketch, -0.1) is old
    assert expand(None, sketch, -0.1) is None
    grown = expand(old, sketch, -0.1, at_least_one=True)
    assert grown.shape == (4, 2)
    torch.testing.assert_close(grown @ grown.T, torch.diag(torch.tensor([1.0, 1, 0, 0])))
    assert expand(None, torch.zeros(3, 3), 0.5) is None


def test_first_task_is_fedavg_bit_for_bit(sequence):
    common = {"task": "blobs", "clients": 4, "cohort": 3, "rounds": 2, "vectorize": "off"}
    shas = [
        prepare(RunConfig.build({**common, "method": name, "options": options}), task=sequence).go().model_sha256
        for name, options in (("fot", {"weigh": "samples"}), ("fedavg", {}))
    ]
    assert shas[0] == shas[1]


def test_bases_stay_orthonormal_and_grow(sequence):
    ranks = []

    def check(prepared, state):
        for q in state.bases.values():
            assert float((q.T @ q - torch.eye(q.shape[1])).abs().max()) < 1e-5
        ranks.append([state.bases[n].shape[1] if n in state.bases else 0 for n in ("0.weight", "2.weight")])
        if state.bases:
            assert prepared.fed.last.notes.get("capacity_0.weight", ranks[-1][0] / 12) == ranks[-1][0] / 12

    _, states = step_through(sequence, 6, check, options={"eps": 0.6, "eps_inc": 0.1})
    assert ranks[0] == [0, 0]
    assert 0 < ranks[1][0] < 12
    assert all(a <= b for x, y in itertools.pairwise(ranks) for a, b in zip(x, y, strict=True))
    assert ranks[-1][0] > ranks[1][0]
    assert states[-1].eps == pytest.approx(0.9)


def test_old_inputs_see_nothing_of_later_rounds(sequence):
    _, states = step_through(sequence, 5, options={"eps": 0.5})
    q = states[2].bases["0.weight"]
    x = q @ torch.randn(q.shape[1], 7)
    before, after = states[2].params["0.weight"], states[5].params["0.weight"]
    assert float((before @ x - after @ x).abs().max()) < 1e-5
    assert float((before - after).abs().max()) > 1e-3


def test_a_full_basis_freezes_its_layer(sequence):
    prepared, states = step_through(sequence, 2)
    full = dataclasses.replace(states[-1], bases={"0.weight": torch.linalg.qr(torch.randn(12, 12)).Q})
    prepared.fed.start_round(3)
    out = prepared.method.round(prepared.fed, full)
    assert float((out.params["0.weight"] - full.params["0.weight"]).abs().max()) < 1e-5
    assert float((out.params["2.weight"] - full.params["2.weight"]).abs().max()) > 1e-3


def test_what_a_client_sends_is_the_sketch_of_its_residual(sequence):
    """One client, one layer: A A^T / s approaches X_res X_res^T, and rho is the ratio of norms."""
    options = {"sketch": 300, "lr": 0.01}
    prepared, states = step_through(sequence, 1, options=options)
    q = torch.linalg.qr(torch.randn(12, 3)).Q
    seen = {}
    real = FOT._sketch

    def spy(self, client, params, bases):
        seen[client.id] = (real(self, client, params, bases), client.train.x[client.train.index].clone())
        return seen[client.id][0]

    FOT._sketch = spy
    try:
        prepared.fed.start_round(2)
        prepared.method.round(prepared.fed, dataclasses.replace(states[-1], bases={"0.weight": q}))
    finally:
        FOT._sketch = real
    (sketches, rhos), x = seen[0]
    x = x.double().numpy().T
    rest = x - q.double().numpy() @ (q.double().numpy().T @ x)
    assert rhos["0.weight"] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(x), rel=1e-5)
    a = sketches["0.weight"].double().numpy() * x.shape[1]
    exact = rest @ rest.T
    assert a.shape == (12, 3600)
    assert np.linalg.norm(a @ a.T / a.shape[1] - exact) < 0.1 * np.linalg.norm(exact)


def test_heads_of_their_own_are_not_protected(task):
    split = split_classes(dataclasses.replace(task, model=bias_free), stages=2, rounds_each=1)
    _, states = step_through(split, 1)
    assert list(states[-1].bases) == ["0.weight"]


def test_sketches_add_up_under_secure_aggregation_when_a_client_drops_out(sequence):
    common = {
        "clients": 6,
        "cohort": 6,
        "secure": {"threshold": 4, "gamma": 0.05, "bits": 20, "max_weight": 64},
        "options": {"rounds_per_task": 2, "eps": 0.6},
    }

    def drop(round, client, function):
        return round == 2 and client == 1 and function in ("secagg.masked", "train")

    found = {}
    for aggregation in ("plain", "secure-arithmetic", "secure"):
        values = {
            "method": "fot",
            "task": "blobs",
            "rounds": 3,
            "vectorize": "off",
            "aggregation": aggregation,
            **common,
        }
        prepared = prepare(RunConfig.build(values), task=sequence, drop=drop)
        prepared.go()
        found[aggregation] = prepared.state
    assert found["secure"].params.vector.equal(found["secure-arithmetic"].params.vector)
    for name, q in found["plain"].bases.items():
        assert found["secure"].bases[name].equal(found["secure-arithmetic"].bases[name])
        assert found["secure"].bases[name].shape == q.shape
        cosines = torch.linalg.svdvals(q.T @ found["secure"].bases[name])
        assert float(cosines.min()) > 0.999


def test_resumes_with_the_same_bits(tmp_path, sequence):
    assert_resumes(tmp_path, sequence, method="fot")


def test_real_digits_are_forgotten_less():
    """Small: two tasks of eight rounds; accuracies are compared in the table of effects."""
    found = {}
    for name in ("fot", "fedavg"):
        values = {
            "method": name,
            "options": {"lr": 0.05, "batch_size": 16},
            "task": "permuted",
            "task_options": {"stages": 2, "rounds_each": 8, "limit": 600, "hidden": 64, "bias": False},
            "model": "mlp",
            "clients": 5,
            "cohort": 5,
            "rounds": 16,
            "eval_every": 8,
        }
        found[name] = forgetting(prepare(RunConfig.build(values)).go().history, 8)
    assert found["fot"][1] < 0.5 * found["fedavg"][1]


@pytest.mark.parametrize(
    ("options", "protected"),
    [
        ({}, ["0.weight", "2.weight"]),
        ({"rho": "energy", "weigh": "samples", "eps": 0.8}, ["0.weight", "2.weight"]),
        ({"at_least_one": True, "eps": 0.0, "protect_head": False, "server_lr": 0.7}, ["0.weight"]),
        ({"most_columns": 20, "eps": 0.99, "sketch": 2}, ["0.weight", "2.weight"]),
    ],
)
def test_two_tasks_against_numpy(monkeypatch, options, protected):
    """Projection, coverage and growth of the bases, from what clients send; clients have 30, 60, 60 and 90 samples."""
    task = permuted(make_task(model=bias_free), stages=2, rounds_each=2)
    seen, invoke = {}, Worker.invoke

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        seen[me.id] = me.num_samples, message, reply
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    own = torch.arange(240).split([30, 60, 60, 90])
    rows = [torch.cat([part, 240 + part]) for part in own]  # of both tasks
    offsets = torch.tensor([0, *(len(part) for part in rows)]).cumsum(0)
    run, states = step_through(task, 0, options=options, split=Partition("uneven", torch.cat(rows), offsets, offsets[1:].clone()))
    state, bases, eps, w = states[0], {}, options.get("eps", 0.95), states[0].params
    w = {n: w[n].double().numpy().copy() for n in protected} | {n: w[n].double().numpy().copy() for n in ("0.weight", "2.weight")}
    for number in range(1, 5):
        run.fed.start_round(number)
        seen.clear()
        state = run.method.round(run.fed, state)
        run.fed.engine.commit()
        size = np.array([seen[c][0] for c in range(4)], float)
        own = size if options.get("weigh") == "samples" else np.ones(4)
        for name, value in w.items():
            delta = np.average([seen[c][2].delta[name].double().numpy() for c in range(4)], axis=0, weights=own)
            if name in bases:
                delta = delta - delta @ bases[name] @ bases[name].T
            w[name] = value + options.get("server_lr", 1.0) * delta
            np.testing.assert_allclose(state.params[name], w[name], atol=1e-5)
        last = number % 2 == 0
        for c in range(4):
            sketched = {"delta": own[c], "loss": own[c], "sketch": size[c], "rho": size[c]}
            assert seen[c][2].weight == (sketched if last else own[c])
        assert all((message[1] is not None) == last for _, message, _ in seen.values())
        if not last:
            assert not hasattr(seen[0][2], "sketch")
            continue
        assert list(seen[0][2].sketch) == protected
        for name in protected:
            width = w[name].shape[1]
            total = sum(n * seen[c][2].sketch[name].double().numpy() for c, n in enumerate(size)) / size.sum()
            assert total.shape == (width, min(options.get("most_columns", 4096), width * options.get("sketch", 5)))
            rho = np.average([seen[c][2].rho[name] for c in range(4)], weights=size)
            share = (rho - (1 - eps)) / rho if rho > 0 else 0.0
            u, s, _ = np.linalg.svd(total, full_matrices=False)
            covered = np.cumsum(s**2) / (s**2).sum()
            rank = int(np.argmax(covered > share)) + 1 if share > 0 else int(options.get("at_least_one", False))
            old = bases.get(name, np.zeros((width, 0)))
            if rank:
                bases[name] = np.linalg.qr(np.concatenate([old, u[:, :rank]], 1))[0]
                assert state.bases[name].shape == bases[name].shape
                q = state.bases[name].double().numpy()
                np.testing.assert_allclose(q @ q.T, bases[name] @ bases[name].T, atol=1e-4)
                assert run.fed.last.notes[f"capacity_{name}"] == bases[name].shape[1] / width
    assert bases


@pytest.mark.parametrize(("rho", "power"), [("norm", 1), ("energy", 2)])
def test_rho_is_a_ratio_of_norms_or_of_energies(sequence, monkeypatch, rho, power):
    seen, real = {}, FOT._sketch

    def spy(self, client, params, bases):
        seen[client.id] = (real(self, client, params, bases), client.train.x[client.train.index].double().numpy())
        return seen[client.id][0]

    monkeypatch.setattr(FOT, "_sketch", spy)
    prepared, states = step_through(sequence, 1, options={"rho": rho})
    q = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(0))).Q
    prepared.fed.start_round(2)
    prepared.method.round(prepared.fed, dataclasses.replace(states[-1], bases={"0.weight": q}))
    for (_, rhos), x in seen.values():
        rest = x - x @ q.double().numpy() @ q.double().numpy().T
        assert rhos["0.weight"] == pytest.approx((np.linalg.norm(rest) / np.linalg.norm(x)) ** power, rel=1e-5)
        assert rhos["2.weight"] == 1.0
