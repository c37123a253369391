"""OCFL: when it splits, what happens then, and equality with FedAvg before and after."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from paceline.core.errors import PlanError
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.data import Partition
from paceline.methods.clustering import ocfl
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from tests.methods.resuming import assert_resumes

SPLIT = {"partition": "groups:0-1/2-3", "clients": 8, "cohort": 8}


@dataclass(frozen=True)
class Unweighted(FedAvg):
    """FedAvg whose clients count alike, among some of them."""

    among: tuple[int, ...] = ()

    def round(self, fed, state):
        mean = fed.mean(self.train, state.params, over=list(self.among) or fed.sample())
        return type(state)(params=state.params + mean.delta)

    @on_client
    def train(self, client, message):
        return Update(delta=client.sgd(message, **self.local(client)).params - message)


def started(task, **changes):
    values = {"method": "ocfl", "task": "blobs", "rounds": 5, "vectorize": "off", **SPLIT, **changes}
    return prepare(RunConfig.build(values), task=task)


@pytest.mark.parametrize(
    ("heats", "patience", "at"),
    [
        ([0.9, 0.7, 0.6, 0.65], 1, 4),
        ([0.9, 0.7, 0.5, 0.4], 1, None),
        ([0.9, 0.7, 0.7, 0.7], 1, None),
        ([0.5, 0.6, 0.55, 0.56, 0.57], 2, 5),
    ],
)
def test_it_splits_at_the_first_rise(task, monkeypatch, heats, patience, at):
    left = iter(heats)
    monkeypatch.setattr(ocfl, "temperature", lambda gamma, order: next(left))
    run = started(task, rounds=len(heats), options={"patience": patience, "epochs": 1})
    splits, observe = [], lambda record, total: splits.append(run.state.split)
    run.observer = observe
    run.go()
    assert (splits.index(True) + 1 if True in splits else None) == at


def test_groups_are_found_and_get_models_of_their_own(task):
    run = started(task, options={"epochs": 1, "lr": 0.3})
    summary = run.go()
    assert summary.history[-1]["adjusted_rand"] == 1.0
    assert run.method.clustering(run.state) == [0] * 4 + [1] * 4
    one, two = run.state.models
    assert not torch.equal(one.vector, two.vector)
    parts = run.method.personal(run.state, range(8))
    assert [list(clients) for _, clients in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert summary.accuracy > 0.95


@pytest.mark.parametrize("sketch", [0, 16])
def test_a_run_that_never_splits_is_unweighted_fedavg_bit_for_bit(task, sketch):
    local = {"epochs": 2, "batch_size": 1000}  # whole batches: samples are ordered by a stream of the function's name
    never = started(task, rounds=3, options={"patience": 99, "sketch": sketch, **local})
    never.go()
    values = {"method": f"{__name__}:Unweighted", "task": "blobs", "rounds": 3, "vectorize": "off", **SPLIT}
    plain = prepare(RunConfig.build(values | {"options": local}), task=task)
    plain.go()
    assert torch.equal(never.state.models[0].vector, plain.state.params.vector)


def test_after_the_split_each_cluster_is_fedavg_on_its_members(task):
    """Full-batch steps, so that the order of the samples plays no role."""
    options = {"epochs": 2, "lr": 0.3, "batch_size": 1000}
    run = started(task, rounds=1, options=options)
    states = []
    run.observer = lambda record, total: states.append(run.state)
    run.config = run.config.model_copy(update={"rounds": 6})
    run.go()
    split = next(i for i, s in enumerate(states) if s.split)
    assert split < 5
    values = {"method": f"{__name__}:Unweighted", "task": "blobs", "rounds": 1, "vectorize": "off", **SPLIT}
    for k in range(2):
        members = [c for c in range(8) if states[split].labels[c] == k]
        plain = prepare(RunConfig.build(values | {"options": options | {"among": members}}), task=task)
        state = plain.method.init(plain.fed)
        state = type(state)(params=states[split].models[k])
        for number in range(split + 2, 7):
            plain.fed.start_round(number)
            state = plain.method.round(plain.fed, state)
        assert torch.equal(state.params.vector, states[-1].models[k].vector)


def test_the_firing_round_averages_inside_the_new_clusters(task):
    run = started(task, options={"epochs": 1, "lr": 0.3, "batch_size": 1000})
    run.fed.start_round(1)
    state = run.method.init(run.fed)
    number = 1
    while not state.split:
        before = state
        run.fed.start_round(number)
        state = run.method.round(run.fed, state)
        number += 1
    replies = run.fed.each(run.method.compare, (before.models[0], 0), over=range(8))
    for k in range(2):
        own = torch.stack([replies[c].vector for c in range(8) if state.labels[c] == k])
        assert torch.allclose(state.models[k].vector, before.models[0].vector + own.mean(0), atol=1e-6)


def test_a_sketch_is_all_that_single_clients_show(task, monkeypatch):
    from paceline.core.federation import Federation

    seen, ask = [], Federation.each

    def spy(self, fn, message, over, **options):
        replies = ask(self, fn, message, over, **options)
        seen.extend(replies.values())
        return replies

    monkeypatch.setattr(Federation, "each", spy)
    run = started(task, options={"sketch": 64, "epochs": 1, "lr": 0.3})
    assert run.go().history[-1]["adjusted_rand"] == 1.0
    assert {tuple(s.shape) for s in seen} == {(64,)}


def test_who_was_away_at_the_split_is_placed_later(task):
    run = prepare(
        RunConfig.build(
            {"method": "ocfl", "task": "blobs", "rounds": 8, **SPLIT, "options": {"epochs": 1, "lr": 0.3}, "vectorize": "off"}
        ),
        task=task,
        drop=lambda round, client, function: client == 6 and function == "compare" and not splitted(),
    )

    def splitted():
        return run.state is not None and run.state.split

    seen = []
    run.observer = lambda record, total: seen.append((run.state.split, int(run.state.labels[6])))
    run.go()
    assert (True, -1) in seen
    assert seen[-1] == (True, 1)


def test_one_cluster_is_no_split(task, monkeypatch):
    monkeypatch.setattr(ocfl, "cluster", lambda *args: [-1] * 8)
    run = started(task, options={"epochs": 1})
    run.go()
    assert not run.state.split
    assert "note_temperature" in run.history[-1]


@pytest.mark.parametrize("stop", ["average", "hdbscan"])
def test_resume_gives_the_same_bits(tmp_path, task, stop):
    if stop == "hdbscan":
        pytest.importorskip("sklearn")
    assert_resumes(tmp_path, task, method="ocfl", options={"epochs": 1, "lr": 0.3, "backend": stop}, **SPLIT)


def test_secure_aggregation_is_refused(config, task):
    with pytest.raises(PlanError, match="compare"):
        prepare(config(method="ocfl", aggregation="secure"), task=task)


def test_each_client_is_judged_by_its_clusters_model(task):
    run = started(task, options={"epochs": 1, "lr": 0.3})
    run.go()
    one, two = run.state.models
    state = type(run.state)([one, two], torch.tensor([0, 1, -1, 0, 1, -1, 0, 1]), 0.5, 1, run.state.directions)
    mean, first, second = run.method.personal(state, range(8))
    assert torch.allclose(mean[0].vector, (one.vector + two.vector) / 2)
    assert first[0] is one
    assert second[0] is two
    assert [list(members) for _, members in (mean, first, second)] == [[2, 5], [0, 3, 6], [1, 4, 7]]
    assert [list(members) for _, members in run.method.personal(state, [4, 0])] == [[0], [4]]
    assert run.method.clustering(state) == [0, 1, -1, 0, 1, -1, 0, 1]


def test_notes_and_the_temperature_of_one_client_alone(task):
    run = started(task, rounds=2, cohort=1, clients=8, options={"epochs": 1})
    run.go()
    assert [r["note_temperature"] for r in run.history] == [1.0, 1.0]
    assert [r["note_clusters"] for r in run.history] == [1.0, 1.0]
    assert run.state.temperature == float("inf")


@pytest.mark.parametrize("sketch", [0, 16])
def test_the_heat_is_the_norm_of_distances_of_directions(task, sketch):
    run = started(task, rounds=1, options={"epochs": 1, "batch_size": 1000, "order": 3.0, "sketch": sketch, "lr": 0.2})
    state = run.method.init(run.fed)
    run.fed.start_round(1)
    replies = run.fed.each(run.method.compare, (state.models[0], run.fed.seed), over=range(8))
    rows = np.stack([(replies[c] if sketch else replies[c].vector).double().numpy() for c in range(8)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    distances = 1 - rows @ rows.T
    np.fill_diagonal(distances, 0)
    heat = ((distances**3).sum() / (8 * 7 * 2**3)) ** (1 / 3)
    run.fed.start_round(1)
    after = run.method.round(run.fed, state)
    assert after.temperature == pytest.approx(heat, rel=1e-3)
    assert (after.rises, after.split) == (0, False)


@pytest.mark.parametrize("sketch", [0, 64])
def test_clients_without_samples_form_no_cluster_and_shorten_no_step(task, sketch):
    """They have no direction: their zero updates would be at distance 1 from all others."""
    options = {"epochs": 1, "lr": 0.3, "batch_size": 1000, "sketch": sketch}
    plain = started(task, options=options)
    split = plain.fed.engine.setup.split
    more = torch.full((3,), int(split.offsets[-1]))
    wider = Partition("with empty ones", split.order, torch.cat([split.offsets, more]), torch.cat([split.cuts, more]))
    values = {"method": "ocfl", "task": "blobs", "rounds": 5, "vectorize": "off", "clients": 11, "cohort": 11, "options": options}
    other = prepare(RunConfig.build(values), task=task, split=wider)
    for run in (plain, other):
        run.go()
    assert plain.method.clustering(plain.state) == [0] * 4 + [1] * 4
    assert other.method.clustering(other.state)[:8] == [0] * 4 + [1] * 4
    for one, two in zip(plain.state.models, other.state.models, strict=True):
        torch.testing.assert_close(one.vector, two.vector, atol=1e-6, rtol=1e-6)
