"""FedD2S: the sheet's schedule and numbers, what learns from what, replies that are not mixed, and local training without exchange."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.blocks.depths import TappedChain, UpperNetworks
from paceline.blocks.knowledge import ClassKnowledge, DepthKnowledge, SoftLabels, learning_from, represent, teaching
from paceline.blocks.server_data import as_client
from paceline.core.errors import PlanError
from paceline.methods.personalisation import fedd2s, mutualdistillation
from paceline.methods.personalisation.fedd2s import FedD2S
from paceline.methods.personalisation.fedd2ssum import FedD2SSum
from paceline.methods.personalisation.mutualdistillation import MutualDistillation
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing

CLIENTS = {"clients": 4, "cohort": 4, "rounds": 3, "partition": "dirichlet:0.5"}
FORMS = [partial(FedD2S, samples=20), partial(FedD2S, knowledge="classes"), FedD2SSum]


def chain():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4))


def prepared(method, task=None, **values):
    made = RunConfig.build({"task": "own", "vectorize": "off", **CLIENTS, **values})
    return prepare(made, task=task or make_task(model=chain), method=method)


def finished(method, task=None, **values):
    run = prepared(method, task, **values)
    return run, run.go()


def test_the_schedule_of_the_sheet():
    method = FedD2S(period=10, least=2)
    assert [method.depth(t, 5) for t in (0, 9, 10, 25, 30, 99)] == [5, 5, 4, 3, 2, 2]
    assert {FedD2S(period=0).depth(t, 5) for t in range(200)} == {5}
    assert [FedD2S(planned=100).depth(t, 5) for t in (11, 12, 24, 36, 99)] == [5, 4, 3, 2, 2]
    assert [FedD2S(period=1, dropped=(5, 4)).depth(t, 5) for t in range(5)] == [5, 4, 3, 3, 3]
    assert FedD2S(period=1).depth(9, 1) == 1


def test_the_numbers_of_the_sheet():
    """One sample whose teacher has scores (2, 0, 0) and whose classifier at the depth has (1, 1, 0)."""
    tap = torch.tensor([[1.0, 1.0, 0.0]])

    class Fixed(nn.Module):
        def lower(self, x, depth):
            return x

        def upper(self, h, depth):
            return h

        def tap(self, h, depth):
            return tap

    def value(strength, tap_weight):
        taught = (torch.tensor([0, 1, 2]), torch.tensor([[2.0, 0.0, 0.0]] * 3), torch.ones(3))
        objective = learning_from(lambda z, y: z.sum() * 0, 1, taught, True, strength, tap_weight, 2.0)
        return float(objective(Fixed(), torch.zeros(1, 3), (torch.tensor([0]), torch.tensor([7]))))

    assert value(1.0, 0.0) == pytest.approx(0.354652, abs=1e-6)
    assert value(0.25, 0.0) == pytest.approx(0.088663, abs=1e-6)
    assert value(0.0, 1.0) == pytest.approx(0.861995, abs=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=["samples", "classes", "sum"])
def test_without_exchange_it_is_local_training_bit_for_bit(form):
    run, _ = finished(form(distill=0.0, tap_weight=0.0), cohort=3)
    alone, _ = finished(pl.methods.LocalOnly(lr=0.01, epochs=2, batch_size=32, momentum=0.9), cohort=3)
    for client, kept in alone.fed.engine.memories.items():
        own, wanted = run.fed.engine.memories[client]["network"], kept["network"]
        assert torch.equal(own.vector[: len(wanted)], wanted.vector)


def test_blocks_above_the_depth_and_the_head_learn_from_labels_alone():
    torch.manual_seed(0)
    module = TappedChain(chain(), torch.zeros(1, 12), 1)
    taught = (torch.arange(4), torch.randn(4, 4), torch.ones(4))
    objective = learning_from(lambda z, y: torch.zeros(()), 2, taught, True, 1.0, 0.5, 2.0)
    objective(module, torch.randn(5, 12), (torch.tensor([0, 1, 2, 3, 0]), torch.arange(5))).backward()
    learns = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert learns == {"chain.0.weight", "chain.0.bias", "chain.2.weight", "chain.2.bias", "taps.2.weight", "taps.2.bias"}


def test_a_sample_learns_from_its_own_soft_label_only():
    torch.manual_seed(0)
    module, x, y = TappedChain(chain(), torch.zeros(1, 12), 1), torch.randn(3, 12), torch.tensor([1, 2, 1])
    scores, rows = torch.randn(2, 4), torch.tensor([40, 17, 3])
    taught = (torch.tensor([17, 99]), scores, torch.tensor([0.5, 1.0]))
    value = learning_from(lambda z, y: torch.zeros(()), 3, taught, False, 1.0, 0.0, 2.0)(module, x, (y, rows))
    p, q = (scores[0] / 2).softmax(0), (module.tap(module.lower(x, 3), 3)[1] / 2).softmax(0)
    assert float(value) == pytest.approx(float(0.5 * 4 * (p * (p / q).log()).sum() / 3), abs=1e-6)


def test_the_objective_of_the_server():
    torch.manual_seed(0)
    module, h, y = UpperNetworks(chain(), torch.zeros(1, 12), 2), torch.randn(3, 7), torch.tensor([0, 3, 1])
    soft, weight = torch.randn(3, 4).softmax(1), torch.tensor([1.0, 0.5, 1.5])
    value = teaching(2, 0.7, 3.0)(module, h, (y, 3.0 * soft.log(), weight))
    z = module(h, 2).detach().numpy().astype(float)

    def softmax(v):
        e = np.exp(v - v.max())
        return e / e.sum()

    wanted = 0.0
    for k in range(3):
        s = soft[k].numpy()
        wanted += float(weight[k]) * (-math.log(softmax(z[k])[y[k]]) + 0.7 * 9 * (s * np.log(s / softmax(z[k] / 3))).sum()) / 3
    assert float(value) == pytest.approx(wanted, abs=1e-5)


def test_deeper_networks_of_the_server_are_the_top_of_shallower_ones():
    module = UpperNetworks(chain(), torch.zeros(1, 12), 1)
    h = torch.randn(4, 8)
    torch.testing.assert_close(module(h, 1), module(torch.relu(module.layers[0](h)), 2))
    assert [tuple(p.shape) for p in module.parameters()] == [(7, 8), (7,), (6, 7), (6,), (6, 6), (6,), (4, 6), (4,)]


def test_replies_are_not_mixed(monkeypatch):
    """What the server returns to a client are its scores of that client's own samples, by their positions."""
    sent = {}
    original = FedD2S.train

    def train(self, client, message):
        reply = original(self, client, message)
        sent[client.id] = reply
        return reply

    train.__client__ = original.__client__
    monkeypatch.setattr(FedD2S, "train", train)
    run, _ = finished(FedD2S(samples=15), rounds=1)
    model = run.method.upper(run.fed)[0]
    model.load(run.state.params)
    model.module.eval()
    assert set(run.state.own) == {0, 1, 2, 3}
    trained = run.state.params.vector != run.method.upper(run.fed)[1].vector
    assert trained.any()
    for client, kept in run.state.own.items():
        count = len(sent[client].keys)
        with torch.no_grad():
            torch.testing.assert_close(kept.scores[:count], model.module(sent[client].features, 3))
        assert kept.keys[:count].equal(sent[client].keys)
        assert (kept.made[:count] == 1).all()
        assert not kept.made[count:].any()
        index = run.fed.engine.setup.split(client)[0]
        assert run.fed.engine.setup.task.train.y[index][kept.keys[:count]].equal(sent[client].classes)


