"""The mutants of a small module are those that matter, and a mutant is killed exactly if a test fails."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("cosmic_ray", reason="needs: pip install -c constraints.txt -e '.[mutants]'")

import coverage

from tests.mutants import study, trial
from tests.mutants.mutations import mutants_of
from tests.mutants.study import equivalents
from tests.mutants.swap import changed_functions, live_functions, swap
from tests.mutants.tests_of import TestMap

SOURCE = '''
from __future__ import annotations


def mean(values: list[float] | None, weights: list[float]) -> float:
    """Return 1 weighted mean."""
    total = 0.0
    for v, w in zip(values or [], weights, strict=True):
        total += v * w
    name = f"{total - 1}"
    if total < 0:
        raise ValueError(f"{total + 1} is below 0")
    record(total, weight=sum(weights))
    return total / sum(weights)
'''


@pytest.fixture
def mutants(tmp_path):
    path = tmp_path / "paceline" / "some.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return mutants_of(path, tmp_path)


def test_what_is_changed_and_what_is_not(mutants):
    changes = {(m.before, m.after) for m in mutants}
    assert ("total += v * w", "pass") in changes
    assert ("total += v * w", "total += v / w") in changes
    assert ("record(total, weight=sum(weights))", "record(total, )") in changes
    assert ("record(total, weight=sum(weights))", "pass") in changes
    assert ("if total < 0:", "if total <= 0:") in changes
    assert ("if total < 0:", "if total >= 0:") in changes
    loop = "for v, w in zip(values or [], weights, strict=True):"
    assert not {(loop, loop.replace("strict=True", other)) for other in ("", "strict=False")} & changes
    for silent in ("raise ", "def mean", '"""', "import ", 'name = f"'):  # messages, annotations, text
        assert not [before for before, _ in changes if silent in before], silent


def test_a_change_that_leaves_the_same_code_is_no_mutant(tmp_path):
    """1e20 + 1 is 1e20."""
    (tmp_path / "some.py").write_text("LARGE = 1e20\nFEW = 3\n")
    assert {m.before for m in mutants_of(tmp_path / "some.py", tmp_path)} == {"FEW = 3"}


def test_tests_of_the_modules_own_file_are_run_before_the_budget_is_spent(tmp_path):
    """A thousand short tests import the module of a default; the one that looks at it takes a second."""
    durations = {f"tests/core/test_run.py::test_{k}": 0.05 for k in range(1000)} | {"tests/aggregation/test_exact.py::test_it": 1.0}
    (tmp_path / "durations.json").write_text(json.dumps(durations))
    data = coverage.CoverageData(str(tmp_path / "coverage.db"))
    for test in durations:
        data.set_context(f"{test}|run")
        data.add_lines({"/src/paceline/aggregation/exact.py": [9]})
    data.set_context("")
    data.add_lines({"/src/paceline/aggregation/exact.py": [1]})
    data.write()
    tests_of = TestMap(tmp_path)
    for line in (1, 9):
        chosen = tests_of.tests("paceline/aggregation/exact.py", (line, line), budget=3.0)
        assert "tests/aggregation/test_exact.py::test_it" in chosen
        assert 30 < len(chosen) < 50
        assert chosen[0] == "tests/core/test_run.py::test_0"


def test_a_key_survives_moved_lines(mutants, tmp_path):
    path = tmp_path / "paceline" / "some.py"
    path.write_text("# a comment\n" + SOURCE)
    moved = mutants_of(path, tmp_path)
    assert {m.key for m in moved} == {m.key for m in mutants}
    assert {m.lines[0] - 1 for m in moved} == {m.lines[0] for m in mutants}


MODULE = """
LIMIT = 3


def twice(function):
    return lambda value: 2 * function(value)


@twice
def halved(value, most=4):
    return min(value, most) / 2


class Counter:
    start: int = 0

    def next(self):
        return self.start + sum(n for n in range(2))
"""


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ("/ 2", "/ 3", ["halved"]),
        ("range(2)", "range(3)", ["Counter.next"]),
        ("2 * function", "3 * function", ["twice"]),
        ("most=4", "most=5", None),
        ("LIMIT = 3", "LIMIT = 4", None),
        ("start: int = 0", "start: int = 1", None),
        ("@twice\n", "", None),
    ],
)
def test_functions_are_replaced_only_where_nothing_else_changed(before, after, names):
    pairs = changed_functions(MODULE, MODULE.replace(before, after), "some.py")
    assert (pairs if names is None else [new.co_qualname for _, new in pairs]) == names


def test_decorated_functions_are_replaced_where_they_are():
    space = {}
    exec(compile(MODULE, "some.py", "exec"), space)
    live = live_functions(lambda file: file == "some.py")
    assert space["halved"](3) == 3.0
    assert swap(changed_functions(MODULE, MODULE.replace("/ 2", "/ 3"), "some.py"), live)
    assert space["halved"](3) == 2.0
    assert not swap(changed_functions(MODULE, MODULE.replace("/ 2", "/ 3"), "other.py"), live)


TEST = "import time\n\n\ndef test_it():\n    {}\n"


@pytest.fixture
def tree(tmp_path, mutants):
    """A source tree with a module, and the first of its mutants."""
    path = tmp_path / "src" / mutants[0].module
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return tmp_path, mutants[0]


@pytest.mark.parametrize(
    ("body", "result"), [("assert True", "survived"), ("assert False", "killed"), ("time.sleep(60)", "timeout")]
)
def test_outcomes(tree, body, result, monkeypatch):
    folder, mutant = tree
    monkeypatch.setattr(trial, "LEAST_WALL_SECONDS", 1.0 if result == "timeout" else 60.0)
    (folder / "test_it.py").write_text(TEST.format(body))
    outcome = trial.cold(trial.Trial(mutant, ["test_it.py::test_it"], [0.0]), folder)
    assert (outcome.result, outcome.killer) == (result, "test_it.py::test_it" if result == "killed" else "")
    assert (folder / "src" / mutant.module).read_text() == SOURCE


def test_without_a_test_a_mutant_survives(tree):
    assert trial.cold(trial.Trial(tree[1], [], []), tree[0]).result == "survived"


def test_a_sample_takes_the_same_share_of_every_module(monkeypatch):
    monkeypatch.setattr(study, "SCOPE", ("submodels/merge.py", "submodels/axes.py"))
    monkeypatch.setattr(study, "cached_mutants", lambda path, root, folder: [SimpleNamespace(key=f"{path} {n}") for n in range(40)])
    chosen = [study.all_mutants([], 0.2, seed) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [sum("merge" in mutant.key for mutant in one) for one in chosen] == [8, 8, 8]
    assert len(study.all_mutants([])) == 80


def test_the_interval_is_wilsons():
    assert study.interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_equivalents_have_reasons():
    assert all(reason.strip() for reason in equivalents().values())
    assert Path(__file__).with_name("equivalents.json").exists()
