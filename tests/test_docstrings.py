"""The examples in docstrings of the packages that users extend run, and their functions describe their arguments."""

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "paceline"
CORE = (
    "client",
    "federation",
    "hooks",
    "method",
    "metrics",
    "optimizers",
    "params",
    "population",
    "samples",
    "task",
    "tree",
    "update",
)
FILES = [
    *(SOURCE / "core" / f"{name}.py" for name in CORE),
    *(
        f
        for package in ("aggregation", "blocks", "devices", "participation", "submodels")
        for f in (SOURCE / package).rglob("*.py")
    ),
    SOURCE / "data" / "partition.py",
]
MODULES = sorted(
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
    if ">>>" in file.read_text()
)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert ended.attempted
    assert not ended.failed
