import pickle
import subprocess
import sys

import pytest

from paceline.core.errors import CohortError, ConfigError, UnknownNameError
from paceline.devices import Fleet, Profile, Stragglers, load_fleet
from paceline.devices.fleet import profiles
from tests.work import steps


def test_homogeneous_clients_are_alike_and_always_there() -> None:
    fleet = load_fleet("homogeneous", 5, seed=3)
    assert {fleet.profile(c, r) for c in range(5) for r in (1, 9)} == {Profile()}
    assert all(fleet.available(c, r) for c in range(5) for r in range(20))


def test_the_reference_fleet_has_four_stragglers_of_three_kinds() -> None:
    fleet = load_fleet("stragglers", 20)
    slow = {c: fleet.profile(c, 1) for c in range(20) if fleet.profile(c, 1) != Profile()}
    assert list(slow) == [16, 17, 18, 19]
    assert [p.slowdown for p in slow.values()] == [1.3, 1.8, 2.5, 1.3]
    assert [p.compute for p in slow.values()] == pytest.approx([2e9 / 1.3, 2e9 / 1.8, 2e9 / 2.5, 2e9 / 1.3])
    assert [p.up for p in slow.values()] == [1.5e6, 5e6, 50e6, 1.5e6]
    assert [p.down for p in slow.values()] == [1.5e6, 5e6, 50e6, 1.5e6]


def test_options_override_what_stragglers_are() -> None:
    fleet = load_fleet(" stragglers: share=0.25, slow=2.0, up=5e6, down=1e7, compute=1e9, link=1e8 ", 8)
    assert fleet.profile(0, 1) == Profile(compute=1e9, up=1e8, down=1e8)
    for client in (6, 7):
        assert fleet.profile(client, 1) == Profile(compute=5e8, up=5e6, down=1e7, slowdown=2.0)
    assert load_fleet("stragglers:slow=2", 20).profile(16, 1).up == 1.5e6


def test_stragglers_can_be_drawn_by_the_seed() -> None:
    def drawn(seed: int) -> list[int]:
        fleet = load_fleet("stragglers:pick=random", 50, seed)
        return [c for c in range(50) if fleet.profile(c, 1).slowdown > 1]

    assert len(drawn(1)) == len(drawn(2)) == 10
    assert drawn(1) == drawn(1) != drawn(2)


def test_churn_takes_its_share_away() -> None:
    fleet = load_fleet("stragglers:churn=0.1", 100, seed=4)
    there = sum(fleet.available(c, r) for c in range(100) for r in range(100))
    assert 0.89 < there / 10_000 < 0.91
    assert fleet.profile(0, 1).availability == 0.9


def test_phones_are_broad_and_change_their_links() -> None:
    fleet = load_fleet("mobile", 2000, seed=5)
    compute = sorted(fleet.profile(c, 1).compute for c in range(2000))
    assert 1.8e9 < compute[1000] < 2.2e9
    assert compute[1900] / compute[100] > 5
    one, two = fleet.profile(7, 1), fleet.profile(7, 2)
    assert one.compute == two.compute
    assert one.up != two.up
    assert one.slowdown == pytest.approx(2e9 / one.compute)
    assert all(0.5 <= fleet.profile(c, 1).availability <= 0.95 for c in range(100))
    there = sum(fleet.available(c, 3) for c in range(2000))
    assert 0.65 < there / 2000 < 0.8


@pytest.mark.parametrize("spec", ["homogeneous:churn=0.2", "stragglers:pick=random,churn=0.1", "mobile"])
def test_fleets_are_small_objects_that_travel(spec: str) -> None:
    fleet = load_fleet(spec, 30, seed=6)
    copy = pickle.loads(pickle.dumps(fleet))
    assert copy == fleet
    assert snapshot(copy) == snapshot(fleet)
    assert len(pickle.dumps(fleet)) < 1000


def snapshot(fleet: Fleet) -> str:
    return repr([(fleet.profile(c, 2), fleet.available(c, 2)) for c in range(30)])


