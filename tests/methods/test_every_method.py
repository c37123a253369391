"""What every method promises: an exact resume, the same bits on any number of workers, and reasons where it does not fit."""

import pytest

from paceline.core.errors import PacelineError, PlanError
from paceline.core.method import client_functions
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, prepare

from .resuming import assert_resumes
from .small import LATE, SMALL

NAMES = [name for name in method_names() if find_method(name).__module__.startswith("paceline.")]
NEEDS_EACH = [name for name in NAMES if any(f.each for f in client_functions(find_method(name)).values())]


def values(name):
    common = {"method": name, "options": SMALL.get(name, {}), "clients": 8, "cohort": 7, "rounds": 4}
    return common | {"fleet": "stragglers", "partition": "dirichlet:0.5"}


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, task, name):
    assert_resumes(tmp_path, task, **values(name))


def in_depth(name):
    """Return a method for a test that runs by default only where the server sees single replies.

    Those with sums alone are on two workers, one client at a time, in tests/aggregation/secure/test_program.py.
    """
    return pytest.param(name, marks=[] if name in NEEDS_EACH else [pytest.mark.slow])


@pytest.mark.parametrize("name", map(in_depth, NAMES))
def test_two_workers_end_with_the_bits_of_one(task, name):
    common = {**values(name), "task": "blobs", "rounds": 3 if name in LATE else 2, "vectorize": "on", "chunk": 2}
    one, two = (prepare(RunConfig.build({**common, "workers": workers}), task=task).go() for workers in (1, 2))
    assert two.model_sha256 == one.model_sha256
    assert two.total_seconds == one.total_seconds


@pytest.mark.parametrize("name", NEEDS_EACH)
def test_who_needs_single_replies_is_refused_where_the_server_sees_sums_only(task, name):
    with pytest.raises(PlanError, match="own reply"):
        prepare(RunConfig.build(values(name) | {"task": "blobs", "aggregation": "secure"}), task=task)


def test_most_methods_are_content_with_sums():
    assert len(NEEDS_EACH) < len(NAMES) / 2


def masked(name):
    return RunConfig.build(values(name) | {"task": "blobs", "aggregation": "secure", "secure": {"gamma": 0.0}, "cohort": 8})


NAMED = [name for name in NAMES if name not in NEEDS_EACH and find_method(name)().names_each_client()]


@pytest.mark.parametrize("name", NAMED)
def test_under_masks_a_function_asks_for_its_client_only_where_the_method_says_so(task, name, monkeypatch):
    """Whoever reads client.id can be given a line of its own in a message that is the same for all."""
    monkeypatch.setattr(find_method(name), "names_each_client", lambda method: False)
    with pytest.raises(PacelineError, match=r"client\.id"):
        prepare(masked(name), task=task).go()
