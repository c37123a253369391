"""The pages for contributors can be followed: their code and tests run, and the places that they name exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))
GROUPS = {"method", "task", "model", "metric", "engine", "aggregation"}
LATER = {"src/paceline/registry.py"}
"""Paths that the pages name ahead of their files; once they are there, check the comments in the pages and empty this set."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def named_paths(text: str) -> set[str]:
    """Return the repository's files and folders that a page names in backticks."""
    return set(re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w/.-]+)`", text))


def test_there_is_a_page_for_everything_that_can_be_added() -> None:
    assert {page.stem for page in PAGES} == GROUPS
    told = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"(docs/contributing/{name}.md)" in told for name in GROUPS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_and_test_of_a_page_run_as_files_of_the_names_it_gives(page: Path, tmp_path: Path) -> None:
    code, test = blocks(page, "python")
    names = re.findall(r"Save this as `(\w+\.py)`", page.read_text())
    assert len(names) == 2
    assert names[1] == f"test_{names[0]}"
    for name, text in zip(names, (code, test), strict=True):
        (tmp_path / name).write_text(text)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", names[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{test.count('def test_')} passed" in done.stdout or "parametrize" in test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_entry_points_are_of_the_kind_and_name_the_object(page: Path) -> None:
    (text,) = blocks(page, "toml")
    (group, entries), *others = tomllib.loads(text)["project"]["entry-points"].items()
    assert not others
    assert group == f"paceline.{page.stem}s"
    ((_, target),) = entries.items()
    module, _, name = target.partition(":")
    code = ast.parse(blocks(page, "python")[0])
    assert name in {item.name for item in code.body if isinstance(item, ast.ClassDef | ast.FunctionDef)}
    assert f"Save this as `{module.rpartition('.')[2]}.py`" in page.read_text()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.stem)
def test_named_paths_exist(page: Path) -> None:
    missing = {path for path in named_paths(page.read_text()) - LATER if not (ROOT / path).exists()}
    assert not missing


def test_what_is_named_ahead_of_its_file_is_still_missing() -> None:
    assert not {path for path in LATER if (ROOT / path).exists()}, "check the comments in the pages, then empty LATER"


def test_commands_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"(?<![\w-])make ([a-z][\w-]*)(?=`|\s{2,}|$)", page.read_text(), re.MULTILINE)) <= targets, page
