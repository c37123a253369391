"""The event queue: who is at work since when, and when the server fires."""

import pytest

from paceline.core.errors import CohortError, ConfigError
from paceline.core.serialization import dumps, loads
from paceline.devices import load_fleet
from paceline.devices.events import Firing, Queue, every, first, nanoseconds, schedule

TAU = (1.0, 0.6, 0.2)


def ids(jobs):
    return [job.client for job in jobs]


def test_arrivals_come_by_time_and_ties_by_client():
    queue = Queue().begin({5: 0.3, 2: 0.3, 9: 0.1})
    assert ids(queue.jobs) == [9, 2, 5]
    assert ids(queue.arrived(nanoseconds(0.1))) == [9]
    assert ids(queue.arrived(nanoseconds(0.3))) == [9, 2, 5]


def test_equal_sums_of_durations_are_equal_moments():
    """0.1 + 0.2 is not 0.3 in floating point; on this clock it is."""
    queue = Queue().begin({1: 0.1, 0: 0.3})
    queue = queue.fire(Firing(nanoseconds(0.1), queue.jobs[:1])).begin({1: 0.2})
    assert len({job.finish for job in queue.jobs}) == 1
    assert ids(queue.jobs) == [0, 1]


def test_a_busy_client_cannot_begin():
    queue = Queue().begin({1: 1.0}).rest({2: 5.0})
    for client in (1, 2):
        with pytest.raises(CohortError, match=f"{client}"):
            queue.begin({client: 1.0})
    assert queue.at(nanoseconds(5.0)).begin({2: 1.0}).busy == {1, 2}


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_impossible_durations_are_refused(seconds):
    with pytest.raises(ConfigError, match="must be finite"):
        Queue().begin({0: seconds})


def test_time_does_not_go_back():
    with pytest.raises(ConfigError, match="back"):
        Queue(now=5).at(4)


def test_first_fires_at_the_nth_reply_with_exactly_these():
    queue = Queue().begin({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.9})
    firing = first(queue, 2)
    assert (firing.at, ids(firing.jobs)) == (nanoseconds(0.5), [0, 1])
    after = queue.fire(firing)
    assert (after.fired, after.since, after.now, ids(after.jobs)) == (1, firing.at, firing.at, [2, 3])
    assert first(after, 1).at == firing.at, "a tie is fired at once, in a firing of its own"
    assert ids(first(queue).jobs) == ids(first(queue, 9).jobs) == [0, 1, 2, 3]


def test_first_waits_for_clients_at_rest_where_it_needs_them():
    queue = Queue().begin({0: 0.5}).rest({1: 0.1})
    assert first(queue, 2) is None
    assert first(queue, 1).at == nanoseconds(0.5)
    assert first(Queue(), 1) is None


def test_every_fires_on_the_period_and_holds_until_enough_are_there():
    queue = Queue().begin({0: 0.9, 1: 0.3, 2: 0.2})
    period = nanoseconds(0.25)
    assert (every(queue, period).at, ids(every(queue, period).jobs)) == (period, [2])
    assert (every(queue, period, 2).at, ids(every(queue, period, 2).jobs)) == (2 * period, [2, 1])
    assert every(queue, period, 3).at == every(queue, period, 99).at == 4 * period
    assert every(Queue(), period) == Firing(period, ())
    assert every(queue.rest({7: 9.0}), period, 4) is None


def test_the_state_is_a_tree():
    queue = Queue().begin({0: 0.5, 1: 0.1}).rest({2: 3.0})
    assert loads(dumps(queue)) == queue


# -- the worked schedules of the paper's three clients -----------------------------------------------
def versions(rule, until):
    """Return each firing: its time, and the version that each client of (0, 1, 2) worked on, None if absent."""
    found = []
    for seconds, jobs in schedule(TAU, rule, until):
        rho = {job.client: job.version for job in jobs}
        found.append((seconds, tuple(rho.get(client) for client in range(3))))
    return found


def test_schedule_of_fedfix():
    expected = [(0.5, (None, None, 0)), (1.0, (0, 0, 1)), (1.5, (None, None, 2)), (2.0, (2, 2, 3))]
    assert versions(lambda q: every(q, nanoseconds(0.5)), 2.0) == expected


def test_schedule_of_fedbuff():
    assert versions(lambda q: first(q, 2), 1.0) == [(0.6, (None, 0, 0)), (1.0, (0, None, 1))]


def test_schedule_of_asynchronous_fedavg():
    seen = [(t, job.client, job.version) for t, jobs in schedule(TAU, lambda q: first(q, 1), 1.0) for job in jobs]
    assert seen == [(0.2, 2, 0), (0.4, 2, 1), (0.6, 1, 0), (0.6, 2, 2), (0.8, 2, 4), (1.0, 0, 0), (1.0, 2, 5)]


def test_fedfix_with_a_small_period_is_asynchronous_but_for_ties():
    fine = [(t, {job.client for job in jobs}) for t, jobs in schedule(TAU, lambda q: every(q, nanoseconds(0.1)), 1.0) if jobs]
    single = {}
    for t, jobs in schedule(TAU, lambda q: first(q, 1), 1.0):
        single.setdefault(t, set()).update(job.client for job in jobs)
    assert fine == list(single.items())


def test_the_fleet_of_known_durations():
    fleet = load_fleet("spread:percent=80", 3)
    assert [fleet.seconds(client) for client in range(3)] == pytest.approx(TAU)
    profile = fleet.profile(1, 4)
    assert profile.compute_seconds(1e12) == pytest.approx(0.6)
    assert profile.compute_seconds(0.0) == profile.upload_seconds(1e9) == profile.download_seconds(1e9) == 0.0
    assert [load_fleet("spread:percent=0,slowest=3", 5).seconds(c) for c in range(5)] == [3.0] * 5
    assert load_fleet("spread", 1).seconds(0) == 1.0
    with pytest.raises(ConfigError, match="percent"):
        load_fleet("spread:percent=100", 3)
