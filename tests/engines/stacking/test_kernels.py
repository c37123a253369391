"""The forms of the stacked step: their names, and which of them a run takes."""

import pytest
import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.engines.stacking import measure
from paceline.engines.stacking.kernels import Kernels, current, using
from paceline.engines.stacking.measure import Choice, compiled, fastest_forms
from paceline.run import RunConfig, StackingWarning, prepare
from tests.conftest import make_task
from tests.engines.stacking.test_convolution import network


@pytest.mark.parametrize(
    "text", ["plain", "graph", "graph,compile", "views", "graph,views=4x3x3x3,views=64x3x5x5", "triton", "triton=8x9"]
)
def test_names_are_read_as_they_are_written(text):
    assert str(Kernels.parse(text)) == text


@pytest.mark.parametrize("text", ["fast", "views=3x3", "views=axbxcxd", "graph compile", "graph=3x3", "triton=3"])
def test_unknown_names_are_refused(text, task):
    with pytest.raises(ConfigError, match="plain, graph, compile, views"):
        prepare(RunConfig.build({"method": "fedavg", "task": "blobs", "kernels": text}), task=task)


def test_forms_hold_within_a_block():
    with using(Kernels.parse("views,triton=2x3")):
        assert [current().form(shape) for shape in ((1, 2, 3, 4), (2, 3), (3, 2))] == ["views", "triton", "plain"]
    assert current().form((1, 2, 3, 4)) == "plain"


def test_a_long_run_is_compiled_and_a_short_one_is_not():
    choice = Choice(50, "", "graph,views=64x32x3x3", seconds=1e-4)
    assert compiled(choice, 10**7)
    assert not compiled(choice, 10**5)
    assert not compiled(Choice(50, "", "plain", seconds=1e-4), 10**9)  # on a CPU
    assert not compiled(Choice(50, "as given"), 10**9)


def measured(monkeypatch, seconds):
    """Let forms take these seconds, by name."""
    monkeypatch.setattr(
        measure, "_faster", lambda forms, *_: min(((f, seconds.get(str(f), 9.0)) for f in forms), key=lambda p: p[1])
    )


VIEWS = "views=3x1x2x2,views=4x3x3x3"  # the third convolution has groups
TRITON = VIEWS.replace("views", "triton")


@pytest.mark.parametrize(
    ("own", "times", "wanted"),
    [
        (False, {"plain": 5.0, "graph": 4.0, f"graph,{VIEWS}": 3.0}, f"graph,{VIEWS}"),
        (False, {"plain": 4.0, "graph": 5.0, VIEWS: 4.5}, "plain"),
        (
            True,
            {"plain": 5.0, "graph": 4.0, f"graph,{TRITON}": 3.0, f"graph,triton=8x9,{TRITON}": 2.0},
            f"graph,triton=8x9,{TRITON}",
        ),
        (True, {"plain": 5.0, "graph": 4.0, f"graph,{TRITON}": 4.5, "graph,triton=8x9": 3.0}, "graph,triton=8x9"),
    ],
)
def test_forms_are_chosen_by_measurement(monkeypatch, own, times, wanted):
    task = make_task(model=network)
    engine = prepare(RunConfig.build({"method": "fedavg", "task": "blobs"}), task=task).fed.engine
    monkeypatch.setattr(measure, "available", lambda kind: own)
    weight = next(part.weight for part in engine.here.model.module.modules() if isinstance(part, nn.Linear))
    monkeypatch.setattr(measure, "_LARGE", weight.numel())
    wide = "x".join(map(str, weight.shape))
    measured(monkeypatch, {str(Kernels.parse(name.replace("8x9", wide))): seconds for name, seconds in times.items()})
    assert str(fastest_forms(engine.here.model, [])[0]) == str(Kernels.parse(wanted.replace("8x9", wide)))


def test_own_kernels_are_refused_where_they_cannot_run(task):
    with pytest.raises(ConfigError, match="triton needs a GPU"):
        prepare(RunConfig.build({"method": "fedavg", "task": "blobs", "kernels": "graph,triton", "chunk": 4}), task=task)


def test_the_real_measurement_prefers_the_plain_form_on_ties(monkeypatch):
    from paceline.core.generators import drawing

    task = make_task(model=network)
    engine = prepare(RunConfig.build({"method": "fedavg", "task": "blobs"}), task=task).fed.engine
    monkeypatch.setattr(measure, "_CLEAR", 1e9)
    jobs = [
        measure.Job(engine.here.model, engine.here.samples(c), engine.here.initial, task.loss, 0.1, 2, 10, torch.Generator)
        for c in (0, 1, 2)
    ]
    with drawing(0):
        found, seconds = fastest_forms(engine.here.model, jobs)
    assert found == Kernels()
    assert 0 < seconds < 10


def test_a_measurement_in_which_all_stacks_fail_is_a_warning(monkeypatch, task):
    def fails(self, *_):
        self._notes["Net"], self.faults = "out of memory", 1
        return []

    monkeypatch.setattr(measure.Solver, "__call__", fails)
    monkeypatch.setattr(measure, "_KNOWN", {})
    with pytest.warns(StackingWarning, match=r"measurement of stacks failed on cpu: out of memory; .*chunk"):
        found = prepare(RunConfig.build({"method": "fedavg", "task": "blobs", "clients": 12, "cohort": 12}), task=task)
    assert (found.config.chunk, found.config.kernels) == (1, "plain")


def test_a_size_that_fails_is_left_out(monkeypatch, task):
    real = measure.Solver.__call__

    def fails(self, jobs):
        if len(jobs) > 4:
            self._notes["Net"] = "out of memory"
        return real(self, jobs)

    monkeypatch.setattr(measure.Solver, "__call__", fails)
    monkeypatch.setattr(measure, "_KNOWN", {})
    values = {"method": "fedavg", "task": "blobs", "clients": 24, "cohort": 24, "vectorize": "on"}
    assert prepare(RunConfig.build(values), task=task).config.chunk == 4
