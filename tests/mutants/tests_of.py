"""Which tests execute which lines, and how long they take: from one run of the tests under coverage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import coverage

__all__ = ["TestMap", "record"]

PACKAGES = ("methods", "aggregation", "submodels", "blocks")
SETTINGS = "[run]\nconcurrency = thread,greenlet\nsource = src/paceline/{}\n"


def record(tree: Path, into: Path, workers: int) -> None:
    """Run the tests of a source tree under coverage and write `coverage.db` and `durations.json` to a folder.

    Raises:
        RuntimeError: if a test fails.
    """
    into.mkdir(parents=True, exist_ok=True)
    settings = into / "coveragerc"
    settings.write_text(SETTINGS.format(",src/paceline/".join(PACKAGES)) + f"data_file = {into / 'coverage.db'}\n")
    tests = [str(Path("tests", name)) for name in PACKAGES if (tree / "tests" / name).exists()]
    chosen = ["-m", "not slow", "-q", "-p", "tests.mutants.durations", f"--durations-file={into / 'durations.json'}"]
    covered = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-n", str(workers), *chosen, *covered, *tests]
    if subprocess.run(command, cwd=tree, check=False).returncode:
        raise RuntimeError("the tests fail without any mutation; see above")


class TestMap:
    """The tests of each line, quickest first.

    Args:
        folder: where `record` wrote.
    """

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._durations: dict[str, float] = json.loads((folder / "durations.json").read_text())
        data = coverage.CoverageData(str(folder / "coverage.db"))
        data.read()
        self._lines: dict[str, dict[int, set[str]]] = {}
        for name in data.measured_files():
            contexts = data.contexts_by_lineno(name)
            module = name[name.rindex("/src/") + len("/src/") :]
            self._lines[module] = {line: {c.split("|")[0] for c in found if c} for line, found in contexts.items()}

    def tests(self, module: str, lines: tuple[int, int], budget: float) -> list[str]:
        """Return tests that execute one of the lines (any line, for one that runs on import), up to `budget` seconds."""
        by_line = self._lines.get(module, {})
        chosen = set().union(*(by_line.get(line, set()) for line in range(lines[0], lines[1] + 1)))
        on_import = any(line in by_line for line in range(lines[0], lines[1] + 1)) and not chosen
        if on_import or not any(line in by_line for line in range(lines[0], lines[1] + 1)):
            chosen = set().union(*by_line.values()) if on_import else _around(by_line, lines[0])
        found, spent = [], 0.0
        for test in sorted(chosen & set(self._durations), key=lambda name: (self._durations[name], name)):
            spent += self._durations[test]
            if found and spent > budget:
                break
            found.append(test)
        return found

    def seconds(self, tests: list[str]) -> float:
        """Return the time that tests took without a mutation."""
        return sum(self._durations[test] for test in tests)


def _around(by_line: dict[int, set[str]], line: int) -> set[str]:
    """Return the tests of the nearest executed line above: a line within a statement has no entry of its own."""
    above = [known for known in by_line if known < line]
    return by_line[max(above)] if above else set()
