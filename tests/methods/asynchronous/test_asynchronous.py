"""What all asynchronous methods share: secure sums of what has arrived, a clock that counts once, and resuming."""

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from paceline.core.errors import DataError
from paceline.engines.worker import Worker
from paceline.run import prepare, resume
from paceline.store import RunFolder
from tests.conftest import make_task
from tests.test_run import RUNNER

FLEET = "stragglers:share=0.4,slow=6,compute=1e5"
SUMS = [
    ("fedbuff", {"buffer": 7, "lr": 0.02}),  # of seven one may vanish; of five none, with the default threshold
    ("fedfix", {"period": 0.4, "lr": 0.02}),
    ("afacd", {"returns": 7, "idle": 0.1, "skew": 2.0}),
    ("afacs", {"returns": 7}),
]
METHODS = [
    ("fedfix", {"period": 0.4, "lr": 0.02}),
    ("fedbuff", {"buffer": 3, "weigh": "unbiased", "lr": 0.02}),
    ("fedasync", {"lr": 0.005}),
    ("afacd", {"returns": 3, "idle": 0.1, "skew": 2.0}),
    ("afacs", {"returns": 3}),
    ("afacstable", {"returns": 2, "expire": 3}),
]


@pytest.mark.parametrize(("method", "options"), SUMS)
def test_a_sum_of_arrivals_is_a_secure_sum_whoever_drops_out(task, config, method, options):
    """Real keys and masks over arrivals of several versions, one client gone after it shared secrets."""
    common = {
        "method": method,
        "options": options,
        "clients": 10,
        "cohort": 10,
        "rounds": 6,
        "fleet": FLEET,
        "partition": "dirichlet:1",
    }

    def go(aggregation, lost=(), **changes):
        hit, seen = [], []

        def drop(round, client, function):
            if (round, client) in lost and function in ("give", "secagg.masked"):
                hit.append((round, client))
            return (round, client) in hit

        made = config(aggregation=aggregation, secure={"gamma": 0.0}, **common, **changes)
        prepared = prepare(made, task=task, drop=drop if lost else None)
        state = prepared.method.init(prepared.fed)
        for number in range(1, 7):
            prepared.fed.start_round(number)
            state = prepared.method.round(prepared.fed, state)
            seen.append(sorted(prepared.fed.last.arrived))
            prepared.fed.engine.commit()
        prepared.fed.engine.close()
        return state, seen, sorted(set(hit))

    _, undisturbed, _ = go("secure-arithmetic")
    assert any(len(who) < 10 for who in undisturbed), "several versions are in flight"
    lost = {(3, undisturbed[2][0])}
    arithmetic, came, hit = go("secure-arithmetic", lost)
    assert hit == sorted(lost)
    assert came[2] == undisturbed[2][1:]
    secure, came_too, hit_too = go("secure", lost)
    assert (came_too, hit_too) == (came, hit)
    assert secure.params.sha256() == arithmetic.params.sha256()
    assert secure.queue == arithmetic.queue, "what cryptography takes changes nobody's turn"
    two, _, _ = go("secure", lost, workers=2)
    assert two.params.sha256() == secure.params.sha256()


class Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("stop", [1, 6])
def test_resumed_in_the_middle_of_work_ends_with_the_same_bits(config, tmp_path, method, options, stop):
    made = config(
        method=method,
        options=options,
        rounds=9,
        clients=8,
        cohort=7,
        fleet=FLEET + ",churn=0.1",
        checkpoint_every=2,
        evaluation="federated",
        eval_every=3,
        vectorize="off" if stop == 1 else "on",
    )
    whole = prepare(made, task=make_task()).go()

    def observer(record, total):
        if record["round"] == stop:
            raise Killed

    folder = RunFolder.create(tmp_path, "run")
    folder.write_config(made.model_dump(exclude_none=True))
    with pytest.raises(Killed):
        prepare(made, task=make_task(), folder=folder, observer=observer).go()
    again = resume(tmp_path / "run", task=make_task())
    assert again.model_sha256 == whole.model_sha256
    keys = ("round", "virtual_seconds", "bytes_up", "bytes_down")
    assert [[r[k] for k in keys] for r in again.history] == [[r[k] for k in keys] for r in whole.history]


def test_killed_for_real_under_secure_aggregation(config, tmp_path):
    options = {"buffer": 5, "lr": 0.02}
    made = config(
        method="fedbuff", options=options, rounds=6, clients=8, cohort=8, fleet=FLEET, checkpoint_every=2, aggregation="secure"
    )
    whole = prepare(made, task=make_task()).go()
    root = str(Path(__file__).parent.parent.parent.parent)
    code = RUNNER.format(root=root, stop=3, config=made.model_dump(exclude_none=True), out=str(tmp_path))
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert resume(tmp_path / "run", task=make_task()).model_sha256 == whole.model_sha256


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_workers_change_nothing(federate, method, options):
    common = {"method": method, "options": options, "clients": 8, "cohort": 6, "rounds": 5, "fleet": FLEET}
    assert federate(**common).model_sha256 == federate(workers=2, **common).model_sha256


