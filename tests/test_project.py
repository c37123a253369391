"""Project files agree with each other and with the package: links, navigation, versions, names in the architecture page."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paceline import __version__

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROOT_PAGES = sorted(ROOT.glob("*.md"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SITE = (ROOT / "mkdocs.yml").read_text()
PACKAGES = sorted(p.parent.name for p in (ROOT / "src" / "paceline").glob("*/__init__.py"))


def pages() -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in (*ROOT_PAGES, *PAGES)]


def prose(page: Path) -> str:
    """Return a page without its code blocks, in which brackets are no links."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site form them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{target}: the site has only what is in docs/"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def test_every_page_is_in_the_site_s_navigation_once() -> None:
    listed = re.findall(r"^\s+- (?:[^:\n]+: )?([\w/]+\.md)$", SITE, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_method_is_in_the_reference() -> None:
    folder = ROOT / "src" / "paceline" / "methods"
    modules = {
        ".".join(("paceline", "methods", *path.relative_to(folder).with_suffix("").parts))
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert set(re.findall(r"^::: (\S+)$", (DOCS / "api" / "methods.md").read_text(), re.MULTILINE)) == modules


def test_the_reference_names_modules_that_exist() -> None:
    for page in (DOCS / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            path = ROOT / "src" / Path(*name.split("."))
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


def named() -> Iterator[str]:
    """Yield the names in backticks that belong to a package, or to a module at its root."""
    text = prose(DOCS / "architecture.md")
    for name in sorted(set(re.findall(r"`([a-z]\w*(?:\.\w+)+)`", text))):
        if name.partition(".")[0] in {*PACKAGES, "run", "runner", "assembly", "registry"} and not name.endswith(".jsonl"):
            yield name


@pytest.mark.parametrize("name", list(named()))
def test_what_the_architecture_page_names_exists(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["paceline", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"paceline.{name} does not exist")


def test_the_architecture_page_names_much() -> None:
    assert len(list(named())) > 60


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    (cited,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert cited == PROJECT["project"]["version"] == __version__


def test_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert re.search(r"^license: Apache-2.0$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "9. Accepting Warranty or Additional Liability" in text


def test_changelog_has_one_unreleased_section_on_top() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert len(set(heads)) == len(heads)


def pins() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(line.partition("==")[0]) for line in lines if line and not line.startswith("#")}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_whatever_can_be_installed_is_pinned() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    names = {normal(re.split(r"[\[<>=]", want)[0]) for want in wanted} - {"paceline"}
    assert names <= pins()


def test_the_readme_s_lines_take_torch_at_the_pinned_version_and_name_every_extra() -> None:
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r'pip install "torch==\$\((.+?)\)\+cpu"', readme)
    pinned = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert f"torch=={pinned}" in (ROOT / "constraints.txt").read_text().splitlines()
    table = readme.partition("| extra | for |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(PROJECT["project"]["optional-dependencies"])


def test_extras_are_installed_by_the_same_command_everywhere():
    """`pip install 'paceline[EXTRA]'` adds to an installed Paceline in any folder; '.[EXTRA]' works in the clone alone."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    commands = [c for page in pages for c in re.findall(r"pip install [^`\n]*\[[^`\n]*\]'?", page.read_text())]
    assert len(commands) > 5
    for command in commands:
        found = re.search(r"^pip install 'paceline\[([\w,{}]+)\]'$", command)
        assert found, command
        assert {*found[1].split(",")} <= {*PROJECT["project"]["optional-dependencies"], "{extra}"}, command


def test_no_public_class_name_is_defined_twice() -> None:
    owners: dict[str, list[Path]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for item in ast.parse(path.read_text()).body:
            if isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
                owners.setdefault(item.name, []).append(path)
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}


def test_the_root_of_the_package_holds_at_most_six_files() -> None:
    assert len(list((ROOT / "src" / "paceline").glob("*.py"))) <= 6


def test_every_package_has_its_place_among_the_layers() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    layers = {name.strip(" ()") for line in contract["layers"] for name in line.split("|")}
    assert set(PACKAGES) <= layers
    assert contract["layers"][-1] == "core"


def test_the_core_may_import_no_other_package() -> None:
    (contract,) = (c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "forbidden")
    assert {f"paceline.{name}" for name in PACKAGES} - {"paceline.core"} <= set(contract["forbidden_modules"])


def test_hooks_of_commits_run_what_lint_runs() -> None:
    hooks = re.findall(r"entry: (\S+(?: \S+)?)", (ROOT / ".pre-commit-config.yaml").read_text())
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    programs = set(re.findall(r"\$\(BIN\)/(\S+)", lint))
    assert {hook.split()[0] for hook in hooks} == programs == {"ruff", "mypy", "lint-imports"}


def test_scripts_parse() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no docstring"
