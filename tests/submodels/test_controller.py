import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from paceline.core.errors import ConfigError
from paceline.submodels.controller import Controller, Decision, State
from paceline.submodels.pacing import pace
from paceline.submodels.policy import cutoff
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
    assert PLAN.decide(state, 3)[0] == Decision(0.5, stretched=True)


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


def test_nobody_sits_out_more_than_three_rounds_and_all_return_in_the_same() -> None:
    state = settled(400.0, 0.0, 24.0) | {"own": 400.0, "cutoff": 24.0}
    seen = []
    for r in range(4, 14):
        if PLAN.sits_out(state, r):
            seen.append(None)
            continue
        decision, state = PLAN.decide(state, r)
        state = PLAN.observe(state, r, decision.fraction, 400 * COSTS[0.5], 0.0)
        seen.append(decision)
    out, late = None, Decision(0.5, stretched=True)
    assert seen == [late, out, out, out, late, out, out, out, late, out]
    assert [r for r in range(1, 14) if PLAN.is_open(r)] == [4, 8, 12]


def test_who_was_not_asked_for_three_rounds_takes_part_in_any() -> None:
    state = settled(400.0, 0.0, 24.0, rounds=5) | {"own": 400.0, "cutoff": 24.0}
    assert [PLAN.sits_out(state, r) for r in (6, 7, 9, 10)] == [True, True, False, False]


def test_if_all_slow_down_nobody_sits_out() -> None:
    """The client is too slow for the smoothed target, but was not among the slowest when it last heard of the others."""
    state = settled(400.0, 0.0, 24.0) | {"own": 20.0, "cutoff": 24.0}
    assert not PLAN.sits_out(state, 5)
    assert PLAN.decide(state, 5)[0] == Decision(0.5, stretched=True)
    assert PLAN.sits_out(state | {"own": 24.1}, 5)
    assert not PLAN.sits_out(state | {"own": 24.1, "target": 400.0}, 5)  # it has recovered
    assert not PLAN.sits_out(state | {"own": 24.1, "seen": 1}, 5)


def test_at_most_the_slowest_share_sits_out() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        totals = dict(enumerate((rng.pareto(0.7, 20) * 30 + 5).tolist()))
        out = 0
        for me, total in totals.items():
            state = PLAN.hear(settled(total, 0.0, 0.0), 3, {u: t for u, t in totals.items() if u != me})
            out += PLAN.sits_out(state | {"target": 1.0}, 5)
        assert out == 4


def test_a_recovered_client_is_back_at_once() -> None:
    """After three missed rounds a measurement is all that counts; after two it is one of many."""
    state = settled(400.0, 0.0, 24.0) | {"compute_dev": 40.0, "own": 400.0, "cutoff": 24.0}
    back, soon = PLAN.observe(state, 7, 0.5, 20.0 * COSTS[0.5], 0.0), PLAN.observe(state, 6, 0.5, 20.0 * COSTS[0.5], 0.0)
    assert (back["compute"], back["compute_dev"], back["seen"]) == (pytest.approx(20.0), 0.0, 4)
    assert soon["compute"] == pytest.approx(305.0)
    assert soon["compute_dev"] == pytest.approx(0.75 * 1.2 * 40 + 0.25 * 380)
    assert not PLAN.sits_out(back, 9)
    assert PLAN.sits_out(soon, 9)


def test_a_training_that_ended_early_measures_the_whole() -> None:
    state = PLAN.observe(settled(40.0, 1.0, 0.0), 4, 0.5, 20.0 * COSTS[0.5], SHARES[0.5], done=0.5)
    assert (state["compute"], state["transfer"]) == pytest.approx((40.0, 1.0))


def test_a_client_observes_its_last_training_as_a_whole_one_unless_it_noted_a_part() -> None:
    def paced(**memory: object) -> State:
        return pace(SimpleNamespace(memory=memory, times=(20.0, 1.0), round=2), PLAN)

    assert paced(fraction=0.5, trained=1) == PLAN.observe(PLAN.start(), 1, 0.5, 20.0, 1.0, done=1.0)
    assert paced(fraction=0.5, trained=1, done=0.5) == PLAN.observe(PLAN.start(), 1, 0.5, 20.0, 1.0, done=0.5)
    assert paced() == paced(fraction=0.5) == paced(trained=1) == PLAN.start()


