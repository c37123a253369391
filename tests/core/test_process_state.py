"""A library call leaves the process as it found it."""

import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import paceline as pl
from paceline.core.process_state import process_state
from tests.conftest import make_task


def state():
    """Return what a call might change of this process."""
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        *(getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        list(warnings.filters),
        dict(os.environ),
        os.getcwd(),
    )


@pytest.fixture
def odd():
    """Give the process settings that no run would choose."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.allow_tf32 = True


SMALL = {"clients": 4, "rounds": 2}


def stopped(record, total):
    raise KeyboardInterrupt


def steps():
    run = pl.prepare(pl.RunConfig(clients=4, cohort=4, rounds=2, precision="tf32"), task=make_task())
    inside = state()
    while run.step():
        assert state() == inside
    return run.result()


CALLS = {
    "run": lambda folder: pl.run("fedavg", make_task(), **SMALL),
    "tf32": lambda folder: pl.run("fedavg", make_task(), precision="tf32", **SMALL),
    "workers": lambda folder: pl.run("fedavg", make_task(), workers=2, **SMALL),
    "compare": lambda folder: pl.compare(["fedavg", "clip"], make_task(), **SMALL).plot(folder / "picture.png"),
    "steps": lambda folder: steps(),
    "model": lambda folder: pl.run("finetuned", make_task(), evaluation="clients", **SMALL).model(client=1),
    "resume": lambda folder: (
        pl.run("fedavg", make_task(), folder=folder / "one", **SMALL),
        pl.resume(folder / "one", task=make_task()),
        pl.load(folder / "one", task=make_task()).model(),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_changes_nothing(odd, tmp_path, call):
    before = state()
    CALLS[call](tmp_path)
    assert state() == before


def test_nor_does_one_that_raises(odd):
    before = state()
    with pytest.raises(KeyboardInterrupt):
        pl.run("fedavg", make_task(), observer=stopped, precision="tf32", **SMALL)
    with pytest.raises(pl.errors.PlanError):
        pl.run("fluid", make_task(), aggregation="secure", precision="tf32", **SMALL)
    assert state() == before


def test_settings_hold_inside():
    with process_state(5, threads=2, precision="tf32"):
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")
        drawn = torch.rand(1)
    with process_state(5, precision="float32"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.rand(1).equal(drawn)


def test_results_do_not_depend_on_the_process(odd):
    here = pl.run("fedavg", make_task(), **SMALL).model_sha256
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(5)
    assert pl.run("fedavg", make_task(), **SMALL).model_sha256 == here


def test_the_allocator_is_left_alone():
    code = (
        "import paceline as pl; from paceline.tasks import blobs; from paceline.core import allocator\n"
        "pl.run('fedavg', blobs(), clients=4, rounds=1, workers={workers}); print(allocator._done)"
    )
    for workers in (1, 2):
        reported = subprocess.run([sys.executable, "-c", code.format(workers=workers)], capture_output=True, text=True, check=True)
        assert reported.stdout.strip() == "False"
