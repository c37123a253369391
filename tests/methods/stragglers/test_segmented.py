"""Slow clients that receive and send a part of the model only: whole runs, with and without masks."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from paceline.aggregation.secure.client_openings import Openings
from paceline.core.client import Client
from paceline.core.errors import PlanError, QuorumError
from paceline.core.exclusions import Exclusions
from paceline.core.layout import Layout
from paceline.engines.worker import Worker
from paceline.methods.stragglers.clip import Clip
from paceline.methods.stragglers.selfpruning import NESTING, SelfPruning
from paceline.models.build import build
from paceline.run import RunConfig, prepare
from paceline.submodels.cut import TIERS, Cutter
from paceline.submodels.nesting import UnitSegmenter, leading_units
from paceline.submodels.service import Submodels
from paceline.tasks import Arrays, Task
from tests.conftest import make_task
from tests.methods.resuming import assert_resumes
from tests.pretend import pretended

SLOW = "stragglers:share=0.2,slow=2.5,compute=1e5"
COMMON = {"clients": 15, "cohort": 15, "fleet": SLOW, "rounds": 5}
"""Three of fifteen clients are slow: enough for a tier, with enough owners of every segment."""
METHODS = {
    "clip": {},
    "randomdropout": {},
    "randomdropout unbiased": {"merge": "unbiased"},
    "fjord": {},
    "fjord nested": {"nested": True},
    "heterofl": {"own_rows": False},
}


def options(name, **more):
    return {"method": name.split()[0], "options": {"segmented": True, **METHODS[name], **more}}


QUICK = ("clip", "heterofl")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS])
def test_masked_sums_have_the_bits_of_unmasked_ones(federate, name):
    secure = {"gamma": 0.0, "max_weight": 4, "pipelined": False}  # preparing a round costs bytes in the one before
    common = {**COMMON, **options(name), "secure": secure, "rounds": 4}
    arithmetic, secure = (federate(aggregation=a, **common) for a in ("secure-arithmetic", "secure"))
    assert secure.model_sha256 == arithmetic.model_sha256
    first, last = secure.history[0], secure.history[-1]
    assert last["bytes_up"] < first["bytes_up"]
    assert last["bytes_down"] < first["bytes_down"]


def test_a_client_measures_the_same_times_with_and_without_masks(task, config):
    """And reports those of the whole model, also after a round in which it had a part."""
    stored = []
    for aggregation in ("secure-arithmetic", "secure"):
        prepared = prepare(config(**{**COMMON, **options("clip"), "aggregation": aggregation, "secure": {"gamma": 0.0}}), task=task)
        state = prepared.method.init(prepared.fed)
        for number in range(1, 5):
            prepared.fed.start_round(number)
            state = prepared.method.round(prepared.fed, state)
            memories = prepared.fed.engine.commit()
        stored.append({c: (m["_times"], m["fraction"], m["share"], m["cost"]) for c, m in memories.items()})
    assert stored[0] == stored[1]
    assert {fraction for _, fraction, _, _ in stored[0].values()} == {1.0, 0.5}
    client = Client(0, 9, int, None, None, None, {"_times": [10.0, 5.0], "cost": 0.25, "share": 0.5}, records_times=True)
    assert Clip(segmented=True).report(client, None) == [40.0, 10.0]


def by_number(method, client, message):
    """Declare a tier by the client's number: .75, .5, and six times the full model."""
    return {0: 0.75, 1: 0.5}.get(client._id % 8, 1.0)


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
@pytest.mark.parametrize("name", ["fjord", "heterofl"])
def test_the_mean_of_a_coordinate_is_over_the_clients_whose_part_has_it(task, config, monkeypatch, name, aggregation):
    """Computed from the clients' own updates, with a weight of 0 outside of their part."""
    monkeypatch.setattr(SelfPruning, "tier", by_number)
    options = {"segmented": True, **({"own_rows": False} if name == "heterofl" else {})}
    common = {"clients": 24, "cohort": 24, "partition": "quantity:1.0", "secure": {"gamma": 0.0, "max_weight": 40, "bits": 24}}
    prepared = prepare(config(method=name, options=options, aggregation=aggregation, **common), task=task)
    worker, method, replies = prepared.fed.engine.here, prepared.method, {}
    real = worker.invoke

    def spy(me, function, message):
        reply = real(me, function, message)
        if function == "train_part":
            replies[me.id] = message.fraction, reply.delta.vector.double(), reply.weight, message.params.vector
        return reply

    worker.invoke = spy
    prepared.fed.start_round(1)
    before = method.init(prepared.fed)
    after = method.round(prepared.fed, before)
    cutter = worker.services[Submodels].cutter
    total = weight = torch.zeros(cutter.layout.size, dtype=torch.float64)
    for client, (fraction, delta, n, params) in replies.items():
        assert fraction == by_number(method, SimpleNamespace(_id=client), None)
        mask = cutter.first(fraction, name == "heterofl").mask().vector.double()
        assert torch.equal(params, before.params.vector * mask.float())  # nothing else was received
        total, weight = total + n * delta * mask, weight + n * mask
    expected = before.params.vector.double() + torch.where(weight > 0, total / weight.clamp(min=1), 0.0)
    assert torch.allclose(after.params.vector.double(), expected, atol=1e-6)
    assert (total != 0).sum() > 0