def test_the_budget_of_a_training_is_what_the_transfers_leave() -> None:
    state = settled(40.0, 30.0, 60.0)
    assert PLAN.budget(state, Decision(0.5)) == pytest.approx(63.0 - 30.0 * SHARES[0.5])
    assert Controller(COSTS).budget(state, Decision(0.5)) == pytest.approx(33.0)
    assert PLAN.budget(state, Decision(0.5, stretched=True)) == math.inf
    assert PLAN.budget(state | {"seen": 1}, Decision(1.0)) == PLAN.budget(state | {"target": 0.0}, Decision(1.0)) == math.inf


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
    assert state["target"] == state["cutoff"] == 10.0
    state = PLAN.hear(state, 2, dict.fromkeys(range(16), 20.0))
    assert state["target"] == pytest.approx(13.0)
    assert state["cutoff"] == 20.0
    state = PLAN.hear(state, 6, {0: 20.0})
    assert "total/19" not in state
    assert "total/15" in state
    assert PLAN.hear(state, 6, {0: 21.0}, heard=2)["heard/0"] == 2
    assert "total/0" not in PLAN.hear(state, 7, {0: 21.0}, heard=2)
    state = PLAN.hear({**state, "compute": 9.0}, 20, {})
    assert [k for k in state if "/" in k] == []
    assert (state["cutoff"], state["own"]) == (9.0, 9.0)


def test_a_slow_link_meets_the_target_without_losing_units_it_need_not() -> None:
    state = settled(40.0, 31.36, 45.0 / 1.05)
    assert PLAN.decide(state, 4)[0].fraction == 0.75
    padded = Controller(COSTS, overhead=0.0)
    state = settled(40.0, 31.36, 45.0 / 1.05, padded)
    assert padded.decide(state, 4)[0].fraction == 0.5


class Slow:
    """The controller's rules, read from its documentation, with one attribute for each estimate."""

    def __init__(self, plan: Controller) -> None:
        self.plan, self.tiers = plan, sorted(plan.costs, reverse=True)
        self.mean, self.dev = {"c": 0.0, "t": 0.0}, {"c": 0.0, "t": 0.0}
        self.seen = self.last = self.up = 0
        self.own = self.cutoff = 0.0
        self.tier, self.goal, self.target = self.tiers[0], 0.0, 0.0
        self.heard: dict[int, tuple[int, float]] = {}

    def missed(self, round: int) -> int:
        return max(0, round - self.last - 1) if self.seen else 0

    def wider(self, round: int) -> float:
        return min(2.0, 1 + self.missed(round) / 10)

    def observe(self, round: int, p: float, compute: float, transfer: float, done: float) -> None:
        sent = self.plan.shares[p] if self.plan.shares else 1.0
        full = {"c": max(compute - self.plan.overhead, 0) / self.plan.costs[p] / done, "t": transfer / sent}
        anew = not self.seen or self.missed(round) >= self.plan.most_out
        for key, value in full.items():
            if anew:
                self.mean[key], self.dev[key] = value, 0.0
                continue
            error, dev = value - self.mean[key], self.dev[key] * self.wider(round)
            self.dev[key] = dev + self.plan.beta * (abs(error) - dev)
            self.mean[key] += self.plan.alpha * error
        self.seen, self.last = self.seen + 1, round

    def hear(self, round: int, totals: dict[int, float]) -> None:
        self.heard |= {peer: (round, total) for peer, total in totals.items()}
        self.heard = {peer: (r, total) for peer, (r, total) in self.heard.items() if round - r < self.plan.window}
        self.own = self.mean["c"] + self.plan.overhead + self.mean["t"]
        self.cutoff = new = cutoff([self.own, *(total for _, total in self.heard.values())], self.plan.share)
        self.target = new if not self.target else self.target + self.plan.target_rate * (new - self.target)

    def fits(self, round: int) -> list[float]:
        def seconds(p: float) -> float:
            c, t = (self.mean[k] + 2 * self.dev[k] * self.wider(round) for k in "ct")
            return c * self.plan.costs[p] + self.plan.overhead + t * (self.plan.shares[p] if self.plan.shares else 1.0)

        return [p for p in self.tiers if seconds(p) <= self.plan.slack * self.target]

    def out(self, round: int) -> bool:
        waits = round % (self.plan.most_out + 1) == 0 or self.missed(round) >= self.plan.most_out
        ready = self.seen >= self.plan.warm_up and self.target > 0
        return ready and not waits and not self.fits(round) and self.own > self.cutoff

    def decide(self, round: int) -> Decision:
        if self.missed(round) > self.plan.forget:
            smaller = [p for p in self.tiers if p < self.tier]
            self.seen = self.up = 0
            self.tier = smaller[0] if smaller else self.tiers[-1]
        if self.seen < self.plan.warm_up or not self.target:
            return Decision(self.tier)
        fits = self.fits(round)
        if not fits:
            self.tier, self.up = self.tiers[-1], 0
            return Decision(self.tier, stretched=True)
        if fits[0] <= self.tier:
            self.tier, self.up = fits[0], 0
            return Decision(self.tier)
        self.up, self.goal = self.up + 1, min(fits[0], self.goal) if self.up else fits[0]
        if self.up >= self.plan.patience:
            self.tier, self.up = self.goal, 0
        return Decision(self.tier)


