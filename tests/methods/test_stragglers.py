"""CLIP and its comparison set on a fleet with two slow clients of ten."""

from types import SimpleNamespace

import pytest
import torch

from paceline.core.client import ClientData, Hooks
from paceline.core.errors import ConfigError
from paceline.core.failures import Declined
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.devices import Fleet
from paceline.engines.worker import Worker
from paceline.methods.stragglers import clip
from paceline.methods.stragglers.fluid import Fluid
from paceline.methods.stragglers.heterofl import HeteroFL
from paceline.methods.stragglers.randomdropout import RandomDropout
from paceline.methods.stragglers.saliency import Saliency
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.registry import find_method
from paceline.run import RunConfig, prepare
from paceline.submodels.select import Rank, Threshold
from paceline.submodels.service import Submodels, submodels
from tests.conftest import make_task

from .quadratics import by_size

SLOW = "stragglers:share=0.2,slow=2.5,compute=1e5"
COMMON = {"clients": 10, "cohort": 10, "fleet": SLOW}
PRUNING = ["clip", "randomdropout", "fjord", "heterofl", "fluid"]


def settled(summary):
    return summary.history[-1]["round_seconds"]


@pytest.fixture
def base(federate):
    return federate(rounds=8, **COMMON)


@pytest.mark.parametrize("method", PRUNING)
def test_stragglers_shrink_and_the_round_gets_shorter(federate, base, method):
    summary = federate(method=method, rounds=8, **COMMON)
    first = summary.history[0]["round_seconds"]
    assert first == pytest.approx(settled(base), rel=0.1)
    assert settled(summary) < 0.75 * first
    assert summary.accuracy > base.accuracy - 0.1


def test_dropping_stragglers_is_fast_and_loses_them(federate, base):
    summary = federate(method="dropstragglers", rounds=8, **COMMON)
    assert [r["dropped"] for r in summary.history] == [0, 0, 2, 2, 2, 2, 2, 2]
    assert settled(summary) < 0.5 * settled(base)