def test_parts_are_multiplied_by_how_rarely_they_are_trained(task, config, monkeypatch):
    """The update that a slow client sends is that of plain random dropout over the share of the units, for each axis."""
    monkeypatch.setattr(SelfPruning, "tier", by_number)
    monkeypatch.setattr(SelfPruning, "fraction", lambda self, client: by_number(self, client, None))
    replies = {}
    for merge in (None, "unbiased"):
        for segmented in (False, True):
            made = config(method="randomdropout", options={"merge": merge, "segmented": segmented}, clients=24, cohort=24)
            prepared = prepare(made, task=task)
            worker = prepared.fed.engine.here
            real = worker.invoke

            def spy(me, function, message, real=real, key=(merge, segmented)):
                reply = real(me, function, message)
                if function.startswith("train"):
                    replies[(*key, me.id)] = reply.delta
                return reply

            monkeypatch.setattr(worker, "invoke", spy)
            prepared.fed.start_round(1)
            prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    cutter = worker.services[Submodels].cutter
    for client in range(24):
        kept = cutter.keep(by_number(None, SimpleNamespace(_id=client), None))
        for segmented in (False, True):
            plain, sent = (replies[merge, segmented, client] for merge in (None, "unbiased"))
            for name, axes in cutter.graph.axes.items():
                chance = math.prod(kept[a.group] / cutter.groups[a.group] for a in axes if a.group is not None)
                torch.testing.assert_close(sent[name], plain[name] / chance)
    assert len(replies) == 4 * 24


def test_results_do_not_depend_on_workers_or_on_who_works_together(federate):
    common = {**COMMON, **options("clip"), "aggregation": "secure-arithmetic", "secure": {"gamma": 0.0}, "rounds": 4}
    one, two, stacked, pairs = (
        federate(**{**common, **other})
        for other in ({}, {"workers": 2}, {"vectorize": "on", "chunk": 4}, {"vectorize": "on", "chunk": 4, "workers": 2})
    )
    assert two.model_sha256 == one.model_sha256
    assert pairs.model_sha256 == stacked.model_sha256
    assert stacked.loss == pytest.approx(one.loss, rel=1e-5)  # one by one, the last bits of float32 differ
    assert {run.total_seconds for run in (two, stacked, pairs)} == {one.total_seconds}


def test_byzantine_clients_attack_parts_as_well(federate):
    """Each tier is attacked on its own; some attackers are slow."""
    common = {"clients": 10, "cohort": 10, "fleet": SLOW, "rounds": 4, **options("fjord")}
    honest, attacked = federate(**common), federate(adversary="signflip:share=0.3", **common)
    assert attacked.model_sha256 != honest.model_sha256