@pytest.mark.parametrize("seed", range(40))
def test_a_life_of_a_client_by_the_slow_reading(seed: int) -> None:
    """Changing speed, links and fleets, absences short and long, and clients that fit no tier."""
    rng = np.random.default_rng(seed)
    changes = {"overhead": 1.5, "shares": None, "patience": 2, "forget": 6, "most_out": 2} if seed % 2 else {"forget": 8 + seed}
    plan = Controller(COSTS, **{"shares": SHARES, **changes})
    slow, state, round, kinds = Slow(plan), plan.start(), 0, set()
    for _ in range(60):
        round += int(rng.choice([1, 1, 1, 1, 2, 4, 12]))
        if rng.random() < 0.9:
            state = plan.hear(
                state, round, totals := {int(c): float(rng.uniform(20, 60)) for c in rng.choice(9, rng.integers(0, 6))}
            )
            slow.hear(round, totals)
        assert plan.sits_out(state, round) == slow.out(round)
        if plan.sits_out(state, round):
            kinds.add(None)
            continue
        decision, state = plan.decide(state, round)
        assert decision == slow.decide(round)
        kinds.add(decision)
        if rng.random() < 0.9:
            done = float(rng.choice([1.0, 0.4]))
            scale = rng.choice([0.05, 1.0, 1.0, 2.5]) if round % 25 < 15 else 5.0
            times = float(scale * rng.uniform(15, 30)), float(scale * rng.uniform(1, 10))
            state = plan.observe(state, round, decision.fraction, *times, done=done)
            slow.observe(round, decision.fraction, *times, done=done)
            assert plan.full_total(state) == pytest.approx(slow.mean["c"] + plan.overhead + slow.mean["t"])
            for p in COSTS:
                planned = [slow.mean[k] + 2 * slow.dev[k] for k in "ct"]
                sent = plan.shares[p] if plan.shares else 1.0
                assert plan.seconds(state, p) == pytest.approx(planned[0] * COSTS[p] + plan.overhead + planned[1] * sent)
    assert len(kinds) > 2


def test_defaults_of_the_controller() -> None:
    plan = Controller({1.0: 1.0})
    assert (plan.overhead, plan.share, plan.alpha, plan.beta, plan.target_rate) == (0.0, 0.2, 0.25, 0.25, 0.3)
    assert (plan.slack, plan.patience, plan.warm_up, plan.window, plan.forget, plan.most_out) == (1.05, 3, 2, 5, 20, 3)
    assert plan.start() == {
        "seen": 0, "round": 0, "up": 0, "tier": 1.0, "compute": 0.0, "compute_dev": 0.0, "transfer": 0.0,
        "transfer_dev": 0.0, "target": 0.0, "cutoff": 0.0, "own": 0.0, "up_to": 0.0,
    }  # fmt: skip
