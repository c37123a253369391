"""The table of the rules of selection: equal time, the search, and what is left to run, from made-up runs."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paceline.run import RunConfig

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "stragglers.py"
RATES = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("stragglers_study", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stragglers_study"] = module
    spec.loader.exec_module(module)
    digits = module.WORKLOADS["digits"]
    module.WORKLOADS["digits"] = replace(digits, config=digits.config | {"rounds": 3, "eval_every": 1})
    return module


def run(study: Any, rule: str, rate: float, seed: int, *curve: tuple[float, float]) -> dict[str, Any]:
    asked = study.Asked("digits", rule, 0.5, rate, seed, len(curve) // 3)
    return {"key": asked.key, "curve": [list(point) for point in curve], "total": curve[-1][0], "cpu": 1.0}


@pytest.fixture
def book(study: Any, tmp_path: Path) -> Any:
    """FedAvg is best in the end; at 30 s, when random dropout has ended, random dropout is."""
    lines = [
        run(study, rule, rate, seed, *[(t * slow, a + gain) for t, a in ((10, 0.5), (20, 0.7), (30, 0.8))])
        for rule, slow, gain in (("none", 2, 0.1), ("random", 1, 0.0))
        for rate, seed, gain in ((0.05, 1000, -0.1), (0.1, 1000, gain), (0.2, 1000, -0.2), (0.1, 0, gain), (0.1, 1, gain + 0.02))
    ]
    path = tmp_path / "book.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"key": "half')
    return study.Curves(path)


def test_rules_are_compared_at_the_end_of_the_fastest(study: Any, book: Any) -> None:
    rules = ["none", "random"]
    assert study.equal_time(book, "digits", 0.5, 0, rules) == 30
    assert study.at(book.get(study.Asked("digits", "none", 0.5, 0.1, 0)), 30) == pytest.approx(0.7)
    none = book.get(study.Asked("digits", "none", 0.5, 0.1, 0))
    assert study.at(none, 5) == 0.0
    assert study.at(none, 50) == pytest.approx(0.85)  # between evaluations at 40 s (0.8) and 60 s (0.9)
    assert study.at(none, 1e9) == 0.9
    assert study.seconds_to(none, 0.85) == pytest.approx(50)
    assert study.seconds_to(none, 0.3) == pytest.approx(10)
    assert study.seconds_to(none, 0.95) == float("inf")
    assert study.best_rate(book, "digits", "none", 0.5, rules) == 0.1
    lines = study.table(book, ["digits"], rules, [0.5], [0, 1, 2]).splitlines()
    assert [line.strip("| ").split(" | ")[2:] for line in lines[2:]] == [
        ["none", "0.1", "2", "71.0 ± 1.4", "91.0 ± 1.4", "-10.0 ± 0.0", "20", "3", "91.0 ± 1.4", "58"],
        ["random", "0.1", "2", "81.0 ± 1.4", "81.0 ± 1.4", "", "10", "3", "81.0 ± 1.4", "never"],
    ]


def test_longer_runs_show_when_the_target_is_reached_and_change_no_comparison(study: Any, book: Any) -> None:
    asked = study.Asked("digits", "random", 0.5, 0.1, 0)
    points = ((10, 0.5), (20, 0.7), (30, 0.8), (40, 0.88), (50, 0.92), (60, 0.93))
    wanted = {"rules": ["none", "random"], "ps": [0.5], "seeds": [0]}
    assert [one.times for one in study.left(book, ["digits"], *wanted.values(), longer=2)] == [2]  # `none` waits, and is finished
    record = run(study, "random", 0.1, 0, *points)
    book.known[record["key"]] = record
    assert list(study.left(book, ["digits"], *wanted.values(), longer=2)) == []
    assert list(study.left(book, ["digits"], *wanted.values())) == []
    assert book.longest(asked) is record
    assert book.get(asked) is not record
    assert study.equal_time(book, "digits", 0.5, 0, ["none", "random"]) == 30
    assert study.best_rate(book, "digits", "random", 0.5, ["none", "random"]) == 0.1
    none, random = study.table(book, ["digits"], **wanted).splitlines()[2:]
    assert none.strip("| ").split(" | ")[5:] == ["70.0", "90.0", "-10.0", "20", "3", "90.0", "58"]
    assert random.strip("| ").split(" | ")[5:] == ["80.0", "80.0", "", "10", "6", "93.0", "42"]  # 0.89 between 40 s and 50 s


def test_only_missing_runs_are_carried_out_searches_first(study: Any, book: Any) -> None:
    asked = list(study.left(book, ["digits"], ["none", "random", "ordered"], [0.5, 0.75], [0, 1, 2]))
    assert [(a.rule, a.p, a.rate, a.seed) for a in asked[:9]] == [
        *(("random", 0.75, rate, 1000) for rate in RATES),
        *(("ordered", p, rate, 1000) for p in (0.5, 0.75) for rate in RATES),
    ]
    assert [(a.rule, a.p, a.rate, a.seed) for a in asked[9:]] == [("none", 0.5, 0.1, 2), ("random", 0.5, 0.1, 2)]


def test_every_run_has_a_valid_configuration(study: Any) -> None:
    for workload in study.WORKLOADS:
        for rule in study.RULES:
            config = RunConfig.build(study.Asked(workload, rule, 0.75, 0.1, 0).config())
            assert config.options.get("smallest", 0.75) == 0.75


def test_a_rule_without_a_fraction_runs_once(study: Any) -> None:
    assert study.fractions("none", [0.5, 0.75]) == [0.5]
    assert study.fractions("clip-mixed-max", [0.5, 0.75]) == [0.5, 0.75]
