"""Features of a frozen backbone: equal to a direct pass, cached by content, with owners and domains."""

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError
from paceline.tasks import load_task
from paceline.tasks.backbones import frozen_features
from paceline.tasks.domains import DomainTask
from tests.conftest import fetched


def backbone(channels=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 7),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    return tmp_path / "features"


def domains():
    return load_task("corrupted", of="digits", kinds="clean/fog", limit=250)


def test_features_are_those_of_a_pass_in_evaluation_mode():
    task, module = domains(), backbone()
    made = frozen_features(task, module.train(), side=12)
    with torch.no_grad():
        grown = nn.functional.interpolate(task.train.x.expand(-1, 3, -1, -1), size=(12, 12), mode="bilinear", antialias=True)
        wanted = module.eval()[:-1](grown)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0).clamp(min=1e-3)
    torch.testing.assert_close(made.train.x, wanted, atol=1e-4, rtol=1e-4)
    assert made.train.y is task.train.y
    assert torch.equal(made.test.owner, task.test.owner)
    assert isinstance(made, DomainTask)
    assert len(made.parts()) == 2
    assert made.build(0)(made.train.x[:2]).shape == (2, 10)


def test_features_are_computed_once(cache):
    task, module, passes = domains(), backbone(), []
    module.register_forward_pre_hook(lambda *_: passes.append(1))
    module[0].register_forward_pre_hook(lambda *_: passes.append(1))
    first = frozen_features(task, module)
    count = len(passes)
    assert count > 0
    again = frozen_features(domains(), backbone())
    assert len(passes) == count
    assert torch.equal(first.train.x, again.train.x)
    assert len(list(cache.iterdir())) == 1
    frozen_features(task, backbone(seed=1))
    frozen_features(task, backbone(), side=10)
    frozen_features(load_task("digits", limit=250), backbone())
    assert len(list(cache.iterdir())) == 4


def test_a_model_learns_from_features():
    task = frozen_features(domains(), backbone(), model="mlp", hidden=[16])
    last = pl.run(pl.methods.FedAvg(lr=0.2, epochs=3), task, clients=4, rounds=5, partition="domains", progress=False).history[-1]
    assert {"part_0_accuracy", "part_1_accuracy"} <= set(last)
    assert last["accuracy"] > 0.3


def test_refusals():
    with pytest.raises(ConfigError, match="pictures"):
        frozen_features(pl.Task.from_tensors(torch.randn(20, 4), torch.arange(20) % 2, nn.Flatten), backbone())
    with pytest.raises(ConfigError, match="side=8"):
        load_task("frozen-features", of="digits", side=8)


@pytest.mark.slow
def test_mobilenet_features_tell_emoji_apart(monkeypatch):
    monkeypatch.undo()
    fetched("mobilenet-v2")
    fetched("emoji-vendors")
    task = load_task("frozen-features")
    assert task.train.x.shape == (3309, 1280)
    last = pl.run("fedavg", task, clients=6, rounds=10, partition="domains", progress=False).history[-1]
    assert last["accuracy"] > 0.55
