"""The search is equal for both sides, the verdict follows the interval, and a stopped study is resumed without repeating a run."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import effects
from effect_study.judge import judge
from effect_study.rows import SEARCH_SEEDS, SEEDS, Row, Side
from effect_study.runs import Book, Run, measure
from effect_study.table import line, result
from effect_study.tuner import search_runs, winner

CONFIG = {"task": "digits", "clients": 4, "cohort": 4, "rounds": 1, "eval_every": 1}
RATES = [0.01, 0.02, 0.05, 0.1]


def row(**more):
    sides = {"method": Side("fedprox", {"lr": RATES, "mu": [0.01, 0.1]}), "baseline": Side("fedavg", {"lr": RATES})}
    return Row(**{"name": "optimisation/some", "claim": "it helps", "config": CONFIG, "trials": 4, **sides, **more})


class Recorded(Book):
    """A book whose figures are computed from the setting, so that no training is needed."""

    def __init__(self, path, figure):
        super().__init__(path, "now")
        self.figure = figure

    def get(self, run, metric):
        value = self.figure(run)
        return {"figures": {"accuracy": value}, "seconds": 1.0, "date": "2026-01-02", "source": "now"}


# judge: five pairs with differences of mean 0.03 and standard deviation 0.01: t(4, 0.975) = 2.776, half width 0.01242.
GAPS = [0.02, 0.025, 0.03, 0.035, 0.04]
HALF = 2.7764451 * 0.0079056942 / 5**0.5


def test_the_interval_is_students_t_of_paired_differences():
    base = [0.1, 0.9, 0.4, 0.6, 0.5]  # unpaired, their spread would hide the effect
    got = judge(row(margin=0.005), [b + g for b, g in zip(base, GAPS, strict=True)], base)
    assert got.effect == pytest.approx(0.03)
    assert (got.low, got.high) == (pytest.approx(0.03 - HALF), pytest.approx(0.03 + HALF))
    assert got.verdict == "holds"


@pytest.mark.parametrize(
    ("margin", "at_least", "sign", "verdict", "why"),
    [
        (0.02, False, 1, "holds", ""),
        (0.021, False, 1, "does not hold", "undecided"),
        (0.039, False, 1, "does not hold", "undecided"),
        (0.04, False, 1, "tie", ""),
        (0.04, False, -1, "tie", ""),
        (0.005, False, -1, "does not hold", "worse"),
        (0.04, True, -1, "holds", ""),
        (0.039, True, -1, "does not hold", "undecided"),
    ],
)
def test_the_verdict_needs_the_whole_interval(margin, at_least, sign, verdict, why):
    got = judge(row(margin=margin, at_least=at_least), [0.5 + sign * g for g in GAPS], [0.5] * 5)
    assert (got.verdict, got.why) == (verdict, why)


def test_lower_is_better_turns_the_sign():
    assert judge(row(better="lower"), [0.5 - g for g in GAPS], [0.5] * 5).verdict == "holds"
    assert judge(row(better="lower"), [0.5 + g for g in GAPS], [0.5] * 5).why == "worse"


def test_ratios_are_compared_as_logarithms():
    got = judge(row(better="lower", ratio=True, margin=0.0), [1, 10, 100, 1000, 10000.0], [2, 20, 200, 2000, 20000.0])
    assert math.exp(got.effect) == pytest.approx(2.0)
    assert got.verdict == "holds"


@pytest.mark.parametrize(
    ("by", "sign", "verdict", "why"),
    [
        (0.02, 1, "holds", ""),
        (0.021, 1, "does not hold", "undecided"),
        (0.039, 1, "does not hold", "undecided"),
        (0.04, 1, "does not hold", "smaller"),
        (0.02, -1, "does not hold", "worse"),
    ],
)
def test_a_claimed_size_has_to_be_exceeded_by_the_whole_interval(by, sign, verdict, why):
    got = judge(row(by=by), [0.5 + sign * g for g in GAPS], [0.5] * 5)
    assert (got.verdict, got.why) == (verdict, why)
    assert got.effect == pytest.approx(sign * 0.03)


@pytest.mark.parametrize(("by", "verdict", "why"), [(1.9, "holds", ""), (2.1, "does not hold", "smaller")])
def test_the_claimed_size_of_a_ratio_is_a_factor(by, verdict, why):
    got = judge(row(better="lower", ratio=True, margin=0.0, by=by), [1, 10, 100, 1000, 10000.0], [2, 20, 200, 2000, 20000.0])
    assert (got.verdict, got.why) == (verdict, why)


@pytest.mark.parametrize("side", [0, 1])
def test_a_missing_figure_proves_nothing(side):
    figures = [[0.9] * 5, [0.1] * 5]
    figures[side][2] = math.nan
    got = judge(row(), *figures)
    assert (got.verdict, got.why) == ("does not hold", "missing")


def test_fewer_than_five_seeds_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        judge(row(), [1.0] * 4, [0.0] * 4)


def test_both_sides_get_the_same_number_of_trials_with_seeds_of_their_own():
    study = row()
    counts = {}
    for name, side in study.sides.items():
        runs = list(search_runs(study, side))
        counts[name] = len(runs)
        assert len({json.dumps(point) for point, _ in runs}) == len(runs)
        assert all([run.seed for run in found] == list(SEARCH_SEEDS) for _, found in runs)
    assert counts == {"method": 4, "baseline": 4}
    assert not set(SEARCH_SEEDS) & set(SEEDS)


def test_a_smaller_search_is_refused():
    with pytest.raises(ValueError, match="4 settings for 8 trials"):
        list(search_runs(row(trials=8), Side("fedavg", {"lr": RATES})))


def test_the_best_mean_over_the_search_seeds_wins(tmp_path):
    """0.1 is best with one seed, 0.02 on average, and 0.05 has no figure with the other seed."""
    table = {0.01: (0.1, 0.1), 0.02: (0.6, 0.6), 0.05: (0.99, math.nan), 0.1: (0.9, 0.2)}
    book = Recorded(tmp_path / "b", lambda run: table[run.trial.options["lr"]][SEARCH_SEEDS.index(run.seed)])
    best, tried = winner(row(), Side("fedavg", {"lr": RATES}), book)
    assert best == {"lr": 0.02}
    assert [entry["setting"]["lr"] for entry in tried] == RATES
    low, _ = winner(row(better="lower"), Side("fedavg", {"lr": RATES}), book)
    assert low == {"lr": 0.01}


def test_the_criterion_of_the_search_may_differ_from_the_figure(tmp_path):
    """The rate that forgets least learns nothing: the search by accuracy selects another one."""

    class Two(Book):
        def get(self, run, metric):
            rate = run.trial.options["lr"]
            return {"figures": {"lost": rate, "accuracy": rate if rate < 0.1 else 0.01}}

    def lost(summary):
        raise AssertionError

    side, book = Side("fedavg", {"lr": RATES}), Two(tmp_path / "b", "now")
    assert winner(row(better="lower", metric=lost), side, book)[0] == {"lr": 0.01}
    best, tried = winner(row(better="lower", metric=lost, criterion="accuracy"), side, book)
    assert best == {"lr": 0.05}
    assert [entry["mean"] for entry in tried] == [0.01, 0.02, 0.05, 0.01]


def test_a_study_searches_by_the_criterion_and_reports_the_figure(tmp_path):
    study = row(metric="loss", criterion="accuracy", trials=2)
    assert {metric for _, metric in effects.searches({"a": study})} == {"accuracy"}
    wanted = list(effects.finals({"a": study}, Recorded(tmp_path / "b", lambda run: 0.5)))
    assert {metric for _, metric in wanted} == {"loss"}
    assert len(wanted) == 2 * len(SEEDS)


def test_a_constant_is_a_baseline_without_runs(tmp_path):
    study = row(baseline=0.6, margin=0.0)
    assert list(study.sides) == ["method"]
    book = Recorded(tmp_path / "b", lambda run: 0.7 if run.seed else 0.5)
    got = result(study, book)
    assert (got["baseline"], got["versus"], got["baseline_search"]["trials"]) == ([0.6] * 5, "0.6", 0)
    assert (got["effect"], got["verdict"]) == (pytest.approx(0.06), "does not hold")
    assert "0.6: constant" in line(study, got)
    assert result(row(baseline=0.4, margin=0.0), book)["verdict"] == "holds"


def test_a_note_explains_a_failure_and_its_history_is_always_told(tmp_path):
    book = Recorded(tmp_path / "b", lambda run: 0.7 if run.seed else 0.5)
    for baseline, explained in ((0.6, True), (0.4, False)):
        study = row(baseline=baseline, margin=0.0, note="Few rounds.", history="Revised: more rounds.")
        shown = line(study, result(study, book))
        assert ("Few rounds." in shown) == explained
        assert "Revised: more rounds. |" in shown


def test_a_row_stores_grid_winner_and_edges(tmp_path):
    def figure(run):
        return 0.9 if run.trial.method == "fedprox" and run.trial.options["lr"] == 0.1 else 0.5

    got = result(row(method=Side("fedprox", {"lr": RATES, "mu": [0.01]})), Recorded(tmp_path / "b", figure))
    assert got["method_search"]["winner"] == {"lr": 0.1, "mu": 0.01}
    assert got["method_search"]["edges"] == ["lr"]
    assert (got["verdict"], got["seeds"], got["method"]) == ("holds", list(SEEDS), [0.9] * 5)


def test_the_edge_is_that_of_the_values_drawn():
    """Eight of sixteen settings leave out the largest rate: the largest that was tried is the edge."""
    side = Side("fedprox", {"lr": RATES, "mu": [0.1, 1.0, 10.0, 100.0]})
    assert {point["lr"] for point in side.points(8)} == {0.01, 0.02, 0.05}
    assert side.at_edge({"lr": 0.05, "mu": 1.0}, 8) == ["lr"]
    assert side.at_edge({"lr": 0.02, "mu": 1.0}, 8) == []


def test_only_the_baseline_gets_a_bound(tmp_path):
    def figure(run):
        return math.nan

    class Bounded(Recorded):
        def get(self, run, metric):
            got = super().get(run, metric)
            return {**got, "figures": {"accuracy": math.nan, "seconds": 8.0}}

    got = result(row(trials=1, bound="seconds"), Bounded(tmp_path / "b", figure))
    assert got["baseline"] == [8.0] * 5
    assert all(map(math.isnan, got["method"]))
    assert got["why"] == "missing"


def test_a_stopped_study_goes_on_with_the_runs_that_are_missing(tmp_path):
    """A half-written last line, a run of another source, and a run with another metric are measured again; nothing else is."""
    study, side = row(), Side("fedavg", {"lr": RATES})
    runs = [Run(study.trial(side, {"lr": rate}), 1000) for rate in RATES[:3]]
    path = tmp_path / "book.jsonl"
    assert list(Book(path, "a").fill([(run, "accuracy") for run in runs[:2]], 1)) == [1, 0]
    path.write_text(path.read_text() + '{"key": "cut of')
    book = Book(path, "a")
    first = book.get(runs[0], "accuracy")
    assert first == Book(path, "b", reuse=True).get(runs[0], "accuracy")
    assert Book(path, "b").get(runs[0], "accuracy") is None
    assert Book(path, "b").ignored == 2
    assert list(Book(path, "a").fill([(run, "accuracy") for run in runs], 1)) == [0]
    assert list(Book(path, "a").fill([(runs[0], "loss")], 1)) == [0]
    assert set(Book(path, "a").get(runs[0], "accuracy")["figures"]) == {"accuracy", "loss"}


def test_measuring_twice_gives_the_same_digits_and_divergence_gives_none():
    study = row()
    run = Run(study.trial(Side("fedavg"), {"lr": 0.05}), 3)
    assert measure(run, ["accuracy"])["figures"] == measure(run, ["accuracy"])["figures"]
    wild = Run(study.trial(Side("fedavg"), {"lr": 1e6}), 3)
    assert math.isnan(measure(wild, ["accuracy"])["figures"]["accuracy"])
