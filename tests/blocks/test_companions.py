"""Further networks beside a model: names, outputs, features, initial values, and norms that an objective alone calls."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.blocks.companions import accompanied, held_scores
from paceline.core.client import Hooks
from paceline.core.errors import ConfigError
from paceline.models.split import features, head, scored
from paceline.run import RunConfig, prepare
from tests.conftest import make_task


def beside(model):
    width = head(model).in_features
    return {"other": nn.Sequential(nn.Linear(width, 4), nn.BatchNorm1d(4))}


def test_the_model_is_called_as_before():
    task = make_task()
    plain, module = task.build(3), accompanied(task, beside).build(3)
    x = task.test.x[:5]
    for name, value in plain.named_parameters():
        assert torch.equal(module.get_parameter(f"model.{name}"), value)
    assert torch.equal(module(x), plain(x))
    assert torch.equal(features(module, x), features(plain, x))
    assert torch.equal(scored(module, features(module, x)), plain(x))


def test_several_inputs_by_name():
    class Two(nn.Module):
        head_name = "head"

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def features(self, a, b):
            return a - b

        def forward(self, a, b):
            return self.head(a - b)

    a, b = torch.rand(4, 3), torch.rand(4, 3)
    task = pl.Task.from_tensors({"b": b, "a": a}, torch.arange(4) % 2, Two)
    module = accompanied(task, beside).build(0)
    assert torch.equal(module(a=a, b=b), module.model(a=a, b=b))
    assert torch.equal(features(module, {"b": b, "a": a}), a - b)


def test_what_is_trained_stays_so_and_the_others_train_too():
    task = accompanied(dataclasses.replace(make_task(), trainable=["4.*"]), beside)
    assert task.trainable == ["model.4.*", "other.*"]


def test_no_gradient_reaches_a_held_head():
    module, f = make_task().build(0), torch.rand(3, 8, requires_grad=True)
    held = held_scores(module, f)
    assert torch.equal(held, scored(module, f))
    held.sum().backward()
    assert f.grad.abs().sum() > 0
    assert head(module).weight.grad is None


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="cannot be split"):
        accompanied(make_task(model=lambda: nn.Sequential(nn.Linear(12, 4), nn.Tanh())), beside)


@dataclass(frozen=True)
class Beside(pl.methods.FedAvg):
    """Train a norm layer that the model's own forward pass does not call."""

    def fit_task(self, task):
        return self, accompanied(task, beside)

    def hooks(self, client, start):
        def objective(net, x, y):
            f = features(net.model, x)
            return nn.functional.cross_entropy(net.other(f) + scored(net.model, f), y)

        return Hooks(objective=objective)


def test_a_norm_that_the_objective_alone_calls_is_stacked_with_each_client_s_statistics():
    ends = []
    for vectorize in ("off", "on"):
        common = {"method": f"{__name__}:Beside", "task": "own", "clients": 5, "cohort": 5, "rounds": 2, "chunk": 3}
        run = prepare(RunConfig.build({**common, "vectorize": vectorize, "partition": "dirichlet:0.5"}), task=make_task())
        run.go()
        assert run.fed.engine.notes == {}
        ends.append(run.state.params)
    assert ends[0]["other.1.running_mean"].abs().sum() > 0
    torch.testing.assert_close(ends[0].vector, ends[1].vector, atol=1e-5, rtol=1e-4)
