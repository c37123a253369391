"""The guide's code is run as it stands."""

import re
import sys
import types
from pathlib import Path

import pytest

from paceline.run import RunConfig, StackingWarning, prepare

GUIDE = Path(__file__).parents[1] / "docs" / "writing_a_method.md"


@pytest.fixture(scope="module")
def guide():
    """Return the guide's Python as a module."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    module = types.ModuleType("guide_of_methods")
    sys.modules[module.__name__] = module
    exec(compile(code, str(GUIDE), "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def test_its_tests_pass(guide):
    tests = [value for name, value in vars(guide).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def train(task, name, vectorize):
    config = RunConfig(
        method=f"guide_of_methods:{name}",
        task="blobs",
        clients=8,
        cohort=8,
        rounds=3,
        vectorize=vectorize,
        chunk=4,
        partition="quantity:1",
    )
    prepared = prepare(config, task=task)
    prepared.go()
    return prepared.state.params.vector, prepared.fed.engine.notes


@pytest.mark.parametrize("name", ["Clipped", "Anchored", "Arithmetic"])
def test_what_it_calls_stackable_is_stacked(guide, task, name):
    stacked, notes = train(task, name, "on")
    alone, _ = train(task, name, "off")
    assert notes == {}
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5


def test_what_it_calls_unstackable_falls_back(guide, task):
    with pytest.warns(StackingWarning, match=r"Branching.*branches on a tensor's value"):
        stacked, _ = train(task, "Branching", "on")
    alone, _ = train(task, "Branching", "off")
    assert stacked.equal(alone)


def test_both_ways_to_write_it_agree(guide, task):
    branch, _ = train(task, "Branching", "off")
    arithmetic, _ = train(task, "Arithmetic", "off")
    assert float((branch - arithmetic).norm() / branch.norm()) < 1e-5
