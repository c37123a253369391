"""A plugin for pytest that writes the duration of every test that passes to a JSON file."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

_seconds: dict[str, float] = defaultdict(float)
_failed: set[str] = set()


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--durations-file", type=Path)


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _failed.add(report.nodeid)
    if report.passed:
        _seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session: Any) -> None:
    path = session.config.getoption("--durations-file")
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text(json.dumps({test: s for test, s in _seconds.items() if test not in _failed}, indent=0, sort_keys=True))
