import numpy as np
import pytest

from paceline.core.errors import ConfigError
from paceline.submodels.policy import (
    CostModel,
    choose,
    compute_fraction,
    cutoff,
    find_stragglers,
    fluid_fraction,
    fluid_full_time,
    network_fraction,
    steps_within,
)

COSTS = {1.0: 1.0, 0.95: 0.885, 0.85: 0.715, 0.75: 0.567, 0.65: 0.413, 0.5: 0.256}
SHARES = {1.0: 1.0, 0.95: 0.896, 0.85: 0.717, 0.75: 0.563, 0.65: 0.420, 0.5: 0.251}
UPLOAD = 5.88e6 * 8 / 1.5e6


def test_u5_fluid_ratio() -> None:
    assert [fluid_fraction(r) for r in (0.92, 0.85, 0.75, 0.62, 0.4)] == [0.95, 0.85, 0.75, 0.65, 0.5]
    assert [fluid_fraction(r) for r in (0.9, 0.8, 0.7, 0.6)] == [0.95, 0.85, 0.75, 0.65]
    assert fluid_full_time(30.0, 0.5) == pytest.approx(69.0)


def test_u5_timing_table() -> None:
    model = CostModel(40.0, 1.0)
    padded = {p: model.seconds(COSTS[p]) + UPLOAD for p in COSTS}
    segmented = {p: model.seconds(COSTS[p]) + UPLOAD * SHARES[p] for p in COSTS}
    for p, clip, segagg in [
        (1.0, 72.4, 72.4),
        (0.85, 61.0, 52.1),
        (0.75, 55.0, 41.3),
        (0.65, 48.9, 30.7),
        (0.5, 42.6, 19.1),
    ]:
        assert padded[p] == pytest.approx(clip, abs=0.06)
        assert segmented[p] == pytest.approx(segagg, abs=0.06)
    assert network_fraction(model, COSTS, UPLOAD, 45.0) == 0.5
    assert network_fraction(model, COSTS, UPLOAD, 45.0, shares=SHARES) == 0.75
    assert network_fraction(model, COSTS, UPLOAD, 10.0) == 0.5  # cannot be rescued: the smallest


def test_compute_fraction() -> None:
    model = CostModel(40.0, 1.0)
    assert compute_fraction(model, COSTS, 41.0) == 1.0
    assert compute_fraction(model, COSTS, 40.9) == 0.95
    assert compute_fraction(model, COSTS, 24.0) == 0.75
    assert compute_fraction(model, COSTS, 1.0) == 0.5
    assert compute_fraction(model, COSTS, 1.0, least=0.65) == 0.65
    with pytest.raises(ConfigError, match="at least"):
        choose(lambda p: p, 1.0, (0.25,), least=0.5)


def test_stragglers_of_twenty() -> None:
    times = {u: (10.0 + 0.01 * u, 5.0) for u in range(16)}
    times |= {16: (13.0, 5.0), 17: (18.0, 5.0), 18: (25.0, 40.0), 19: (10.2, 8.0)}
    found = find_stragglers(times)
    assert found.compute == {16, 17, 18}
    assert found.network == {18, 19}
    assert found.compute_target == pytest.approx(10.15)
    assert found.network_target == 5.0
    assert found.total_target == pytest.approx(15.15)


def test_equals_have_no_stragglers_and_a_liar_moves_one_rank() -> None:
    assert not find_stragglers({u: (10.0 + u / 100, 1.0) for u in range(20)}).compute
    times = {u: (10.0, 1.0) for u in range(16)} | {u: (20.0, 1.0) for u in range(16, 20)}
    assert find_stragglers(times | {0: (1e9, 1.0)}).compute_target == 20.0
    assert find_stragglers(times | {0: (float("inf"), 1.0), 16: (float("nan"), 1.0)}).compute_target == 20.0


