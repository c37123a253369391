"""`import paceline`: quick, lazy, complete, and the same for people, editors and type checkers."""

import ast
import doctest
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import paceline as pl
from paceline import methods
from paceline.registry import find_method, method_names


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True)


def test_the_import_brings_neither_torch_nor_numpy():
    heavy = "{'torch', 'numpy', 'pydantic', 'rich', 'matplotlib', 'msgpack'}"
    code = f"import sys, paceline; dir(paceline); print({heavy} & set(sys.modules))"
    assert python(code).stdout.strip() == "set()"


def test_the_import_takes_less_than_50_ms():
    def seconds() -> float:
        lines = python("import paceline", "-X", "importtime").stderr.splitlines()
        return next(int(line.split("|")[1]) for line in lines if line.endswith("| paceline")) / 1e6

    assert min(seconds() for _ in range(3)) < 0.05


def test_every_name_is_there_and_its_own():
    assert {name: getattr(pl, name) for name in pl.__all__}.keys() <= set(dir(pl))
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        pl.rum  # noqa: B018


@pytest.mark.parametrize("first", ["import paceline.run", "from paceline.run import prepare", "paceline.load"])
def test_run_is_the_function_whatever_was_imported_before(first):
    code = f"import paceline\n{first}\nimport paceline.cli.run\nprint(type(paceline.run).__name__, paceline.run.__module__)"
    assert python(code).stdout.split() == ["function", "paceline.run"]


def typed(module) -> dict[str, str]:
    """Return what a type checker sees: the imports below TYPE_CHECKING, as name -> module:attribute."""
    tree = ast.parse(Path(module.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {a.asname: f"{n.module}:{a.name}" for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}


@pytest.mark.parametrize("module", [pl, methods])
def test_type_checkers_see_what_is_there(module):
    seen = typed(module)
    assert sorted(seen) == sorted(module.__all__)
    for name, place in seen.items():
        where, _, attribute = place.partition(":")
        there = import_module(where)
        other = getattr(there, attribute) if hasattr(there, attribute) else import_module(f"{where}.{attribute}")
        assert getattr(module, name) is other


def test_every_built_in_method_is_an_attribute():
    ours = [c for c in map(find_method, method_names()) if c.__module__.startswith("paceline.methods.")]
    assert sorted(c.__name__ for c in ours) == sorted(methods.__all__)
    assert all(getattr(pl.methods, c.__name__) is c for c in ours)
    with pytest.raises(AttributeError, match="did you mean FedProx"):
        pl.methods.FedProxx  # noqa: B018


def test_a_method_is_imported_alone():
    code = "import sys, paceline as pl; pl.methods.FedProx; print('paceline.methods.robust.flag' in sys.modules)"
    assert python(code).stdout.strip() == "False"


def test_help_shows_the_arguments():
    assert {"method", "task", "observer", "folder"} <= set(inspect.signature(pl.run).parameters)


@pytest.mark.parametrize("name", [name for name in pl.__all__ if name not in ("errors", "methods", "metrics", "trackers")])
def test_every_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(recurse=False)
    thing = getattr(pl, name)
    [found] = finder.find(thing, name, globs=dict(vars(sys.modules[thing.__module__])))
    assert found.examples, f"{name} has no example"
    ended = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert ended.failed == 0