# -- time ----------------------------------------------------------------------------------------------
def rounds_of(task, made, drop=None):
    prepared = prepare(made, task=task, drop=drop)
    prepared.state = prepared.method.init(prepared.fed)
    for _ in range(made.rounds):
        prepared._round()
    return prepared


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_in_a_plain_run_the_clock_is_the_works_clock(task, config, method, options):
    run = rounds_of(task, config(method=method, options=options, clients=8, cohort=8, rounds=7, fleet=FLEET))
    assert run.fed.clock.now == pytest.approx(run.state.queue.now / 1e9, rel=1e-12)
    assert sum(r["round_seconds"] for r in run.history) == pytest.approx(run.fed.clock.now)
    assert run.fed.totals.seconds == pytest.approx(run.fed.clock.now)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_what_passes_besides_is_added_once_and_puts_work_off(task, config, aggregation):
    """Evaluation by the clients and the protocol's steps come on top; the order of arrival is as without them."""
    options = {"buffer": 4, "lr": 0.02}
    common = {
        "method": "fedbuff",
        "options": options,
        "clients": 8,
        "cohort": 8,
        "rounds": 5,
        "fleet": FLEET,
        "aggregation": aggregation,
    }
    without = rounds_of(task, config(**common))
    run = rounds_of(task, config(**common, evaluation="federated", eval_every=2))
    assert run.state.queue == without.state.queue
    work = run.state.queue.now / 1e9
    assert run.fed.clock.now > work * 1.01
    assert run.fed.totals.seconds == pytest.approx(run.fed.clock.now)
    assert run.state.params.sha256() == without.state.params.sha256()


def test_a_reply_goes_up_once(task, config):
    """Bytes of a plain run: one message down and one reply up for each job; handing over moves nothing more."""
    made = config(method="fedbuff", options={"buffer": 3}, clients=6, cohort=6, rounds=4, fleet=FLEET)
    run = rounds_of(task, made)
    jobs = 6 + 3 * 3
    size = 4 * run.state.params.layout.size
    assert jobs * size < run.fed.totals.bytes_up < jobs * (size + 200)
    assert jobs * size < run.fed.totals.bytes_down < jobs * (size + 200)


def test_a_second_attempt_does_not_wait_again(task, config):
    """All replies of round 2 are lost in the first attempt; the second one finds the same clients ready."""
    made = config(method="fedbuff", options={"buffer": 3}, clients=6, cohort=6, rounds=4, fleet=FLEET)
    undisturbed = rounds_of(task, made)
    lost = []

    def drop(round, client, function):
        if round == 2 and function == "give" and len(lost) < 3:
            lost.append(client)
            return True
        return False

    run = rounds_of(task, made, drop)
    assert [r["attempts"] for r in run.history] == [1, 2, 1, 1]
    assert run.fed.clock.now == pytest.approx(undisturbed.fed.clock.now)


def test_clients_that_are_lost_at_the_start_begin_again_later(task, config):
    gone = {(1, 0), (1, 1), (2, 1)}
    made = config(method="fedbuff", options={"buffer": 2}, clients=6, cohort=6, rounds=6, fleet=FLEET)
    run = rounds_of(task, made, lambda r, c, f: f == "train" and (r, c) in gone)
    assert len(run.state.queue.jobs) == 4
    versions = {c: 0 for c in range(6)} | {j.client: j.version for j in run.state.queue.jobs}
    assert versions[0] >= 1
    assert versions[1] >= 2


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("dropped", ["dropped", "failed"])
def test_clients_that_disappear_before_their_upload_do_not_end_a_run(task, config, monkeypatch, method, options, dropped):
    """All arrivals of rounds 4 and 5 are lost in every attempt; their clients start again afterwards."""
    lost, invoke = {4, 5}, Worker.invoke

    def failing(self, me, function, message):
        if function == "give" and me.round in lost:
            raise DataError("it is gone")
        return invoke(self, me, function, message)

    if dropped == "failed":
        monkeypatch.setattr(Worker, "invoke", failing)
    common = {"method": method, "options": options, "clients": 5, "cohort": 5, "rounds": 16, "fleet": FLEET, "on_error": "drop"}
    run = prepare(
        config(**common),
        task=task,
        drop=(lambda round, client, function: function == "give" and round in lost) if dropped == "dropped" else None,
    )
    moved, before = [], run.method.init(run.fed).params.vector
    run.observer = lambda record, total: moved.append(run.state.params.vector)
    history = run.go().history
    steps = [not torch.equal(one, two) for one, two in pairwise([before, *moved])]
    assert [record["attempts"] for record in history] == [3 if number in lost else 1 for number in range(1, 17)]
    assert steps == [number not in lost for number in range(1, 17)]
    assert len(run.state.queue.busy) <= 5