def test_the_deadline_stays_where_it_is_under_secure_aggregation(federate):
    """Early phases of clients that were late in the end may not pass for their arrival."""
    options = {"aggregation": "secure", "secure": {"threshold": 5, "gamma": 0.0}}
    summary = federate(method="dropstragglers", rounds=8, **COMMON, **options)
    assert [r["dropped"] for r in summary.history] == [0, 0, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("method", ["clip", "fedavg", "randomdropout", "dropstragglers"])
def test_a_homogeneous_fleet_is_left_alone(federate, method):
    plain = federate(rounds=5, clients=10, cohort=10)
    summary = federate(method=method, rounds=5, clients=10, cohort=10)
    assert [r["dropped"] for r in summary.history] == [0] * 5
    assert summary.model_sha256 == plain.model_sha256


def kept_by(task, config, client, rounds=8, **changes):
    """Return what one client of a run remembers after each round."""
    prepared = prepare(config(rounds=rounds, **COMMON, **changes), task=task)
    state, seen = prepared.method.init(prepared.fed), []
    for number in range(1, rounds + 1):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        seen.append(dict(prepared.fed.engine.commit().get(client, {})))
    return seen


def test_only_the_slow_know_that_they_are_slow(task, config):
    slow = kept_by(task, config, 9, method="clip")
    assert [m["fraction"] for m in slow[:2]] == [1.0, 1.0]
    assert all(m["fraction"] == 0.5 for m in slow[2:])
    fast = kept_by(task, config, 0, method="clip")
    assert all(m["fraction"] == 1.0 for m in fast)
    assert fast[-1]["scored"] == 2  # the last round of the warm-up
    assert slow[-1]["scored"] == 8
    assert "kept" not in fast[-1]


def test_clip_drops_what_hardly_changes_and_comes_back_to_it(task, config):
    slow = kept_by(task, config, 9, rounds=11, method="clip")
    third = slow[2]
    own = slow[1]["own"]
    for group, kept in third["kept"].items():
        dropped = [u for u in range(len(own[group])) if u not in kept.tolist()]
        assert own[group][dropped].max() <= own[group][kept].min() + 1e-6
    before, explored = slow[8]["kept"], slow[9]["kept"]
    assert any(not torch.equal(before[g], explored[g]) for g in before)


def test_the_update_of_a_straggler_is_zero_where_it_dropped(task, config):
    prepared = prepare(config(method="clip", rounds=3, **COMMON), task=task)
    engine = prepared.fed.engine
    state, seen = prepared.method.init(prepared.fed), {}
    worker = engine.here
    real = worker.invoke

    def spy(me, function, message):
        reply = real(me, function, message)
        if function == "train":
            seen[me.round, me.id] = reply.delta
        return reply

    worker.invoke = spy
    for number in (1, 2, 3):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
    memory = worker.memories[9]
    sub = worker.services[Submodels].cut(memory["kept"])
    mask = sub.mask().vector.bool()
    assert 0 < mask.sum() < len(mask)
    assert not seen[3, 9].vector[~mask].any()
    assert seen[3, 9].vector[mask].any()
    assert seen[3, 0].vector[~mask].any()


@pytest.mark.parametrize(
    "options",
    [{"score": "local"}, {"score": "public"}, {"reduce": "l2"}, {"select": "threshold"}, {"merge": "masked"}, {"explore": 0}],
)
def test_clips_options(federate, options):
    summary = federate(method="clip", rounds=8, options=options, **COMMON)
    assert summary.accuracy > 0.7


def test_network_aware_clip_prunes_more_than_compute_alone(federate):
    fleet = "stragglers:share=0.2,slow=1.3,up=5e4,compute=1e5"
    common = {"clients": 10, "cohort": 10, "rounds": 8, "fleet": fleet}
    none = federate(**common)
    compute = federate(method="clip", options={"network": False}, **common)
    both = federate(method="clip", **common)
    assert settled(none) > settled(compute) > settled(both)


def test_adaptive_clip_follows_a_changing_link(federate):
    fleet = "mobile:compute=1e5,link=3e5,least=0.8"
    plain = federate(rounds=12, clients=12, cohort=10, fleet=fleet)
    adaptive = federate(method="clip", rounds=12, clients=12, cohort=10, fleet=fleet, options={"adaptive": True})
    assert adaptive.total_seconds < plain.total_seconds
    assert adaptive.accuracy > plain.accuracy - 0.15


def half_accuracy(task, made):
    """Return the accuracy of the leading half-width sub-model of a trained model."""
    prepared = prepare(made, task=task)
    state = prepared.method.init(prepared.fed)
    for number in range(1, made.rounds + 1):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
    sub = submodels(prepared.fed).cutter.first(0.5)
    resident = sub.resident()
    resident.load(sub.extract(state.params))
    resident.module.eval()
    return float((resident.module(task.test.x).argmax(1) == task.test.y).float().mean())


def test_nested_fjord_trains_every_width(task, config):
    nested = half_accuracy(task, config(method="fjord", rounds=60, options={"nested": True}, clients=6, cohort=6))
    plain = half_accuracy(task, config(rounds=60, clients=6, cohort=6))
    assert nested > 0.65
    assert nested > plain + 0.1


def test_heterofl_leaves_classes_it_has_not_out_of_the_loss(task, config):
    prepared = prepare(config(method="heterofl", rounds=1, clients=4, cohort=4, partition="shards:2"), task=task)
    prepared.fed.start_round(1)
    seen = {}
    worker = prepared.fed.engine.here
    real = HeteroFL.hooks

    def spy(self, client, start):
        seen[client.id] = client
        return real(self, client, start)

    HeteroFL.hooks = spy
    try:
        prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    finally:
        HeteroFL.hooks = real
    client = seen[0]
    loss = client.job.loss  # what the local loop trained with
    labels = client.train.y[client.train.index].unique()
    out = torch.randn(5, 4, requires_grad=True)
    loss(out, labels[torch.zeros(5, dtype=torch.long)]).backward()
    absent = [c for c in range(4) if c not in labels.tolist()]
    assert absent
    assert not out.grad[:, absent].any()
    assert out.grad[:, labels].all()
    assert submodels(client) is worker.services[Submodels]


def test_u3_denominators_through_the_federation():
    """n = (10, 30, 20); client 3 dropped coordinates 2 and 3: options Z and M of the sheet."""
    from paceline.aggregation.fixed_point import FixedPoint
    from paceline.core.update import Update, rebuild

    rows = [(10, [1.0, 2, 3, 4], [1.0, 1, 1, 1]), (30, [3.0, 0, 1, 0], [1.0, 1, 1, 1]), (20, [2.0, 4, 0, 0], [1.0, 1, 0, 0])]

    def mean(masked):
        sink = FixedPoint(3).open()
        for i, (n, x, m) in enumerate(rows):
            sink.add(i, Update(delta=torch.tensor(x), weight=n * torch.tensor(m) if masked else n), 0)
        total = sink.partial()
        return rebuild(total.structure, *total.values()).delta.tolist()

    assert mean(False) == pytest.approx([2.3333, 1.6667, 1.0, 0.6667], abs=1e-4)
    assert mean(True) == pytest.approx([2.3333, 1.6667, 1.5, 1.0], abs=1e-4)


@pytest.mark.parametrize("name", ["clip", "fjord", "heterofl", "randomdropout", "saliency"])
def test_most_clients_cannot_count_as_slow(name):
    """They could sit a round out, and a sum would be of the few that do not."""
    for share in (0.0, 0.51, 0.9):
        with pytest.raises(ConfigError, match="straggler_share"):
            find_method(name).build({"straggler_share": share})
    find_method(name).build({"straggler_share": 0.5})


@pytest.mark.parametrize("name", ["clip", "fjord", "heterofl", "randomdropout", "saliency"])
@pytest.mark.parametrize("merge", ["zero", "masked"])
def test_who_skips_a_round_has_no_weight_in_it(task, config, monkeypatch, name, merge):
    """Client 3 skips round 2: the mean is over the others, of updates and of kept shares."""
    made = config(method=name, clients=4, cohort=4, rounds=2, options={"merge": merge})
    cls, seen = find_method(name), {}
    fraction, invoke = cls.fraction, Worker.invoke

    def sit_out(self, client):
        if (client.id, client.round) == (3, 2):
            raise Declined
        return fraction(self, client)

    monkeypatch.setattr(cls, "fraction", sit_out)

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "train":
            seen[me.round, me.id] = me.num_samples, reply
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    run = prepare(made, task=task)
    state = run.method.init(run.fed)
    for number in (1, 2):
        run.fed.start_round(number)
        before, state = state, run.method.round(run.fed, state)
        run.fed.engine.commit()
    assert (1, 3) in seen
    assert (2, 3) not in seen
    assert run.fed.last.dropped == {3: "declined"}
    assert not run.fed.lost
    one = float(merge == "masked" and name == "heterofl")  # counts of clients, and only rows of its classes (all here)
    weights = [(1.0 if one else size) for size, _ in (seen[2, c] for c in range(3))]
    mean = sum(w * seen[2, c][1].delta.vector.double() for c, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close((state.params - before.params).vector.double(), mean, atol=1e-6, rtol=1e-5)
    assert all(seen[2, c][1].kept == 1.0 for c in range(3))


def test_clients_without_samples_cannot_close_a_round_before_the_others_have_trained():
    """Eight of ten have nothing to train and answer at once; the others train in every second round, not never."""
    sizes = [0] * 8 + [60, 60]
    made = RunConfig(method="dropstragglers", clients=10, cohort=10, rounds=8, allow_empty=True, fleet="homogeneous:compute=2e7")
    run, trained = prepare(made, task=make_task(), split=by_size(sizes)), []
    while run.step():
        trained.append(8 in run.fed.last.arrived and 9 in run.fed.last.arrived)
    run.close()
    assert trained.count(True) >= 4


def test_a_last_update_is_repeated_for_ten_rounds():
    """It is that of each coordinate; after the warm-up only a client that was slow stores what it trained at full size."""
    layout = Layout.build([("w", (3,), "param")])
    client, method = SimpleNamespace(memory={}), RandomDropout(merge="stale", warmup=1)
    rounds = [
        (1, 1.0, [1.0, 1, 1], [1.0, 1, 1], [1.0, 1, 1]),
        (2, 0.5, [2.0, 0, 0], [1.0, 0, 0], [2.0, 1, 1]),
        (3, 0.5, [0.0, 3, 0], [0.0, 1, 0], [2.0, 3, 1]),
        (4, 1.0, [4.0, 4, 4], [1.0, 1, 1], [4.0, 4, 4]),
        (13, 0.5, [0.0, 0, 5], [0.0, 0, 1], [4.0, 4, 5]),
        (24, 0.5, [6.0, 0, 0], [1.0, 0, 0], [6.0, 0, 0]),
        (25, 0.5, [0.0, 7, 0], [0.0, 1, 0], [6.0, 7, 0]),
    ]
    for number, p, change, mask, sent in rounds:
        client.round = number
        found = method.balanced(client, Params(torch.tensor(change), layout), Params(torch.tensor(mask), layout), p)
        assert found.vector.tolist() == sent, number
    quick = SimpleNamespace(memory={}, round=2)
    method.balanced(quick, Params(torch.ones(3), layout), Params(torch.ones(3), layout), 1.0)
    assert not quick.memory


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 2, 3)])
def test_outputs_of_absent_classes_are_masked_along_the_class_axis(shape):
    """Of labels of any shape: logits have shape [samples, classes, ...]."""
    y = torch.randint(2, (6, *shape[2:])) + 1  # classes 1 and 2
    train = ClientData(torch.zeros(6, 1), y, torch.arange(6))
    client = SimpleNamespace(
        train=train, num_samples=6, problem=SimpleNamespace(loss=torch.nn.functional.cross_entropy, num_classes=4)
    )
    out = torch.randn(shape, requires_grad=True)
    loss = HeteroFL().hooks(client, None).loss(out, y)
    masked = out.detach().clone()
    masked[:, [0, 3]] = 0.0
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(masked, y))
    loss.backward()
    assert not out.grad[:, [0, 3]].any()
    assert out.grad[:, [1, 2]].any()
    assert HeteroFL(masked_loss=False).hooks(client, None) == Hooks()
    assert HeteroFL().hooks(SimpleNamespace(num_samples=0), None) == Hooks()