def test_cutoff() -> None:
    assert cutoff([3.0]) == 3.0
    assert cutoff([1.0, 9.0]) == 1.0
    assert cutoff(range(1, 11), 0.3) == 7
    assert cutoff([1.0, 2.0], 0.0) == 2.0
    for times, share in (([], 0.2), ([float("nan")], 0.2), ([1.0], 1.0), ([1.0, 2.0], -0.01), ([1.0, 2.0], float("nan"))):
        with pytest.raises(ConfigError):
            cutoff(times, share)


def test_cost_model_fit() -> None:
    exact = CostModel.fit([(c, 40.0 * c + 3.0) for c in COSTS.values()])
    assert exact.a == pytest.approx(40.0)
    assert exact.s == pytest.approx(3.0)
    once = CostModel.fit([(0.5, 20.0), (0.5, 22.0)])
    assert (once.a, once.s) == (pytest.approx(42.0), 0.0)
    below = CostModel.fit([(0.5, 1.0), (1.0, 4.0)])
    assert below.s == 0.0
    assert below.a == pytest.approx((0.5 + 4.0) / 1.25)
    upside_down = CostModel.fit([(0.5, 4.0), (1.0, 2.0)])
    assert (upside_down.a, upside_down.s) == (0.0, 3.0)
    with pytest.raises(ConfigError):
        CostModel.fit([])


def test_steps_within_a_budget() -> None:
    assert steps_within(100, 20, 100.0, 50.0) == 100  # too early to judge
    assert steps_within(100, 30, 15.0, 50.0) == 100  # on time
    assert steps_within(100, 30, 30.0, 50.0) == 50
    assert steps_within(100, 60, 60.0, 50.0) == 60  # no step is undone


@pytest.mark.parametrize(
    ("times", "share", "expected"),
    [
        ([0.0, 0.0, 5.0], 0.34, 0.0),
        ([0.0], 0.5, 0.0),
        ([3.0, -1.0, 2.0, 1.0], 0.3, 2.0),
        ([3.0, -0.5, -0.01], 0.5, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.2, 4.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.39, 4.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.4, 3.0),
        ([1.0, 2.0, 3.0], 0.01, 2.0),
        ([1.0, 2.0, 3.0], 0.0, 3.0),
        ([float(t) for t in range(10)], 0.7, 2.0),
        ([float(t) for t in range(10)], 0.99, 0.0),
    ],
)
def test_cutoffs_by_hand(times: list[float], share: float, expected: float) -> None:
    assert cutoff(times, share) == expected
    assert cutoff(times[::-1], share) == expected


def test_a_straggler_exceeds_the_guard() -> None:
    """1.1 times T* is not slow yet; compute, transfer and their sum have targets of their own."""
    times = {0: (10.0, 1.0), 1: (10.0, 3.0), 2: (9.0, 2.0), 3: (11.0, 2.0), 4: (11.01, 3.4)}
    found = find_stragglers(times, 0.4)
    assert (found.compute_target, found.network_target, found.total_target) == (10.0, 2.0, 13.0 - 0.0)
    assert found.compute == {4}
    assert found.network == {1, 4}
    assert find_stragglers(times, 0.4, guard=1.0).compute == {3, 4}
    assert find_stragglers(times, 0.2).compute_target == 11.0


def test_the_tiers_of_a_ratio_end_where_they_say() -> None:
    for edge, above, below in ((0.9, 0.95, 0.85), (0.8, 0.85, 0.75), (0.7, 0.75, 0.65), (0.6, 0.65, 0.5)):
        assert fluid_fraction(edge - 1e-10) == fluid_fraction(edge - 1e-9) == above
        assert fluid_fraction(edge - 1e-6) == below
    assert fluid_fraction(1.0) == fluid_fraction(5.0) == 0.95
    assert fluid_fraction(0.0) == 0.5


