"""Tests that need data get them in one way: `make` fetches, and a test without its data is skipped and says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paceline.data.sources import find_source
from paceline.registry import KINDS
from tests.conftest import fetched

ROOT = Path(__file__).parents[1]
TOO_LARGE = {"cifar10-test-split", "emoji-vendors"}
"""What `make test-slow` does not fetch: 358 and 167 MB."""


def variable(name: str) -> set[str]:
    [line] = re.findall(rf"^{name} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(line.split())


def named() -> set[str]:
    """Return the data sets that tests ask for: with `fetched`, or with a `load` that begins with it."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_fetched.py"]
    return {name for text in texts for name in re.findall(r"(?<![_.])\b(?:fetched|load)\(\"([\w-]+)\"", text)} - {"digits", *KINDS}


def test_make_fetches_what_tests_read() -> None:
    small, more = variable("DATA"), variable("MORE_DATA")
    assert named() == small | more | TOO_LARGE
    assert all(find_source(name).megabytes < 5 for name in small)
    assert sum(find_source(name).megabytes for name in more) < 420


def test_no_test_asks_for_data_in_another_way() -> None:
    """Whether data are here is asked by `fetched` alone; a source that a test made itself may be asked for anything."""
    ways = r"find_source\([^)]*\)\.(fetch|ready|cached)\(|pytest\.(skip|fail)\(f?[\"'][^\n]*data fetch"
    asks = {path.name for path in (ROOT / "tests").rglob("*.py") if re.search(ways, path.read_text())}
    assert asks == {"conftest.py"}


def test_a_test_without_its_data_is_skipped_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="needs: paceline data fetch fashion-mnist"):
        fetched("fashion-mnist")
    assert fetched("digits").name == "digits"