@pytest.mark.parametrize(("options", "rule"), [({}, Rank()), ({"select": "threshold", "step": 0.5}, Threshold(step=0.5))])
def test_clip_selects_by_the_rule_of_its_option(task, config, monkeypatch, options, rule):
    """What it passes on: its scores, the selection before, the rule, and how often and how many units come back."""
    chosen, explored = [], []
    select, explore = clip.select, clip.explore
    monkeypatch.setattr(clip, "select", lambda *args, **named: chosen.append((args, named)) or select(*args, **named))
    monkeypatch.setattr(clip, "explore", lambda *args: explored.append(args) or explore(*args))
    kept_by(task, config, 9, rounds=5, method="clip", options={"explore": 2, "back": 0.3, **options})
    assert len(chosen) == len(explored) == 2 * 3
    assert all(named == {"by": rule} for _, named in chosen)
    assert [args[3] is None for args, _ in chosen] == [True, True, False, False, False, False]
    assert [args[2] for args in explored] == [3, 3, 4, 4, 5, 5]
    assert {args[4:] for args in explored} == {(2, 0.3)}


def test_the_age_of_clips_scores_is_counted_in_rounds(task, config, monkeypatch):
    """A client that is not asked in every round has scores of earlier ones."""
    seen, scores, combine = [], clip.Clip.scores, clip.combine

    def ask(self, client, params):
        ages = []
        monkeypatch.setattr(clip, "combine", lambda *args, age: ages.append(age) or combine(*args, age=age))
        found = scores(self, client, params)
        seen.append((ages, client.round - client.memory["scored"] if "scored" in client.memory else None))
        return found

    monkeypatch.setattr(clip.Clip, "scores", ask)
    prepare(config(**COMMON | {"cohort": 6}, method="clip", rounds=12), task=task).go()
    assert all(ages == [age] for ages, age in seen if age is not None)
    assert {age for _, age in seen} > {1, 2}


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_stragglers_keep_the_units_that_are_salient_for_all(task, config, monkeypatch, aggregation):
    """Against numpy: each client's |gradient x weight| by unit, a part of its layer's largest; their mean by samples; the highest."""
    options = {"warmup": 1, "every": 2, "straggler_share": 0.25}
    run = prepare(
        config(method="saliency", rounds=3, clients=8, cohort=8, fleet=SLOW, aggregation=aggregation, options=options), task=task
    )
    rated, kept, keep, invoke = {}, {}, Saliency.keep, Worker.invoke

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "rate" and me._id < 8:
            x, y = me.train.at(me.train.index)
            rated.setdefault(me.round, {})[me._id] = (reply.saliency, me.num_samples, message, x, y)
        return reply

    def watch(self, client, params, counts, p):
        kept[client.round, len(kept)] = keep(self, client, params, counts, p)
        return kept[client.round, len(kept) - 1]

    monkeypatch.setattr(Worker, "invoke", spy)
    monkeypatch.setattr(Saliency, "keep", watch)
    run.go()
    assert sorted(rated) == [1, 3]
    for round in (1, 3):
        sums = {}
        for found, n, params, x, y in rated[round].values():
            w = {e.name: params[e.name].detach().clone().requires_grad_() for e in params.layout.entries}
            h = torch.relu(x @ w["0.weight"].T + w["0.bias"])
            h2 = torch.relu(h @ w["2.weight"].T + w["2.bias"])
            torch.nn.functional.cross_entropy(h2 @ w["4.weight"].T + w["4.bias"], y).backward()
            g = {name: (value * value.grad).abs().detach() for name, value in w.items()}
            own = {
                "0": g["0.weight"].sum(1) + g["0.bias"] + g["2.weight"].sum(0),
                "2": g["2.weight"].sum(1) + g["2.bias"] + g["4.weight"].sum(0),
            }
            for group, value in own.items():
                torch.testing.assert_close(found[group], value / value.max(), rtol=1e-4, atol=1e-5)
                sums[group] = sums.get(group, 0) + n * value / value.max()
        later = [units for (at, _), units in kept.items() if at in (round, round + 1) and at > 1]
        for units in later:
            for group, index in units.items():
                best = sums[group].argsort(descending=True)[: len(index)].sort().values
                assert index.tolist() == best.tolist()
        assert later or round == 1


