"""The adaptive controller in whole runs: who sits out, who ends early, who returns, on every path the same."""

import math
import sys
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
import torch

from paceline.core.limits import WorkTime
from paceline.core.training import Job
from paceline.devices import Fleet, Profile
from paceline.engines.worker import Worker
from paceline.methods.stragglers.clip import Clip
from paceline.registry import BUILT_IN
from paceline.run import prepare
from paceline.submodels.controller import Controller
from tests.methods.resuming import assert_resumes

SECURE = {"gamma": 0.0, "active": False, "threshold": 6}


class Uneven(Fleet):
    """Client 0 is far too slow for the others; client 1 is fast again from round 6 on; client 2 throttles from round 5 on."""

    def profile(self, client: int, round: int) -> Profile:
        slow = client == 0 or (client == 1 and round < 6)
        hot = {"burst": 0.3, "throttle": 4.0} if client == 2 and round >= 5 else {}
        return self._base(compute=1e5 / (40.0 if slow else 1.0), **hot)


@pytest.fixture(autouse=True)
def uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN["fleet"], "uneven", f"{__name__}:Uneven")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, Any]]:
    """Return the replies of `train` or `train_part`, by round and client."""
    seen: dict[int, dict[int, Any]] = defaultdict(dict)
    invoke = Worker.invoke

    def spy(self: Worker, me: Any, function: str, message: Any) -> Any:
        reply = invoke(self, me, function, message)
        if function in ("train", "train_part") and me._id < 10:  # no preview
            seen[me.round][me._id] = (reply, me.job, me.num_samples)
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    return seen


def adaptive(**changes: Any) -> dict[str, Any]:
    options = {"adaptive": True, **changes.pop("options", {})}
    return {"method": "clip", "clients": 10, "cohort": 10, "rounds": 10, "fleet": "uneven", "options": options, **changes}


def test_who_fits_no_tier_sits_out_but_in_open_rounds(federate, watched):
    summary = federate(**adaptive())
    rounds = {client: [r for r in range(1, 11) if client in watched[r]] for client in range(10)}
    assert rounds[0] == [1, 2, 4, 8]  # it is known after two measured rounds
    assert rounds[1] == [1, 2, 4, 8, 9, 10]  # measured at its new speed in round 8
    assert all(rounds[c] == list(range(1, 11)) for c in range(2, 10))
    assert [watched[r][0][0].kept for r in rounds[0]] == [1.0, 1.0, 0.5, 0.5]
    times = [r["round_seconds"] for r in summary.history]
    assert max(times[4:7] + times[8:]) < 0.2 * times[7] < 0.2 * times[0]
    assert [r["dropped"] for r in summary.history] == [0, 0, 2, 0, 2, 2, 2, 0, 1, 1]


@pytest.mark.parametrize("merge", ["zero", "masked"])
def test_plain_and_masked_sums_have_the_same_clients_and_secure_ones_the_same_bits(federate, watched, merge):
    came = {}
    for name, more in (
        ("plain", {}),
        ("secure-arithmetic", {"secure": SECURE}),
        ("secure", {"secure": SECURE}),
    ):
        watched.clear()
        result = federate(**adaptive(rounds=6, aggregation=name, options={"merge": merge}, **more))
        came[name] = ({r: sorted(watched[r]) for r in range(1, 7)}, result.model_sha256)
    assert came["plain"][0] == came["secure"][0] == came["secure-arithmetic"][0]
    assert came["secure"][1] == came["secure-arithmetic"][1]
    assert came["secure"][0][5] == list(range(2, 10))


@pytest.mark.parametrize("method", ["clip", "fjord"])
def test_sums_over_parts_of_the_model_have_the_same_clients(federate, monkeypatch, method):
    """Clients declare their tier before the sum: who is too slow drops out there, and the sums are the same bits."""
    ends, invoke = {}, Worker.invoke
    for name in ("plain", "secure-arithmetic", "secure"):
        came = defaultdict(set)

        def spy(self, me, function, message, came=came):
            reply = invoke(self, me, function, message)
            if function == "train_part" and me._id < 10:
                came[me.round].add(me._id)
            return reply

        monkeypatch.setattr(Worker, "invoke", spy)
        more = {} if name == "plain" else {"secure": SECURE}
        made = adaptive(rounds=9, aggregation=name, options={"segmented": True}, **more)
        ends[name] = came, federate(**{**made, "method": method}).model_sha256
    assert ends["plain"][0] == ends["secure-arithmetic"][0] == ends["secure"][0]
    assert ends["secure-arithmetic"][1] == ends["secure"][1]
    rounds = [r for r, clients in ends["secure"][0].items() if 0 in clients]
    assert {1, 2, 4, 8} <= set(rounds)
    assert {6, 7}.isdisjoint(rounds)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"vectorize": "on", "chunk": 4}])
