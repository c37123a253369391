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
    for times, share in (([], 0.2), ([float("nan")], 0.2), ([1.0], 1.0)):
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