def test_a_client_without_samples_rates_nothing(federate):
    common = {"clients": 6, "cohort": 6, "fleet": SLOW, "partition": "shards:1", "allow_empty": True}
    summary = federate(method="saliency", rounds=3, options={"warmup": 1, "every": 1}, **common)
    assert torch.isfinite(summary.params.vector).all()


def test_clients_without_samples_do_not_vote_for_invariant_units(task):
    """Their change is zero, so for them every unit is invariant."""
    ends = []
    for empty in (0, 4):
        sizes = [30] * 7 + [0] * empty
        run = prepare(
            RunConfig.build(
                {"method": "fluid", "task": "blobs", "clients": len(sizes), "cohort": len(sizes), "rounds": 3, "vectorize": "off"}
            ),
            task=task,
            split=by_size(sizes),
        )
        run.go()
        ends.append(run.state)
    few, many = ends
    assert any((score == 1).any() for score in few.scores.values())
    assert many.thresholds == few.thresholds
    for group, score in few.scores.items():
        assert torch.equal(many.scores[group], score)


def test_without_a_client_that_can_vote_the_invariant_units_stay(task):
    sizes, empty = [30] * 4, [0] * 4
    common = {"method": "fluid", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 4, "vectorize": "off"}
    run = prepare(RunConfig.build(common), task=task, split=by_size(sizes))
    run.go()
    other = prepare(RunConfig.build(common), task=task, split=by_size([*empty[:3], 1]))
    other.fed.start_round(5)
    other.fed.sample = lambda: [0, 1, 2]
    after = other.method.round(other.fed, run.state)
    for group, score in run.state.scores.items():
        assert torch.equal(after.scores[group], score)
    assert torch.equal(after.params.vector, run.state.params.vector)


