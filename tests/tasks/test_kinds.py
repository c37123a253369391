"""A user's script per kind of task: each trains and evaluates, plain and secure, stacked and one client at a time."""

import math
import pickle
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import paceline as pl
from paceline.core.columns import Mapped, Ragged
from paceline.run import StackingWarning

N = 90
DRAWN = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=DRAWN)
W = torch.randn(6, 3, generator=DRAWN)
LABELS = (X @ W).argmax(1)
VALUES = X @ W[:, 0]
IMAGES = torch.randn(N, 2, 6, 6, generator=DRAWN)
MASKS = (IMAGES.sum(1) > 0).long()
MASKS[:, 0] = 255


class Pairs(Dataset):
    def __init__(self, x=X, y=LABELS):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Two(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.form, self.a, self.b = form, nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left, right):
        out = self.a(left) + self.b(right)
        return {
            "tensor": out,
            "dict": {"logits": out, "left": left},
            "tuple": (out, left),
            "object": SimpleNamespace(logits=out, left=left),
            "ordered": OrderedDict(logits=out, left=left),
        }[self.form]


class Tied(nn.Module):
    """An encoder whose weight is the decoder's too."""

    def __init__(self):
        super().__init__()
        self.inner, self.middle, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)
        self.middle.weight = self.inner.weight

    def forward(self, x):
        return self.head(self.middle(torch.tanh(self.inner(x))))


