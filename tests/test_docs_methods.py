"""The pages on methods name every method, tell the truth about what it sends, and their commands run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.cli.listing import sum_only
from paceline.cli.memory_keys import stored
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, prepare

PAGES = Path(__file__).parents[1] / "docs" / "methods"
PLANNED: set[str] = set()
"""Methods with a row and without a command, as they are not installed yet."""

SLOW = {"--aggregation secure "}
"""What a command is marked slow for."""


def pages():
    return sorted(PAGES.glob("*.md"))


def commands(page):
    """Return the commands of a page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def small(command):
    """Return a command's words with few rounds, one seed, one epoch, and few of the steps that form FedLoGe's frame."""
    words = [re.sub(r"epochs=\d+", "epochs=1", word) for word in shlex.split(command)]
    words = [word.replace("fedloge:", "fedloge:frame_steps=20,") for word in words]
    for option, value in (("--rounds", "1"), ("--seeds", "0"), ("--eval-every", "1")):
        if option in words:
            words[words.index(option) + 1] = value
    return words


def costs(page):
    """Return the rows of the table of costs: method, sees, client state, up, down, work, secure."""
    table = page.read_text().partition("\n| method | the server sees ")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


COMMANDS = [
    pytest.param(command, id=f"{page.stem}-{number}", marks=[pytest.mark.slow] if any(s in command + " " for s in SLOW) else [])
    for page in pages()
    for number, command in enumerate(commands(page))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, tmp_path, monkeypatch):
    words = small(command)
    assert words[0] == "paceline"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paceline.cli.folders.plot", lambda *_: tmp_path)
    for name in ("plot", "plot_round"):
        monkeypatch.setattr(f"paceline.results.comparison.Comparison.{name}", lambda *_: None)
    if words[1] in ("run", "compare"):
        words.append("--quiet")
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert "\n" in result.stdout


def test_every_method_has_its_row_on_its_family_s_page():
    families = {}
    for name in method_names():
        if not find_method(name).__module__.startswith("paceline."):  # one that another test has registered
            continue
        families.setdefault(find_method(name).family, set()).add(name)
    for family, names in families.items():
        page = PAGES / f"{family}.md"
        assert page.exists(), f"docs/methods/{family}.md is missing: a page for {', '.join(sorted(names))}"
        rows = costs(page)
        assert set(rows) - PLANNED <= names <= set(rows), f"the table of costs in docs/methods/{family}.md"
        for name in names:
            sees, state, _, _, work, secure = rows[name]
            assert secure == ("yes" if sum_only(find_method(name)) else "no"), name
            assert (state == "nothing") == (stored(find_method(name)) == "nothing"), name
            assert sees
            assert work


def models(task, name):
    """Return what a client sends and gets in a round after the first, in models."""
    values = {"method": name, "task": "blobs", "clients": 12, "cohort": 12, "rounds": 2, "vectorize": "off"}
    run = prepare(RunConfig.build(values), task=task)
    reported, size = run.go().history[-1], 4 * run.fed.init_params().layout.size * 12
    return reported["bytes_up"] / size, reported["bytes_down"] / size


COUNTED = [(name, row[2], row[3]) for page in pages() for name, row in costs(page).items() if (row[2] + row[3]).isdigit()]


@pytest.mark.parametrize(("name", "up", "down"), [c for c in COUNTED if c[0] not in PLANNED and find_method(c[0]).has_model])
def test_bytes_are_as_the_page_says(task, name, up, down):
    assert len(COUNTED) > 20
    assert models(task, name) == pytest.approx((int(up), int(down)), abs=0.2)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_pages_are_whole(page):
    text = page.read_text()
    assert commands(page) or set(costs(page)) <= PLANNED
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    if page.stem != "README":
        assert "\n## When not\n" in text
        assert f"({page.name})" in (PAGES / "README.md").read_text()
    for command in commands(page):
        assert f"{shlex.split(command)[1]}" in ("run", "compare", "methods", "partition")