class Graded(Fleet):
    """Devices of eight speeds, which lie far apart."""

    def profile(self, client, round):
        return self._base(compute=1e5 / (1.0 + client % 8))


@pytest.mark.parametrize(
    ("name", "options", "aggregation"),
    [
        *((name, {}, "plain") for name in [*PRUNING, "saliency"]),
        *(("clip", {option: on}, "secure") for option, on in {"network": False, "adaptive": True}.items()),
    ],
)
def test_clients_without_samples_do_not_decide_who_is_slow(task, monkeypatch, name, options, aggregation):
    """They take next to no time, so a quantile that counts them is that of faster clients."""
    widths, fits, taught = [], SelfPruning.fit, Fluid.widths

    def fit(self, client, params, p, units):
        if client._id < 8:  # no empty client, and no preview
            seen[client.round, client._id] = p
        return fits(self, client, params, p, units)

    def chosen(self, state, cohort):
        seen[state.rounds] = taught(self, state, cohort)
        return seen[state.rounds]

    monkeypatch.setattr(SelfPruning, "fit", fit)
    monkeypatch.setattr(Fluid, "widths", chosen)
    for empty in (0, 7):
        sizes, seen = [30] * 8 + [0] * empty, {}
        more = {"clients": len(sizes), "cohort": len(sizes), "rounds": 6, "fleet": f"{__name__}:Graded", "vectorize": "off"}
        more |= {"aggregation": aggregation, "secure": {"gamma": 0.0}, "options": {"warmup": 2, **options}}
        run = prepare(RunConfig.build({"method": name, "task": "blobs", **more}), task=task, split=by_size(sizes))
        run.go()
        widths.append(seen)
    assert widths[0] == widths[1]
    assert len(set(map(str, widths[0].values()))) > 1