def test_another_process_sees_the_same_fleet() -> None:
    script = (
        "from paceline.devices import load_fleet; f = load_fleet('mobile', 30, 6); "
        "print([(f.profile(c, 2), f.available(c, 2)) for c in range(30)])"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert there.strip() == snapshot(load_fleet("mobile", 30, 6))


@pytest.mark.parametrize("spec", ["homogeneous", "stragglers", "stragglers:pick=random", "mobile"])
def test_a_million_clients_cost_nothing(spec: str) -> None:
    def look() -> None:
        fleet = load_fleet(spec, 10**6, seed=1)
        for client in range(0, 10**6, 2000):
            fleet.profile(client, 3)
            fleet.available(client, 3)

    steps(200_000, look)  # a fifth of one for each client


def test_a_small_share_is_rounded() -> None:
    assert [Stragglers(n, share=0.2).num_stragglers for n in (1, 2, 3, 5, 20)] == [0, 0, 1, 1, 4]
    assert Stragglers(5, share=0.0).profile(4, 1) == Profile()
    assert Stragglers(5, share=1.0).profile(0, 1).slowdown == 1.3


def test_descriptions_say_what_matters() -> None:
    text = load_fleet("stragglers:churn=0.1", 20).describe()
    assert text == (
        "stragglers: 20 clients of 2 GFLOP/s with 50 Mbit/s, 10% away in each round; "
        "4 stragglers (x1.3 at 1.5 Mbit/s, x1.8 at 5 Mbit/s, x2.5 at 50 Mbit/s)"
    )
    assert "log-normal" in load_fleet("mobile", 5).describe()


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'straglers'; did you mean stragglers"):
        load_fleet("straglers", 5)
    with pytest.raises(UnknownNameError, match="'slwo'; did you mean slow"):
        load_fleet("stragglers:slwo=2", 5)
    with pytest.raises(UnknownNameError, match="way to pick"):
        load_fleet("stragglers:pick=first", 5)


@pytest.mark.parametrize(
    "spec",
    [
        "stragglers:share=1.5",
        "stragglers:slow=0.5",
        "stragglers:slow=nan",
        "stragglers:slow=fast",
        "stragglers:slow",
        "stragglers:slow=2,slow=3",
        "stragglers:up=0",
        "stragglers:up=-5e6",
        "homogeneous:churn=1",
        "homogeneous:compute=0",
        "homogeneous:latency=-1",
        "mobile:least=0.9,most=0.5",
        "mobile:vary=100",
    ],
)
def test_bad_values_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        load_fleet(spec, 5)


def test_clients_beyond_the_fleet_do_not_exist() -> None:
    for spec in ("homogeneous", "stragglers", "mobile:most=1,least=1"):
        fleet = load_fleet(spec, 5)
        for client in (-1, 5):
            with pytest.raises(CohortError, match="does not exist"):
                fleet.profile(client, 1)
            with pytest.raises(CohortError, match="does not exist"):
                fleet.available(client, 1)
    with pytest.raises(ConfigError, match="at least one"):
        load_fleet("homogeneous", 0)


@pytest.mark.parametrize("spec", ["homogeneous", "stragglers", "homogeneous:churn=0.1", "mobile"])
def test_a_fleet_knows_whether_everybody_is_always_there(spec: str) -> None:
    fleet = load_fleet(spec, 40, seed=2)
    assert fleet.always == all(fleet.available(c, r) for c in range(40) for r in range(10))


@pytest.mark.parametrize("spec", ["homogeneous", "stragglers", "mobile"])
def test_the_devices_of_several_clients_are_those_of_each(spec: str) -> None:
    fleet = load_fleet(spec, 30, seed=1)
    for clients in ([], [4], [29, 3, 17, 0]):
        assert profiles(fleet, clients, 2) == [fleet.profile(client, 2) for client in clients]
    for outside in ([3, 30], [-1, 3]):
        with pytest.raises(CohortError, match="does not exist"):
            profiles(fleet, outside, 2)
