"""Exported models give the scores of the model; what cannot be exported is named."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, MissingExtraError, UnknownNameError
from paceline.results import export as exporting
from tests.conftest import make_task
from tests.results.test_predicting import Pair

FIELDS = {"clients": 4, "rounds": 1}


def test_a_state_dict_is_that_of_the_model(tmp_path):
    result = pl.run("fedavg", make_task(), folder=tmp_path / "run", **FIELDS)
    file = result.export("state-dict")
    assert file == tmp_path / "run" / "model.pt"
    saved = torch.load(file, weights_only=True)
    assert all(value.equal(saved[name]) for name, value in result.state_dict().items())
    start = pl.run("fedavg", make_task(), start_from=str(file), **FIELDS)
    assert start.config.start_from.startswith(str(file))


def test_a_program_of_torch_export(tmp_path):
    task = make_task()
    result = pl.run("fedavg", task, **FIELDS)
    program = torch.export.load(result.export("torch-export", tmp_path / "m.pt2")).module()
    assert torch.allclose(program(task.test.x), result.model()(task.test.x), atol=1e-6)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    x = {"first": torch.randn(60, 3), "second": torch.randn(60, 2)}
    task = pl.Task.from_tensors(x, torch.arange(60) % 4, model=Pair)
    result = pl.run("fedavg", task, folder=tmp_path_factory.mktemp("onnx") / "run", **FIELDS)
    return result.export("onnx"), result, task


def test_onnx_with_several_inputs_and_a_dict_of_outputs(onnx_file):
    import onnxruntime

    file, result, task = onnx_file
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["first", "second"]
    found = session.run(["scores"], {name: part.numpy() for name, part in task.test.x.items()})[0]
    assert torch.allclose(torch.from_numpy(found), result.predict(task.test.x).outputs, atol=1e-5)


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """A regression whose target is far from 0 and of small deviation, with inputs of several clients."""
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) / 2).clamp(-3, 3)
    task = pl.Task.from_tensors(
        x, y, model=partial(nn.Linear, 3, 1), test=(x, y), loss="mse", metrics=["rmse"], target_scaling=(250_000.0, 8.0)
    )
    return pl.run("fedavg", task, folder=tmp_path_factory.mktemp("prices") / "run", **FIELDS), task


@pytest.mark.parametrize("form", ["torch-export", "onnx"])
@pytest.mark.parametrize("raw", [False, True])
def test_numbers_are_in_the_unit_of_the_target_unless_raw(prices, tmp_path, form, raw):
    result, task = prices
    x, file = task.test.x, result.export(form, tmp_path / "m", raw=raw)
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        found = torch.from_numpy(onnxruntime.InferenceSession(str(file)).run(["scores"], {"x": x.numpy()})[0])
    else:
        found = torch.export.load(file).module()(x).detach()
    if raw:
        assert torch.allclose(found, result.model()(x), atol=1e-5)
        return
    wanted = result.predict(x).numbers
    assert torch.allclose(found[:, 0], wanted, rtol=0, atol=1e-4)
    error = (found[:, 0] - (task.test.y.double() * 8 + 250_000)).square().mean().sqrt()
    assert float(error) == pytest.approx(result.history[-1]["rmse"], rel=1e-5)


def test_standardised_numbers_are_said_to_be(prices):
    made = prices[0].predictor()
    assert exporting.standardized(made, "state-dict") == exporting.standardized(made, "onnx", raw=True) == (250_000.0, 8.0)
    assert exporting.standardized(made, "onnx") is None


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x):
        return self.a(x) if float(x.sum()) > 0 else self.b(x)


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    result = pl.run("localonly", make_task(), **FIELDS)
    with pytest.raises(ConfigError, match="has no global model"):
        result.export("state-dict", tmp_path / "x.pt")
    result.export("state-dict", tmp_path / "x.pt", client=1)
    result = pl.run("fedavg", make_task(model=Branching), vectorize="off", **FIELDS)
    with pytest.raises(ConfigError, match="Branching cannot be exported as torch-export"):
        result.export("torch-export", tmp_path / "x.pt2")
    with pytest.raises(UnknownNameError, match="form of export"):
        result.export("keras", tmp_path / "x")
    with pytest.raises(ConfigError, match="has no folder"):
        result.export("state-dict")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"paceline\[onnx\]"):
        result.export("onnx", tmp_path / "x.onnx")


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    result = pl.run("fedavg", make_task(), **FIELDS)
    real = exporting._program

    def wrong(*args):
        content, again = real(*args)
        return content, lambda samples: again(samples) + 0.01

    monkeypatch.setattr(exporting, "_program", wrong)
    with pytest.raises(ConfigError, match="gives other scores than the model"):
        result.export("torch-export", tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()
