"""The tables of the rules of selection: equal time, the search, and what is left to run, from made-up runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paceline.run import RunConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from straggler_study import page
from straggler_study.curves import Curves, at, best_rate, equal_time, left, seconds_to
from straggler_study.tables import table
from straggler_study.workloads import RULES, WORKLOADS, Asked, fractions

BOOK = Path(__file__).parents[2] / "benchmarks" / "stragglers.jsonl"
RATES = (0.05, 0.1, 0.2)


@pytest.fixture
def three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of digits have three rounds, each with an evaluation."""
    digits = WORKLOADS["digits"]
    monkeypatch.setitem(WORKLOADS, "digits", replace(digits, config=digits.config | {"rounds": 3, "eval_every": 1}))


def run(rule: str, rate: float, seed: int, *curve: tuple[float, float]) -> dict[str, Any]:
    asked = Asked("digits", rule, 0.5, rate, seed, max(1, len(curve) // 3))
    return {"key": asked.key, "curve": [list(point) for point in curve], "total": curve[-1][0] if curve else None, "cpu": 1.0}


@pytest.fixture
def book(three_rounds: None, tmp_path: Path) -> Curves:
    """FedAvg is best in the end; at 30 s, when random dropout has ended, random dropout is."""
    lines = [
        run(rule, rate, seed, *[(t * slow, a + gain) for t, a in ((10, 0.5), (20, 0.7), (30, 0.8))])
        for rule, slow, gain in (("none", 2, 0.1), ("random", 1, 0.0))
        for rate, seed, gain in ((0.05, 1000, -0.1), (0.1, 1000, gain), (0.2, 1000, -0.2), (0.1, 0, gain), (0.1, 1, gain + 0.02))
    ]
    path = tmp_path / "book.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"key": "half')
    return Curves(path)


def test_rules_are_compared_at_the_end_of_the_fastest(book: Curves) -> None:
    rules = ["none", "random"]
    assert equal_time(book, "digits", 0.5, 0, rules) == 30
    assert at(book.get(Asked("digits", "none", 0.5, 0.1, 0)), 30) == pytest.approx(0.7)
    none = book.get(Asked("digits", "none", 0.5, 0.1, 0))
    assert at(none, 5) == 0.0
    assert at(none, 50) == pytest.approx(0.85)  # between evaluations at 40 s (0.8) and 60 s (0.9)
    assert at(none, 1e9) == 0.9
    assert seconds_to(none, 0.85) == pytest.approx(50)
    assert seconds_to(none, 0.3) == pytest.approx(10)
    assert seconds_to(none, 0.95) == float("inf")
    assert best_rate(book, "digits", "none", 0.5, rules) == 0.1
    lines = table(book, ["digits"], rules, [0.5], [0, 1, 2]).splitlines()
    assert [line.strip("| ").split(" | ")[2:] for line in lines[2:]] == [
        ["none", "0.1", "2", "71.0 ± 1.4", "91.0 ± 1.4", "-10.0 ± 0.0", "20", "3", "91.0 ± 1.4", "58"],
        ["random", "0.1", "2", "81.0 ± 1.4", "81.0 ± 1.4", "", "10", "3", "81.0 ± 1.4", "never"],
    ]


def test_longer_runs_show_when_the_target_is_reached_and_change_no_comparison(book: Curves) -> None:
    asked = Asked("digits", "random", 0.5, 0.1, 0)
    points = ((10, 0.5), (20, 0.7), (30, 0.8), (40, 0.88), (50, 0.92), (60, 0.93))
    wanted = {"rules": ["none", "random"], "ps": [0.5], "seeds": [0]}
    assert [one.times for one in left(book, ["digits"], *wanted.values(), longer=2)] == [2]  # `none` waits, and is finished
    record = run("random", 0.1, 0, *points)
    book.known[record["key"]] = record
    assert list(left(book, ["digits"], *wanted.values(), longer=2)) == []
    assert list(left(book, ["digits"], *wanted.values())) == []
    assert book.longest(asked) is record
    assert book.get(asked) is not record
    assert equal_time(book, "digits", 0.5, 0, ["none", "random"]) == 30
    assert best_rate(book, "digits", "random", 0.5, ["none", "random"]) == 0.1
    none, random = table(book, ["digits"], **wanted).splitlines()[2:]
    assert none.strip("| ").split(" | ")[5:] == ["70.0", "90.0", "-10.0", "20", "3", "90.0", "58"]
    assert random.strip("| ").split(" | ")[5:] == ["80.0", "80.0", "", "10", "6", "93.0", "42"]  # 0.89 between 40 s and 50 s


def test_only_missing_runs_are_carried_out_searches_first(book: Curves) -> None:
    asked = list(left(book, ["digits"], ["none", "random", "ordered"], [0.5, 0.75], [0, 1, 2]))
    assert [(a.rule, a.p, a.rate, a.seed) for a in asked[:9]] == [
        *(("random", 0.75, rate, 1000) for rate in RATES),
        *(("ordered", p, rate, 1000) for p in (0.5, 0.75) for rate in RATES),
    ]
    assert [(a.rule, a.p, a.rate, a.seed) for a in asked[9:]] == [("none", 0.5, 0.1, 2), ("random", 0.5, 0.1, 2)]


def test_every_run_has_a_valid_configuration() -> None:
    for workload in WORKLOADS:
        for rule in RULES:
            config = RunConfig.build(Asked(workload, rule, 0.75, 0.1, 0).config())
            assert config.options.get("smallest", 0.75) == 0.75


def test_a_rule_without_a_fraction_runs_once() -> None:
    assert fractions("none", [0.5, 0.75]) == [0.5]
    assert fractions("clip-mixed-max", [0.5, 0.75]) == [0.5, 0.75]


def all_seeds(book: Curves) -> None:
    """Add the runs of the seeds that the book lacks; with seed 4 random dropout diverges, but not at another rate."""
    other = run("random", 0.05, 4, (10, 0.4), (20, 0.5), (30, 0.6))
    book.known[other["key"]] = other
    for seed in (2, 3, 4):
        slow = run("none", 0.1, seed, (20, 0.6), (40, 0.8), (60, 0.9))
        quick = run("random", 0.1, seed, *(() if seed == 4 else ((10, 0.5), (20, 0.7), (30, 0.895))))
        book.known |= {record["key"]: record for record in (slow, quick)}


def test_the_page_shows_rules_whose_runs_have_all_ended(book: Curves) -> None:
    assert "digits" not in page.tables(book).splitlines()[2]  # two seeds of five
    all_seeds(book)
    lines = page.tables(book).splitlines()
    assert lines[:6] == [
        "**Slow clients keep p = 0.5 of their units.**",
        "",
        "| rule | digits |",
        "| --- | --- |",
        "| `fedavg` | 70.4 ± 0.9 (90.4 ± 0.9), 20 s |",  # at 30 s, and at 60 s
        "| `randomdropout` | 85.2 ± 5.0, 10 s, 1 diverged |",
    ]
    # the target is 0.894: `none` reaches it at 58.8 s with four seeds and at 54.8 s with one, random dropout before 30 s with two
    assert lines[-1] == "| digits, 0.5 | 89.4 % | 58 | 30, 2 of 5 seeds | – | – | – | – |"
    faster = run("random", 0.1, 4, (10, 0.5), (20, 0.7), (30, 0.9))
    book.known |= {faster["key"]: faster} | {
        r["key"]: r for r in (run("random", 0.1, s, (10, 0.9), (20, 0.9), (30, 0.9)) for s in (0, 1))
    }
    assert page.tables(book).splitlines()[-1].split(" | ")[3] == "22 (-62 %)"  # 9.93, 9.93, 29.95, 29.95 and 29.7 s


def test_rules_are_named_as_compare_takes_them() -> None:
    assert [page.named(rule) for rule in ("none", "random-stale", "clip-local-l2", "clip-segmented")] == [
        "`fedavg`",
        "`randomdropout:merge=stale`",
        "`clip:score=local,reduce=l2`",
        "`clip:segmented=true`",
    ]


def test_the_tables_of_the_page_are_those_of_the_finished_runs() -> None:
    text = page.PAGE.read_text()
    assert page.with_tables(text, Curves(BOOK)) == text


def test_a_page_without_marks_is_refused(book: Curves) -> None:
    with pytest.raises(ValueError, match="end of these tables"):
        page.with_tables(f"{page.BEGIN}\n", book)
