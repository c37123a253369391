"""Tasks by name: their data as tensors, their models, their options, and their refusals."""

from __future__ import annotations

import gzip
import json
import pickle
import string

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError, DataError, MissingDataError, UnknownNameError
from paceline.data.sources import find_source
from paceline.registry import names
from paceline.tasks import Task, load_task, task_info
from tests.conftest import fetched

FAST = ("digits", "mnist-5k", "shakespeare")


def load(name: str, **options) -> Task:
    fetched(name)
    return load_task(name, **options)


def test_digits_needs_nothing():
    task = load_task("digits")
    assert (len(task.train), len(task.test)) == (1438, 359)
    assert task.train.x.shape[1:] == (1, 8, 8)
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64
    assert task.classes == tuple(string.digits)
    assert abs(float(task.train.x.mean())) < 1e-4
    assert abs(float(task.train.x.std()) - 1) < 1e-3


def test_the_split_does_not_depend_on_the_seed():
    a, b = load_task("digits", seed=0), load_task("digits", seed=1)
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.test.y, b.test.y)


def test_the_test_part_is_shifted_by_the_training_part():
    raw, task = find_source("digits").load(), load_task("digits")
    mean, deviation = raw.train.x.mean() / 255, raw.train.x.std() / 255
    expected = (raw.test.x / 255 - mean) / deviation
    assert np.allclose(task.test.x[:, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_a_step_of_training_lowers_the_loss(name):
    task = load(name, limit=256)
    module = task.build(0)
    optimiser = torch.optim.SGD(module.parameters(), lr=task.lr)
    x, y = task.train.x[: task.batch_size], task.train.y[: task.batch_size]
    before = task.loss(module(x), y)
    before.backward()
    optimiser.step()
    assert task.loss(module(x), y) < before


def test_digits_are_learnt():
    """The fixed split is an easy one (1-nearest-neighbour has no error in it), so this is a low bar."""
    task = load_task("digits")
    module = task.build(0)
    optimiser = torch.optim.SGD(module.parameters(), lr=task.lr)
    rng = torch.Generator().manual_seed(0)
    for _ in range(8):
        for rows in torch.randperm(len(task.train), generator=rng).split(task.batch_size):
            optimiser.zero_grad()
            task.loss(module(task.train.x[rows]), task.train.y[rows]).backward()
            optimiser.step()
    assert float((module(task.test.x).argmax(1) == task.test.y).float().mean()) > 0.93


def test_mnist_5k():
    task = load("mnist-5k")
    assert (len(task.train), len(task.test)) == (4000, 1000)
    assert task.train.x.shape[1:] == (1, 28, 28)
    assert task.test.y.bincount().tolist() == [100] * 10


def test_shakespeare_has_roles_in_time_and_a_cap():
    task = load("shakespeare", roles=20, limit=500)
    assert task.train.x.shape == (500, 80)
    assert not task.train.x.dtype.is_floating_point
    assert task.in_time
    assert len(set(task.train.owner.tolist())) <= 20
    assert task.num_classes == len(task.classes) == 80


def test_fontwriters_has_writers():
    task = load("fontwriters", families=2)
    assert len(task.train.owners) == 8
    assert set(task.train.owner.tolist()) == set(range(8))
    assert task.num_classes == 62
    assert not task.in_time


def test_limit_is_a_seeded_choice():
    first, again, other = (load_task("digits", seed=s, limit=100) for s in (0, 0, 1))
    assert len(first.train) == 100
    assert torch.equal(first.train.y, again.train.y)
    assert not torch.equal(first.train.y, other.train.y)
    assert len(load_task("digits", limit=10**6).train) == 1438


def test_a_model_in_place_of_the_tasks_own():
    task = load_task("digits", model="logistic")
    assert sum(p.numel() for p in task.build(0).parameters()) == 650
    assert task.info["model"] == "logistic"
    wide = load_task("digits", hidden=(7,))
    assert sum(p.numel() for p in wide.build(0).parameters()) == 64 * 7 + 7 + 70 + 10
    grouped = load_task("digits", model="vgg9", norm="group")
    assert any(isinstance(m, torch.nn.GroupNorm) for m in grouped.build(0).modules())


def test_a_build_depends_on_its_seed_alone():
    task = load_task("digits")
    torch.manual_seed(1)
    a = task.build(5)
    torch.manual_seed(2)
    b = task.build(5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_task_can_be_sent_to_workers():
    task = pickle.loads(pickle.dumps(load_task("digits")))
    assert task.build(0)(task.train.x[:2]).shape == (2, 10)


@pytest.mark.parametrize("name", names("task"))
def test_every_task_has_a_line(name):
    assert "\n" not in task_info(name)
    assert "model " in task_info(name)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean .*mnist-5k"):
        load_task("mnist5k")
    with pytest.raises(UnknownNameError, match=r"did you mean .*digits"):
        task_info("digit")
    with pytest.raises(UnknownNameError, match=r"did you mean .*logistic"):
        load_task("digits", model="logistc")
    with pytest.raises(UnknownNameError, match="option of digits"):
        load_task("digits", hiden=(3,))


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1.5}, {"limit": True}, {"model": "lstm"}])
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ConfigError):
        load_task("digits", **options)