def test_workers_and_stacks_change_nothing(federate, changes):
    one, other = federate(**adaptive(rounds=7)), federate(**adaptive(rounds=7, **changes))
    assert [r["dropped"] for r in one.history] == [r["dropped"] for r in other.history]
    assert [r["round_seconds"] for r in one.history] == pytest.approx([r["round_seconds"] for r in other.history])
    torch.testing.assert_close(one.params.vector, other.params.vector, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_adapts_as_one_that_was_not_stopped(tmp_path, task):
    assert_resumes(tmp_path, task, **adaptive(rounds=8))


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_an_evaluation_by_the_clients_is_not_a_training(federate, aggregation):
    """It takes time as well, which is not that of the next training."""
    secure = {"secure": SECURE} if aggregation == "secure" else {}
    changes = {"rounds": 6, "aggregation": aggregation, "client_test": 0.2, **secure}
    ends = [federate(**adaptive(**changes, evaluation=how)) for how in ("central", "federated")]
    assert [r["dropped"] for r in ends[0].history] == [0, 0, 2, 0, 2, 2]
    assert ends[0].model_sha256 == ends[1].model_sha256


def test_the_debug_engine_lets_clients_sit_out(federate):
    assert [r["dropped"] for r in federate(**adaptive(rounds=5, engine="debug")).history] == [0, 0, 2, 0, 2]


@pytest.mark.parametrize("options", [{}, {"segmented": True}])
def test_a_device_that_throttles_ends_early_and_counts_less(federate, watched, options):
    federate(**adaptive(rounds=5, options={"epochs": 5, **options}))
    reply, job, n = watched[5][2]
    assert 0.3 <= (done := job.samples() / (5 * n)) < 0.7
    assert reply.weight == round(done * n) < n
    assert job.steps < watched[4][2][1].steps
    whole, _, n = watched[5][3]
    assert whole.weight == n


def test_a_record_is_an_estimate_of_the_whole_training(federate, monkeypatch):
    """After round 5, in which client 2 has ended early, its record has a quarter of what the whole training would have taken."""
    told, invoke, times = {}, Worker.invoke, {}

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "report":
            told[me.round, me.id] = reply
            times[me.round, me.id] = me.times, me.memory.get("done", 1.0)
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    federate(**adaptive(rounds=6, options={"epochs": 5}))
    assert told[1, 2] == []
    (before, _), ((seconds, _), done) = told[5, 2], times[6, 2]
    assert done < 0.7
    assert told[6, 2][0] == pytest.approx(0.75 * before + 0.25 * seconds / done)


@pytest.mark.parametrize("method", ["clip", "heterofl"])
def test_a_recovered_client_grows_again(federate, watched, method):
    """Client 1 is measured at its new speed in round 8; three rounds later all agree. HeteroFL's widths are not static here."""
    federate(**{**adaptive(rounds=12), "method": method})
    assert [watched[r][1][0].kept for r in (8, 9, 10, 11, 12)] == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_the_warm_up_is_the_methods(federate, watched):
    federate(**adaptive(rounds=6, options={"warmup": 4}))
    assert all(watched[r][c][0].kept == 1.0 for r in range(1, 5) for c in range(10))
    assert 0 not in watched[5]


def test_a_round_that_all_wait_for_has_no_deadline(federate, watched):
    """Client 0 would be late in every round; of two open ones it is part."""
    summary = federate(**adaptive(deadline=3.0, rounds=9))
    assert [r["dropped"] for r in summary.history] == [2, 2, 2, 0, 2, 2, 2, 0, 1]
    assert summary.history[3]["round_seconds"] > 3.0 > summary.history[4]["round_seconds"]
    fixed = federate(**adaptive(deadline=3.0, rounds=9, options={"adaptive": False}))
    assert all(r["dropped"] for r in fixed.history[:5])


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_nor_has_one_in_parts_of_the_model(federate, aggregation):
    """Clients 0 and 1 are late in every other round, and a model half as large does not help."""
    more = {} if aggregation == "plain" else {"secure": SECURE}
    summary = federate(**adaptive(deadline=1.0, rounds=8, options={"segmented": True}, aggregation=aggregation, **more))
    assert [r["round"] for r in summary.history if not r["dropped"]] == [4, 8]
    assert [r["round"] for r in summary.history if r["round_seconds"] > 1.5] == [4, 8]


def test_records_are_as_old_as_the_round_in_which_they_were_received(federate, monkeypatch):
    """In parts of the model a tier follows from the records of the last training."""
    told, hear = set(), Controller.hear

    def spy(self, state, round, totals, heard):
        told.add((round, heard, bool(totals)))
        return hear(self, state, round, totals, heard)

    monkeypatch.setattr(Controller, "hear", spy)
    federate(**adaptive(rounds=8, options={"segmented": True}))
    assert told == {(r, r - 1, r > 2) for r in range(2, 9)} | {(8, 5, True)}


@pytest.mark.parametrize("options", [{"adaptive": True}, {}])
@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_all_take_part_where_saliencies_are_summed(federate, watched, aggregation, options):
    """A sum of saliencies that is opened cannot be repeated without those that then sit out the training, or are late."""
    more = {"secure": {"gamma": 0.0}} if aggregation == "secure" else {}
    made = adaptive(rounds=7, deadline=3.0, aggregation=aggregation, **more)
    summary = federate(**{**made, "method": "saliency", "options": {"every": 3, **options}})
    assert [summary.history[round - 1]["dropped"] for round in (1, 4, 7)] == [0, 0, 0]
    assert all(sorted(watched[round]) == list(range(10)) for round in (1, 4, 7))
    assert summary.history[1]["dropped"] == 2


@pytest.mark.parametrize(
    "fleet",
    [
        "changing:share=0.3,slow=6,shift=3,fade=0.4,depth=30,stay=6,hot=0.2,burst=0.2,compute=1e5,link=2e5",
        "mobile:compute=1e5,link=3e5,vary=2",
        "stragglers:compute=1e5,slow=50,share=0.3,up=1e3",
    ],
)
@pytest.mark.parametrize("deadline", [None, 5.0])
def test_nobody_misses_more_than_three_rounds_in_a_row(federate, monkeypatch, fleet, deadline):
    """Of the rounds in which it was available, whatever its links do; sums are counted, not calls."""
    came = defaultdict(list)
    sums = Worker._receipt

    def spy(self, call, me, value, took, down, up, dropped):
        if call.function == "train" and dropped is None:
            came[me.id].append(me.round)
        return sums(self, call, me, value, took, down, up, dropped)

    monkeypatch.setattr(Worker, "_receipt", spy)
    monkeypatch.setattr(Fleet, "available", lambda self, client, round: True)
    federate(**adaptive(fleet=fleet, deadline=deadline, rounds=24, quorum=1))
    for client in range(10):
        rounds = [0, *came[client], 25]
        assert max(b - a for a, b in pairwise(rounds)) <= 4, client


def test_scores_of_a_long_time_ago_are_not_used(federate, monkeypatch):
    """A client that becomes slow in round 14 has scores of its own of round 2: it takes the public change."""

    class Late(Fleet):
        def profile(self, client, round):
            return self._base(compute=1e5 / (3.0 if client == 9 and round >= 13 else 1.0))

    found, scores = {}, Clip.scores

    def spy(self, client, params):
        found[client.round, client.id] = scores(self, client, params)
        return found[client.round, client.id]

    monkeypatch.setattr(sys.modules[__name__], "Uneven", Late)
    monkeypatch.setattr(Clip, "scores", spy)
    federate(**adaptive(rounds=15, options={"adaptive": False}))
    assert set(found) == {(14, 9), (15, 9)}
    assert all(score.isnan().all() for score in found[14, 9].values())  # it has seen no earlier model
    assert not any(score.isnan().any() for score in found[15, 9].values())


# -- the limit itself ----------------------------------------------------------------------------


def job(steps: int = 10, samples: int = 95, size: int = 10) -> Job:
    made = object.__new__(Job)
    made.__dict__.update(steps=steps, batch_size=size, data=range(samples))
    made.model = type("Model", (), {"flops": 2.0})()
    return made


def test_a_computed_limit_counts_the_samples_of_each_step():
    asked = []

    def limit(planned, done, seconds):
        asked.append((planned, done, seconds))
        return 7 if done > 5 else planned

    assert job().within(limit, lambda flops: flops / 60) == 7
    assert asked[:2] == [(10, 10 * 10 / 95, 1.0), (10, 10 * 20 / 95, 2.0)]
    assert asked[-1] == (7, 7, 7.0)
    asked.clear()
    assert job().within(lambda *a: asked.append(a) or a[0], lambda flops: flops / 60, done=60.0) == 10
    assert asked[-1] == (10, 10, 9.5)  # the last batch has half the samples
    assert job().within(lambda planned, done, seconds: 0, float) == 1  # a step that was taken is not undone
    assert job().within(lambda planned, done, seconds: 99, float) == 10
    assert job(steps=0).within(lambda *a: math.nan, float) == 0


def test_a_measured_limit_ends_the_loop(task, config):
    run = prepare(config(rounds=1), task=task)
    worker = run.fed.engine.here
    from paceline.core.engine import Call, Each

    call = Call("train", None, (0,), 1, "s", Each())
    me, other = worker.client(call, 0), worker.client(call, 0)
    me._work_time = lambda: WorkTime(True, lambda seconds: seconds * 1000)
    start, seen = run.fed.init_params(), []

    def limit(planned, done, seconds):
        seen.append(seconds)
        return 3 if done >= 3 else planned

    ended = me.sgd(start, epochs=4, limit=limit)
    assert (ended.steps, ended.samples, len(seen)) == (3, 30, 3)
    assert 0 < seen[0] < seen[1] < seen[2]
    assert me.job.samples() == 30
    assert torch.equal(ended.params.vector, other.sgd(start, steps=3).params.vector)
    assert ended.loss == pytest.approx(worker.client(call, 0).sgd(start, steps=3).loss)
