"""FRL: votes and masks by hand, frozen weights, straight-through gradients, attacks that are bounded."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from paceline.blocks.ranks import pack, positions
from paceline.core.errors import ConfigError, SumOverflowError
from paceline.core.layout import Layout
from paceline.core.method import client_functions
from paceline.core.params import Params
from paceline.methods.compression.frl import FRL, packed
from paceline.methods.compression.frlchecked import FRLChecked
from paceline.models.supermasks import mask, network, placed, slope, without_offsets
from paceline.run import RunConfig, StackingWarning, prepare
from tests.conftest import make_task
from tests.methods.resuming import assert_resumes, states_of

ONE = Layout.build([("w", (4,), "param")])
SCORES = [(0.3, 0.1, 0.5, 0.2), (0.4, 0.2, 0.6, 0.1), (0.1, 0.3, 0.2, 0.4)]


def params(*values):
    return Params(torch.tensor(values), ONE)


def rankings():
    return [torch.argsort(torch.tensor(s), stable=True) for s in SCORES]


def win(places):
    return torch.argsort(sum(places), stable=True).tolist()


def test_votes_by_hand():
    ranks = rankings()
    assert [r.tolist() for r in ranks] == [[1, 3, 0, 2], [3, 1, 0, 2], [0, 2, 1, 3]]
    places = [positions(r) for r in ranks]
    assert [p.tolist() for p in places] == [[2, 0, 3, 1], [2, 1, 3, 0], [0, 2, 1, 3]]
    assert sum(places).tolist() == [4, 3, 7, 4]
    assert win(places) == [1, 0, 3, 2]
    assert int(sum(places).sum()) == 3 * 4 * 3 // 2


def test_masks_by_hand():
    q = {"w": torch.tensor([0.9, -0.7, 0.2, -0.1]).sort().values}
    scores = placed(ONE, {"w": torch.tensor([1, 0, 3, 2])}, q)
    np.testing.assert_allclose(scores.vector, [-0.1, -0.7, 0.9, 0.2], rtol=1e-6)
    assert mask(scores, 0.5).vector.tolist() == [0, 0, 1, 1]
    assert mask(scores, 0.5, "released").vector.tolist() == [0, 1, 1, 0]
    assert mask(scores, 0.3).vector.tolist() == [0, 0, 1, 1]  # the first int(0.7 * 4) = 2 edges go
    assert mask(scores, 1.0).vector.tolist() == [1, 1, 1, 1]


def test_one_voter_wins_and_equal_voters_agree():
    first, *_ = rankings()
    assert win([positions(first)]) == first.tolist()
    assert win([positions(first)] * 7) == first.tolist()


def test_a_minority_moves_an_edge_by_at_most_its_size_times_the_number_of_edges():
    rng, n = torch.Generator().manual_seed(0), 50
    honest = [positions(torch.randperm(n, generator=rng)) for _ in range(9)]
    clean = sum(honest)
    for liars in range(1, 5):
        turned = [n - 1 - p for p in honest[:liars]]
        attacked = sum(turned) + sum(honest[liars:])
        assert int((attacked - clean).abs().max()) <= liars * (n - 1)
        gap = clean[:, None] - clean[None, :]
        safe = gap > 2 * liars * (n - 1)
        assert bool((attacked[:, None] - attacked[None, :] > 0)[safe].all())


def test_weights_are_signed_constants_and_the_seed_is_all_that_matters():
    layout = Layout.build([("a", (5, 8), "param"), ("b", (3, 2, 3, 3), "param")])
    frozen, scores, ranks = network(layout, 3)
    for name, fan_in in (("a", 8), ("b", 18)):
        np.testing.assert_allclose(frozen[name].abs(), math.sqrt(2) / math.sqrt(fan_in), rtol=1e-6)
        assert 0 < float((frozen[name] > 0).float().mean()) < 1
        assert scores[name].equal(scores[name].sort().values)
        assert float(scores[name].abs().max()) <= 1 / math.sqrt(fan_in)
    network.cache_clear()
    again = network(layout, 3)
    assert again[0].vector.equal(frozen.vector)
    assert all(again[2][n].equal(ranks[n]) for n in ranks)
    assert not network(layout, 4)[0].vector.equal(frozen.vector)
    assert all(bool((s >= 0).all()) for s in network(layout, 3, "abs")[1].values())


def states(task, rounds, **changes):
    return states_of(task, rounds, **{"method": "frl", "clients": 6, "cohort": 5, **changes})


def test_weights_stay_frozen_and_half_of_each_layer_is_kept(task):
    prepared, found = states(task, 3)
    layout = found[0].params.layout
    assert list(layout.by_name) == ["0.weight", "2.weight", "4.weight"]
    frozen = network(layout, 0)[0]
    for state in found:
        kept = state.params.vector != 0
        assert state.params.vector[kept].equal(frozen.vector[kept])
        assert [int((v != 0).sum()) for _, v in state.params.items()] == [n.numel() // 2 for _, n in frozen.items()]
    assert not found[-1].params.vector.equal(found[0].params.vector)
    module = prepared.fed.engine.here.model.module
    assert all(not p.any() for n, p in module.named_parameters() if n.endswith("bias"))


def test_what_is_sent_down_takes_the_bits_of_a_ranking(task):
    _, found = states(task, 1)
    sizes = [len(data) for data in packed(found[1].ranks).values()]
    assert sizes == [math.ceil(n * math.ceil(math.log2(n)) / 8) for n in (192, 128, 32)]


def test_a_step_follows_the_straight_through_gradient():
    """One client, one step, momentum 0: s - lr * w * dL/d(w m), against numpy, masked edges included."""
    linear = make_task(samples=8, model=lambda: nn.Linear(12, 4, bias=False))
    options = {"epochs": 1, "batch_size": 8, "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1}
    seen = {}
    real = FRL.learn

    def spy(self, client, message):
        seen["ranks"] = real(self, client, message)
        return seen["ranks"]

    FRL.learn = spy
    try:
        _, found = states(linear, 1, clients=1, cohort=1, options=options)
    finally:
        FRL.learn = real
    frozen, q, ranks = network(found[0].params.layout, 0)
    w, s = frozen["weight"].double().numpy(), placed(frozen.layout, ranks, q)
    m = mask(s, 0.5)["weight"].double().numpy()
    x, y = linear.train.x.double().numpy(), linear.train.y.numpy()
    out = x @ (w * m).T
    p = np.exp(out - out.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(4)[y]
    expected = s["weight"].double().numpy() - 0.1 * w * (p.T @ x / len(x))
    order = np.argsort(expected.reshape(-1), kind="stable")
    assert np.mean(order == seen["ranks"]["weight"].numpy()) > 0.95  # but for near ties in float32
    assert found[1].ranks["weight"].equal(seen["ranks"]["weight"])


def test_a_sum_that_cannot_be_one_of_votes_is_left_out(task, monkeypatch):
    real = FRL.vote

    def cheat(self, client, message):
        reply = real(self, client, message)
        if client.id == 2:
            reply["positions"]["2.weight"] = reply["positions"]["2.weight"] * 3 // 2
        return reply

    cheat.__client__ = FRL.vote.__client__
    cheat.__name__ = "vote"
    monkeypatch.setattr(FRL, "vote", cheat)
    prepared, found = states(task, 1, clients=5)
    assert prepared.fed.last.notes["refused_sums"] == 1
    assert found[1].ranks["2.weight"].equal(found[0].ranks["2.weight"])
    assert not found[1].ranks["0.weight"].equal(found[0].ranks["0.weight"])


@pytest.mark.parametrize("top", [1.0, 0.4])
def test_checked_votes_elect_what_summed_votes_elect(task, top):
    summed = states(task, 2, options={"top": top})[1][-1]
    checked = states(task, 2, method="frlchecked", options={"top": top})
    # the two forms run under names of their own, so their batches differ in order; a pass of one batch has none
    one = {"batch_size": 100, "top": top}
    a, b = (states(task, 2, method=m, options=one)[1][-1] for m in ("frl", "frlchecked"))
    assert all(a.ranks[n].equal(b.ranks[n]) for n in a.ranks)
    assert checked[0].fed.last.notes["refused"] == 0
    assert summed.params.layout == a.params.layout
    up = checked[0].fed.last.bytes_up / 5
    bits = sum(math.ceil((n - int((1 - top) * n)) * math.ceil(math.log2(n)) / 8) for n in (192, 128, 32))
    assert bits <= up <= bits + 100


def test_a_double_vote_is_refused_when_votes_are_checked(task, monkeypatch):
    real = FRLChecked.vote_openly

    def cheat(self, client, message):
        reply = real(self, client, message)
        if client.id == 2:
            reply["0.weight"] = pack(torch.zeros(192, dtype=torch.int64), 192)
        return reply

    cheat.__client__ = real.__client__
    cheat.__name__ = "vote_openly"
    monkeypatch.setattr(FRLChecked, "vote_openly", cheat)
    prepared, found = states(task, 1, clients=5, method="frlchecked")
    assert prepared.fed.last.notes["refused"] == 1
    assert not found[1].ranks["0.weight"].equal(found[0].ranks["0.weight"])


@pytest.mark.parametrize("mask_on", ["abs", "released"])
def test_other_masks_learn_too(federate, mask_on):
    assert federate(method="frl", rounds=4, options={"mask_on": mask_on, "epochs": 4, "lr": 0.1}).accuracy > 0.5


def test_it_learns_and_stacked_clients_learn_alike(federate):
    common = {"method": "frl", "rounds": 4, "options": {"epochs": 2}}
    alone = federate(**common)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        stacked = federate(**common, vectorize="on", chunk=5)
    assert alone.accuracy > 0.7
    assert stacked.accuracy == pytest.approx(alone.accuracy, abs=0.1)


def test_votes_are_exact_under_secure_aggregation_with_a_drop_out(federate):
    def drop(round, client, function):
        return (round, client, function) in {
            (2, 1, "secagg.masked"),
            (2, 1, "vote"),
            (1, 3, "vote"),
            (1, 3, "secagg.masked"),
        }

    common = {"method": "frl", "clients": 8, "cohort": 8, "rounds": 2, "drop": drop}
    plain = federate(**common)
    secure = federate(aggregation="secure", secure={"threshold": 5, "gamma": 0.05}, **common)
    assert secure.model_sha256 == plain.model_sha256
    assert secure.history[1]["note_refused_sums"] == 0
    assert secure.history[1]["dropped"] == 1


def wide() -> nn.Module:
    """A layer of 1.08 million edges: more than 2^20."""
    return nn.Sequential(nn.Linear(12, 90_000, bias=False), nn.ReLU(), nn.Linear(90_000, 4, bias=False))


def test_the_bound_of_a_vote_follows_the_largest_layer():
    declared = client_functions(FRL)["vote"].fitted(lambda: Layout.of(wide()))
    assert declared.limits == {"positions": 12 * 90_000 - 1}


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
def test_layers_of_more_than_a_million_edges_are_voted_on(federate, aggregation):
    """The paper's networks have layers of 1.6 and 2.4 million edges; no option is needed."""
    run = {"method": "frl", "clients": 3, "cohort": 3, "rounds": 1, "options": {"epochs": 1, "batch_size": 80}}
    secure = {} if aggregation == "plain" else {"secure": {"gamma": 0.0}}
    done = federate(task=make_task(model=wide), aggregation=aggregation, **secure, **run)
    assert done.history[0]["note_refused_sums"] == 0
    assert done.history[0]["dropped"] == 0


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_a_position_that_no_edge_can_have_does_not_enter_the_sum(task, monkeypatch, aggregation):
    """One step above the last position of the largest layer."""
    real = FRL.vote

    def cheat(self, client, message):
        reply = real(self, client, message)
        if client.id == 2:
            reply["positions"]["4.weight"][0] = 192
        return reply

    cheat.__client__ = FRL.vote.__client__
    cheat.__name__ = "vote"
    monkeypatch.setattr(FRL, "vote", cheat)
    common = {"clients": 5, "aggregation": aggregation, "secure": {"gamma": 0.0} if aggregation != "plain" else {}}
    with pytest.raises(SumOverflowError, match=r"positions.*191"):
        states(task, 1, **common)
    prepared, found = states(task, 1, **common, on_error="drop")
    assert prepared.fed.last.dropped.keys() == {2}
    assert not found[1].ranks["4.weight"].equal(found[0].ranks["4.weight"])


