"""The rows of the table of effects name methods, tasks and options that exist, and the table is what the rows say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import fetched

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "effects.py"
HEAVY = ("blackbox", "foundation")
"""Families whose runs take long to prepare."""

SAID = """
import json, sys
sys.path.insert(0, sys.argv[1])
import effects
rows, figures = effects.load_rows(), json.loads(effects.FIGURES.read_text())
for name, got in figures.items():
    assert name in rows, name
    assert len(got["method"]) == len(got["baseline"]) == len(rows[name].get("seeds", effects.SEEDS)), name
    now = effects.again(rows[name], got)
    assert json.dumps(now, sort_keys=True) == json.dumps(got, sort_keys=True), f"{name}: run effects.py --table"
"""


def own_process(*args):
    """Run a program by itself, as the rows define methods that belong to nobody else; return what it prints."""
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def families():
    return {path.stem for path in (PROGRAM.parent / "effect_rows").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_rows_can_run(heavy):
    if heavy:
        fetched("fashion-mnist")
    words = [f"{family}/" for family in sorted(families()) if (family in HEAVY) == heavy]
    assert own_process(PROGRAM, "--check", *words).endswith("rows can run\n")


def test_the_table_is_what_the_rows_say():
    """Figures are of rows that exist, with their seeds; claims and verdicts are those of the rows as they are now."""
    own_process("-c", SAID, PROGRAM.parent)
    table = (ROOT / "docs" / "effects.md").read_text()
    figures = json.loads((ROOT / "src" / "paceline" / "methods" / "effects.json").read_text())
    assert {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if "/" in line[:30] and line[0] == "|"} == set(
        figures
    )
