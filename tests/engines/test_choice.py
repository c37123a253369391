"""The size of stacks is measured where the run will train, and a measurement that fails is reported with what to do."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.wording import as_commands
from paceline.engines.stacking import measure
from paceline.run import RunConfig, StackingWarning, prepare
from tests.conftest import make_task
from tests.pretend import PretendCuda, pretended


@pytest.fixture(autouse=True)
def unknown(monkeypatch):
    """Forget what was measured in this process."""
    monkeypatch.setattr(measure, "_KNOWN", {})


def config(**changes):
    values = {"method": "fedavg", "task": "blobs", "clients": 8, "cohort": 8, "rounds": 1, "device": "cuda"}
    return RunConfig.build(values | changes)


def test_auto_measures_stacks_on_the_device_of_the_run(monkeypatch):
    seen = []

    def timed(works, clients, device):
        seen.append((device, sorted(works)))
        return {size: (work(), 1.0 / size)[1] for size, work in works.items()}

    monkeypatch.setattr(measure, "_seconds", timed)
    with pretended(), warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        run = prepare(config(), task=make_task())
    assert seen == [(torch.device("cuda"), [1, 4, 8])], "with one worker a chunk may be the whole cohort"
    assert run.config.chunk == 8


def test_stacks_that_do_not_fit_into_the_gpu_are_not_tried(monkeypatch):
    with PretendCuda():
        monkeypatch.setattr(
            torch.cuda, "max_memory_allocated", lambda device: 400
        )  # 100 for each of the four of the smallest stack
        for room, sizes in ((10_000, [4, 8, 16]), (1400, [4, 8]), (10, [4])):
            ran = []
            assert measure._fitting([4, 8, 16], room, torch.device("cuda"), lambda ran=ran: ran.append(1)) == sizes
            assert ran == [1]


def test_a_failed_measurement_is_a_warning_with_the_reason_and_what_to_do(monkeypatch):
    def broken(jobs, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("paceline.engines.stacking.replay.Stack", broken)
    with PretendCuda(), as_commands(), pytest.warns(StackingWarning) as told:
        run = prepare(config(), task=make_task())
    assert run.config.chunk == 1
    text = str(told[0].message)
    assert "failed on cuda: CUDA out of memory. Tried to allocate 2 GiB" in text
    assert "--chunk" in text
    assert "--vectorize off" in text


def test_a_measurement_that_ends_in_an_error_is_reported_too(monkeypatch):
    def broken(job):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(measure, "train", broken)
    with pytest.warns(StackingWarning, match=r"RuntimeError: no kernel image is available; give"):
        prepare(config(device="cpu"), task=make_task())


def test_a_model_that_cannot_be_stacked_is_no_failure():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 0 else super().forward(x) * 2

    x, y = torch.randn(80, 6), torch.arange(80) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        run = prepare(config(device="cpu"), task=pl.Task.from_tensors(x, y, lambda: Branching(6, 3)))
    assert run.config.chunk == 1


def test_the_first_turn_on_a_gpu_loads_kernels_and_omits_no_size(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    ran = {1: 0, 4: 0, 8: 0}

    def work(size):
        def act():
            ran[size] += 1
            now[0] += 1.0 if ran[size] == 1 else 0.01

        return act

    with PretendCuda():
        each = measure._seconds({size: work(size) for size in ran}, {1: 4}, torch.device("cuda"))
    assert each == pytest.approx({1: 0.01 / 4, 4: 0.01 / 4, 8: 0.01 / 8})


@pytest.mark.parametrize(
    ("seconds", "batch", "chunk"),
    [(1e-4, 50, 24), (1e-3, 50, 12), (1e-4, 4, 12)],
    ids=["one short step", "a long one", "several steps"],
)
def test_a_short_cohort_of_one_step_is_one_chunk(monkeypatch, seconds, batch, chunk):
    """However many workers there are, so that bits do not depend on them."""
    task = replace(make_task(), batch_size=batch)

    def timed(works, clients, device):
        return {size: seconds * (10.0 if size == 1 else 1.5 if size == max(works) else 1.0) for size in works}

    monkeypatch.setattr(measure, "_seconds", timed)
    values = {"device": "cpu", "clients": 24, "cohort": 24, "vectorize": "on"}
    for workers in (1, 2):
        run = prepare(config(**values, workers=workers), task=task)
        run.close()
        assert run.config.chunk == (chunk if batch == 50 else 8), "a size that takes 1.5 times as long is near for one step only"


def test_only_the_largest_size_grows_to_the_cohort(monkeypatch):
    monkeypatch.setattr(measure, "_seconds", lambda works, *_: {s: 1e-4 if s < 9 else 1e-3 for s in works})
    task = replace(make_task(), batch_size=50)
    run = prepare(config(device="cpu", clients=24, cohort=24, vectorize="on"), task=task)
    assert run.config.chunk == 8


def test_a_cohort_of_several_steps_is_never_one_chunk(monkeypatch):
    monkeypatch.setattr(measure, "_seconds", lambda works, *_: {s: 1e-3 if s == 1 else 1e-4 for s in works})
    run = prepare(config(device="cpu", clients=24, cohort=24, vectorize="on"), task=replace(make_task(), batch_size=4))
    assert run.config.chunk == 12
