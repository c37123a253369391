"""What has changed between stop and resume: other data are refused, other code is told."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.run import ResumeWarning, RunConfig, prepare, resume
from paceline.store import RunFolder, load_checkpoint, save_checkpoint
from tests.conftest import make_task

METHOD = """
from dataclasses import dataclass
from paceline.methods.optimisation.fedavg import FedAvg

@dataclass(frozen=True)
class Own(FedAvg):
    "{text}"
"""

MODEL = """
from torch import nn

class Net(nn.Module):
    "{text}"
    def __init__(self, width=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, x):
        return self.net(x)
"""


class Enough(Exception):
    pass


@pytest.fixture
def stopped(tmp_path):
    """Return a function that stops a run after its first round and returns its folder."""

    def go(task, **changes):
        def stop(record, total):
            raise Enough

        folder = RunFolder.create(tmp_path, "r")
        values = {"method": "fedavg", "task": "blobs", "clients": 6, "cohort": 5, "rounds": 3, "vectorize": "off", **changes}
        prepared = prepare(RunConfig.build(values), task=task, folder=folder, observer=stop)
        folder.write_config(prepared.config.model_dump(exclude_none=True))
        with pytest.raises(Enough):
            prepared.go()
        return folder

    return go


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module to import, with a text in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source, text=""):
        (tmp_path / f"{name}.py").write_text(source.format(text=text))
        sys.modules.pop(name, None)
        return __import__(name)

    yield write
    for name in ("own_method", "own_model"):
        sys.modules.pop(name, None)


def reported(folder, task):
    with warnings.catch_warnings(record=True) as logged:
        warnings.simplefilter("always")
        summary = resume(folder.path, task=task)
    assert summary.rounds == 3
    return [str(w.message) for w in logged if w.category is ResumeWarning]


def test_an_unchanged_run_goes_on_in_silence(stopped):
    assert reported(stopped(make_task()), make_task()) == []


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_samples_are_refused_and_named(stopped, part):
    task = make_task()
    folder = stopped(task)
    before = folder.checkpoint.read_bytes(), folder.read_metrics()
    data = getattr(task, part)
    other = replace(task, **{part: replace(data, y=data.y.flip(0))})
    with pytest.raises(CheckpointError, match=rf"data have changed since this checkpoint \({part}\); restore them"):
        resume(folder.path, task=other)
    assert (folder.checkpoint.read_bytes(), folder.read_metrics()) == before
    assert reported(folder, task) == []


def test_a_model_of_another_shape_is_refused(stopped):
    task = make_task()
    folder = stopped(task)
    with pytest.raises(CheckpointError, match="the model's parameters differ"):
        resume(folder.path, task=replace(task, model=lambda: nn.Linear(12, 4)))


def test_poisoned_data_are_the_same_again(stopped):
    task = make_task()
    assert reported(stopped(task, adversary="labelflip:0.4"), task) == []


def test_an_old_checkpoint_is_taken_with_a_warning(stopped):
    task = make_task()
    folder = stopped(task)
    saved = load_checkpoint(folder.checkpoint)
    del saved["provenance"]
    save_checkpoint(folder.checkpoint, saved)
    (logged,) = reported(folder, task)
    assert "does not identify its data" in logged
    assert "may differ bitwise" in logged


@pytest.mark.parametrize("what", ["method", "model", "defaults", "torch"])
def test_what_may_change_bits_is_told(stopped, module, monkeypatch, what):
    module("own_method", METHOD)
    task = make_task(model=module("own_model", MODEL).Net)
    folder = stopped(task, method="own_method:Own")
    word = {"method": "the source of own_method has", "model": "the source of own_model has", "defaults": "lr, batch_size"}
    if what == "method":
        module("own_method", METHOD, "changed")
    elif what == "model":
        task = replace(task, model=module("own_model", MODEL, "changed").Net)
    elif what == "defaults":
        task = replace(task, lr=0.2)
    else:
        monkeypatch.setattr(torch, "__version__", "99.0")
    (logged,) = reported(folder, task)
    assert word.get(what, "the installed version is 99.0") in logged