def test_soft_labels_fade_with_age():
    taught = SoftLabels(torch.arange(4), torch.zeros(4, 2), torch.tensor([0, 3, 5, 6]))
    torch.testing.assert_close(taught.weights(7, 0.9), torch.tensor([0.0, 0.9**3, 0.9, 1.0]))


def test_class_means_add_up_and_their_soft_labels_are_weighted():
    torch.manual_seed(0)
    h, y, soft = torch.randn(6, 5), torch.tensor([0, 0, 2, 2, 2, 0]), torch.randn(6, 3).softmax(1)
    whole, halves = ClassKnowledge.of(h, y, soft), [ClassKnowledge.of(h[s], y[s], soft[s]) for s in (slice(2), slice(2, 6))]
    torch.testing.assert_close(whole.sums, halves[0].sums + halves[1].sums)
    means = whole.means()
    assert means.classes.tolist() == [0, 2]
    torch.testing.assert_close(means.features[1], h[2:5].mean(0))
    torch.testing.assert_close(means.soft[0], soft[[0, 1, 5]].mean(0))
    assert means.weights.tolist() == [3, 3]
    told = DepthKnowledge(
        torch.zeros(3, 1), torch.tensor([1, 1, 0]), torch.zeros(3, 2), torch.tensor([1.0, 3.0, 2.0]), torch.arange(3)
    )
    scores, old = torch.randn(3, 3), SoftLabels(torch.arange(3), torch.full((3, 3), 7.0), torch.tensor([1, 1, 4]))
    new = old.renewed(told, scores, 9, 2.0)
    p = (scores / 2).softmax(1)
    torch.testing.assert_close((new.scores[1] / 2).softmax(0), 0.25 * p[0] + 0.75 * p[1])
    torch.testing.assert_close((new.scores[0] / 2).softmax(0), p[2])
    assert new.scores[2].tolist() == [7, 7, 7]
    assert new.made.tolist() == [9, 9, 4]


