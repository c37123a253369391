from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure.config import SecureConfig
from paceline.core.errors import ConfigError, PolicyError, StoreError
from paceline.deploy.client.ledger import Ledger
from paceline.deploy.client.policy import Policy, load_policy, policy_of
from paceline.deploy.plan import CallRequest, Plan, Privacy, Usage
from paceline.deploy.validation import Window, size_of
from paceline.run import RunConfig

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
PLAN = Plan(method="fedavg", task="mnist-5k", rounds=30, cohort=20, quorum=10, aggregation="secure")


def plan(**changes: Any) -> Plan:
    return Plan(**{**PLAN.model_dump(), **changes})


def request(**changes: Any) -> CallRequest:
    return CallRequest(**{"now": NOW, "round": 1, "program": "secagg", **changes})


def one(policy: dict[str, Any], offered: Plan = PLAN, asked: CallRequest | None = None) -> str:
    """Return the one reason of a refusal."""
    reasons = Policy.build(policy).check(offered, asked)
    assert len(reasons) == 1, reasons
    return reasons[0]


def fine(policy: dict[str, Any], offered: Plan = PLAN, asked: CallRequest | None = None) -> bool:
    return Policy.build(policy).check(offered, asked) == []


def test_defaults_demand_secure_sums_over_three() -> None:
    assert fine({})
    assert fine({}, PLAN, request())
    assert "secure is required" in one({}, plan(aggregation="plain"))
    assert "secure is required" in one({}, plan(aggregation="secure-arithmetic"))
    assert "outside a secure sum" in one({}, PLAN, request(program="method"))
    assert fine({"secure_aggregation": {"required": False}}, plan(aggregation="plain"), request(program="method"))
    assert "the plan's cohort of 2" in Policy().check(plan(cohort=2))[0]


def test_methods_and_tasks_are_patterns() -> None:
    rule = {"allow": {"methods": ["fed*", "scaffold"], "tasks": ["mnist*"]}}
    assert fine(rule)
    assert fine(rule, plan(method="scaffold"))
    assert "method 'clip' is not allowed" in one(rule, plan(method="clip"))
    assert "task 'digits'" in one(rule, plan(task="digits"))
    assert "allowed: none" in one({"allow": {"methods": []}})
    assert "'FedAvg'" in one(rule, plan(method="FedAvg"))


def test_modules_and_paths_are_allowed_only_by_name() -> None:
    for changes in ({"method": "antigravity:Method"}, {"task": "csv:/etc/passwd"}):
        assert "is not allowed" in one({}, plan(**changes))
    assert "reads a file on this machine, so add 'csv:*' to allow.tasks of the file client.policy to allow it (allow.tasks)" in one(
        {}, plan(task="csv:/etc/passwd")
    )
    assert "imports a module on this machine, so add 'ours:Mine' to allow.methods" in one({}, plan(method="ours:Mine"))
    assert "since" not in one({"allow": {"tasks": ["idx:*"]}}, plan(task="csv:/etc/passwd"))
    rule = {"allow": {"methods": ["ours.*:*"], "tasks": ["idx:/data/*"]}}
    assert fine(rule, plan(method="ours.methods:Mine", task="idx:/data/x"))
    assert len(Policy.build(rule).check(plan(method="theirs:Mine", task="idx:/etc/x"))) == 2


