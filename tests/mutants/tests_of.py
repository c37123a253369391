"""Which tests execute which lines, and how long they take: from one run of the tests under coverage."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import coverage

__all__ = ["PLACES", "TestMap", "record"]

PLACES = tuple(
    f"tests/{name}" for name in ("methods", "aggregation", "submodels", "blocks", "data", "core", "engines", "test_registry.py")
)
"""Tests that a mutant may fail."""
COVERED = ("methods", "aggregation", "submodels", "data")
SETTINGS = "[run]\nconcurrency = thread,greenlet\nsource = src/paceline/{}\ndata_file = {}\n"


def record(tree: Path, into: Path, workers: int) -> None:
    """Run the tests of a source tree under coverage and write `coverage.db` and `durations.json` to a folder.

    A later call runs only the test files that are new or changed since. Tests that fail are left out.

    Raises:
        RuntimeError: the tests could not be run.
    """
    into.mkdir(parents=True, exist_ok=True)
    settings, durations, known = into / "coveragerc", into / "durations.json", into / "recorded.json"
    settings.write_text(SETTINGS.format(",src/paceline/".join(COVERED), into / "coverage.db"))
    places = [tree / place for place in PLACES]
    found = [path for place in places for path in (sorted(place.rglob("test_*.py")) if place.is_dir() else [place])]
    files = {path.relative_to(tree).as_posix(): path for path in found}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
    before = json.loads(known.read_text()) if known.exists() else {}
    changed = [name for name, value in hashes.items() if before.get(name) != value]
    if not changed:
        return
    seconds = json.loads(durations.read_text()) if durations.exists() else {}
    latest = into / "latest.json"
    chosen = ["-m", "not slow", "-q", "-p", "tests.mutants.durations", f"--durations-file={latest}", f"--basetemp={into / 'tmp'}"]
    covered = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report=", *(["--cov-append"] if before else [])]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-n", str(workers), *chosen, *covered, *changed]
    if subprocess.run(command, cwd=tree, check=False).returncode not in (0, 1, 5):
        raise RuntimeError("the tests could not be run; see above")
    new = json.loads(latest.read_text())
    kept = {test: value for test, value in seconds.items() if test.split("::")[0] in set(hashes) - set(changed)}
    durations.write_text(json.dumps(kept | new, indent=0, sort_keys=True))
    known.write_text(json.dumps(hashes, indent=0))


class TestMap:
    """The tests of each line, in the order in which they are likely to fail early.

    Args:
        folder: where `record` wrote.
        kills: (module, test) of mutants that were killed before.
    """

    __test__ = False

    def __init__(self, folder: Path, kills: Iterable[tuple[str, str]] = ()) -> None:
        self._durations: dict[str, float] = json.loads((folder / "durations.json").read_text())
        self._kills = Counter(kills)
        data = coverage.CoverageData(str(folder / "coverage.db"))
        data.read()
        self._lines: dict[str, dict[int, set[str]]] = {}
        for name in data.measured_files():
            contexts = data.contexts_by_lineno(name)
            module = name[name.rindex("/src/") + len("/src/") :]
            self._lines[module] = {line: {c.split("|")[0] for c in found if c} for line, found in contexts.items()}

    def killed(self, module: str, test: str) -> None:
        """Count a killed mutant."""
        self._kills[module, test] += 1

    def tests(self, module: str, lines: tuple[int, int], budget: float) -> list[str]:
        """Return tests that execute one of the lines, up to `budget` seconds.

        For a line that runs on import, these are the tests that execute any line, and all of its package: a test that reads a
        default executes nothing of the module. Tests of the module's own file are chosen before others, however long they take: a
        thousand short ones that merely pass through a line would fill the budget. The first to run are those that killed most
        mutants of the module per second.
        """
        by_line = self._lines.get(module, {})
        chosen = set().union(*(by_line.get(line, set()) for line in range(lines[0], lines[1] + 1)))
        on_import = any(line in by_line for line in range(lines[0], lines[1] + 1)) and not chosen
        if on_import or not any(line in by_line for line in range(lines[0], lines[1] + 1)):
            chosen = set().union(*by_line.values()) if on_import else _around(by_line, lines[0])
        if on_import:
            chosen |= {test for test in self._durations if test.startswith(f"tests/{module.split('/')[1]}/")}
        own = Path(module).stem

        def cost(test: str) -> tuple[float, str]:
            likely = 0.1 + self._kills[module, test] + (own in test)
            return (self._durations[test] + 0.02) / likely, test

        found, spent = list[str](), 0.0
        for test in sorted(chosen & set(self._durations), key=lambda test: (f"/test_{own}.py::" not in test, cost(test))):
            spent += self._durations[test]
            if found and spent > budget:
                break
            found.append(test)
        return sorted(found, key=cost)

    def seconds(self, tests: list[str]) -> list[float]:
        """Return the time that each test took without a mutation."""
        return [self._durations[test] for test in tests]


def _around(by_line: dict[int, set[str]], line: int) -> set[str]:
    """Return the tests of the nearest executed line above: a line within a statement has no entry of its own."""
    above = [known for known in by_line if known < line]
    return by_line[max(above)] if above else set()
