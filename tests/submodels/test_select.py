import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.errors import ConfigError, SubmodelError, UnknownNameError
from paceline.submodels.scores import unknown
from paceline.submodels.select import RULES, Rank, Threshold, explore, next_threshold, rule, select

U1 = {"0": torch.tensor([0.03, 0.10, 0.02, 0.30])}
NAN = float("nan")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(scores: list[float], count: int, by: object, previous: list[int] | None = None, seed: int = 0) -> list[int]:
    before = None if previous is None else {"a": torch.tensor(previous)}
    return select({"a": torch.tensor(scores)}, {"a": count}, rng(seed), before, by=by)["a"].tolist()  # type: ignore[arg-type]


def test_u1_rank_and_threshold_keep_1_and_3() -> None:
    for by in ("rank", Threshold(0.0, step=0.005), Threshold(0.03), Threshold(None, step=0.01)):
        assert select(U1, {"0": 2}, rng(), by=by)["0"].tolist() == [1, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.data(), st.integers(0, 999))
def test_every_rule_keeps_the_count_in_order(scores: list[float], data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, len(scores)))
    previous = torch.randperm(len(scores), generator=rng(seed))[:count].tolist()
    for name in RULES:
        options = {"step": 0.1} if name == "threshold" else {}
        kept = one(scores, count, rule(name, **options), previous, seed)
        assert len(kept) == count
        assert kept == sorted(set(kept))
        assert kept == one(scores, count, rule(name, **options), previous, seed)
        back = explore({"a": torch.tensor(kept)}, {"a": torch.tensor(scores)}, 5, rng(seed))["a"].tolist()
        assert len(set(back)) == count


def test_ordered_keeps_the_first_and_random_draws_afresh() -> None:
    assert one([0.9, 0.1, 0.5, 0.2], 3, "ordered") == [0, 1, 2]
    draws = {tuple(one([0.0] * 10, 5, "random", seed=s)) for s in range(20)}
    assert len(draws) > 10


def test_rank_breaks_ties_by_last_time_then_by_index() -> None:
    assert one([0.5] * 4, 2, "rank") == [0, 1]
    assert one([0.5, 0.5 + 1e-12, 0.5, 0.5], 2, "rank", previous=[1, 3]) == [1, 3]
    assert one([0.5, 0.1, 0.5, 0.9], 2, "rank", previous=[1, 2, 3]) == [2, 3]
    assert one([0.5, 0.5, 0.5], 2, Rank(tolerance=0.0), previous=[1, 2]) == [1, 2]


def test_unknown_units_are_ranked_at_random() -> None:
    draws = {tuple(one([NAN] * 6, 3, "rank", seed=s)) for s in range(20)}
    assert len(draws) > 5
    mixed = [one([0.0, 1.0, NAN, 0.0, 1.0, NAN], 3, "rank", seed=s) for s in range(30)]
    assert all({1, 4} & set(kept) for kept in mixed)
    assert any(2 in kept for kept in mixed)
    assert any(2 not in kept for kept in mixed)
    assert select(unknown({"a": 4}), {"a": 2}, rng())["a"].shape == (2,)


def test_threshold_prefers_units_dropped_before_then_those_that_fit() -> None:
    scores = [0.1, 0.1, 0.1, 0.9, 0.9]
    for seed in range(10):
        assert one(scores, 4, Threshold(0.2), previous=[0, 1, 3, 4], seed=seed) == [0, 1, 3, 4]
        kept = one(scores, 3, Threshold(0.2), previous=[0, 1, 3, 4], seed=seed)
        assert 2 not in kept
        assert {3, 4} <= set(kept)
        assert len(set(one(scores, 1, Threshold(0.2), seed=seed)) & {3, 4}) == 1
    firsts = {tuple(one(scores, 4, Threshold(0.2), seed=s)) for s in range(30)}
    assert len(firsts) == 3


def test_threshold_by_group_and_its_growth() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([5.0, 4.0, 9.0])}
    kept = select(scores, {"a": 2, "b": 1}, rng(), by=Threshold({"a": 0.5, "b": 4.0}, step=0.7))
    assert kept["a"].tolist() == [1, 2]
    assert kept["b"].tolist() == [2]
    at, steps = 1.5, 0
    while (new := next_threshold(at, torch.tensor([1.6, 1.8, 2.2]), 2, 0.2)) != at:
        at, steps = new, steps + 1
    assert steps == 2


def test_invariant_drops_what_the_server_found_steady() -> None:
    steady = torch.tensor([False, True, True, False, False])
    for seed in range(5):
        kept = select({"a": ~steady}, {"a": 3}, rng(seed), by="invariant")["a"].tolist()
        assert kept == [0, 3, 4]
        assert len(select({"a": ~steady}, {"a": 2}, rng(seed), by="invariant")["a"]) == 2


def test_explore_swaps_a_tenth_every_few_rounds() -> None:
    scores, kept = {"a": torch.arange(40.0)}, {"a": torch.arange(20, 40)}
    assert explore(kept, scores, 4, rng())["a"].tolist() == kept["a"].tolist()
    out = explore(kept, scores, 5, rng())["a"]
    assert len(out) == 20
    assert (out < 20).sum() == 2
    assert {20, 21}.isdisjoint(out.tolist())
    everything = explore({"a": torch.arange(40)}, scores, 5, rng())["a"]
    assert len(everything) == 40
    assert explore(kept, scores, 5, rng(), every=0) == kept