def test_secure_options() -> None:
    assert "against a malicious server" in one({}, plan(secure={"active": False}))
    assert fine({"secure_aggregation": {"active": False}}, plan(secure={"active": False}))
    assert "is below the minimum 0.2" in one({"secure_aggregation": {"gamma": 0.2}})
    assert fine({"secure_aggregation": {"gamma": 0.2}}, plan(secure={"gamma": 0.25}))
    assert fine({"secure_aggregation": {"gamma": 0.2}}, plan(secure={"gamma": 0.25, "threshold": 15}))
    weaker = plan(secure={"gamma": 0.25, "threshold": 11})
    assert "but 4 must be tolerated" in one({"secure_aggregation": {"gamma": 0.2}}, weaker)
    assert fine({}, weaker)
    fewer = plan(secure={"gamma": 0.25, "neighbours": 6, "threshold": 5})
    assert "t=5 of k=6 neighbours is too low" in one({"secure_aggregation": {"gamma": 0.2}}, fewer)
    assert "gama" in one({}, plan(secure={"gama": 1}))
    session = dataclasses.asdict(SecureConfig())
    assert fine({}, PLAN, request(secure=session))
    for nonsense in ({1: 2}, ["clip"], {"clip": "x"}, {"clip": float("nan")}, {"clipp": 1.0}):
        assert Policy().check(PLAN, request(secure=nonsense)), nonsense
    assert "differ from the plan" in one({}, PLAN, request(secure=session | {"bits": 8}))


