"""The pages for contributors can be followed: their code and tests run, and the places that they name exist."""

from __future__ import annotations

import ast
import json
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


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def named_paths(text: str) -> set[str]:
    """Return the repository's files and folders that a page names in backticks."""
    return set(re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w/.-]+)`", text))


def test_there_is_a_page_for_everything_that_can_be_added() -> None:
    assert {page.stem for page in PAGES} == GROUPS
    reported = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"(docs/contributing/{name}.md)" in reported for name in GROUPS)


def files(page: Path, folder: Path) -> list[str]:
    """Write a page's code and test under the names that it gives; return these."""
    names = re.findall(r"Save this as `(\w+\.py)`", page.read_text())
    for name, text in zip(names, blocks(page, "python"), strict=True):
        (folder / name).write_text(text)
    return names


def run(*words: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_code_and_tests_of_the_pages_run_as_files_of_the_names_they_give(tmp_path: Path) -> None:
    wanted = set()
    for page in PAGES:
        code, test = files(page, tmp_path)
        assert test == f"test_{code}"
        names = re.findall(r"^def (test_\w+)", blocks(page, "python")[1], re.MULTILINE)
        assert names
        wanted |= {f"{test}::{name}" for name in names}
    text = run("-m", "pytest", "-rA", "-p", "no:cacheprovider", folder=tmp_path)
    passed = {name.partition("[")[0] for name in re.findall(r"^PASSED (\S+)", text, re.MULTILINE)}
    assert passed == wanted


COMMANDS = [(page, line) for page in PAGES for line in re.findall(r"^    paceline (run .+)$", page.read_text(), re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value.stem if isinstance(value, Path) else None)
def test_the_commands_of_a_page_run(page: Path, line: str, tmp_path: Path) -> None:
    files(page, tmp_path)
    text = run("-c", "from paceline.cli import main; main()", *line.split(), "--json", folder=tmp_path)
    assert json.loads(text)["rounds"] >= 3


def test_every_page_has_a_command() -> None:
    assert {page.stem for page, _ in COMMANDS} == GROUPS


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
    missing = {path for path in named_paths(page.read_text()) if not (ROOT / path).exists()}
    assert not missing


def test_commands_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"(?<![\w-])make ([a-z][\w-]*)(?=`|\s{2,}|$)", page.read_text(), re.MULTILINE)) <= targets, page
