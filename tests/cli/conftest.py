"""A command line to call in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

QUICK = ("--task", "digits", "--model", "logreg", "--clients", "4", "--cohort", "4", "--rounds", "2")

Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs `paceline` in an empty folder and checks its exit code."""
    from paceline.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        return result

    return run


def last_json(result: Result) -> Any:
    """Return the object that an error wrote to stderr."""
    return json.loads(result.stderr.strip().splitlines()[-1])
