"""Tasks of a user's own data and model: every form of data gives the same task, and what does not fit is named at once."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import paceline as pl
from paceline.core.errors import ConfigError, DataError, DataFormatError

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


class Net(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)


class Pairs(Dataset):
    """A map-style data set of whatever its columns hold."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Bare:
    """The least that a data set may be."""

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return X[i], int(Y[i])


def made(data, test=None, model=Net, **options):
    return pl.Task.from_datasets(data, (X[:6], Y[:6]) if test is None else test, model=model, **options)


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.double().numpy(), Y.numpy().astype(np.uint8)),
    "TensorDataset": TensorDataset(X, Y),
    "dataset": Pairs(X, Y),
    "numbers": Pairs(X.numpy(), Y.tolist()),
    "subset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(30)),
    "duck": Bare(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form):
    task = made(FORMS[form])
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64
    assert torch.allclose(task.train.x, X)
    assert task.train.y.equal(Y)
    assert (task.num_classes, task.name, task.batch_size, task.lr) == (3, "data", 20, 0.05)


def test_options_reach_the_task():
    task = made((X, Y), num_classes=3, batch_size=4, lr=0.5, name="mine", trainable=["weight"], loss=nn.CrossEntropyLoss())
    assert (task.batch_size, task.lr, task.name, task.trainable) == (4, 0.5, "mine", ["weight"])
    assert made((X, Y), classes=("a", "b", "c")).num_classes == 3


def test_a_module_is_the_start_and_never_trained():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = made((X, Y), model=model)
    with torch.no_grad():
        model.weight.fill_(7.0)  # after the copy
    assert task.build(0).weight.equal(before["weight"])
    assert task.build(1).weight.equal(before["weight"])
    with torch.no_grad():
        model.weight.copy_(before["weight"])
    result = pl.run("fedavg", task, clients=3, rounds=2)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not result.model().weight.equal(before["weight"])
    assert task.build(0).weight.equal(before["weight"])
    assert pickle.loads(pickle.dumps(task)).build(0).weight.equal(before["weight"])


def test_a_class_is_drawn_anew_for_each_seed():
    task = made((X, Y))
    assert not task.build(0).weight.equal(task.build(1).weight)


def test_the_same_bits_from_every_form():
    hashes = {pl.run("fedavg", made(data), clients=3, rounds=2).model_sha256 for data in FORMS.values()}
    assert len(hashes) == 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], 0)])


class Texts(nn.Module):
    def forward(self, x):
        return ["a"]


FAULTS = {
    "lengths": (lambda: made((X, Y[:29])), DataError, r"train: x has shape \[30, 6\] and y \[29\]"),
    "one-hot": (lambda: made((X, torch.eye(3)[Y])), DataFormatError, r"train: y is torch.float32.*one-hot; pass y.argmax\(1\)"),
    "quantity": (lambda: made((X, X[:, 0])), DataFormatError, "not whole numbers"),
    "lists": (lambda: made((X.tolist(), Y.tolist())), DataFormatError, "train: got a pair of lists"),
    "missing value": (
        lambda: made((X.index_fill(0, torch.tensor([4]), torch.nan), Y)),
        DataError,
        "train: x of sample 4 is NaN or infinite",
    ),
    "empty": (lambda: made((X[:0], Y[:0])), DataError, "train: the data set has no samples"),
    "empty test": (lambda: made((X, Y), test=Pairs([], [])), DataError, "test: the data set has no samples"),
    "floats": (lambda: made((X, Y.float())), DataFormatError, r"train: y is torch.float32.*y\.long\(\)"),
    "column": (lambda: made((X, Y[:, None])), DataFormatError, r"squeeze\(1\)"),
    "negative": (lambda: made((X, Y - 1)), DataFormatError, "y contains -1"),
    "too many": (lambda: made((X, Y), num_classes=2), DataFormatError, "y contains class 2, but num_classes=2"),
    "stream": (lambda: made(Stream()), DataFormatError, "Stream is not a map-style data set"),
    "texts": (lambda: made(Pairs(["a"], [0])), DataFormatError, "x of sample 0 is a str"),
    "texts within": (lambda: made(Pairs([{"a": 1, "b": "c"}], [0])), DataFormatError, r"x\['b'\] of sample 0 is a str"),
    "single": (lambda: made(list(X)), DataFormatError, "sample 0 is a Tensor; it must be a pair"),
    "ragged": (
        lambda: made(Pairs([X[0], X[1, :3]], [0, 1])),
        DataFormatError,
        r"x of sample 1 has shape \[3\], but sample 0 has \[6\]",
    ),
    "unlike": (
        lambda: made((X, Y), test=(X[:, :5], Y)),
        DataFormatError,
        r"train samples are .*\[6\], but test samples are .*\[5\]",
    ),
    "model": (
        lambda: made((X[:, :5], Y), test=(X[:, :5], Y)),
        ConfigError,
        r"Net does not accept a sample, .*\[5\]: RuntimeError",
    ),
    "bytes": (lambda: made((X.byte(), Y), test=(X.byte(), Y)), ConfigError, "Net does not accept a sample, torch.uint8"),
    "outputs": (lambda: made((X, Y), model=lambda: nn.Linear(6, 2)), ConfigError, r"returns shape \[1, 2\].*3 classes require"),
    "from 1": (lambda: made((X, Y + 1)), ConfigError, "4 classes require .*the smallest label is 1, .* at 0: subtract 1 from y"),
    "from 2": (
        lambda: made((X, Y + 2), test=(X, Y + 2), num_classes=3),
        DataFormatError,
        "num_classes=3; the smallest label is 2.*subtract 2",
    ),
    "beyond": (lambda: made((X, Y), num_classes=2), DataFormatError, "num_classes=2$"),
    "no tensor": (lambda: made((X, Y), model=Texts), ConfigError, "Texts returns a list"),
    "arguments": (lambda: made((X, Y), model=nn.Linear), ConfigError, "cannot be built without arguments: TypeError"),
    "no module": (lambda: made((X, Y), model=lambda: 3), ConfigError, "of type int; it must be a torch.nn.Module"),
    "nothing": (lambda: made((X, Y), model="mlp"), ConfigError, "model='mlp'"),
    "loss": (lambda: made((X, Y), loss=lambda a, b: 1 / 0), ConfigError, "the loss does not accept outputs of shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault):
    call, kind, words = FAULTS[fault]
    with pytest.raises(kind, match=words):
        call()


def test_making_a_task_draws_nothing():
    class Drawing(Net):
        def __init__(self):
            super().__init__()
            random.random()

    before = torch.get_rng_state(), random.getstate()
    made((X, Y), model=Drawing)
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