@pytest.mark.parametrize("aggregation", [pytest.param("plain", marks=pytest.mark.slow), "secure"])
def test_tensors_are_on_the_right_device(aggregation):
    """On a pretended GPU, with the result of the CPU."""
    secure = {"secure": {"gamma": 0.0}} if aggregation == "secure" else {}
    values = {**COMMON, **options("clip"), "task": "blobs", "aggregation": aggregation, "rounds": 3, **secure}
    values["options"] = {**values["options"], "warmup": 1}
    wanted = prepare(RunConfig.build(values), task=make_task(60)).go()
    with pretended():
        found = prepare(RunConfig.build({**values, "device": "cuda"}), task=make_task(60)).go()
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-4)
    assert found.bytes_up == wanted.bytes_up


def test_a_stopped_run_goes_on(tmp_path, task):
    assert_resumes(tmp_path, task, **{**COMMON, **options("clip"), "rounds": 4})


def test_stragglers_are_faster_and_lose_less_than_with_padded_uploads(federate):
    """A slow link: padded uploads cost compute, segments do not."""
    fleet = "stragglers:share=0.2,slow=1.3,up=5e4,down=5e4,compute=1e5"
    common = {**COMMON, "fleet": fleet, "rounds": 6, "method": "clip"}
    padded, segmented = federate(**common), federate(options={"segmented": True}, **common)
    assert segmented.history[-1]["round_seconds"] < padded.history[-1]["round_seconds"]


# -- VGG-9 -----------------------------------------------------------------------------------------
def vgg9():
    torch.manual_seed(0)
    return build("vgg9")


