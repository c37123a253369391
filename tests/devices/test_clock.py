from dataclasses import dataclass

import pytest

from paceline.core.engine import CallInfo
from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.serialization import dumps, loads
from paceline.devices import Cost, Profile, TimedPhase, Times, VirtualClock, times


@dataclass
class Receipt:
    client: int
    compute: float = 0.0
    network: float = 0.0
    bytes_up: int = 10
    bytes_down: int = 20
    dropped: str | None = None


def test_costs_become_seconds() -> None:
    device = Profile(compute=1e9, up=8e6, down=16e6, latency=0.5, slowdown=3.0)
    assert times(device, Cost(2e9, bytes_up=1_000_000, bytes_down=2_000_000)) == Times(2.0, 3.0)
    assert times(device, Cost(2e9, bytes_up=0, bytes_down=0, seconds_measured=4.0)) == Times(12.0, 1.0)
    cost = Cost(2e9, 5, 6)
    assert loads(dumps(cost)) == cost


def test_a_synchronous_call_costs_its_slowest_member() -> None:
    clock = VirtualClock()
    assert clock.synchronous({3: Times(1.0, 2.0), 1: Times(4.0, 0.5), 2: Times(0.0, 1.0)}) == 4.5
    assert clock.now == 4.5
    assert clock.phases[-1] == TimedPhase("call", 4.5, slowest=1, compute=4.0, network=0.5)
    assert clock.synchronous({5: Times(1.0, 1.0), 2: Times(2.0, 0.0)}, name="tie") == 2.0
    assert clock.phases[-1].slowest == 2
    assert clock.synchronous({}) == 0.0
    assert clock.now == 6.5


def test_a_deadline_ends_the_wait() -> None:
    clock = VirtualClock()
    assert clock.synchronous({1: Times(5.0, 9.0)}, deadline=8.0) == 8.0
    assert clock.phases[-1] == TimedPhase("call", 8.0, slowest=1, compute=5.0, network=3.0)
    assert clock.synchronous({1: Times(9.0, 9.0)}, deadline=8.0) == 8.0
    assert clock.phases[-1] == TimedPhase("call", 8.0, slowest=1, compute=8.0, network=0.0)
    assert clock.synchronous({1: Times(1.0, 1.0)}, deadline=8.0) == 2.0
    assert clock.synchronous({1: Times(1.0, 1.0)}, deadline=8.0, missing=True) == 8.0
    assert clock.synchronous({1: Times(1.0, 1.0)}, missing=True) == 2.0
    with pytest.raises(ConfigError, match="deadline"):
        clock.synchronous({}, deadline=0.0)


def test_receipts_drive_the_clock() -> None:
    clock = VirtualClock()
    receipts = [Receipt(0, 1.0, 1.0), Receipt(1, 9.0, 1.0, dropped="late"), Receipt(2, dropped="gone")]
    assert clock.advance("train", receipts[:1]) == 2.0
    assert clock.advance("train", receipts, deadline=5.0) == 5.0
    assert clock.advance("train", [receipts[0], receipts[2]]) == 2.0
    assert clock.advance("train", [receipts[0], receipts[2]], deadline=5.0) == 5.0
    assert clock.advance("train", [receipts[2]]) == 0.0
    assert clock.now == 14.0
    assert [(p.name, p.bytes_up, p.bytes_down, p.slowest) for p in clock.phases][:2] == [
        ("train", 10, 20, 0),
        ("train", 30, 60, 1),
    ]


def test_arrivals_come_in_order_with_ties_by_client() -> None:
    clock = VirtualClock(now=10.0)
    arrived = clock.arrivals({7: Times(1.0, 1.0), 3: Times(2.0, 0.0), 5: Times(0.5, 0.0)})
    assert arrived == [(10.5, 5), (12.0, 3), (12.0, 7)]
    assert clock.now == 10.0


def test_the_state_is_exact() -> None:
    clock = VirtualClock()
    for _ in range(7):
        clock.synchronous({0: Times(0.1, 0.2 / 3)})
    other = VirtualClock()
    other.restore(loads(dumps(clock.state())))
    assert other.now == clock.now
    assert other.state() == clock.state()
    with pytest.raises(CheckpointError, match="malformed clock state"):
        other.restore({})


def test_old_phases_are_let_go() -> None:
    clock = VirtualClock(keep=3)
    for i in range(5):
        clock.synchronous({i: Times(1.0, 0.0)})
    assert [p.slowest for p in clock.phases] == [2, 3, 4]


def test_the_timeline_has_the_times_of_each_client() -> None:
    clock = VirtualClock()
    receipts = [Receipt(0, 1.0, 2.0), Receipt(1, 1.0, 2.0), Receipt(2, 2.0, 1.0), Receipt(3, 4.0, 0.0)]
    clock.advance("train", [*receipts, Receipt(4, dropped="gone"), Receipt(5, 1.0, 2.0, dropped="late")], 5.0)
    assert clock.timeline[-1].clients == {0: (1.0, 2.0), 1: (1.0, 2.0), 2: (2.0, 1.0), 3: (4.0, 0.0), 5: (1.0, 2.0)}


def test_what_a_call_brings_is_copied_into_the_sum() -> None:
    total, first = CallInfo(), CallInfo(arrived={1: 2.0, 2: 3.0})
    total.add(first)
    total.add(CallInfo(arrived={1: 5.0, 2: 1.0, 3: 4.0}))
    assert (total.arrived, first.arrived) == ({1: 5.0, 2: 3.0, 3: 4.0}, {1: 2.0, 2: 3.0})