def test_resumes_with_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="frl")


def test_running_statistics_and_wrong_shares_are_refused():
    with pytest.raises(ConfigError, match="running statistics"):
        FRL().fit_task(make_task(model=lambda: nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4))))
    with pytest.raises(ConfigError, match="keep=0"):
        FRL(keep=0.0)


def test_norms_without_statistics_scale_by_one():
    module = without_offsets(lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)))
    assert module[1].weight.tolist() == [1.0] * 4
    assert module[1].bias.tolist() == module[0].bias.tolist() == [0.0] * 4


def test_a_fifth_of_liars_leaves_real_digits_learnable():
    """Small: eight rounds; the full comparison is in the table of effects."""
    values = {
        "task": "digits",
        "task_options": {"hidden": 100, "bias": False, "limit": 600},
        "model": "mlp",
        "clients": 10,
        "cohort": 10,
        "rounds": 6,
        "eval_every": 6,
        "vectorize": "off",
    }
    frl = prepare(RunConfig.build({**values, "method": "frl", "adversary": "ranks:0.2"})).go()
    fedavg = prepare(
        RunConfig.build({**values, "method": "fedavg", "adversary": "signflip:0.2,scale=10", "sum_bound": 2.0**45})
    ).go()
    assert frl.accuracy > 0.6
    assert fedavg.accuracy < 0.3