class Bag(nn.Module):
    """The mean of a text's token embeddings, without its padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

    def forward(self, ids, ids_mask):
        kept = ids_mask[:, :, None].float()
        return self.head((self.embed(ids) * kept).sum(1) / kept.sum(1))


class Next(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 16), nn.Linear(16, 5)

    def forward(self, ids):
        return {"logits": self.head(self.embed(ids))}


def regressor(inputs=6):
    return nn.Linear(inputs, 1)


def weighted(outputs, targets):
    return ((outputs["logits"][:, 0] - targets["value"]) ** 2 * targets["weight"]).mean()


def frame():
    made = pd.DataFrame({f"f{k}": X[:, k].numpy() for k in range(6)})
    return made.assign(
        colour=["red", "blue", "green"] * 30, old=[True, False] * 45, price=VALUES.numpy(), site=["a", "b", "c"] * 30
    )


TEXTS = [torch.randint(0, 4, (3 + k % 5,), generator=DRAWN) + 4 * (k % 2) for k in range(N)]
ORDERED = (torch.arange(8)[None] + torch.arange(N)[:, None]) % 5

KINDS = {
    "tensors": lambda: pl.Task.from_tensors(X, LABELS, lambda: nn.Linear(6, 3)),
    "dataset": lambda: pl.Task.from_datasets(Pairs(), Pairs(X[:20], LABELS[:20]), lambda: nn.Linear(6, 3)),
    "dataset read when needed": lambda: pl.Task.from_datasets(
        Pairs(), Pairs(X[:20], LABELS[:20]), lambda: nn.Linear(6, 3), resident=False
    ),
    "data frame": lambda: pl.Task.from_dataframe(frame().drop(columns="site"), "price", regressor, lr=0.01),
    "natural clients": lambda: pl.Task.from_clients(
        {name: Pairs(X[k::4], LABELS[k::4]) for k, name in enumerate("abcd")}, lambda: nn.Linear(6, 3)
    ),
    "two inputs": lambda: pl.Task.from_tensors((X[:, :4], X[:, 4:]), LABELS, Two),
    "inputs by name": lambda: pl.Task.from_tensors({"right": X[:, 4:], "left": X[:, :4]}, LABELS, Two),
    "dict output": lambda: pl.Task.from_tensors((X[:, :4], X[:, 4:]), LABELS, lambda: Two("dict")),
    "tuple output": lambda: pl.Task.from_tensors((X[:, :4], X[:, 4:]), LABELS, lambda: Two("tuple")),
    "object output": lambda: pl.Task.from_tensors((X[:, :4], X[:, 4:]), LABELS, lambda: Two("object")),
    "bf16 model": lambda: pl.Task.from_tensors(X, LABELS, lambda: nn.Linear(6, 3).bfloat16()),
    "float64 model": lambda: pl.Task.from_tensors(X.double().numpy(), LABELS.numpy(), lambda: nn.Linear(6, 3).double()),
    "tied weights": lambda: pl.Task.from_tensors(X, LABELS, Tied),
    "regression": lambda: pl.Task.from_tensors(X, VALUES, regressor, loss="mse", lr=0.02),
    "a user's loss": lambda: pl.Task.from_tensors(
        (X[:, :4], X[:, 4:]), {"value": VALUES, "weight": torch.ones(N)}, lambda: Two("dict"), loss=weighted, lr=0.02
    ),
    "multi-label": lambda: pl.Task.from_tensors(X, (X @ W > 0).float(), lambda: nn.Linear(6, 3), loss="bce"),
    "segmentation": lambda: pl.Task.from_tensors(IMAGES, MASKS, lambda: nn.Conv2d(2, 2, 1), ignore_index=255),
    "dice": lambda: pl.Task.from_tensors(IMAGES, MASKS, lambda: nn.Conv2d(2, 2, 1), loss="dice", ignore_index=255),
    "ragged": lambda: pl.Task.from_tensors({"ids": Ragged.of(TEXTS)}, torch.arange(N) % 2, Bag),
    "language": lambda: pl.Task.from_tensors(ORDERED, ORDERED, Next, loss="next_token"),
}
CLASSLESS = {"data frame", "regression", "a user's loss", "multi-label", "language"}


def trained(task, **changes):
    fields = {"clients": 4, "rounds": 6, "partition": "natural" if task.train.owners else "iid", **changes}
    return pl.run(pl.methods.FedAvg(batch_size=8, lr=task.lr * 6, epochs=2), task, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_plain_and_secure_and_stacked(kind):
    task = KINDS[kind]()
    result = trained(task, vectorize="off")
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert math.isnan(result.accuracy) == (kind in CLASSLESS)
    if kind not in CLASSLESS:
        assert result.accuracy > 0.8
    secure = trained(task, rounds=3, aggregation="secure", secure={"gamma": 0.0, "clip": 4.0}, vectorize="off")
    assert [r["loss"] for r in secure.history] == pytest.approx(losses[:3], rel=0.05)
    if kind == "ragged":
        with pytest.warns(StackingWarning, match="different lengths"):
            stacked = trained(task, vectorize="on", chunk=4)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=StackingWarning)
            stacked = trained(task, vectorize="on", chunk=4)
    assert stacked.loss == pytest.approx(result.loss, rel=2e-3)
    assert type(result.model()).__name__ == type(task.build(0)).__name__


@pytest.mark.parametrize("kind", ["dataset read when needed", "inputs by name", "ragged", "bf16 model", "segmentation"])
def test_the_engine_and_the_number_of_workers_change_nothing(kind):
    task = KINDS[kind]()
    runs = [trained(task, rounds=2, vectorize="off", **extra) for extra in ({}, {"workers": 2}, {"engine": "debug"})]
    assert len({run.model_sha256 for run in runs}) == 1


def test_a_federated_evaluation_is_the_central_one():
    task = KINDS["regression"]()
    task = pl.Task(task.name, task.train, task.train, task.model, 0, task.loss)
    central = trained(task, rounds=2)
    with pytest.warns(UserWarning, match="judges by training samples"):
        federated = trained(task, rounds=2, evaluation="federated")
    assert central.loss == pytest.approx(federated.loss, rel=1e-6)


def test_a_masked_loss_is_the_mean_of_what_counts():
    kept = torch.arange(N) % 3 > 0
    x, y = torch.where(kept[:, None], X, 50.0), {"value": VALUES, "kept": kept}
    task = pl.Task.from_tensors(x, y, regressor, test=(x, y), loss="mse", mask="kept", lr=0.02)
    result = trained(task, vectorize="off")
    with torch.no_grad():
        wanted = nn.functional.mse_loss(result.model()(X[kept])[:, 0], VALUES[kept])
    assert result.loss == pytest.approx(float(wanted), rel=1e-4)
    with pytest.warns(UserWarning, match="judges by training samples"):
        federated = trained(
            pl.Task.from_tensors(x, y, regressor, test=(x, y), loss="mse", mask="kept", lr=0.02), evaluation="federated"
        )
    assert federated.loss == pytest.approx(result.loss, rel=1e-4)


def test_clients_of_a_task_without_classes_are_evaluated():
    result = trained(KINDS["regression"](), rounds=2, evaluation="clients")
    assert result.loss == pytest.approx(trained(KINDS["regression"](), rounds=2).loss, rel=1e-5)


def test_running_statistics_of_a_half_precision_model_are_averaged():
    task = pl.Task.from_tensors(X + 2.0, LABELS, lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).bfloat16())
    norm = trained(task, rounds=4).model()[0]
    assert norm.running_mean.dtype == torch.bfloat16
    assert torch.allclose(norm.running_mean.float(), (X + 2.0).mean(0), atol=0.5)


def test_a_tied_weight_stays_one():
    module = trained(KINDS["tied weights"](), rounds=2).model()
    assert module.middle.weight is module.inner.weight


def test_a_model_computes_in_its_own_dtype_and_gets_inputs_of_it():
    task = KINDS["float64 model"]()
    assert (task.train.x.dtype, task.build(0).weight.dtype) == (torch.float64, torch.float64)
    assert trained(task, rounds=1).model().weight.dtype == torch.float64
    half = KINDS["bf16 model"]()
    assert (half.train.x.dtype, trained(half, rounds=1).model().weight.dtype) == (torch.bfloat16, torch.bfloat16)


def test_small_steps_of_a_half_precision_model_add_up():
    moves = []
    for dtype in (torch.float32, torch.bfloat16):
        task = pl.Task.from_tensors(X, LABELS, lambda dtype=dtype: nn.Linear(6, 3).to(dtype))
        run = pl.prepare(pl.RunConfig(clients=4, cohort=4, rounds=1, options={"lr": 1e-4, "epochs": 8}, vectorize="off"), task=task)
        start = run.fed.init_params()
        run.step()
        moves.append((run.state.params - start).vector)
        run.close()
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.99
    assert float(moves[1].norm() / moves[0].norm()) == pytest.approx(1.0, abs=0.05)


def test_columns_in_a_file_train_as_columns_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", VALUES.numpy())
    x, y = Mapped.open(tmp_path / "x.npy"), np.load(tmp_path / "y.npy", mmap_mode="r")
    in_file = pl.Task.from_tensors(x, y, regressor, loss="mse", lr=0.02)
    copied = pickle.loads(pickle.dumps(in_file))
    assert len(pickle.dumps(in_file.train.x)) < 2000
    assert copied.fingerprint == in_file.fingerprint
    hashes = [trained(task, rounds=2, vectorize="off").model_sha256 for task in (in_file, copied, KINDS["regression"]())]
    assert len(set(hashes)) == 1
    assert trained(in_file, rounds=2, vectorize="on", chunk=4).loss == pytest.approx(trained(in_file, rounds=2).loss, rel=1e-4)
