"""The mutants of a small module are those that matter, and a mutant is killed exactly if a test fails."""

import textwrap
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="needs: pip install -c constraints.txt -e '.[mutants]'")

from tests.mutants.mutations import mutants_of
from tests.mutants.study import equivalents
from tests.mutants.trial import run_tests

SOURCE = '''
from __future__ import annotations


def mean(values: list[float] | None, weights: list[float]) -> float:
    """Return 1 weighted mean."""
    total = 0.0
    for v, w in zip(values or [], weights, strict=True):
        total += v * w
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
    for silent in ("raise ", "def mean", '"""', "import "):  # messages, annotations, text
        assert not [before for before, _ in changes if silent in before], silent


def test_a_key_survives_moved_lines(mutants, tmp_path):
    path = tmp_path / "paceline" / "some.py"
    path.write_text("# a comment\n" + SOURCE)
    moved = mutants_of(path, tmp_path)
    assert {m.key for m in moved} == {m.key for m in mutants}
    assert {m.lines[0] - 1 for m in moved} == {m.lines[0] for m in mutants}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [("assert True", "survived"), ("assert False", "killed"), ("import time; time.sleep(60)", "timeout")],
)
def test_outcomes(tmp_path, body, outcome):
    (tmp_path / "test_it.py").write_text(textwrap.dedent(f"def test_it():\n    {body}\n"))
    assert run_tests(tmp_path, ["test_it.py"], timeout=3.0 if outcome == "timeout" else 60.0) == outcome


def test_equivalents_have_reasons():
    assert all(reason.strip() for reason in equivalents().values())
    assert Path(__file__).with_name("equivalents.json").exists()