@pytest.mark.parametrize(
    ("top", "total", "voters", "fair"),
    [
        (1.0, [0, 1, 2, 3], 1, True),
        (1.0, [0, 6, 3, 3], 2, True),
        (1.0, [0, 1, 2, 4], 1, False),  # the total
        (1.0, [-1, 2, 2, 3], 1, False),  # below 0
        (1.0, [0, 1, 1, 4], 1, False),  # above the last position
        (1.0, [0, 0, 0, 6], 1, False),
        (1.0, [0, 0, 6, 6], 2, True),
        (1.0, [0, 0, 5, 7], 2, False),
        (0.5, [0, 0, 2, 3], 1, True),
        (0.5, [0, 1, 2, 3], 1, False),
        (0.5, [4, 0, 0, 6], 2, True),
    ],
)
def test_sums_of_votes_that_permutations_can_have(top, total, voters, fair):
    """All of n positions, or with top = 1/2 the upper two of four."""
    assert FRL(top=top)._fair(torch.tensor(total), voters) is fair


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("on", ["signed", "abs", "released"])
def test_steps_against_numpy(task, on, epochs):
    """Straight-through gradients: w dL/d(w m), times the sign of a score where the mask reads absolute scores; 0 has none."""
    options = {"mask_on": on, "lr": 0.3, "epochs": epochs, "batch_size": 1000, "momentum": 0.0, "weight_decay": 0.01, "decay": 0.5}
    run, found = states(task, 1, options=options, clients=1, cohort=1)
    layout = found[0].params.layout
    frozen, sorted_scores, ranks = network(layout, 0, on)
    client_task = run.fed.engine.setup.task
    module = client_task.build(0)
    scores, rows = placed(layout, ranks, sorted_scores), run.fed.engine.setup.split(0)[0]
    parameters = dict(module.named_parameters())
    for rate in [0.3, 0.15][:epochs]:  # a cosine over the epochs
        kept = mask(scores, 0.5, on)
        for name in layout.by_name:
            parameters[name].data = frozen[name] * kept[name]
        module.zero_grad()
        client_task.loss(module(task.train.x[rows]), task.train.y[rows]).backward()
        learnt = scores.clone()
        for name in layout.by_name:
            slopes = 1.0 if on == "signed" else scores[name].sign()
            learnt[name].sub_(rate * (frozen[name] * parameters[name].grad * slopes + 0.01 * scores[name]))
        scores = learnt
    for name in layout.by_name:
        s = scores[name].numpy().ravel()
        order = np.argsort(np.abs(s) if on == "abs" else s, kind="stable")
        assert (found[1].ranks[name].numpy() == order).mean() > 0.97  # but for near ties


def test_a_score_of_zero_has_no_slope():
    assert slope(params(0.0, -0.5, 2.0, 0.0), "abs").vector.tolist() == [0.0, -1.0, 1.0, 0.0]
    assert slope(params(0.0, -0.5, 2.0, 0.0), "signed") == 1.0


def test_an_edge_of_score_zero_learns_nothing_where_the_mask_reads_absolute_scores(task, monkeypatch):
    """Its slope is 0, and it stays the least important edge."""
    real = network.__wrapped__

    def with_zero(layout, seed, on="signed"):
        frozen, scores, ranks = real(layout, seed, on)
        return frozen, {name: torch.cat([torch.zeros(1), score[1:]]) for name, score in scores.items()}, ranks

    monkeypatch.setattr("paceline.methods.compression.frl.network", with_zero)
    options = {"mask_on": "abs", "lr": 0.01, "epochs": 1, "batch_size": 1000}
    _, found = states(task, 1, options=options, clients=1, cohort=1)
    for name, ranks in found[0].ranks.items():
        assert found[1].ranks[name][0] == ranks[0]