@pytest.mark.parametrize("form", FORMS, ids=["samples", "classes", "sum"])
def test_options_networks_and_ages_reach_both_sides(form, monkeypatch):
    """Two of four clients take part in a round, so soft labels of samples grow old, and those of absent clients remain."""
    learns, teaches, shown, given, took = [], [], [], [], set()

    def learning(loss, depth, taught, *rest):
        learns.append((taught[2], rest[1:]))
        return learning_from(loss, depth, taught, *rest)

    def teacher(*of):
        teaches.append(of)
        return teaching(*of)

    def representing(model, params, depth, data, temperature):
        shown.append((params.vector.clone(), temperature))
        return represent(model, params, depth, data, temperature)

    def serving(fed, x, targets, *path):
        given.append(targets)
        return as_client(fed, x, targets, *path)

    parts = {"learning_from": learning, "teaching": teacher, "represent": representing, "as_client": serving}
    for name, part in parts.items():
        monkeypatch.setattr(mutualdistillation, name, part)
    monkeypatch.setattr(fedd2s, "represent", representing)
    run = prepared(form(distill=0.7, tap_weight=0.2, mutual=0.3, temperature=3.0, fade=0.5, period=0), cohort=2, rounds=6)
    for _ in range(6):
        run.step()
        took |= set(run.fed.last.arrived)
    assert {rest for _, rest in learns} == {(0.7, 0.2, 3.0)}
    assert set(teaches) == {(3, 0.3, 3.0)}
    ages = torch.cat([weight for weight, _ in learns]).unique()
    assert set(ages.tolist()) <= {0.0} | {0.5**k for k in range(6)}
    by_sample = run.method.knowledge == "samples" if isinstance(run.method, FedD2S) else False
    if by_sample:
        assert ((ages > 0) & (ages < 1)).any()
        assert set(run.state.own) == took
    networks = [run.store[client]["network"].vector for client in took]
    for vector, temperature in shown[-2:]:
        assert temperature == 3.0
        assert any(torch.equal(vector, network) for network in networks)
    for _, believed, weight in given:
        torch.testing.assert_close((believed / 3).exp().sum(1), torch.ones(len(believed)), atol=1e-4, rtol=1e-4)
        assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
        assert bool((weight == weight[0]).all()) == by_sample


@pytest.mark.parametrize("form", FORMS, ids=["samples", "classes", "sum"])
def test_clients_learn_from_the_server(form, monkeypatch):
    """A server that is sure of one wrong class draws the classifiers at the depth to it."""
    wrong = torch.tensor([0.0, 0.0, 9.0, 0.0])
    monkeypatch.setattr(
        MutualDistillation, "teach", lambda self, fed, state, depth, told: (state.params, wrong.repeat(len(told.keys), 1))
    )
    ends = {}
    for distill in (0.0, 30.0):
        run, _ = finished(form(distill=distill), rounds=4)
        model, task = run.method.tapped(run.fed, "")[0], run.fed.engine.setup.task
        votes = []
        for kept in run.fed.engine.memories.values():
            model.load(kept["network"])
            with torch.no_grad():
                votes.append(F.softmax(model.module.tap(model.module.lower(task.train.x, 3), 3), 1)[:, 2].mean())
        ends[distill] = float(torch.stack(votes).mean())
    assert ends[30.0] > ends[0.0] + 0.2


def test_the_server_learns_to_tell_classes_apart():
    run, _ = finished(FedD2S(samples=60, server_lr=0.02, server_epochs=10, lr=0.1), rounds=3)
    right = [
        (kept.scores.argmax(1)[: int((kept.made > 0).sum())] == task_labels(run, client, kept)).float().mean()
        for client, kept in run.state.own.items()
    ]
    assert float(torch.stack(right).mean()) > 0.8


def task_labels(run, client, kept):
    index = run.fed.engine.setup.split(client)[0]
    return run.fed.engine.setup.task.train.y[index][kept.keys[kept.made > 0]]


def test_features_move_down_with_the_depth():
    _, outcome = finished(FedD2SSum(period=1, least=1), rounds=4)
    assert [record["note_depth"] for record in outcome.history] == [3, 2, 1, 1]


def test_architectures_with_other_features_are_refused():
    with pytest.raises(PlanError, match="different shapes"):
        finished(FedD2S(models=("mlp:hidden=8-7-6", "mlp:hidden=8-5-6")), rounds=1)
    finished(FedD2S(models=("mlp:hidden=8-7-6", "mlp:hidden=9-7-6")), rounds=1)
    with pytest.raises(PlanError, match="no layer with weights beside its head"):
        finished(FedD2SSum(), make_task(model=lambda: nn.Sequential(nn.Linear(12, 4))))


@pytest.mark.parametrize("form", [FedD2S, FedD2SSum])
@pytest.mark.parametrize("dropped", [(3, 2, 1), (2, 1), (4,), (0,)])
def test_blocks_that_cannot_be_withdrawn_are_refused(form, dropped):
    with pytest.raises(PlanError, match="must be blocks above least=1; the deepest is 3"):
        finished(form(models=("mlp:hidden=8-7-6",), least=1, dropped=dropped), rounds=1)


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(model=chain), "fedd2ssum", options={"period": 1})