@pytest.fixture(scope="module")
def cutter():
    module = vgg9()
    return Cutter(module, Layout.of(module), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def pictures():
    x, y = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 10
    return Task("pictures", Arrays(x, y), Arrays(x[:10], y[:10]), vgg9, num_classes=10, lr=0.01, batch_size=2)


@pytest.mark.parametrize(("fraction", "low", "high"), [(0.5, 0.25, 0.27), pytest.param(0.75, 0.56, 0.58, marks=pytest.mark.slow)])
def test_bytes_of_a_straggler_of_vgg9(pictures, monkeypatch, fraction, low, high):
    """Both ways, all messages of the protocol included, as they are sent."""
    monkeypatch.setattr(SelfPruning, "tier", lambda method, client, message: fraction if client._id >= 17 else 1.0)
    values = {"method": "clip", "task": "pictures", "clients": 20, "cohort": 20, "rounds": 1, "aggregation": "secure"}
    values |= {"options": {"segmented": True}, "secure": {"gamma": 0.0}}
    prepared = prepare(RunConfig.build(values), task=pictures)
    seen = {}
    real = prepared.fed.engine.run

    def run(call):
        for item in real(call):
            if not isinstance(item, tuple):
                up, down = seen.get(item.client, (0, 0))
                seen[item.client] = up + item.bytes_up, down + item.bytes_down
            yield item

    prepared.fed.engine.run = run
    prepared.fed.start_round(1)
    prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    (up, down), (whole_up, whole_down) = seen[19], seen[0]
    assert low <= up / whole_up <= high
    assert low <= down / whole_down <= high


def test_segments_partition_the_coordinates_into_nested_models(cutter):
    generator = torch.Generator().manual_seed(2)
    order = {g: torch.randn(n, generator=generator) for g, n in cutter.groups.items()}
    places = UnitSegmenter(lambda: cutter).places(order, NESTING)
    assert sorted(torch.cat(list(places)).tolist()) == list(range(cutter.layout.size))
    for tier, fraction in enumerate(TIERS):
        kept = leading_units(order, cutter.groups, cutter.keep(fraction))
        assert sorted(torch.cat(list(places[tier:])).tolist()) == sorted(cutter.cut(kept).index.tolist())
    assert [sum(map(len, places[t:])) for t in range(6)] == [1469994, 1317204, 1053405, 827746, 617741, 368666]


def test_u5_segments_keep_three_quarters_where_padded_uploads_go_to_one_half(cutter):
    """The timing table of the sheet: 40 s of training, 5.88 MB at 1.5 Mbit/s, and a target of 45 s."""
    upload = 8 * 4 * cutter.layout.size / 1.5e6

    def fraction(segmented):
        memory = {"heard": (records := {peer: [44.0, 1.0] for peer in range(20)})}
        services = {Submodels: Submodels(lambda: cutter)}
        client = Client(0, 9, int, None, None, None, memory, records, services, records_times=True)
        memory["_times"] = [41.0, upload]
        return Clip(segmented=segmented).fraction(client)

    assert (fraction(False), fraction(True)) == (0.5, 0.75)


# -- tiers -----------------------------------------------------------------------------------------
def test_a_tier_that_lost_its_clients_is_merged_and_the_round_repeated(federate):
    """Two of three slow clients vanish after they have shared secrets: the third alone would be a tier of its own."""

    def drop(round, client, function):
        return round == 4 and function == "secagg.masked" and client in (12, 13)

    common = {**COMMON, **options("fjord"), "aggregation": "secure", "secure": {"gamma": 0.0}, "on_error": "drop"}
    with pytest.warns(UserWarning, match="only 1 clients are left in tier 5"):
        summary = federate(drop=drop, **common)
    rounds = summary.history
    assert rounds[4]["bytes_up"] < rounds[0]["bytes_up"]
    assert len(rounds) == 5


def test_the_next_attempt_does_without_a_tier_that_lost_its_clients(task, config, monkeypatch):
    """Even if they are back: who vanished once may do so again."""
    lost = {12, 13}
    monkeypatch.setattr(SelfPruning, "tier", lambda method, client, message: 0.5 if client._id >= 12 else 1.0)
    values = {**COMMON, **options("fjord"), "aggregation": "secure", "secure": {"gamma": 0.0}, "on_error": "drop"}
    drop = lambda round, client, function: function == "secagg.masked" and client in lost  # noqa: E731
    prepared = prepare(config(**values), task=task, drop=drop)
    method, fed = prepared.method, prepared.fed
    state = method.init(fed)
    for attempt in range(3):
        fed.start_round(1 if attempt < 2 else 2, attempt=attempt % 2)
        fed.excluded = Exclusions()
        if attempt == 0:
            with pytest.raises(QuorumError, match="only 1 clients are left in tier 5"):
                method.round(fed, state)
            fed.engine.rollback()
            lost.clear()
            continue
        state = method.round(fed, state)
        memory = fed.engine.commit()[14]
        assert (memory["fraction"], memory["share"]) == (0.5, 1.0 if attempt == 1 else pytest.approx(0.4, abs=0.1))


@pytest.mark.parametrize("aggregation", ["secure-arithmetic", "secure"])
def test_fewer_replies_than_the_quorum_are_no_sum(task, config, aggregation):
    """Also where no tier is too small."""
    drop = lambda round, client, function: client == 3 and function in ("nested.run", "secagg.masked")  # noqa: E731
    common = {"clients": 5, "cohort": 5, "aggregation": aggregation, "secure": {"gamma": 0.0}, "on_error": "drop", "quorum": 5}
    prepared = prepare(config(**options("fjord"), **common), task=task, drop=drop)
    state = prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    with pytest.raises(QuorumError, match=r"4 of 5 clients .*the minimum is 5"):
        prepared.method.round(prepared.fed, state)


@pytest.mark.parametrize(("clients", "part"), [(6, 1.0), (8, 0.78)])
def test_a_third_client_joins_two_slow_ones_or_they_send_padded_uploads(federate, monkeypatch, clients, part):
    """They train less in both cases; of six clients, too few would be left that train the whole model."""
    trained, invoke = [], Worker.invoke

    def spy(self, me, function, message):
        if function == "train_part":
            trained.append((me.round, me._id, message.fraction, message.share == 1.0))
        return invoke(self, me, function, message)

    monkeypatch.setattr(Worker, "invoke", spy)
    common = {"clients": clients, "cohort": clients, "fleet": SLOW.replace("0.2", str(2 / clients)), "rounds": 4}
    common |= options("fjord", straggler_share=2 / clients)
    names = ("secure-arithmetic", "secure") if part < 1.0 else ("secure-arithmetic",)
    runs = [federate(aggregation=name, **common) for name in names]
    assert len({run.model_sha256 for run in runs}) == 1
    first, last = runs[0].history[0], runs[0].history[-1]
    assert last["round_seconds"] < 0.75 * first["round_seconds"]
    assert last["bytes_up"] == pytest.approx(part * first["bytes_up"], rel=0.03)
    small = {(c, p, whole) for r, c, p, whole in trained if r == 4 and c < clients and p < 1.0}
    assert small == {(6, 0.5, False), (7, 0.5, False), (1, 0.5, False)} if clients == 8 else {(4, 0.5, True), (5, 0.5, True)}


def test_an_order_that_does_not_follow_from_the_model_is_refused(task, config, monkeypatch):
    """Clients that received the last two models compute the scores; those with a part of one rely on them."""
    values = {**COMMON, **options("clip"), "aggregation": "secure", "secure": {"gamma": 0.0}, "on_error": "drop"}
    prepared = prepare(config(**values), task=task)
    method, fed = prepared.method, prepared.fed
    fed.engine.here.setup.programs["secagg"].openings = Openings(durable=False)  # as a real client has
    state = method.init(fed)
    for number in (1, 2):
        fed.start_round(number)
        state = method.round(fed, state)
        fed.engine.commit()
    fed.start_round(3)
    real = Clip.order
    monkeypatch.setattr(Clip, "order", lambda *args: {g: -s for g, s in real(*args).items()})
    with pytest.raises(QuorumError, match="the public order of the units is not the one that this client computes"):
        method.round(fed, state)
    monkeypatch.undo()
    fed.engine.rollback()
    fed.start_round(3, attempt=1)
    method.round(fed, state)


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        ("heterofl", {}, "own_rows=false"),
        ("clip", {"score": "local"}, "score=mixed"),
        ("clip", {"select": "threshold", "explore": 0}, "leave select, explore unset"),
        ("clip", {"back": 0.2, "step": 0.02}, "leave back, step unset"),
        ("clip", {"smallest": 0.3}, "smallest=0.3 is below the smallest part that clients train, 0.5"),
        ("fjord", {"merge": "zero"}, "leave merge unset"),
        ("fjord", {"merge": "unbiased"}, "use randomdropout"),
        ("randomdropout", {"merge": "stale"}, "use merge=unbiased"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_the_start(config, task, method, given, text):
    with pytest.raises(PlanError, match=text):
        prepare(config(method=method, options={"segmented": True, **given}), task=task)


def test_the_same_options_fit_whole_models(config, task):
    options = {"score": "local", "select": "threshold", "explore": 0, "back": 0.2, "step": 0.02, "smallest": 0.5}
    prepare(config(method="clip", options=options), task=task)


def test_the_public_scores_follow_from_the_change_of_the_model(task, config):
    """What a client with two successive models expects is what the server sends, bit for bit; else it cannot say."""
    prepared = prepare(config(rounds=3, method="clip", options={"segmented": True}), task=task)
    method, fed = prepared.method, prepared.fed
    states = [method.init(fed)]
    for number in (1, 2, 3):
        fed.start_round(number)
        states.append(method.round(fed, states[-1]))
    model = lambda s: SimpleNamespace(params=s.params, order=method.order(fed, s))  # noqa: E731
    worker = fed.engine.here
    client = worker.client(SimpleNamespace(round=4, stream="s", peers={}, operation=1), 0)
    for before, now in pairwise(states[1:]):
        expected = method.expected_order(client, {"now": model(now), "before": model(before)})
        assert expected.keys() == now.scores.keys()
        assert all(torch.equal(expected[g], now.scores[g]) for g in expected)
    assert method.expected_order(client, {"now": model(states[1]), "before": None}) is None
    assert states[1].scores
    assert not states[0].scores