FLOORS = {
    "gamma": (0.2, 0.25),
    "delta": (0.2, 0.3),
    "sigma": (41, 50),
    "eta": (31, 40),
    "complete_up_to": (60, 100),
    "least_contributors": (4, 5),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_of_secure_aggregation(name: str) -> None:
    """A plan may ask for more, never for less."""
    floor, more = FLOORS[name]
    rule = {"secure_aggregation": {name: floor}}
    assert f"is below the minimum {floor:g} (secure_aggregation.{name})" in one(rule)  # the default is below
    assert fine(rule, plan(secure={name: floor}))
    assert fine(rule, plan(secure={name: more}))


@pytest.mark.parametrize(
    "options",
    [{"sigma": 1, "complete_up_to": 0}, {"complete_up_to": 0, "neighbours": 4, "threshold": 3}, {"neighbours": 2, "threshold": 2}],
)
def test_sizes_are_held_against_the_floors_not_against_the_plan(options: dict[str, Any]) -> None:
    assert Policy().check(plan(secure=options))
    assert fine({"secure_aggregation": {"required": False, "gamma": 0.0, "sigma": 1}}, plan(secure=options, quorum=10))


def test_a_large_cohort_gets_the_graph_that_its_own_floors_give() -> None:
    """Without a charge for the graphs that a server can try, n = 300 would do with k = 76."""
    assert fine({}, plan(cohort=300))
    assert "too low" in " ".join(Policy().check(plan(cohort=300, secure={"neighbours": 76, "threshold": 52})))


def test_begun_work_is_asked_for_by_name() -> None:
    assert "begun_work" in one({}, PLAN, request(program=None, begun=True))
    assert fine({"secure_aggregation": {"begun_work": True}}, PLAN, request(program=None, begun=True))


def test_cohort_and_quorum() -> None:
    assert "least_quorum" in one({"cohort": {"least_quorum": 12}})
    assert fine({"cohort": {"least_quorum": 12}}, plan(quorum=12))
    assert fine({"cohort": {"least_quorum": 5}}, plan(quorum=1))  # secure sums demand ceil(0.1 * 20) + 3 = 5 anyway
    assert "sums over 5" in one({"cohort": {"least_quorum": 6}}, plan(quorum=1))
    rule = {"cohort": {"least": 10, "least_quorum": 8}}
    assert fine(rule, PLAN, request(cohort=10, survivors=8))
    assert "cohort of 9 clients" in one(rule, PLAN, request(cohort=9))
    assert "7 remaining clients" in one(rule, PLAN, request(survivors=7))


def test_a_promise_that_nothing_keeps_is_refused() -> None:
    promise = plan(privacy=Privacy(epsilon=1.0, delta=1e-6))
    assert "no mechanism for it is installed" in one({}, promise)
    assert "no mechanism for it is installed" in one({"privacy": {"epsilon": 4.0}}, promise)
    assert "no mechanism for it is installed" in one(
        {"secure_aggregation": {"required": False}, "privacy": {"required": True}}, promise
    )


@pytest.fixture
def mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be one, so that its budgets can be tested."""
    monkeypatch.setattr("paceline.deploy.client.policy.PRIVACY_MECHANISMS", frozenset({"some"}))


@pytest.mark.usefixtures("mechanism")
def test_privacy() -> None:
    rule = {"privacy": {"epsilon": 4.0, "delta": 1e-5}}
    assert "does not promise differential privacy" in one(rule)
    assert "does not promise differential privacy" in one({"privacy": {"required": True}})
    assert fine(rule, plan(privacy=Privacy(epsilon=4.0, delta=1e-5)))
    assert "epsilon 5" in one(rule, plan(privacy=Privacy(epsilon=5, delta=1e-6)))
    assert "delta 0.001" in one(rule, plan(privacy=Privacy(epsilon=1, delta=1e-3)))
    assert fine({}, plan(privacy=Privacy(epsilon=1e9, delta=0.5)))


@pytest.mark.usefixtures("mechanism")
def test_the_budget_of_all_runs(tmp_path: Path) -> None:
    rule = {"privacy": {"total_epsilon": 6.0}}
    offered = plan(privacy=Privacy(epsilon=2.0, delta=1e-6))
    ledger = Ledger(tmp_path / "ledger.json")
    for run in ("a", "b", "c"):
        assert fine(rule, offered, request(round=None, program=None, usage=ledger.usage(run, NOW)))
        ledger.join(run, offered)
        ledger.join(run, offered)
    assert "6 is spent" in one(rule, offered, request(usage=ledger.usage("d", NOW)))
    assert fine(rule, offered, request(usage=ledger.usage("b", NOW)))  # a run that was joined goes on


def test_limits() -> None:
    assert "30 rounds exceed the maximum 29" in one({"limits": {"rounds": 29}})
    rule = {"limits": {"message_bytes": "1 MB"}}
    assert fine(rule, PLAN, request(message_bytes=1_000_000))
    assert "1000001 bytes" in one(rule, PLAN, request(message_bytes=1_000_001))
    cases: list[tuple[str, Any, Usage, bool]] = [
        ("rounds", 40, Usage(rounds=39, last_round=0), True),
        ("rounds", 40, Usage(rounds=40, last_round=0), False),
        ("rounds", 40, Usage(rounds=40, last_round=1), True),  # further steps of a round that was counted
        ("bytes", "2 kB", Usage(bytes=1000), True),
        ("bytes", "2 kB", Usage(bytes=1001), False),
        ("seconds", 60, Usage(seconds=59.0), True),
        ("seconds", 60, Usage(seconds=60.0), False),
        ("rounds_per_day", 5, Usage(day_rounds=4), True),
        ("rounds_per_day", 5, Usage(day_rounds=5), False),
        ("bytes_per_day", 2000, Usage(day_bytes=1001), False),
        ("seconds_per_day", 10, Usage(day_seconds=10.5), False),
    ]
    for name, most, usage, allowed in cases:
        asked = request(message_bytes=1000, usage=usage)
        if allowed:
            assert fine({"limits": {name: most}}, PLAN, asked), (name, usage)
        else:
            assert f"limits.{name})" in one({"limits": {name: most}}, PLAN, asked)


def test_hours() -> None:
    rule = {"hours": {"zone": "Europe/Zurich", "windows": ["mon-fri 20:00-06:00", "sat,sun"]}}
    zurich = ZoneInfo("Europe/Zurich")
    for day, hour, minute, open_ in [
        (4, 13, 0, False),
        (4, 20, 0, True),
        (4, 5, 59, True),
        (4, 6, 0, False),
        (7, 5, 0, True),  # Saturday: the night of Friday, and the day itself
        (7, 12, 0, True),
        (9, 5, 59, False),  # Monday morning: Sunday is no day on which a night begins, and ended at midnight
        (9, 20, 0, True),
    ]:
        now = datetime(2026, 3, day, hour, minute, tzinfo=zurich)
        for shown in (now, now.astimezone(UTC)):
            assert fine(rule, PLAN, request(now=shown)) is open_, now
    assert "Wed 13:00 in Europe/Zurich" in one(rule, PLAN, request(now=NOW))
    assert fine(rule, PLAN)


def test_hours_follow_summer_time() -> None:
    rule = {"hours": {"zone": "Europe/Zurich", "windows": ["12:00-13:00"]}}
    assert fine(rule, PLAN, request(now=datetime(2026, 1, 7, 11, 30, tzinfo=UTC)))
    assert fine(rule, PLAN, request(now=datetime(2026, 7, 7, 10, 30, tzinfo=UTC)))
    assert not fine(rule, PLAN, request(now=datetime(2026, 7, 7, 11, 30, tzinfo=UTC)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 7 * 1440 - 1), st.integers(0, 1439), st.integers(0, 1440), st.sets(st.integers(0, 6), min_size=1))
def test_windows_agree_with_a_list_of_all_minutes(minute: int, start: int, end: int, days: set[int]) -> None:
    if start == end:
        return
    length = end - start if start < end else end + 1440 - start
    held = {(day * 1440 + start + i) % (7 * 1440) for day in days for i in range(length)}
    now = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(minutes=minute)
    assert Window(frozenset(days), start, end).holds(now, UTC) is (minute in held)


@pytest.mark.parametrize(
    "text", ["", "noon", "mon 25:00-26:00", "mon tue", "10:00-10:00", "fri-", "10:00-24:01", "10:61-11:00", "24:00-01:00"]
)
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="not a time of the week"):
        Policy.build({"hours": {"windows": [text]}})


def test_sizes() -> None:
    assert [size_of(t) for t in ("0 B", "500 MB", "1.5kB", "2 GiB", "1 TB")] == [0, 500_000_000, 1500, 2 << 30, 10**12]
    for text in ("many", "5", "-1 MB", "5 mb", "1e3 B"):
        with pytest.raises(ConfigError, match="not a size"):
            Policy.build({"limits": {"bytes": text}})


def test_every_reason_is_told() -> None:
    rule = {
        "allow": {"methods": ["scaffold"], "tasks": ["x"]},
        "cohort": {"least": 50, "least_quorum": 40},
        "privacy": {"required": True},
        "limits": {"rounds": 10, "bytes": 10},
        "hours": {"windows": ["sun"]},
    }
    reasons = Policy.build(rule).check(plan(aggregation="plain"), request(message_bytes=11))
    assert len(reasons) == 9
    with pytest.raises(PolicyError, match="does not promise differential privacy") as caught:
        Policy.build(rule).demand(plan(aggregation="plain"), request(message_bytes=11))
    assert list(caught.value.reasons) == reasons
    Policy().demand(PLAN)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[allow]\nmethods = ["fedavg"]\n[limits]\nbytes = "1 GB"\n')
    assert load_policy(path) == Policy.build({"allow": {"methods": ["fedavg"]}, "limits": {"bytes": 10**9}})
    for text, wanted in [
        ("[alow]\n", r"unknown key 'alow'; did you mean allow"),
        ("[cohort]\nleest = 3\n", r"unknown key 'cohort.leest'; did you mean least"),
        ("[hours]\nzone = 'Europe/Zurik'\n", "not a known time zone"),
        ("[cohort]\nleast = 0\n", r"cohort\.least = 0"),
        ("[privacy]\nepsilon = nan\n", r"privacy\.epsilon"),
        ("cohort = 3\n", "cohort = 3"),
        ("[allow\n", "not valid TOML"),
        ("[limits]\nrounds = -1\n[allow]\ntask = ['x']\n", r"unknown key 'allow.task'; did you mean tasks.*limits\.rounds"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"policy\.toml.*{wanted}"):
            load_policy(path)
    for bad in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_policy(bad)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(path)


def test_plans_cross_the_wire() -> None:
    from paceline.core.serialization import dumps, loads

    config = RunConfig(method="scaffold", options={"lr": 0.1}, aggregation="secure", secure={"bits": 12}, cohort=7, quorum=5)
    made = Plan.of(config, Privacy(epsilon=3, delta=1e-6))
    assert (made.method, made.cohort, made.quorum, made.secure, made.options) == ("scaffold", 7, 5, {"bits": 12}, {"lr": 0.1})
    back = Plan.from_tree(loads(dumps(made.to_tree())))
    assert back == made
    assert back.digest == made.digest != plan().digest
    for bad, text in [
        (None, "must be a table"),
        ({}, "method"),
        (PLAN.to_tree() | {"cohorte": 3}, "did you mean cohort"),
        (PLAN.to_tree() | {"privacy": {"epsilon": float("nan"), "delta": 0}}, r"privacy\.epsilon"),
        (PLAN.to_tree() | {"rounds": 0}, "rounds = 0"),
        ({1: 2}, "plan"),
    ]:
        with pytest.raises(ConfigError, match=text):
            Plan.from_tree(bad)


def test_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(path, "Europe/Zurich")
    assert ledger.usage("a", NOW) == Usage()
    for round_, bytes_ in ((1, 10), (1, 5), (2, 10)):
        ledger.note("a", round_, bytes_, 1.5, NOW)
    ledger.note("b", 1, 100, 1.0, NOW)
    again = Ledger(path, "Europe/Zurich")
    for each in (ledger, again):
        used = each.usage("a", NOW)
        assert (used.rounds, used.last_round, used.bytes, used.seconds) == (2, 2, 25, 4.5)
        assert (used.day_rounds, used.day_bytes, used.day_seconds) == (3, 125, 5.5)
    again.moved("a", 75, NOW)
    used = Ledger(path, "Europe/Zurich").usage("a", NOW)
    assert (used.rounds, used.bytes, used.day_rounds, used.day_bytes, used.day_seconds) == (2, 100, 3, 200, 5.5)
    midnight = datetime(2026, 3, 4, 23, 0, tzinfo=UTC)  # in Zurich
    assert again.usage("a", midnight).day_rounds == 0
    again.note("a", 3, 1, 1.0, midnight)
    assert (again.usage("a", midnight).day_rounds, again.usage("a", midnight).rounds) == (1, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    for bad in ("", "{}", "[]", '{"runs": {"a": {}}, "days": {}}'):
        path.write_text(bad)
        with pytest.raises(StoreError, match="restore it from a backup"):
            Ledger(path)


def test_a_ring_where_all_must_be_neighbours() -> None:
    ring = plan(secure={"neighbours": 16, "threshold": 15, "delta": 0.0})
    rule: dict[str, Any] = {"gamma": 0.0}
    assert not any("neighbours of 20" in why for why in Policy.build({"secure_aggregation": rule}).check(ring))
    reasons = Policy.build({"secure_aggregation": rule | {"complete_up_to": 20}}).check(ring)
    assert any("16 neighbours in a cohort of 20; the complete graph is required" in why for why in reasons)
    assert not any(
        "the complete graph is required" in why
        for why in Policy.build({"secure_aggregation": rule | {"complete_up_to": 19}}).check(ring)
    )


def test_a_policy_in_the_folder_that_nothing_names_is_an_error(tmp_path: Path) -> None:
    assert policy_of(None, tmp_path) == Policy()
    file = tmp_path / "policy.toml"
    file.write_text("[cohort]\nleast = 10\n")
    with pytest.raises(ConfigError, match=r"policy.toml exists, but client.policy is not set"):
        policy_of(None, tmp_path)
    assert policy_of(file, tmp_path).cohort.least == 10