def test_choices_at_the_target() -> None:
    """A tier that needs exactly the time fits, and so does the least one that is allowed."""
    tiers = (0.5, 1.0, 0.75)
    assert [choose(lambda p: 8 * p, t, tiers) for t in (8.0, 7.99, 6.0, 5.99, 4.0, 1.0)] == [1.0, 0.75, 0.75, 0.5, 0.5, 0.5]
    assert choose(lambda p: 8 * p, 1.0, tiers, least=0.75) == 0.75
    assert choose(lambda p: 8 * p, 6.0 - 3e-9, tiers) == 0.75
    model = CostModel(10.0, 1.0)
    assert compute_fraction(model, {1.0: 1.0, 0.5: 0.3}, 11.0) == 1.0
    assert network_fraction(model, {1.0: 1.0, 0.5: 0.3}, 2.0, 13.0) == 1.0
    assert network_fraction(model, {1.0: 1.0, 0.5: 0.3}, 2.0, 12.9) == 0.5
    assert network_fraction(model, {1.0: 1.0, 0.75: 0.6, 0.5: 0.3}, 8.0, 13.0, shares={1.0: 1.0, 0.75: 0.75, 0.5: 0.5}) == 0.75


def test_a_line_through_the_measurements() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        c = rng.uniform(0.2, 1.0, 6)
        t = rng.uniform(1, 9) * c + rng.uniform(-2, 4) + rng.normal(0, 0.3, 6)
        a, s = np.polyfit(c, t, 1)
        if a < 0:
            a, s = 0.0, t.mean()
        elif s < 0:
            a, s = (c @ t) / (c @ c), 0.0
        fitted = CostModel.fit(list(zip(c.tolist(), t.tolist(), strict=True)))
        assert (fitted.a, fitted.s) == (pytest.approx(a), pytest.approx(s))
    flat = CostModel.fit([(0.5, 3.0), (1.0, 3.0)])
    assert (flat.a, flat.s) == (0.0, 3.0)
    through = CostModel.fit([(0.5, 2.0), (1.0, 4.0)])
    assert (through.a, through.s) == (4.0, 0.0)
    gentle = CostModel.fit([(0.5, 1.25), (1.0, 1.5)])
    assert (gentle.a, gentle.s) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("steps", "done", "elapsed", "budget", "after", "left"),
    [
        (10, 2, 9.0, 10.0, 0.3, 10),  # 3 steps are needed to judge
        (10, 3, 9.0, 10.0, 0.3, 3),
        (10, 3, 3.0, 10.0, 0.3, 10),  # exactly on time
        (10, 3, 3.3, 10.0, 0.3, 9),
        (10, 5, 10.0, 8.0, 0.3, 5),
        (10, 1, 2.0, 10.0, 0.0, 5),
        (10, 0, 0.0, 10.0, 0.0, 10),
        (7, 3, 6.0, 12.0, 0.4, 6),
    ],
)
def test_steps_that_fit(steps: int, done: int, elapsed: float, budget: float, after: float, left: int) -> None:
    assert steps_within(steps, done, elapsed, budget, after) == left


def test_no_tier_below_a_half_is_taken_unless_asked_for() -> None:
    costs, model = {1.0: 1.0, 0.5: 0.5, 0.25: 0.25}, CostModel(10.0)
    assert compute_fraction(model, costs, 1.0) == network_fraction(model, costs, 1.0, 1.0) == 0.5
    assert choose(lambda p: 10 * p, 1.0, (1.0, 0.5, 0.25)) == 0.5
    assert compute_fraction(model, costs, 1.0, 0.2) == network_fraction(model, costs, 1.0, 1.0, 0.2) == 0.25


def test_who_is_as_slow_as_the_guard_allows_is_no_straggler() -> None:
    """1.1 times T* = 2 is 2.2, in floats too."""
    for own, slow in ((2.2, set()), (2.21, {2})):
        assert find_stragglers({0: (2.0, 5.0), 1: (2.0, 5.0), 2: (own, 5.0)}, 0.34).compute == slow
        assert find_stragglers({0: (5.0, 2.0), 1: (5.0, 2.0), 2: (5.0, own)}, 0.34).network == slow
