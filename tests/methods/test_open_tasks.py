"""Every method trains every kind of task, or says at the start what it needs."""

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, PlanError
from paceline.registry import find_method
from paceline.run import RunConfig, prepare

from .test_every_method import NAMES, values

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(80) % 3
CLASSES = {name for name in NAMES if find_method(name).needs_classes}


SPLIT = (CLASSES - {"fedld", "fedldsum", "madaug"}) | {"fedins", "fedpeft", "fedper", "fedrep", "fedbabu", "fedbn", "moon"}
"""Methods that split the model, or name its layers."""

PICTURES = {"madaug", "pfedpg", "pfedpgsum", "semaug"}
"""Methods that change pictures or scenes, or need a vision transformer."""


class Net(nn.Sequential):
    def __init__(self, outputs, dtype=torch.float32):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))
        self.to(dtype)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, a, b):
        return {"logits": self.head(torch.relu(self.left(a) + self.right(b)))}


KINDS = {
    "regression": lambda: pl.Task.from_tensors(X, X.sum(1), lambda: Net(1), loss="mse", lr=0.01),
    "inputs by name": lambda: pl.Task.from_tensors({"b": X[:, 4:], "a": X[:, :4]}, LABELS, Two),
    "bf16": lambda: pl.Task.from_tensors(X, LABELS, lambda: Net(3, torch.bfloat16)),
    "float64": lambda: pl.Task.from_tensors(X, LABELS, lambda: Net(3, torch.float64)),
}


def run(name, task, **changes):
    return prepare(RunConfig.build({**values(name), "task": "own", "rounds": 2, "partition": "iid", **changes}), task=task).go()


def test_who_reads_labels_declares_it():
    names = "fedd2s fedd2ssum fedgela fedgh fedghsum fedka fedld fedldsum "
    names += "fedlgd fedloge fedproto fedre fedresum fedsa fraug madaug"
    assert set(names.split()) == CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns_a_quantity_or_refuses_it(name):
    task = KINDS["regression"]()
    if name in CLASSES:
        with pytest.raises(PlanError, match=f"method '{name}' needs classes, but task 'data' has none"):
            run(name, task)
        return
    if name in PICTURES:
        with pytest.raises(ConfigError, match=r"does not support prompts|pastes objects into scenes"):
            run(name, task)
        return
    assert run(name, task).rounds == 2


@pytest.mark.parametrize("name", ["heterofl", "randomdropout"])
def test_sub_models_are_cut_from_a_model_with_several_inputs(name):
    assert run(name, KINDS["inputs by name"](), vectorize="off").rounds == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_every_kind_or_says_what_it_needs(name, kind):
    task = KINDS[kind]()
    for vectorize in ({"vectorize": "off"}, {"vectorize": "on", "chunk": 2}):
        refused = (name in CLASSES and kind == "regression") or (name in SPLIT | {"fal", "franca"} and kind == "inputs by name")
        if refused or name in PICTURES:
            told = r"needs classes|cannot be split into features|matches no module|one tensor of floats"
            told += r"|augments pictures|support prompts|into scenes"
            with pytest.raises((PlanError, ConfigError), match=told):
                run(name, task, **vectorize)
        else:
            assert run(name, task, **vectorize).rounds == 2
