import math
import pickle
from itertools import groupby
from pathlib import Path
from statistics import fmean

import pytest

from paceline.core.errors import ConfigError, DataFormatError
from paceline.devices import Changing, Fleet, Profile, Traced, load_fleet, write_trace

ROUNDS = range(1, 401)


def changing(options: str, clients: int = 40, seed: int = 5) -> Fleet:
    return load_fleet(f"changing:{options}", clients, seed)


def runs(states: list[bool]) -> list[int]:
    """Return the lengths of the phases in which a state holds, without the first and last one."""
    return [len(list(group)) for holds, group in groupby(states) if holds][1:-1]


def test_links_fade_for_some_rounds_in_a_part_of_all() -> None:
    fleet = changing("fade=0.2,depth=8,stay=5,vary=0,share=0")
    faded = [[fleet.profile(c, r).up < 5e7 for r in ROUNDS] for c in range(40)]
    assert {fleet.profile(c, r).up for c in range(40) for r in ROUNDS} == {5e7, 5e7 / 8}
    assert all(fleet.profile(3, r).down == fleet.profile(3, r).up for r in ROUNDS)
    assert fmean(fmean(each) for each in faded) == pytest.approx(0.2, abs=0.02)
    assert fmean(length for each in faded for length in runs(each)) == pytest.approx(5.0, abs=0.5)
    assert faded[0] != faded[1]


def test_links_vary_from_round_to_round_in_both_directions() -> None:
    fleet = changing("fade=0,vary=0.3,share=0")
    logs = [math.log(fleet.profile(c, r).up / 5e7) for c in range(40) for r in range(1, 51)]
    assert fmean(logs) == pytest.approx(0.0, abs=0.03)
    assert fmean(x * x for x in logs) ** 0.5 == pytest.approx(0.3, abs=0.02)
    assert fleet.profile(0, 1).up != fleet.profile(0, 1).down


def test_slow_clients_take_turns() -> None:
    fleet = changing("share=0.25,slow=4,shift=10,fade=0")

    def slow(number: int) -> set[int]:
        return {c for c in range(40) if fleet.profile(c, number).slowdown == 4.0}

    assert [len(slow(r)) for r in (1, 10, 11, 21)] == [10] * 4
    assert slow(1) == slow(10) != slow(11) == slow(20) != slow(21)
    assert all(fleet.profile(c, 1).compute == 5e8 for c in slow(1))
    assert {c for r in range(1, 400, 10) for c in slow(r)} == set(range(40))
    still = changing("share=0.25,slow=4,fade=0")
    assert [p.slowdown for p in (still.profile(c, 1) for c in range(40))] == [still.profile(c, 300).slowdown for c in range(40)]


def test_hot_devices_throttle_while_they_work() -> None:
    fleet = changing("hot=0.3,burst=2,throttle=3,share=0,fade=0")
    hot = [fleet.profile(c, r).throttle > 1 for c in range(40) for r in ROUNDS]
    assert fmean(hot) == pytest.approx(0.3, abs=0.03)
    device = next(p for r in ROUNDS if (p := fleet.profile(0, r)).throttle > 1)
    assert [device.compute_seconds(2e9 * s) for s in (1, 2, 5)] == [1.0, 2.0, 2 + 3 * 3]
    assert Profile(overhead=1.0, burst=2.0, throttle=3.0, slowdown=2.0).measured_seconds(2.0) == 1 + 2 + 2 * 3


def test_another_seed_is_another_fleet_and_a_copy_the_same() -> None:
    spec = "fade=0.3,hot=0.1,shift=5"

    def seen(fleet: Fleet) -> list[Profile]:
        return [fleet.profile(c, r) for c in range(10) for r in (1, 7, 30)]

    fleet = changing(spec)
    assert seen(fleet) == seen(pickle.loads(pickle.dumps(fleet))) == seen(changing(spec))
    backwards = changing(spec)  # the order of questions has no effect
    assert [backwards.profile(c, r) for c in reversed(range(10)) for r in (30, 7, 1)] == seen(fleet)[::-1]
    assert seen(fleet) != seen(changing(spec, seed=6))


