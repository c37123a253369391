"""Data sets that are read when a batch needs them: each sample once, ahead, and with draws that are the client's own."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import DataError, DataFormatError
from paceline.core.reading import Reader, Sampled
from paceline.core.samples import ClientData

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


class Watched:
    """A data set that notes what is read, and by which thread."""

    def __init__(self, noise=0.0, pair=False):
        self.read, self.threads, self.noise, self.pair = [], set(), noise, pair

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.read.append(int(i))
        self.threads.add(threading.get_ident())
        x = X[i] + self.noise * torch.randn(5) if self.noise else X[i].numpy().astype(np.float64)
        return ({"a": x[:2], "b": x[2:]}, int(Y[i])) if self.pair else (x, int(Y[i]))


def data(source, **options):
    reader = Reader(source, **options)
    source.read.clear()
    return ClientData(Sampled(reader, 0), Sampled(reader, 1), torch.arange(24))


def test_a_batch_reads_each_of_its_samples_once():
    source = Watched()
    x, y = data(source).at(torch.tensor([3, 1]))
    assert source.read == [3, 1]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.equal(X[[3, 1]])
    assert y.tolist() == [0, 1]
    assert data(source, dtype=torch.float64).at(torch.tensor([3]))[0].dtype == torch.float64


def test_batches_are_read_ahead_in_order_and_by_threads():
    source = Watched(pair=True)
    found = data(source, workers=2)
    got = [(rows.tolist(), x["a"]) for rows, (x, _) in found.each(iter(torch.arange(24).split(5)))]
    assert [rows for rows, _ in got] == [r.tolist() for r in torch.arange(24).split(5)]
    assert torch.cat([a for _, a in got]).equal(X[:, :2])
    assert sorted(source.read) == list(range(24))
    assert source.threads - {threading.get_ident()}


def test_no_more_than_two_batches_are_read_ahead():
    source = Watched()
    each = data(source).each(iter(torch.arange(24).split(4)))
    next(each)
    time.sleep(0.05)
    assert len(source.read) == 12
    each.close()


def test_a_data_set_that_draws_is_read_by_the_caller():
    source = Watched(noise=0.1)
    found = data(source)
    source.threads.clear()
    assert len(list(found.batches(5))) == 5
    assert source.threads == {threading.get_ident()}


def test_an_error_of_the_data_set_reaches_the_caller():
    class Broken(Watched):
        def __getitem__(self, i):
            if i == 7:
                raise OSError("picture 7 is broken")
            return super().__getitem__(i)

    for source in (data(Broken()), data(Broken(), workers=0)):
        with pytest.raises(
            DataError, match=r"sample 7 of Broken cannot be read: OSError: picture 7 is broken \(.*test_reading.py:\d+\)"
        ):
            list(source.batches(5))
    with pytest.raises(DataError, match=r"^sample 7 of Broken"):
        Reader(Broken()).subset(torch.tensor([3, 7])).read(torch.tensor([1]))
    for resident in (True, False):
        with pytest.raises(DataError, match="sample 7 of Broken"):
            pl.Task.from_datasets(Broken(), (X, Y), lambda: nn.Linear(5, 3), resident=resident)


def test_samples_that_make_no_batch_are_named():
    class Growing(Watched):
        def __getitem__(self, i):
            return torch.zeros(4 + i % 2), 0

    with pytest.raises(DataFormatError, match=r"samples 0, 1, 2 make no batch: .*equal size.*; pad or crop them"):
        Reader(Growing()).read(torch.arange(3))
    with pytest.raises(DataFormatError, match=r"make no batch: ZeroDivisionError.*; correct the function collate"):
        Reader(Growing(), lambda samples: 1 // 0).read(torch.arange(3))


def task(noise=0.0, **options):
    return pl.Task.from_datasets(Watched(noise), (X[:9], Y[:9]), lambda: nn.Linear(5, 3), resident=False, **options)


def test_draws_come_from_the_client_and_depend_on_nothing_else():
    runs = [
        pl.run("fedavg", task(0.5), clients=4, rounds=2, seed=seed, vectorize=v, **extra).model_sha256
        for seed, v, extra in ((1, "off", {}), (1, "off", {"workers": 2}), (1, "auto", {}), (2, "off", {}))
    ]
    assert runs[0] == runs[1] == runs[2] != runs[3]


def test_read_when_needed_or_at_once_the_bits_are_the_same():
    whole = pl.Task.from_datasets(Watched(), (X[:9], Y[:9]), lambda: nn.Linear(5, 3))
    assert isinstance(whole.train.x, torch.Tensor)
    for options in ({}, {"workers": 0}, {"collate": torch.utils.data.default_collate}):
        lazy = task(**options)
        assert isinstance(lazy.train.x, Sampled)
        assert lazy.train.y.equal(Y)
        assert lazy.num_classes == 3
        fields = {"clients": 4, "rounds": 2, "partition": "dirichlet:1", "vectorize": "off"}
        assert pl.run("fedavg", lazy, **fields).model_sha256 == pl.run("fedavg", whole, **fields).model_sha256


def test_labels_that_an_adversary_changes_are_the_ones_that_train():
    whole = pl.Task.from_datasets(Watched(), (X[:9], Y[:9]), lambda: nn.Linear(5, 3))
    fields = {"clients": 4, "rounds": 2, "vectorize": "off", "adversary": "labelflip:0.5"}
    assert pl.run("fedavg", task(), **fields).model_sha256 == pl.run("fedavg", whole, **fields).model_sha256
    assert pl.run("fedavg", task(), **fields).model_sha256 != pl.run("fedavg", task(), **fields | {"adversary": None}).model_sha256


def test_a_large_data_set_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr("paceline.core.datasets.RESIDENT", 24 * 40 + 24 * 8)
    assert isinstance(pl.Task.from_datasets(Watched(), (X, Y), lambda: nn.Linear(5, 3)).train.x, torch.Tensor)
    monkeypatch.setattr("paceline.core.datasets.RESIDENT", 24 * 40)
    assert isinstance(pl.Task.from_datasets(Watched(), (X, Y), lambda: nn.Linear(5, 3)).train.x, Sampled)


def test_labels_that_a_data_set_lists_are_not_read_one_by_one():
    source = Watched()
    source.targets = Y.tolist()
    made = pl.Task.from_datasets(source, (X, Y), lambda: nn.Linear(5, 3), resident=False)
    assert made.train.y.equal(Y)
    assert len(source.read) < 10


def test_what_collate_returns_is_named():
    with pytest.raises(DataFormatError, match="collate returned a int; it must return a pair"):
        task(collate=len)


def test_the_fingerprint_is_of_the_samples():
    assert task().fingerprint == task().fingerprint
    assert task(0.5).fingerprint == task(0.5).fingerprint != task().fingerprint
