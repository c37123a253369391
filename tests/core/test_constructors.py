"""Constructors of tasks: held-out samples, natural clients, data frames, data sets of the `datasets` library."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.checks import ScoresWarning
from paceline.core.columns import Ragged
from paceline.core.errors import ConfigError, DataError, DataFormatError, PacelineError, PlanError, UnknownNameError
from paceline.core.losses import NamedLoss
from paceline.tasks import schema_of

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
datasets = pytest.importorskip("datasets")
polars = pytest.importorskip("polars")


def net():
    return nn.Linear(4, 2)


def test_a_share_is_held_out_once_and_for_all():
    one, two = (pl.Task.from_tensors({"input": X}, Y, net, test=0.25) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    whole = torch.cat([one.train.x["input"], one.test.x["input"]])
    assert (len(one.train), len(one.test)) == (30, 10)
    assert sorted(whole[:, 0].tolist()) == sorted(X[:, 0].tolist())
    assert not one.test.x["input"].equal(X[:10])
    assert pl.Task.from_tensors(X, Y, net, test=(X[:3], Y[:3])).test.x.equal(X[:3])
    for share, kind in ((1.0, ConfigError), (-0.1, ConfigError), (0, DataError)):
        with pytest.raises(kind, match="test"):
            pl.Task.from_tensors(X, Y, net, test=share)


def test_the_dtype_of_inputs_is_that_of_the_model():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        task = pl.Task.from_tensors(
            (X.double(), X.half()), X.double(), lambda dtype=dtype: nn.Bilinear(4, 4, 4).to(dtype), loss="mse"
        )
        assert {x.dtype for x in task.train.x} == {dtype}
        assert task.train.y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("test", [0.2, {"whole": None}])
def test_natural_clients_keep_their_samples(test):
    data = {name: (X[k : k + 10], Y[k : k + 10]) for k, name in enumerate(("a", "b", "c"))}
    task = pl.Task.from_clients(data, net, test=test if isinstance(test, float) else (X, Y))
    assert task.train.owners == ("a", "b", "c")
    kept = 8 if isinstance(test, float) else 10
    assert task.train.owner.tolist() == [0] * kept + [1] * kept + [2] * kept
    assert len(task.test) == (6 if isinstance(test, float) else 40)
    for k, (x, _) in enumerate(data.values()):
        assert {tuple(row) for row in task.train.x[task.train.owner == k].tolist()} <= {tuple(row) for row in x.tolist()}
    assert pl.run("fedavg", task, clients=3, partition="natural", rounds=1).rounds == 1


def test_clients_must_be_alike_and_named():
    with pytest.raises(DataFormatError, match="data set 1 has other columns"):
        pl.Task.from_clients({"a": (X, Y), "b": (X[:, :3], Y)}, net)
    with pytest.raises(DataError, match="client 'b': x has shape"):
        pl.Task.from_clients({"a": (X, Y), "b": (X, Y[:3])}, net)
    for none in ({}, [(X, Y)]):
        with pytest.raises(ConfigError, match="dict with the data set of each client"):
            pl.Task.from_clients(none, net)


FRAME = pd.DataFrame(
    {
        "size": np.arange(40) * 2.0,
        "rooms": np.arange(40) % 4,
        "kind": ["flat", "house"] * 20,
        "old": [True, False, False, False] * 10,
        "town": ["x"] * 10 + ["y"] * 30,
        "price": np.arange(40) * 1.5,
    }
)


def seen(inputs):
    return nn.Linear(inputs, 2)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_becomes_numbers_indicators_and_clients(library):
    frame = FRAME if library == "pandas" else polars.from_pandas(FRAME)
    task = pl.Task.from_dataframe(frame, "kind", seen, client="town", columns=["size", "old", "town"])
    assert task.info["inputs"] == "size, old, town=x, town=y"
    assert (task.classes, task.num_classes, task.train.owners) == (("flat", "house"), 2, ("x", "y"))
    sizes = torch.cat([task.train.x, task.test.x])
    assert abs(float(task.train.x[:, 0].mean())) < 1e-5
    assert float(task.train.x[:, 0].std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    assert set(sizes[:, 1].tolist()) == set(sizes[:, 2].tolist()) == {0.0, 1.0}
    assert sizes[:, 2:].sum(1).eq(1).all()
    assert task.train.owner.equal(task.train.x[:, 3].long())
    plain = pl.Task.from_dataframe(frame, "kind", seen, columns=["size"], standardize=False)
    places = plain.train.x[:, 0] / 2
    assert plain.train.y.equal(places.long() % 2)


def test_the_target_decides_between_classes_and_a_quantity():
    assert pl.Task.from_dataframe(FRAME, "price", lambda n: nn.Linear(n, 1)).loss == NamedLoss("mse")
    assert pl.Task.from_dataframe(FRAME, "rooms", lambda n: nn.Linear(n, 4)).num_classes == 4
    assert pl.Task.from_dataframe(FRAME.assign(price=FRAME["rooms"] * 2), "price", lambda n: nn.Linear(n, 1)).num_classes == 0
    many = FRAME.assign(price=np.arange(40))
    assert pl.Task.from_dataframe(many, "price", lambda n: nn.Linear(n, 1)).num_classes == 0
    assert pl.Task.from_dataframe(many, "price", lambda n: nn.Linear(n, 40), num_classes=40).num_classes == 40
    assert pl.Task.from_dataframe(FRAME, "price", lambda n: nn.Linear(n, 1), loss="l1").loss == NamedLoss("l1")


def test_a_quantity_is_standardised_and_measured_in_its_own_unit():
    far = FRAME.assign(price=1000 * FRAME["price"] + 300_000)
    task = pl.Task.from_dataframe(far, "price", lambda n: nn.Linear(n, 1), metrics=["rmse"])
    mean, deviation = task.target_scaling
    assert abs(float(task.train.y.mean())) < 1e-6
    assert float(task.train.y.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    own = torch.cat([task.train.y, task.test.y]).double() * deviation + mean
    assert sorted(own.tolist()) == pytest.approx(sorted(far["price"]), rel=1e-6)
    result = pl.run("fedavg", task, clients=4, rounds=3)
    found = result.predict(far.drop(columns=["price"])).numbers
    assert 290_000 < float(found.mean()) < 400_000
    assert schema_of(task).target.mean == pytest.approx(mean)
    for options in ({"standardize": False}, {"loss": "poisson"}, {"target_scaling": (1.0, 2.0)}):
        plain = pl.Task.from_dataframe(FRAME, "price", lambda n: nn.Linear(n, 1), **options)
        assert sorted(torch.cat([plain.train.y, plain.test.y]).tolist()) == pytest.approx(sorted(FRAME["price"]))


FAULTS = {
    "no column": (lambda f: pl.Task.from_dataframe(f, "prize", seen), UnknownNameError, "price"),
    "missing number": (lambda f: f.assign(size=f["size"].where(f["size"] != 6.0)), DataError, "column 'size': row .* is missing"),
    "missing text": (
        lambda f: f.assign(town=f["town"].where(f["rooms"] != 3, None)),
        DataError,
        "column 'town': row .* is missing",
    ),
    "missing class": (
        lambda f: f.assign(kind=f["kind"].where(f["rooms"] != 3, None)),
        DataError,
        "column 'kind': row .* is missing",
    ),
    "dates": (lambda f: f.assign(size=pd.Timestamp("2020-01-01")), DataFormatError, "column 'size' holds dates"),
    "names": (
        lambda f: pd.concat([f.assign(town=f["town"] + str(k) + f["size"].astype(str)) for k in range(3)]),
        DataFormatError,
        "different texts",
    ),
    "two of one name": (lambda f: pd.concat([f, f[["size"]]], axis=1), DataFormatError, "more than one column 'size'"),
    "a number as name": (lambda f: f.rename(columns={"size": 0}), DataFormatError, "column 0 of the data frame has a int"),
    "lists": (lambda f: f.assign(size=[[1]] * len(f)), DataFormatError, "column 'size' holds a list in a cell"),
    "no frame": (lambda f: pl.Task.from_dataframe([[1]], "a", seen), DataFormatError, "list is not a data frame"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_frame_lacks_is_named(fault):
    make, kind, words = FAULTS[fault]
    with pytest.raises(kind, match=words):
        pl.Task.from_dataframe(make(FRAME), "kind", seen)


def test_a_category_of_the_test_rows_must_be_known():
    with pytest.raises(DataFormatError, match="column 'town': 'z' does not occur"):
        pl.Task.from_dataframe(FRAME, "kind", seen, test=FRAME.assign(town="z"))


def test_a_data_set_of_the_datasets_library(tmp_path):
    features = datasets.Features(
        {
            "a": datasets.Sequence(datasets.Value("float64"), 4),
            "n": datasets.Value("int64"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    made = datasets.Dataset.from_dict({"a": X.tolist(), "n": [k // 10 for k in range(40)], "label": Y.tolist()}, features=features)
    task = pl.Task.from_huggingface(made, net, inputs="a", targets="label", client="n")
    assert (task.classes, len(task.train), len(task.test), task.train.owners) == (("no", "yes"), 32, 8, ("0", "1", "2", "3"))
    assert pl.run("fedavg", task, clients=4, partition="natural", rounds=1).rounds == 1
    lazy = pl.Task.from_huggingface(made, net, inputs="a", targets="label", test=made, resident=False)
    assert lazy.train.y.equal(Y)
    for call, kind, words in (
        (lambda: pl.Task.from_huggingface(made, net, inputs="b", targets="label"), UnknownNameError, "b"),
        (
            lambda: pl.Task.from_huggingface({"train": made}, net, inputs="a", targets="label"),
            DataFormatError,
            "not a datasets.Dataset",
        ),
        (
            lambda: pl.Task.from_huggingface(datasets.DatasetDict(train=made), net, inputs="a", targets="label"),
            DataFormatError,
            r"dataset\['train'\]",
        ),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_pictures_of_a_data_set_are_channels_first():
    pictures = [np.full((6, 5, 3), 51 * (k % 3), dtype=np.uint8) for k in range(12)]
    features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
    made = datasets.Dataset.from_dict({"image": pictures, "y": [k % 3 for k in range(12)]}, features=features)
    task = pl.Task.from_huggingface(made, lambda: nn.Sequential(nn.Flatten(), nn.Linear(90, 3)), inputs="image", targets="y")
    assert task.train.x.shape[1:] == (3, 6, 5)
    assert torch.allclose(task.train.x[:, 0, 0, 0], 0.2 * task.train.y)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return {"a": self.layer(x), "b": x}


CHECKS = {
    "lengths": (lambda: pl.Task.from_tensors((X, X[:9]), Y, Several), DataError, r"x\[0\] has shape \[40, 4\] and x\[1\]"),
    "NaN": (
        lambda: pl.Task.from_tensors({"x": X.index_fill(0, torch.tensor(5), torch.nan)}, Y, net),
        DataError,
        r"x\['x'\] of sample",
    ),
    "NaN target": (
        lambda: pl.Task.from_tensors(X, X.index_fill(0, torch.tensor(5), torch.inf), net, loss="mse"),
        DataError,
        "y of sample",
    ),
    "NaN in a text": (
        lambda: pl.Task.from_tensors(Ragged.of([X[0], X[1], X[2, :3] * torch.nan]), Y[:3], net, test=(X, Y)),
        DataError,
        "x of sample 2",
    ),
    "outputs": (lambda: pl.Task.from_tensors(X, Y, Several), ConfigError, "returns a dict with a, b.*output="),
    "no scalar": (
        lambda: pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss=lambda o, y: o - y),
        ConfigError,
        r"shape \[2, 4\]; .* one scalar",
    ),
    "no tensor": (
        lambda: pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss=lambda o, y: 1.0),
        ConfigError,
        "returns a float",
    ),
    "no gradient": (
        lambda: pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss=lambda o, y: o.detach().mean()),
        ConfigError,
        "does not depend on its parameters",
    ),
    "broadcast": (
        lambda: pl.Task.from_tensors(X, X[:, 0], lambda: nn.Linear(4, 1), loss=nn.functional.mse_loss),
        ConfigError,
        r"the loss does not accept outputs of shape \[2, 1\] and targets of shape \[2\]",
    ),
    "infinite": (
        lambda: pl.Task.from_tensors(1e30 * X, X, lambda: nn.Linear(4, 4), loss="mse"),
        ConfigError,
        "on two samples is inf",
    ),
    "dtype": (lambda: pl.Task.from_tensors(X.int(), Y, net), ConfigError, "convert torch.int32 inputs with x.to"),
    "ignored": (
        lambda: pl.Task.from_tensors(X, Y.masked_fill(Y == 0, 255), net, num_classes=2),
        DataFormatError,
        "class 255.*ignore_index=255",
    ),
    "no classes": (lambda: pl.Task.from_tensors(X, Y, net, num_classes=0), ConfigError, "num_classes=0"),
    "labels": (lambda: pl.Task.from_tensors(X, torch.stack([Y, 1 - Y, Y], 1).float(), net), DataFormatError, "loss='bce'"),
    "one-hot": (lambda: pl.Task.from_tensors(X, nn.functional.one_hot(Y), net), ConfigError, r"one-hot: pass y.argmax\(1\)"),
    "a class that does not count": (
        lambda: pl.Task.from_tensors(X, 255 * Y, net, ignore_index=255),
        DataFormatError,
        r"all targets that count are 0.*y // 255",
    ),
    "masks of 0 and 255": (lambda: pl.Task.from_tensors(X, 255 * Y, net), ConfigError, "ignore_index=255 if .* or y // 255"),
    "lazy": (
        lambda: pl.Task.from_tensors(X, Y, lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(2))),
        ConfigError,
        r"sizes are known only once they are called \(LazyLinear 1\)",
    ),
    "no log-probabilities": (lambda: pl.Task.from_tensors(X, Y, net, loss="nll"), ConfigError, r"end it with nn.LogSoftmax\(1\)"),
    "labels of 0 and 2": (
        lambda: pl.Task.from_tensors(X, 2 * Y, lambda: nn.Linear(4, 1), loss="bce"),
        DataFormatError,
        "from 0 to 2",
    ),
    "labels of -1": (
        lambda: pl.Task.from_tensors(X, (X > 0).float() - 1, lambda: nn.Linear(4, 4), loss="bce", ignore_index=-1),
        DataFormatError,
        "train: y is from -1 to 0, but loss='bce' takes targets from 0 to 1",
    ),
    "labels of the test set": (
        lambda: pl.Task.from_tensors(X, Y, lambda: nn.Linear(4, 1), loss="bce", test=(X, -Y)),
        DataFormatError,
        "test: y is from -1 to 0",
    ),
    "no counts": (
        lambda: pl.Task.from_tensors(X, X[:, 0], lambda: nn.Linear(4, 1), loss="poisson"),
        DataFormatError,
        "takes counts",
    ),
    "two scalings": (
        lambda: pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss="mse", target_scaling=([0.0, 1.0], [1.0, 1.0])),
        ConfigError,
        "target_scaling=.* leave it out",
    ),
    "no deviation": (
        lambda: pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss="mse", target_scaling=(1.0, 0.0)),
        ConfigError,
        "deviation above 0",
    ),
    "loss": (lambda: pl.Task.from_tensors(X, Y, net, loss="mean"), UnknownNameError, "mse"),
    "option": (lambda: pl.Task.from_tensors(X, Y, net, batch=3), UnknownNameError, "batch_size"),
}


@pytest.mark.parametrize("fault", CHECKS)
def test_what_does_not_fit_is_named_when_the_task_is_made(fault):
    call, kind, words = CHECKS[fault]
    with pytest.raises(kind, match=words):
        call()


def test_what_suits_a_loss_passes():
    soft = (X > 0).float().clamp(0.1, 0.9)
    pl.Task.from_tensors(X, soft, lambda: nn.Linear(4, 4), loss="bce")
    pl.Task.from_tensors(X, (X > 0).long().masked_fill(X > 2, -1), lambda: nn.Linear(4, 4), loss="bce", ignore_index=-1)
    pl.Task.from_tensors(X, Y, lambda: nn.Sequential(net(), nn.LogSoftmax(1)), loss="nll")
    scaled = pl.Task.from_tensors(X, X, lambda: nn.Linear(4, 4), loss="mse", target_scaling=(torch.tensor(2.0), np.float32(3)))
    assert scaled.target_scaling == (2.0, 3.0)


@pytest.mark.parametrize(("last", "loss"), [(nn.Softmax(1), "cross_entropy"), (nn.Sigmoid(), "bce")])
def test_probabilities_where_a_loss_takes_scores_are_warned_of(last, loss):
    y = Y if loss == "cross_entropy" else torch.stack([Y, 1 - Y], 1).float()
    with pytest.warns(ScoresWarning, match=f"loss='{loss}' takes the .* once more"):
        pl.Task.from_tensors(X, y, lambda: nn.Sequential(net(), last), loss=loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Task.from_tensors(X, y, net, loss=loss)


def test_a_client_of_one_sample_trains_on_it():
    data = {"one": (X[:1], Y[:1]), "many": (X[1:], Y[1:])}
    task = pl.Task.from_clients(data, net)
    assert task.train.owner.bincount().tolist() == [1, 31]
    assert torch.equal(task.train.x[0], X[0])
    pl.run("fedavg", task, partition="natural", clients=2, rounds=1, progress=False)
    with pytest.raises(DataError, match="1 sample is too few for both parts"):
        pl.Task.from_clients({"one": (X[:1], Y[:1])}, net)


def direct(x=X, y=Y, model=net, classes=2, **options):
    return pl.Task("own", pl.core.task.Arrays(x, y), pl.core.task.Arrays(x, y), model, classes, **options)


BEFORE = {
    "labels from 1": (lambda: direct(y=Y + 1), DataFormatError, "class 2, but num_classes=2.*subtract 1"),
    "labels from -1": (lambda: direct(y=Y - 1), DataFormatError, "y contains -1"),
    "a column": (lambda: direct(y=Y[:, None]), DataFormatError, r"squeeze\(1\)"),
    "float64": (lambda: direct(x=X.double()), ConfigError, r"convert torch.float64 inputs with x.to\(torch.float32\)"),
    "dict": (lambda: direct(model=Several), ConfigError, "Several returns a dict; .*loss='cross_entropy'"),
    "shape": (lambda: direct(x=X[:, :3]), ConfigError, r"Linear does not accept a sample, torch.float32 of shape \[3\]"),
    "no samples": (lambda: direct(x=X[:0], y=Y[:0]), DataError, "no training samples"),
}


@pytest.mark.parametrize("fault", BEFORE)
def test_what_does_not_fit_is_named_before_the_first_round(fault):
    make, kind, words = BEFORE[fault]
    with pytest.raises(kind, match=words):
        pl.run("fedavg", make(), clients=2, rounds=1)


def test_lengths_are_checked_when_samples_are_put_together():
    with pytest.raises(DataError, match=r"x has shape \[40, 4\] and y \[30\]"):
        direct(y=Y[:30])
    assert direct(x=X.numpy(), y=Y.int().numpy()).train.y.dtype == torch.int64


@pytest.mark.parametrize(
    "changes", [{"method": "fedgela"}, {"method": "fedsa"}, {"adversary": "labelflip:0.2"}, {"partition": "dirichlet:0.5"}]
)
def test_what_needs_classes_says_so_at_the_start(changes):
    task = direct(y=X[:, 0].clone(), model=lambda: nn.Linear(4, 1), classes=0, loss=NamedLoss("mse"))
    with pytest.raises(PacelineError, match=r"needs classes|class label") as raised:
        pl.run(changes.pop("method", "fedavg"), task, clients=4, rounds=1, **changes)
    assert "own" in str(raised.value)
    assert isinstance(raised.value, PlanError | DataError)