def test_a_description_says_what_changes() -> None:
    assert changing("fade=0.1,shift=20,hot=0.05,burst=3").describe() == (
        "changing: 40 clients of 2 GFLOP/s with 50 Mbit/s; 20% slower by x2 (others every 20 rounds), "
        "links x8 slower in 10% of the rounds, hot in 5% (x3 after 3 s)"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("fade=1", "fade=1"), ("fade=-0.1", "fade"), ("depth=0.5", "depth"), ("slow=0", "slow"), ("share=2", "share"), ("stay=0.5", "stay"),
        ("fade=0.9,stay=2", "raise stay"), ("hot=0.9,stay=2", "raise stay"), ("shift=-1", "shift"), ("vary=9", "vary"),
        ("throttle=0.5", "throttle"), ("burst=-1", "burst"), ("slow=nan", "slow"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        changing(options)


# -- traces --------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "links.csv"
    path.write_text("client,round,up,down,slowdown\n0,1,10,20,1\n1,3,5,5,2\n0,4,1,2,1\n1,6,50,50,1\n")
    return path


def test_a_line_of_a_trace_holds_until_the_next_and_the_trace_repeats(trace: Path) -> None:
    fleet = load_fleet(f"trace:path={trace}", 2)
    assert isinstance(fleet, Traced)
    assert [fleet.profile(0, r).up / 1e6 for r in range(1, 9)] == [10, 10, 10, 1, 1, 1, 10, 10]
    assert [fleet.profile(0, r).down / 1e6 for r in (1, 4)] == [20, 2]
    assert [fleet.profile(1, r).up / 1e6 for r in range(1, 9)] == [50, 50, 5, 5, 5, 50, 50, 50]
    assert (fleet.profile(1, 3).slowdown, fleet.profile(1, 3).compute) == (2.0, 1e9)
    longer = load_fleet(f"trace:path={trace},length=8,compute=1e9", 2)
    assert [longer.profile(0, r).up / 1e6 for r in range(6, 10)] == [1, 1, 1, 10]
    assert longer.profile(1, 3).compute == 5e8
    assert pickle.loads(pickle.dumps(fleet)).profile(1, 3) == fleet.profile(1, 3)


def test_a_generated_fleet_is_written_and_read_again(tmp_path: Path) -> None:
    fleet, path = changing("fade=0.3,shift=7,slow=3", clients=5), tmp_path / "fleet.csv"
    write_trace(path, fleet, 30)
    again = load_fleet(f"trace:path={path}", 5)
    for client in range(5):
        for number in range(1, 31):
            here, there = fleet.profile(client, number), again.profile(client, number)
            assert (there.up, there.down, there.compute) == pytest.approx((here.up, here.down, here.compute))
    write_trace(path, changing("fade=0,vary=0"), 30)
    assert len(path.read_text().splitlines()) == 41  # one line for each client that does not change


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("client,round,up\n", "line 1 must be the header"),
        ("client,round,up,down,slowdown\n", "no lines"),
        ("client,round,up,down,slowdown\n0,1,5,5\n", "line 2"),
        ("client,round,up,down,slowdown\n0,1,5,x,1\n", "line 2"),
        ("client,round,up,down,slowdown\n0,1,5,5,1\n0,1,6,6,1\n", "line 3.*second line of round 1"),
        ("client,round,up,down,slowdown\n0,0,5,5,1\n", "start at 1"),
        ("client,round,up,down,slowdown\n0,1,0,5,1\n", "above 0"),
        ("client,round,up,down,slowdown\n0,1,5,inf,1\n", "above 0"),
        ("client,round,up,down,slowdown\n0,1,5,5,nan\n", "above 0"),
        ("client,round,up,down,slowdown\n-1,1,5,5,1\n", "start at 1"),
    ],
)
def test_a_malformed_trace_names_its_line(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataFormatError, match=named):
        load_fleet(f"trace:path={tmp_path / 'bad.csv'}", 1)


def test_a_trace_must_be_there_and_large_and_short_enough(trace: Path) -> None:
    for spec, clients, named in (
        ("trace:path=/none.csv", 1, "cannot be read"),
        (f"trace:path={trace}", 3, "no lines of 1 of 3 clients, such as 2"),
        (f"trace:path={trace},length=5", 2, "length=5 must be at least its last round, 6"),
        ("trace", 2, "needs path=VALUE"),
    ):
        with pytest.raises(ConfigError, match=named):
            load_fleet(spec, clients)


def test_the_class_is_found_by_its_name() -> None:
    assert isinstance(changing("fade=0.1"), Changing)