def test_what_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean random"):
        rule("randon")
    with pytest.raises(ConfigError, match="rank"):
        rule("rank", steps=3)
    with pytest.raises(SubmodelError, match="cannot retain 5"):
        one([1.0, 2.0], 5, "rank")
    with pytest.raises(SubmodelError, match="the scores of group"):
        select({}, {"a": 1}, rng())


@pytest.mark.parametrize("by", ["random", "rank", Threshold(0.4), Threshold(None, step=0.1), "invariant"])
def test_draws_come_from_the_given_generator_alone(by: object) -> None:
    """Known, tied and unknown scores; whatever the state of torch's own generator, and another seed gives other draws."""
    for scores in ([0.5] * 12, [NAN] * 12, [0.1, 0.9, NAN] * 4):
        found = []
        for seed in (0, 0, 1, 2, 3, 4):
            torch.manual_seed(len(found))
            found.append(one(scores, 5, by, previous=[0, 1, 2, 3, 4], seed=seed))
            units, plain = {"a": torch.tensor(found[-1])}, {"a": torch.arange(12.0)}
            torch.manual_seed(len(found) + 100)
            back = [explore(units, plain, 5, rng(seed), share=0.5)["a"].tolist() for _ in range(2)]
            assert back[0] == back[1]
        assert found[0] == found[1]


def test_all_of_a_class_of_scores_are_taken_before_the_next() -> None:
    """Threshold: dropped before and below; below; the rest. The edge itself is below."""
    scores, step = [0.125, 0.125, 0.25, 0.25, 0.26, 0.9], Threshold(0.25, tolerance=0.0)
    for seed in range(12):
        assert one(scores, 5, step, previous=[0, 2, 3, 4, 5], seed=seed) == [0, 2, 3, 4, 5]
        assert {4, 5} <= set(one(scores, 3, step, previous=[0, 2, 3, 4, 5], seed=seed))
        assert one(scores, 2, step, previous=[0, 2, 3, 4, 5], seed=seed) == [4, 5]
        assert {4, 5} > set(one(scores, 1, step, seed=seed))
    exact = {"a": torch.tensor([0.0, 0.25, 0.5, 0.75])}
    for count, kept in ((3, [1, 2, 3]), (2, [2, 3]), (1, [3])):  # steps of 1/4 reach each edge exactly
        assert select(exact, {"a": count}, rng(), by=Threshold(0.0, step=0.25, tolerance=0.0))["a"].tolist() == kept


@pytest.mark.parametrize(("number", "threshold", "after"), [(2, 0.3, 0.3), (3, 0.3, 0.4), (2, 0.299, 0.399), (0, 0.0, 0.0)])
def test_the_next_threshold(number: int, threshold: float, after: float) -> None:
    scores = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    assert next_threshold(threshold, scores, number, 0.1) == pytest.approx(after)


@pytest.mark.parametrize(
    ("dropped", "share", "restored"), [(10, 0.1, 1), (11, 0.1, 2), (20, 0.25, 5), (3, 0.0, 0), (30, 1.0, 10), (1, 0.01, 1)]
)
def test_how_many_units_come_back(dropped: int, share: float, restored: int) -> None:
    """Rounded up, and no more than are kept."""
    kept = {"a": torch.arange(dropped, dropped + 10)}
    scores = {"a": torch.cat([torch.zeros(dropped), torch.arange(10.0).flip(0)])}
    out = explore(kept, scores, 10, rng(), share=share)["a"]
    assert int((out < dropped).sum()) == restored
    assert out[out >= dropped].tolist() == list(range(dropped, dropped + 10 - restored))  # the lowest scores leave


def test_unknown_units_leave_last() -> None:
    kept, scores = {"a": torch.tensor([0, 1, 2])}, {"a": torch.tensor([NAN, 5.0, 7.0, 0.0])}
    assert explore(kept, scores, 5, rng(), share=1.0)["a"].tolist() == [0, 2, 3]


def test_rank_within_its_tolerance() -> None:
    """Scores are tied within t (1 + |score|), and the first of them are kept."""
    for size in (0.0, 100.0):
        near, far = size + 0.9e-3 * (1 + size), size + 1.2e-3 * (1 + size)
        assert one([near, size, 1e6], 2, Rank(tolerance=1e-3)) == [0, 2]
        assert one([size, near, 1e6], 2, Rank(tolerance=1e-3)) == [0, 2]
        assert one([size, far, 1e6], 2, Rank(tolerance=1e-3)) == [1, 2]


def test_a_threshold_that_is_high_enough_stays() -> None:
    """Unit 1, which was dropped before, still fits."""
    assert one([0.1, 0.4, 0.9], 2, Threshold(0.45, step=0.1), previous=[0, 2]) == [0, 2]
    assert one([0.1, 0.4, 0.9], 2, Threshold(1.45, step=0.1), previous=[0, 1]) == [0, 1]


def test_a_threshold_knows_nothing_of_unknown_units() -> None:
    """They do not qualify, and an edge that is met needs no further step."""
    for seed in range(12):
        assert 0 in one([NAN, 0.1, 0.2], 2, Threshold(0.3), seed=seed)
        assert one([0.0, 0.25, 0.5, 0.75], 3, Threshold(0.0, step=0.25), seed=seed) == [1, 2, 3]
