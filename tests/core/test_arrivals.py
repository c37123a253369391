"""Work that is begun in one round and handed over in another: what it costs, when, and what of it survives."""

from dataclasses import dataclass

import pytest
import torch

from paceline.core.errors import PlanError
from paceline.core.federation import Federation
from paceline.core.method import Method, State, on_client
from paceline.core.update import Update
from paceline.core.wire import wire_size
from paceline.devices.events import Queue, advance, first
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import prepare

FLEET = "spread:percent=80"


@dataclass(frozen=True)
class Begun(FedAvg):
    """FedAvg, whose clients begin first and hand over afterwards."""

    def round(self, fed: Federation, state: State) -> State:
        cohort = fed.sample()
        fed.wait(max(fed.start(self.train, state.params, over=cohort).values()))
        mean = fed.mean(self.give, None, over=cohort)
        return State(params=state.params + self.server_lr * mean.delta)

    @on_client(collects=True)
    def give(self, client, message):
        return client.take()


class Shown(Begun):
    """The same, with functions whose replies the server sees."""

    @on_client(each=True, collects=True)
    def show(self, client, message):
        return client.take()

    @on_client(each=True)
    def number(self, client, message):
        client.sgd(message, steps=1)
        return client.id


def begun(task, config, **changes):
    prepared = prepare(config(method=f"{__name__}:Shown", **changes), task=task)
    prepared.fed.start_round(1)
    return prepared.method, prepared.fed


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
@pytest.mark.parametrize("workers", [1, 2])
def test_beginning_and_handing_over_is_one_call_in_two_parts(federate, aggregation, workers):
    """The streams are those of the start, so the model has the bits of FedAvg, on any engine."""
    common = {"aggregation": aggregation, "workers": workers, "chunk": 1, "fleet": "stragglers:share=0.4,compute=1e5"}
    if aggregation != "plain":  # stochastic rounding draws from the stream of the call that hands over
        common["secure"] = {"bits": 24}
    at_once = federate(**common)
    in_two = federate(method=f"{__name__}:Begun", **common)
    if aggregation == "plain":
        assert in_two.model_sha256 == at_once.model_sha256
        assert in_two.total_seconds == pytest.approx(at_once.total_seconds, rel=1e-9)
        assert in_two.bytes_up == at_once.bytes_up
        assert in_two.bytes_down == at_once.bytes_down
    else:
        assert in_two.loss == pytest.approx(at_once.loss, rel=1e-3)
        assert in_two.bytes_up == at_once.bytes_up, "a hidden reply goes up once, when it is summed"


def test_nothing_is_shown_and_no_time_passes_before_it_is_asked_for(task, config):
    method, fed = begun(task, config, fleet=FLEET)
    params = fed.init_params()
    seconds = fed.start(method.train, params, over=[0, 3, 5])
    assert seconds == pytest.approx({0: 1.0, 3: 0.52, 5: 0.2})
    assert fed.clock.now == 0.0
    assert fed.totals.bytes_up > 0
    up = fed.totals.bytes_up
    replies = fed.each(method.show, None, over=[3])
    assert fed.clock.now == 0.0
    assert fed.totals.bytes_up == up == 3 * wire_size(replies[3]), "it went up when it was done"
    assert isinstance(replies[3], Update)


def test_message_stream_and_memory_are_those_of_the_start(task, config):
    """Handed over two rounds later, after other calls, it is the reply of the start."""
    method, fed = begun(task, config)
    params = fed.init_params()
    fed.start(method.train, params, over=[2])
    fed.engine.commit()
    for number in (2, 3):
        fed.start_round(number)
        fed.mean(method.train, params * 0.5, over=[1, 2])
        fed.engine.commit()
    late = fed.mean(method.give, None, over=[2])
    again = prepare(config(), task=task)
    again.fed.start_round(1)
    at_once = again.fed.mean(again.method.train, params, over=[2])
    assert torch.equal(late.delta.vector, at_once.delta.vector)


def test_a_reply_is_handed_over_once_and_comes_back_with_a_rollback(task, config):
    method, fed = begun(task, config)
    fed.start(method.train, fed.init_params(), over=[1])
    fed.engine.commit()
    first_time = fed.mean(method.give, None, over=[1])
    with pytest.raises(PlanError, match="client 1 has no stored reply"):
        fed.mean(method.give, None, over=[1])
    fed.engine.rollback()
    assert torch.equal(fed.mean(method.give, None, over=[1]).delta.vector, first_time.delta.vector)


