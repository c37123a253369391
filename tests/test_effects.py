"""Rows of the table of effects can run, both sides get the same search on real data, and the table is what the rows say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import fetched

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "effects.py"
HEAVY = (
    "clustering",
    "optimisation",
    "participation",
    "personalisation",
    "blackbox",
    "stragglers",
    "foundation",
    "representation",
    "robust",
    "compression",
    "continual",
)
"""Families whose runs take long to prepare, or need data that are downloaded."""

SAID = """
import json, sys
sys.path.insert(0, sys.argv[1])
from effect_study import table
from effect_study.rows import SEARCH_SEEDS, TRIALS, load_rows
rows, figures = load_rows(), table.load()
for name, row in rows.items():
    assert len(row.seeds) == len(set(row.seeds)) >= 5 and not set(row.seeds) & set(SEARCH_SEEDS), f"{name}: its seeds"
    assert row.trials in (1, TRIALS, 2 * TRIALS), f"{name}: {row.trials} trials"
    for side in row.sides.values():
        config = {**row.config, **side.config}
        of = config.get("task_options", {}).get("of", "digits" if config.get("task") == "attack" else "")
        assert "digits" not in (config.get("task"), of), f"{name}: digits are for unit tests"
        assert row.trials == 1 or len(side.points(row.trials)) == row.trials, name
for name, got in figures.items():
    assert name in rows, name
    row = rows[name]
    assert got["seeds"] == list(row.seeds) and len(got["method"]) == len(got["baseline"]) == len(row.seeds), name
    for part, side in row.sides.items():
        search = got[f"{part}_search"]
        assert row.trials == 1 or any(t["mean"] == t["mean"] for t in search["tried"]), f"{name}: no setting of {part} has a figure"
        assert search["trials"] == row.trials and search["grid"] == {k: list(v) for k, v in side.search.items()}, f"{name}: {part}"
        assert row.trials == 1 or [t["setting"] for t in search["tried"]] == side.points(row.trials), f"{name}: {part}"
    now = table.judged(row, got)
    assert json.dumps(now, sort_keys=True) == json.dumps(got, sort_keys=True), f"{name}: run effects.py --table"
families = {name.split("/")[0] for name in rows}
print(json.dumps(sorted(families - {name.split("/")[0] for name, row in rows.items() if row.quick})))
"""


def own_process(*args):
    """Run a program by itself, as the rows define methods that belong to nobody else; return what it prints."""
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def families():
    return {path.stem.split("_")[0] for path in (PROGRAM.parent / "effect_rows").glob("*.py")} - {""}


@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_rows_can_run(heavy):
    for name in ("mnist-5k", "fashion-mnist") if heavy else ("mnist-5k",):
        fetched(name)
    words = [f"{family}/" for family in sorted(families()) if (family in HEAVY) == heavy]
    assert own_process(PROGRAM, "--check", *words).endswith("rows can run\n")


def test_rows_are_fair_and_figures_are_those_of_the_rows():
    """Every row: five seeds or more apart from the search's, equal trials, no digits. Every figure: today's grid and verdict."""
    without_quick = json.loads(own_process("-c", SAID, PROGRAM.parent))
    assert without_quick == []


def test_the_page_lists_the_stored_figures():
    page = (ROOT / "docs" / "effects.md").read_text()
    figures = json.loads((ROOT / "src" / "paceline" / "methods" / "effects.json").read_text())
    listed = re.findall(r"^\| (\w+/[\w-]+) \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(figures)


@pytest.mark.parametrize("family", sorted(families()))
def test_the_page_of_a_family_begins_with_the_claims_that_do_not_hold(family):
    figures = json.loads((ROOT / "src" / "paceline" / "methods" / "effects.json").read_text())
    failed = [f for name, f in figures.items() if name.startswith(f"{family}/") and f["verdict"] == "does not hold"]
    text = (ROOT / "docs" / "methods" / f"{family}.md").read_text()
    head, end, _ = text.partition("<!-- end of these claims -->")
    lines = sorted(line for line in head.splitlines() if end and line.startswith("- `"))
    assert len(lines) == len(failed)
    for line, start in zip(lines, sorted(f"- `{f['of_method']}`: {f['claim']}: " for f in failed), strict=True):
        assert line.startswith(start)
