"""FedConv: FedAvg as its special case, the control without operators, and the server's own samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from paceline.blocks.generated_weights import WeightedSum
from paceline.blocks.server_data import HELD_OUT, best_epoch, reserve, server_client, server_score
from paceline.blocks.weight_convolutions import WeightConvolution
from paceline.core.errors import ConfigError, PlanError
from paceline.core.layout import Layout
from paceline.core.optimizers import SGD
from paceline.methods.stragglers.fedconv import FedConv
from paceline.run import RunConfig, prepare
from paceline.submodels.service import submodels
from tests.conftest import make_task

LOCAL = {"lr": 0.1, "epochs": 2, "batch_size": 10}
QUIET = {"tune_epochs": 0, "tune_received": False, "weight_epochs": 0, "restarts": 0}
QUICK = {"lr": 0.01, "epochs": 1, "batch_size": 20, "classes": [0, 1, 2], "tune_epochs": 1, "map_epochs": 1, "weight_epochs": 1}
QUICK |= {"restarts": 0, "server_samples": 40}


def carried_out(options, method="fedconv", task=None, **changes):
    values = {
        "method": method,
        "task": "blobs",
        "clients": 6,
        "cohort": 6,
        "rounds": 2,
        "vectorize": "off",
        "partition": "dirichlet:0.5",
    }
    run = prepare(RunConfig.build(values | changes | {"options": options}), task=task or make_task())
    return run, run.go()


@pytest.mark.parametrize("form", ["convolution", "prefix"])
def test_without_small_clients_and_training_on_the_server_it_is_fedavg(form):
    options = LOCAL | QUIET | {"classes": [0], "optimizer": "sgd", "form": form}
    ours = carried_out(options, cohort=4, rounds=3)[1]
    assert ours.model_sha256 == carried_out(LOCAL, "fedavg", cohort=4, rounds=3)[1].model_sha256


def test_a_weighted_mean_by_hand():
    layout = Layout.build([("w", (1,), "param")])
    total = WeightedSum(torch.tensor([[10 / 40 * 2.0], [30 / 40 * 4.0]]), layout)
    with torch.no_grad():
        total.omega.copy_(torch.tensor([[0.5], [1.5]]))
    assert total()["w"].item() == 4.75


def test_trained_weights_stay_with_their_clients_and_give_the_model():
    options = QUICK | {"weight_epochs": 4, "weight_lr": 0.1, "tune_epochs": 0, "tune_received": False, "classes": [0]}
    run, _ = carried_out(options, rounds=1, clients=3, cohort=2, partition="iid")
    assert len(run.state.weights) == 2
    omega = torch.stack(list(run.state.weights.values()))
    assert not torch.equal(omega, torch.ones_like(omega))
    assert omega.shape == (2, run.state.params.layout.num_params)
    normal = carried_out(options | {"weight_start": "normal", "weight_epochs": 0}, rounds=1, partition="iid")[0].state.weights
    stacked = torch.stack(list(normal.values()))
    assert abs(float(stacked.mean())) < 0.1
    assert float(stacked.std()) == pytest.approx(1.0, abs=0.1)


def test_weights_of_one_give_the_mean_by_samples():
    run, _ = carried_out(QUICK, rounds=1)
    method, w = replace(run.method, weight_lr=0.0), run.fed.init_params()
    full = {3: (10, w * 0.0 + 2.0), 5: (30, w * 0.0 + 4.0)}
    mean = method.merged(run.fed, w, full)
    torch.testing.assert_close(mean.vector, torch.full_like(w.vector, 3.5))
    torch.testing.assert_close(method.weighted(run.fed, mean, full, {})[0].vector, mean.vector)
    doubled = {3: torch.full_like(w.vector, 2.0)}
    expected = torch.full_like(w.vector, 3.5 + 0.5)
    torch.testing.assert_close(method.weighted(run.fed, mean, full, doubled)[0].vector, expected)


def test_operators_go_on_from_those_of_the_round_before(monkeypatch):
    mapped, seen = FedConv.mapped, []

    def spy(self, fed, name, source, onto, label, stored, least):
        made, found = mapped(self, fed, name, source, onto, label, stored, least)
        seen.append((fed.round, name, stored, found))
        return made, found

    monkeypatch.setattr(FedConv, "mapped", spy)
    run, _ = carried_out(QUICK, rounds=2)
    ends = {name: found for number, name, _, found in seen if number == 1}
    assert all(stored is None for number, _, stored, _ in seen if number == 1)
    assert all(torch.equal(stored.vector, ends[name].vector) for number, name, stored, _ in seen if number == 2)
    assert len(ends) == 2 + 4
    w, small, phi = run.state.params, run.state.sent[1], run.state.compress[1]
    for stored in (phi + 0.1, None):
        made, found = mapped(replace(run.method, map_epochs=0), run.fed, ("compress", 1), w, small, 1, stored, 0.0)
        operator = WeightConvolution(w.layout, small.layout)
        if stored is not None:
            assert torch.equal(found.vector, stored.vector)
            nn.utils.vector_to_parameters(found.vector, operator.parameters())
        torch.testing.assert_close(made.vector, operator.fill(w, small).vector)


def test_the_rate_of_operators_is_halved_down_to_its_least():
    method = FedConv(map_lr=1e-3)
    rates = [method.rate(type("Fed", (), {"round": number})) for number in (1, 25, 26, 51, 76, 500)]
    assert rates == [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 1e-4]
    assert FedConv(map_lr=1e-5).rate(type("Fed", (), {"round": 30})) == 1e-5


def test_received_models_are_trained_where_that_is_asked_for():
    options = QUICK | QUIET | {"classes": [0], "tune_epochs": 0}
    shas = [carried_out(options | changes, rounds=1)[1].model_sha256 for changes in ({}, {"tune_received": True})]
    assert shas[0] == shas[1]
    changed = options | {"tune_epochs": 3, "tune_lr": 0.05}
    shas = [carried_out(changed | {"tune_received": on}, rounds=1)[1].model_sha256 for on in (False, True)]
    assert shas[0] != shas[1]


def test_the_control_averages_each_coordinate_over_the_clients_that_trained_it():
    run, _ = carried_out(QUICK | {"form": "prefix"}, rounds=1)
    w = run.fed.init_params()
    parts = {e: submodels(run.fed).cutter.first(0.75**e) for e in (1, 2)}
    generator = np.random.default_rng(0)
    models, total, weight = {}, np.zeros(len(w)), np.zeros(len(w))
    for client, (label, count) in enumerate([(0, 5), (1, 20), (2, 3)]):
        layout, places = (w.layout, np.arange(len(w))) if not label else (parts[label].layout, parts[label].index.numpy())
        values = generator.normal(size=layout.size)
        models[client] = (count, type(w)(torch.tensor(values).float(), layout))
        total[places] += count * values
        weight[places] += count
    np.testing.assert_allclose(run.method.merged(run.fed, w, models).vector, total / weight, atol=1e-5)
    del models[0]
    seen = weight > 5
    expected = np.where(seen, run.method.merged(run.fed, w, models).vector, w.vector)
    np.testing.assert_array_equal(run.method.merged(run.fed, w, models).vector, expected)
    assert (~seen).any()


def test_clients_train_what_the_operators_made(monkeypatch):
    from paceline.core.federation import Federation

    seen, ask = [], Federation.each

    def spy(self, fn, message, over, **options):
        replies = ask(self, fn, message, over, **options)
        seen.append((options["each_message"], replies))
        return replies

    monkeypatch.setattr(Federation, "each", spy)
    run, _ = carried_out(QUICK, rounds=2)
    sizes = [submodels(run.fed).cutter.first(0.75**e).layout.size for e in (0, 1, 2)]
    for own, replies in seen:
        assert [own[c].layout.size for c in range(6)] == [sizes[c % 3] for c in range(6)]
        assert all(replies[c][1].layout.size == sizes[c % 3] and replies[c][0] > 0 for c in range(6))
    assert torch.equal(seen[1][0][1].vector, run.state.sent[1].vector)
    assert set(run.state.compress) == {1, 2}
    assert set(run.state.dilate) == {1, 2, 4, 5}


def test_the_servers_samples_are_not_evaluated():
    task = make_task()
    fitted = FedConv(server_samples=30).fit_task(task)[1]
    assert (len(fitted.server), len(fitted.test), len(fitted.train)) == (30, 50, 240)
    rows = torch.cat([fitted.server.x, fitted.test.x])
    assert torch.equal(rows.unique(dim=0), task.test.x.unique(dim=0))
    with pytest.warns(UserWarning, match="the server gets 40 samples, not 1000: half of the test set"):
        assert len(reserve(task, 1000).server) == 40
    run, _ = carried_out(QUICK, rounds=1)
    server = server_client(run.fed, "x")
    assert (len(server.train), len(server.test)) == (30, 40 // HELD_OUT)
    assert not set(map(tuple, server.train.x[server.train.index].tolist())) & set(map(tuple, run.task.test.x.tolist()))
    assert not set(server.train.index.tolist()) & set(server.test.index.tolist())


def test_the_best_epoch_counts():
    run, _ = carried_out(QUICK, rounds=1)
    start = run.state.params
    server = server_client(run.fed, "again")
    ends = [
        start,
        *(server_client(run.fed, "again").sgd(start, optimizer=SGD(0.5), epochs=n, batch_size=10).params for n in (1, 2, 3)),
    ]
    scores = [accuracy - loss for accuracy, loss in (server_score(server, params) for params in ends)]
    accuracy, best = best_epoch(server_client(run.fed, "again"), start, SGD(0.5), 3, 10)
    assert torch.equal(best.vector, ends[int(np.argmax(scores))].vector)
    assert accuracy == server_score(server, best)[0]
    worse = best_epoch(server_client(run.fed, "again"), start, SGD(1e4), 1, 10)[1]
    assert torch.equal(worse.vector, start.vector)


@pytest.mark.parametrize(("restarts", "least", "attempts"), [(0, 1.1, 1), (3, 1.1, 4), (3, -1.0, 1)])
def test_attempts_are_limited_and_the_best_one_counts(monkeypatch, restarts, least, attempts):
    from paceline.blocks import generated_weights
    from paceline.blocks.generated_weights import GeneratedModel, ServerTraining, fit_generator

    run, _ = carried_out(QUICK, rounds=1)
    total = WeightedSum(run.state.params.vector.unsqueeze(0), run.state.params.layout)
    module = GeneratedModel(run.fed.engine.here.model.module, run.state.params, total, lambda t: t())
    accuracies, starts = iter([0.2, 0.7, 0.7, 0.1]), []

    def fake(server, start, *rest):
        starts.append(start)
        return next(accuracies), start

    monkeypatch.setattr(generated_weights, "best_epoch", fake)
    how = ServerTraining(SGD(0.1), 1, 10, least, restarts)
    found = fit_generator(module, lambda n: server_client(run.fed, n), lambda n, fresh: fresh * float(n + 1), how)
    assert len(starts) == attempts
    assert float(found.vector[0]) == (2.0 if restarts and attempts > 1 else 1.0)
    assert torch.equal(total.omega.flatten(), found.vector)


def test_which_accuracy_ends_the_attempts_of_each_training(monkeypatch):
    from paceline.methods.stragglers import learnedmaps

    seen, fit = [], learnedmaps.fit_generator

    def spy(module, server, start, how):
        seen.append((how.least, how.restarts, how.epochs))
        return fit(module, server, start, replace(how, restarts=0))

    monkeypatch.setattr(learnedmaps, "fit_generator", spy)
    run, _ = carried_out(QUICK | {"restarts": 2, "map_epochs": 3, "weight_epochs": 2}, rounds=1, clients=2, cohort=2)
    assert seen == [(0.4, 2, 3), (0.8, 2, 3), (0.5, 2, 2)]
    for number in (5, 6):  # half the epochs after round 5
        run.fed.start_round(number)
        run.method.mapped(run.fed, ("compress", 1), run.state.params, run.state.sent[1], 1, None, 0.4)
    assert [epochs for *_, epochs in seen[3:]] == [3, 2]


def with_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("form", ["convolution", "prefix"])
def test_learns_with_running_statistics(monkeypatch, form):
    mapped, begins = FedConv.mapped, []

    def spy(self, fed, name, source, onto, *rest):
        begins.append((name[0], source, onto))
        return mapped(self, fed, name, source, onto, *rest)

    monkeypatch.setattr(FedConv, "mapped", spy)
    options = QUICK | {"kernel_start": "corner", "activations": 0, "form": form, "epochs": 5, "lr": 0.03, "tune_lr": 0.01}
    common = {"task": make_task(model=with_norm), "rounds": 2, "clients": 3, "cohort": 3, "partition": "iid"}
    run, outcome = carried_out(options, **common)
    assert outcome.accuracy > 0.85
    assert (run.state.params["1.running_var"] > 0).all()
    if form == "convolution":
        larger = [onto for kind, _, onto in begins if kind == "dilate"]
        assert all((onto[name] == 1).all() for onto in larger for name in ("1.running_mean", "1.running_var"))
        server = server_client(run.fed, "again")
        with torch.no_grad():
            h = server.train.x[server.train.index] @ run.state.params["0.weight"].T + run.state.params["0.bias"]
        torch.testing.assert_close(run.state.params["1.running_mean"], h.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(run.state.params["1.running_var"], h.var(0), atol=1e-4, rtol=1e-4)
    assert carried_out(options | {"map_epochs": 0}, evaluation="clients", **common)[1].accuracy > 0.7


def test_refusals():
    with pytest.raises(PlanError, match=r"not \[-1\]"):
        carried_out({"classes": [-1]})
    few = make_task(samples=240)
    small = type(few)("few", few.train, few.test.subset(torch.arange(5)), few.model, 4)
    with pytest.raises(ConfigError, match="at least 8 samples"):
        carried_out(QUICK, task=small)
