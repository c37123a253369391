"""Features and head of the reference models, and several architectures side by side."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paceline.blocks.architectures import Architectures, parse_architecture
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.models import build
from paceline.models.split import body_layout, features, head, head_name, join, take
from paceline.tasks import blobs


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mlp", (1, 8, 8), 10), ("tiny_cnn", (1, 28, 28), 10), ("vgg9", (3, 32, 32), 10), ("logistic", (5,), 3), ("lstm", (6,), 9)],
)
def test_head_of_features_is_the_model(name, shape, classes):
    module = build(name, shape=shape, num_classes=classes).eval()
    x = torch.randint(0, 9, (3, 6)) if name == "lstm" else torch.randn(3, *shape)
    assert torch.equal(head(module)(features(module, x)), module(x))
    assert head(module).out_features == classes
    names = [e.name for e in body_layout(module).entries] if name != "logistic" else []
    assert not any(n.startswith(head_name(module) + ".") for n in names)


def test_a_model_without_a_linear_head_is_refused():
    with pytest.raises(ConfigError, match="head_name"):
        head_name(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


@pytest.mark.parametrize("end", ["relu", "batch", "none"])
def test_what_makes_the_features_of_an_mlp(end):
    module = build("mlp", shape=(6,), num_classes=3, hidden=(5, 4), end=end).eval()
    out = features(module, torch.randn(50, 6))
    assert out.shape == (50, 4)
    assert (float(out.detach().min()) >= 0) == (end == "relu")
    assert any(isinstance(m, nn.BatchNorm1d) for m in module) == (end == "batch")
    with pytest.raises(ConfigError, match="end="):
        build("mlp", shape=(6,), num_classes=3, end="tanh")


def test_taking_and_joining_parts():
    module = build("mlp", shape=(6,), num_classes=3, hidden=4)
    whole = Params.of(module, Layout.of(module))
    body = take(whole, body_layout(module))
    assert list(body) == ["1.weight", "1.bias"]
    changed = join(whole, body + 1.0)
    assert torch.equal(changed["1.weight"], whole["1.weight"] + 1)
    assert torch.equal(changed["3.weight"], whole["3.weight"])
    assert torch.equal(join(whole, {"3.bias": torch.ones(3)})["3.bias"], torch.ones(3))


def test_architectures_are_written_as_text():
    assert parse_architecture("mlp:hidden=64-32,end=batch") == ("mlp", {"hidden": (64, 32), "end": "batch"})
    assert parse_architecture("mlp:hidden=64") == ("mlp", {"hidden": 64})
    assert parse_architecture("") == ("", {})
    for text in ("mlp:hidden", "mlp:hidden=", "mlp:hidden=3,hidden=4"):
        with pytest.raises(ConfigError, match="once"):
            parse_architecture(text)


def test_architectures_are_built_once_and_seeded():
    task = blobs()
    first, again = Architectures(task, 3), Architectures(task, 3)
    for text in ("", "mlp:hidden=7-5"):
        assert first.resident(text) is first.resident(text)
        assert torch.equal(first.initial(text).vector, again.initial(text).vector)
    assert not torch.equal(first.initial("").vector, Architectures(task, 4).initial("").vector)
    assert first.initial("mlp:hidden=7-5")["3.weight"].shape == (5, 7)
    whole = first.resident()
    assert first.body().layout.size == whole.layout.size - sum(p.numel() for p in head(whole.module).parameters())
    assert first.resident("mlp:hidden=7-5").flops == 2 * (12 * 7 + 7 * 5 + 5 * 4) + 7 + 5  # products and two ReLUs
    with pytest.raises(UnknownNameError):
        first.resident("transformr")


def test_the_global_random_state_is_left_alone():
    task = SimpleNamespace(train=blobs().train, num_classes=4, build=blobs().build)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Architectures(task, 0).initial("mlp:hidden=9")
    assert torch.equal(torch.rand(1), expected)
