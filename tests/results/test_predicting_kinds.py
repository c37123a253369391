"""Predictions of every kind of task: data frames, other dtypes, labels, pixels, tokens."""

from functools import partial

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError
from paceline.results.predictor import load_predictor
from tests.conftest import make_task

FIELDS = {"clients": 4, "rounds": 2}


def test_data_frames(tmp_path):
    stream = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"age": stream.integers(20, 90, 120), "smokes": stream.random(120) > 0.5, "sex": stream.choice(["f", "m"], 120)}
    )
    frame["outcome"] = np.where(frame["age"] + 20 * frame["smokes"] > 60, "ill", "well")
    made = pl.Task.from_dataframe(frame, "outcome", model=lambda inputs: nn.Linear(inputs, 2), test=0.25, standardize=True)
    result = pl.run("fedavg", made, clients=4, rounds=25, folder=tmp_path / "run")
    whole = result.predict(frame)
    assert whole.outputs.shape == (120, 2)
    seen = result.predict(torch.cat([made.train.x, made.test.x])).outputs
    assert torch.allclose(whole.outputs.sort(0).values, seen.sort(0).values, atol=1e-5)
    assert result.predict({"age": 85, "smokes": True, "sex": "f"}).labels == ["ill"]
    loaded = pl.load(tmp_path / "run", model=partial(nn.Linear, 4, 2))
    assert loaded.predict(frame).outputs.equal(whole.outputs)
    prices = pl.Task.from_dataframe(frame, "age", model=lambda inputs: nn.Linear(inputs, 1), columns=["smokes", "sex"], loss="mse")
    assert pl.run("fedavg", prices, **FIELDS).predict(frame.drop(columns=["age"])).numbers.shape == (120,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(tmp_path, dtype):
    x, y = make_task().train.x, make_task().train.y
    task = pl.Task.from_tensors(x, y, model=partial(nn.Linear, 12, 4, dtype=dtype))
    result = pl.run("fedavg", task, folder=tmp_path / "run", **FIELDS)
    again = load_predictor(tmp_path / "run")
    assert again.module.weight.dtype == dtype
    assert again.predict(task.test.x).codes.eq(task.test.y).double().mean() == pytest.approx(result.accuracy)
    start = pl.run("fedavg", task, start_from=str(tmp_path / "run"), **FIELDS)
    assert start.loss < result.loss


def test_labels(tmp_path):
    x = torch.randn(60, 3)
    several = pl.Task.from_tensors(x, (x > 0).float(), model=partial(nn.Linear, 3, 3), loss="bce", classes=("a", "b", "c"), lr=0.5)
    found = pl.run("fedavg", several, clients=4, rounds=40, folder=tmp_path / "run").predict(torch.eye(3) * 18 - 9)
    assert found.labels == [["a"], ["b"], ["c"]]
    assert ((found.scores > 0.5) == found.codes.bool()).all()
    assert [row["prediction"] for row in found.rows()] == ["a", "b", "c"]


def test_pixels_and_tokens(tmp_path):
    pictures, masks = torch.randn(20, 1, 4, 4), torch.randint(0, 3, (20, 4, 4))
    masks[0, 0] = 255
    pixels = pl.Task.from_tensors(pictures, masks, model=partial(nn.Conv2d, 1, 3, 1), num_classes=3, ignore_index=255)
    found = pl.run("fedavg", pixels, **FIELDS).predict(pictures)
    assert found.codes.shape == (20, 4, 4)
    with pytest.raises(ConfigError, match="a class for each pixel"):
        found.to_csv(tmp_path / "x.csv")
    tokens = torch.randint(0, 7, (40, 5))
    language = pl.Task.from_tensors(
        tokens, tokens, model=lambda: nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 7)), loss="next_token"
    )
    found = pl.run("fedavg", language, **FIELDS).predict(tokens)
    assert found.codes.shape == (40, 5)
    assert len(next(found.rows())["prediction"].split()) == 5