def test_a_picture_model_does_not_read_text():
    fetched("shakespeare")
    with pytest.raises(ConfigError, match="samples are texts"):
        load_task("shakespeare", model="logistic")


def test_missing_data_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with pytest.raises(MissingDataError, match="paceline data fetch mnist-5k"):
        load_task("mnist-5k")
    assert len(load_task("digits").train) == 1438


def write_csv(folder, rows: int = 60):
    lines = ["age,site,kind"] + [f"{k % 7},{'ab'[k % 2]},{'xy'[k % 7 > 3]}" for k in range(rows)]
    path = folder / "t.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_table_of_ones_own(tmp_path):
    task = load_task(f"csv:{write_csv(tmp_path)}?client=site&target=kind")
    assert task.info["model"] == "mlp"
    assert task.classes == ("x", "y")
    assert task.train.owners == ("a", "b")
    assert not task.in_time
    assert task.build(0)(task.train.x[:3]).shape == (3, 2)


def test_options_of_a_file_and_of_its_model(tmp_path):
    path = write_csv(tmp_path)
    task = load_task(f"csv:{path}", model="mlp", target="kind", hidden=(5,))
    assert next(task.build(0).parameters()).shape[0] == 5
    with pytest.raises(UnknownNameError, match="option of csv"):
        load_task(f"csv:{path}", targt="kind")
    with pytest.raises(DataError, match="does not exist"):
        load_task(f"csv:{tmp_path / 'absent.csv'}")
    with pytest.raises(UnknownNameError, match=r"did you mean .*csv"):
        load_task("cvs:/x")


def test_pictures_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    for kind, count in (("train", 40), ("t10k", 10)):
        images, labels = (
            rng.integers(0, 256, (count, 12, 12), dtype=np.uint8),
            np.arange(count, dtype=np.uint8) % 2,
        )
        for name, a in ((f"{kind}-images-idx3-ubyte", images), (f"{kind}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, a.ndim]) + np.array(a.shape, dtype=">u4").tobytes()
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(head + a.tobytes()))
    task = load_task(f"idx:{tmp_path}", model="tiny_cnn")
    assert task.train.x.shape == (40, 1, 12, 12)
    assert task.build(0)(task.test.x).shape == (10, 2)


def test_roles_of_ones_own(tmp_path):
    users = {u: {"x": [(u * 80)[:80]] * 120, "y": ["e"] * 120} for u in ("ann", "bob")}
    reported = {"users": list(users), "num_samples": [120, 120], "user_data": users}
    (tmp_path / "all.json").write_text(json.dumps(reported))
    task = load_task(f"leaf-shakespeare:{tmp_path}")
    assert task.train.x.shape[1:] == (80,)
    assert task.in_time
    assert task.build(0)(task.train.x[:2]).shape == (2, 80)


@pytest.mark.parametrize(
    ("option", "value"), [("classes", "abc"), ("classes", 2.5), ("classes", True), ("epochs", 0), ("patch", [1])]
)
def test_an_option_of_another_type_is_refused(option, value):
    with pytest.raises(ConfigError, match=f"task 'vit-tuning': {option}="):
        load_task("vit-tuning", **{option: value})
