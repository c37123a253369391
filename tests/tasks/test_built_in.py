"""Built-in tasks of several kinds reach with their defaults what their page says, and their models train alike stacked and alone."""

from __future__ import annotations

import pytest
import torch

import paceline as pl
from paceline.models import build
from paceline.tasks import load_task
from tests.conftest import fetched

REACHED = [
    ("heart-disease", 10, "natural", 4, "accuracy", 0.74),
    ("cd4", 10, "iid", 10, "r2", 0.3),
]
LONG = [
    ("watch-activity", 20, "natural", 20, "accuracy", 0.7),
    ("life-expectancy", 30, "natural", 202, "r2", 0.1),
    ("mri-tissue", 20, "natural", 4, "dice", 0.6),
    ("20newsgroups", 5, "iid", 10, "accuracy", 0.7),
    ("film-genres", 10, "natural", 10, "multilabel_macro_f1", 0.15),
    ("spoken-digits", 20, "natural", 5, "accuracy", 0.4),
    ("emoji-pairs", 10, "iid", 10, "accuracy", 0.65),
]


@pytest.mark.parametrize(
    ("name", "rounds", "partition", "clients", "figure", "least"),
    [*REACHED, *(pytest.param(*row, marks=pytest.mark.slow) for row in LONG)],
)
def test_fedavg_learns_with_the_defaults(name, rounds, partition, clients, figure, least):
    fetched({"emoji-pairs": "emoji"}.get(name, name))
    result = pl.run("fedavg", name, rounds=rounds, partition=partition, clients=clients)
    assert result.history[-1][figure] > least
    assert result.history[-1].get("metric", "accuracy") == figure


def test_a_number_of_a_named_data_set_is_in_its_own_unit():
    fetched("cd4")
    task = load_task("cd4")
    assert task.target_scaling[0] == pytest.approx(371.3, abs=0.1)
    assert abs(float(task.train.y.mean())) < 0.1


@pytest.mark.parametrize(
    ("model", "shape"), [("cnn1d", (3, 16)), ("unet", (1, 16, 16)), ("resnet18", (3, 16, 16)), ("word_bag", (9,))]
)
def test_clients_trained_together_and_alone_agree(model, shape):
    options = {"resnet18": {"width": 8, "groups": 4}, "word_bag": {"symbols": 30}}.get(model, {})
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randint(1, 30, (48, *shape), generator=generator)
        if model == "word_bag"
        else torch.randn(48, *shape, generator=generator)
    )
    y = torch.randint(3, (48, *(shape[1:] if model == "unet" else ())), generator=generator)
    task = pl.Task.from_tensors(x, y, lambda: build(model, shape=shape, num_classes=3, **options), lr=0.05)
    one, together = (pl.run("fedavg", task, clients=3, rounds=2, vectorize=how, progress=False).model() for how in ("off", "on"))
    for a, b in zip(one.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
