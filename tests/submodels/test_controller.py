import json

import pytest

from paceline.core.errors import ConfigError
from paceline.submodels.controller import Controller, Decision, State
from tests.submodels.test_policy import COSTS, SHARES

PLAN = Controller(COSTS, SHARES)


def settled(compute: float, transfer: float, target: float, plan: Controller = PLAN, rounds: int = 3) -> State:
    state = plan.start()
    for r in range(1, rounds + 1):
        state = plan.observe(state, r, 1.0, compute, transfer)
    return state | {"target": target}


def test_state_is_plain() -> None:
    state = PLAN.hear(settled(10.0, 2.0, 0.0), 3, {1: 5.0, 2: 6.0})
    assert all(type(v) in (int, float) for v in state.values())
    assert json.loads(json.dumps(state)) == state


def test_warm_up_keeps_the_full_model() -> None:
    state = PLAN.start() | {"target": 1.0}
    assert PLAN.decide(state, 1)[0] == Decision(1.0)
    state = PLAN.observe(state, 1, 1.0, 100.0, 1.0)
    assert PLAN.decide(state, 2)[0] == Decision(1.0)
    state = PLAN.observe(state, 2, 1.0, 100.0, 1.0)
    assert PLAN.decide(state, 3)[0].fraction == 0.0


def test_pruned_rounds_measure_the_full_size() -> None:
    state = settled(40.0, 30.0, 0.0)
    for r, p in enumerate((0.5, 0.75, 0.65), 4):
        state = PLAN.observe(state, r, p, 40.0 * COSTS[p], 30.0 * SHARES[p])
    assert state["compute"] == pytest.approx(40.0)
    assert state["compute_dev"] == pytest.approx(0.0, abs=1e-9)
    assert PLAN.full_total(state) == pytest.approx(70.0)
    padded = Controller(COSTS, overhead=1.0)
    state = padded.observe(padded.start(), 1, 0.5, 1.0 + 40 * 0.256, 30.0)
    assert padded.full_total(state) == pytest.approx(71.0)
    assert padded.seconds(state, 0.5) == pytest.approx(1 + 40 * 0.256 + 30)
    with pytest.raises(ConfigError, match=r"0\.33"):
        PLAN.observe(state, 2, 0.33, 1.0, 1.0)


def test_ewma_by_hand() -> None:
    state = PLAN.observe(settled(10.0, 1.0, 0.0, rounds=1), 2, 1.0, 14.0, 1.0)
    assert state["compute"] == pytest.approx(11.0)
    assert state["compute_dev"] == pytest.approx(1.0)
    assert PLAN.seconds(state, 1.0) == pytest.approx(11 + 2 * 1 + 1)


def test_down_at_once_up_after_three_rounds() -> None:
    plan = PLAN
    state = settled(40.0, 0.0, 24.0)
    decision, state = plan.decide(state, 4)
    assert decision.fraction == 0.75  # 22.7 <= 25.2 < 28.6
    state |= {"target": 50.0}
    seen = []
    for r in range(5, 9):
        state = plan.observe(state, r - 1, 0.75, 40.0 * COSTS[0.75], 0.0)
        decision, state = plan.decide(state, r)
        seen.append(decision.fraction)
    assert seen == [0.75, 0.75, 1.0, 1.0]


def test_disagreement_starts_the_count_again_and_the_least_wish_wins() -> None:
    state = settled(40.0, 0.0, 24.0) | {"tier": 0.5}
    tiers = []
    for target in (50.0, 10.0, 50.0, 30.0, 50.0):
        state = {**state, "target": target, "round": 3}
        decision, state = PLAN.decide(state, 4)
        tiers.append(decision.fraction)
    assert tiers[1] == 0.5
    assert tiers == [0.5, 0.5, 0.5, 0.5, 0.85]


def test_nobody_sits_out_more_than_three_rounds() -> None:
    state = settled(400.0, 0.0, 24.0)
    seen = []
    for r in range(4, 12):
        decision, state = PLAN.decide(state, r)
        seen.append(decision)
        if decision.fraction:
            state = PLAN.observe(state, r, decision.fraction, 400 * COSTS[0.5], 0.0) | {"target": 24.0}
    out, late = Decision(0.0), Decision(0.5, stretched=True)
    assert seen == [out, out, out, late, out, out, out, late]


def test_absence_widens_the_deviation_at_most_twice_then_starts_over() -> None:
    state = settled(40.0, 0.0, 46.0) | {"compute_dev": 2.0}
    assert PLAN.decide(state, 4)[0].fraction == 1.0  # 44 <= 48.3
    assert PLAN.decide(state, 14)[0].fraction == 1.0  # 40 + 2 * 4 = 48
    assert PLAN.decide(state | {"compute_dev": 2.2}, 14)[0].fraction == 0.95
    assert PLAN.decide(state | {"compute_dev": 2.2}, 4)[0].fraction == 1.0
    decision, again = PLAN.decide(state | {"tier": 0.85}, 30)
    assert decision.fraction == 0.75
    assert again["seen"] == 0
    again = PLAN.observe(again, 30, 0.75, 60.0 * COSTS[0.75], 0.0)
    assert again["compute"] == pytest.approx(60.0)
    assert PLAN.decide(again, 31)[0].fraction == 0.75  # still warming up
    assert PLAN.decide(state | {"tier": 0.5}, 30)[0].fraction == 0.5


def test_target_follows_the_cut_off_of_recent_records() -> None:
    totals = dict.fromkeys(range(16), 10.0) | dict.fromkeys(range(16, 20), 30.0)
    state = PLAN.hear(PLAN.start(), 1, totals)
    assert state["target"] == 10.0
    state = PLAN.hear(state, 2, dict.fromkeys(range(16), 20.0))
    assert state["target"] == pytest.approx(13.0)
    state = PLAN.hear(state, 6, {0: 20.0})
    assert "total/19" not in state
    assert "total/15" in state
    state = PLAN.hear(state, 20, {})
    assert [k for k in state if "/" in k] == []
    assert state["target"] > 10.0


def test_a_slow_link_meets_the_target_without_losing_units_it_need_not() -> None:
    state = settled(40.0, 31.36, 45.0 / 1.05)
    assert PLAN.decide(state, 4)[0].fraction == 0.75
    padded = Controller(COSTS, overhead=0.0)
    state = settled(40.0, 31.36, 45.0 / 1.05, padded)
    assert padded.decide(state, 4)[0].fraction == 0.5