def test_only_the_caller_says_what_passes_and_a_second_attempt_waits_for_the_rest(task, config):
    _, fed = begun(task, config)
    fed.wait(2.0)
    fed.wait(1.0)
    assert fed.clock.now == 3.0
    fed.start_round(1, attempt=1)
    fed.wait(2.5)
    assert fed.clock.now == 3.0, "these seconds passed in the first attempt"
    fed.wait(1.0)
    assert fed.clock.now == 3.5
    fed.start_round(1, attempt=2)
    fed.wait(3.0)
    assert fed.clock.now == 3.5
    fed.start_round(2)
    fed.wait(1.0)
    assert fed.clock.now == fed.totals.seconds == 4.5
    fed.clock.now = 3.5  # a worker died: the round begins anew, and so does its time
    fed.start_round(2)
    fed.wait(1.0)
    assert fed.clock.now == 4.5


def test_what_is_handed_over_again_is_asked_under_the_same_name(task, config, monkeypatch):
    """New work has a new stream in a second attempt; a client's guard knows held work by its stream."""
    method, fed = begun(task, config)
    streams, real = [], fed.engine.run

    def spy(call):
        streams.append((call.function, call.stream))
        return real(call)

    monkeypatch.setattr(fed.engine, "run", spy)
    for attempt in (0, 1):
        fed.start_round(1, attempt)
        fed.start(method.train, fed.init_params(), over=[1])
        fed.mean(method.give, None, over=[1])
    assert streams == [
        ("train", "0/method.train/1"),
        ("give", "0/method.give/1"),
        ("train", "1/method.train/1"),
        ("give", "0/method.give/1"),
    ]


def test_a_lost_client_is_missing(task, config):
    prepared = prepare(config(method=f"{__name__}:Begun"), task=task, drop=lambda r, c, f: c == 2)
    prepared.fed.start_round(1)
    assert set(prepared.fed.start(prepared.method.train, prepared.fed.init_params(), over=[1, 2, 3])) == {1, 3}


def test_arrivals_of_one_call_come_in_order_and_the_clock_follows(task, config):
    method, fed = begun(task, config, fleet=FLEET)
    came = list(fed.arrivals(method.number, fed.init_params(), over=[0, 2, 5]))
    assert [(client, value) for _, client, value in came] == [(5, 5), (2, 2), (0, 0)]
    assert [t for t, _, _ in came] == pytest.approx([0.2, 0.68, 1.0])
    assert fed.clock.now == came[-1][0] == fed.totals.seconds


def test_arrivals_are_refused_at_once_where_only_sums_may_be_seen(task, config):
    method, fed = begun(task, config)
    with pytest.raises(PlanError, match="each=True"):
        fed.arrivals(method.train, fed.init_params(), over=[0])


@dataclass(frozen=True)
class Bare(Method):
    """Only client functions; the tests are the server."""

    def round(self, fed, state):
        return state

    @on_client
    def train(self, client, message):
        client.sgd(client.model.snapshot(), steps=1)
        return 1


def bare(task, config, **changes):
    prepared = prepare(config(method=f"{__name__}:Bare", **changes), task=task)
    prepared.fed.start_round(1)
    return prepared.fed, prepared.method


def test_a_client_that_wakes_up_begins_at_that_moment(task, config):
    """Client 5 (0.2 s) rests until 0.5 and is done at 0.7, before client 1 (0.84 s) that began at 0."""
    fed, method = bare(task, config, fleet=FLEET, clients=6, cohort=6)
    queue = Queue().rest({5: 0.5})
    queue, jobs = advance(fed, queue, method.train, None, lambda q: first(q, 3))
    assert [job.client for job in jobs] == [4, 3, 2]
    queue, jobs = advance(fed, queue, method.train, None, lambda q: first(q, 1))
    assert [(job.client, job.start, job.version) for job in jobs] == [(5, 500_000_000, 0)]
    assert fed.clock.now == pytest.approx(0.7)


def test_at_most_a_cohort_is_at_work_and_drawn_among_the_idle(task, config):
    fed, method = bare(task, config, fleet=FLEET, clients=6, cohort=2)
    queue, seen = Queue(), set()
    for number in range(1, 20):
        fed.start_round(number)
        queue, jobs = advance(fed, queue, method.train, None, lambda q: first(q, 1))
        assert len(queue.jobs) + len(jobs) == 2
        seen |= {job.client for job in jobs}
    assert seen == set(range(6))


def test_a_wait_for_nobody_is_named(task, config):
    prepared = prepare(config(method=f"{__name__}:Bare"), task=task, drop=lambda r, c, f: True)
    prepared.fed.start_round(1)
    with pytest.raises(ValueError, match="no client is busy"):
        advance(prepared.fed, Queue(), prepared.method.train, None, lambda q: first(q, 1))
