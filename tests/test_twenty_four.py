"""What a user brings, twelve kinds of it, plain and secure: each run trains and measures, and what it saves predicts the same.

Each kind is written as in a user's script, with models in a module of the user's own. Plain runs are measured on the central
test set, secure ones by a secure sum over the clients' samples. All folders are then read in one new process, which predicts
from raw inputs without the task, and scikit-learn computes the figure of the run's last row from these predictions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn import metrics as oracle

import paceline as pl

MODELS = '''
import torch
from torch import nn


class Net(nn.Sequential):
    """Perceptron; `kind` is the dtype of its parameters."""

    def __init__(self, inputs: int = 6, outputs: int = 3, kind: str = "float32"):
        super().__init__(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))
        self.to(getattr(torch, kind))


class Pair(nn.Module):
    """Two inputs, by name."""

    def __init__(self):
        super().__init__()
        self.table, self.extra, self.out = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, table, extra):
        return self.out(torch.relu(self.table(table) + self.extra(extra)))


class Named(nn.Module):
    """Outputs by name."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"hidden": hidden, "logits": self.head(hidden)}


class Tied(nn.Module):
    """Predicts the next token; embedding and head share their weight."""

    def __init__(self, symbols: int = 9, width: int = 12):
        super().__init__()
        self.embed, self.mix = nn.Embedding(symbols, width), nn.Linear(width, width)
        self.head = nn.Linear(width, symbols, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, codes):
        return self.head(self.mix(self.embed(codes)))


def pixels():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
'''

PREDICT = """
import json, sys
import torch
from paceline.results.predictor import load_predictor
for folder, data in json.load(sys.stdin):
    raw = data if data.endswith(".csv") else torch.load(data, weights_only=True)
    made = load_predictor(folder).predict(raw)
    found = {"outputs": made.outputs}
    found |= {"numbers": made.numbers} if made.kind == "number" else {"codes": made.codes}
    torch.save({"labels": made.labels if made.kind == "class" else [], **found}, f"{folder}/found.pt")
assert not [name for name in sys.modules if name.startswith(("paceline.methods", "paceline.engines", "paceline.runner"))]
"""


ROUNDS = 8


@dataclass
class Case:
    """One kind: a task, its raw samples, and an independent computation of its figure.

    Args:
        task: as a user makes it.
        raw: inputs of training and test samples, as a user has them: tensors or data frames.
        truth: their targets, in the user's unit.
        figure: what is compared.
        compute: (truth, what was saved) -> the figure.
        least: what training must reach; a negative one is the largest error.
        fields: of the run.
        closeness: largest relative difference of the figures.
        least_error: whether less is better.
    """

    task: pl.Task
    raw: tuple[Any, Any]
    truth: tuple[Any, Any]
    figure: str
    compute: Callable[[Any, Any], float]
    least: float
    fields: dict[str, Any]
    closeness: float = 1e-6


def accuracy(truth: Any, found: Any) -> float:
    return float(oracle.accuracy_score(np.asarray(truth).ravel(), found["codes"].numpy().ravel()))


def halves(*parts: Any) -> list[tuple[Any, Any]]:
    """Split each part into the first 300 samples and the others."""
    cut = lambda part, rows: {n: v[rows] for n, v in part.items()} if isinstance(part, dict) else part[rows]  # noqa: E731
    return [(cut(part, slice(300)), cut(part, slice(300, None))) for part in parts]


def numbers(columns: int = 6) -> torch.Tensor:
    return torch.randn(400, columns, generator=torch.Generator().manual_seed(5))


def three(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0], x[:, 1], -x[:, 0] - x[:, 1]], 1).argmax(1)


def classes(model: Any, x: Any = None, y: Any = None, **options: Any) -> Case:
    x = numbers() if x is None else x
    raw, truth = halves(x, three(x) if y is None else y)
    task = pl.Task.from_tensors(raw[0], truth[0], model, test=(raw[1], truth[1]), **{"lr": 0.3, **options})
    return Case(task, raw, truth, "accuracy", accuracy, 0.8, {})


def tensors(models: Any) -> Case:
    return classes(models.Net)


def data_set(models: Any) -> Case:
    class Samples(torch.utils.data.Dataset):
        def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.x[row].numpy(), int(self.y[row])

    raw, truth = halves(numbers(), three(numbers()))
    parts = [Samples(x, y) for x, y in zip(raw, truth, strict=True)]
    task = pl.Task.from_datasets(parts[0], parts[1], models.Net, lr=0.3, resident=False)
    return Case(task, raw, truth, "accuracy", accuracy, 0.8, {})


def people(y: str) -> pandas.DataFrame:
    stream = np.random.default_rng(0)
    frame = pandas.DataFrame({"age": stream.integers(20, 90, 400), "dose": stream.normal(5, 2, 400)})
    frame["sex"], frame["smokes"] = stream.choice(["f", "m"], 400), stream.random(400) > 0.5
    risk = (frame["age"] - 55) / 20 + 0.5 * (frame["sex"] == "m") + frame["smokes"] - 0.7
    frame["outcome"] = np.where(risk > 0, "ill", "well")
    frame["price"] = 250_000 + 40_000 * risk + 1000 * frame["dose"]
    return frame.drop(columns=[{"outcome": "price", "price": "outcome"}[y]])


def data_frame(models: Any) -> Case:
    train, test = people("outcome")[:300], people("outcome")[300:]
    task = pl.Task.from_dataframe(train, "outcome", model=partial(models.Net, outputs=2), test=test, lr=0.3)

    def right(truth: Any, found: Any) -> float:
        return float(oracle.accuracy_score(truth, found["labels"]))

    return Case(task, (train, test), (train["outcome"], test["outcome"]), "accuracy", right, 0.9, {})


def natural_clients(models: Any) -> Case:
    raw, truth = halves(numbers(), three(numbers()))
    sites = {name: (raw[0][k * 75 : k * 75 + 75], truth[0][k * 75 : k * 75 + 75]) for k, name in enumerate("abcd")}
    task = pl.Task.from_clients(sites, models.Net, test=(raw[1], truth[1]), lr=0.3)
    return Case(task, raw, truth, "accuracy", accuracy, 0.8, {"partition": "natural"})


def two_inputs(models: Any) -> Case:
    x = {"extra": numbers()[:, :4].flip(0), "table": numbers()}  # in another order than the module's
    return classes(models.Pair, x, (x["table"][:, 0] + x["extra"][:, 1] > 0).long())


def dict_output(models: Any) -> Case:
    return classes(models.Named)


def log_loss(truth: Any, found: Any) -> float:
    return float(oracle.log_loss(truth, found["outputs"].double().softmax(1).numpy()))


def bf16_model(models: Any) -> Case:
    return classes(partial(models.Net, kind="bfloat16"))


def float64_model(models: Any) -> Case:
    case = classes(partial(models.Net, kind="float64"), numbers().double() / 3, lr=1.0, metrics=["log-loss"])
    return replace(case, figure="log_loss", compute=log_loss, least=-0.4, closeness=1e-12)


def tied_weights(models: Any) -> Case:
    first = torch.randint(0, 9, (400, 1), generator=torch.Generator().manual_seed(2))
    raw = halves((first + 2 * torch.arange(7)) % 9)[0]
    task = pl.Task.from_tensors(
        raw[0], raw[0], models.Tied, test=(raw[1], raw[1]), loss="next_token", metrics=["perplexity"], lr=1.0
    )

    def perplexity(truth: Any, found: Any) -> float:
        chances = found["outputs"].movedim(1, -1)[:, :-1].double().softmax(-1).reshape(-1, 9).numpy()
        return float(np.exp(oracle.log_loss(truth[:, 1:].ravel(), chances, labels=range(9))))

    return Case(task, raw, raw, "perplexity", perplexity, -3.0, {})


def regression(models: Any) -> Case:
    train, test = people("price")[:300], people("price")[300:]
    task = pl.Task.from_dataframe(train, "price", model=partial(models.Net, outputs=1), test=test, lr=0.1, metrics=["rmse", "r2"])

    def rmse(truth: Any, found: Any) -> float:
        return float(oracle.root_mean_squared_error(truth, found["numbers"].numpy()))

    return Case(task, (train, test), (train["price"], test["price"]), "rmse", rmse, -25_000.0, {})


def multi_label(models: Any) -> Case:
    x = numbers()
    raw, truth = halves(x, torch.stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 0] + x[:, 1] > 1], 1).float())
    task = pl.Task.from_tensors(
        raw[0], truth[0], models.Net, test=(raw[1], truth[1]), loss="bce", metrics=["multilabel-f1"], lr=2.0
    )

    def f1(truth: Any, found: Any) -> float:
        return float(oracle.f1_score(truth.numpy(), found["codes"].numpy(), average="macro"))

    return Case(task, raw, truth, "multilabel_macro_f1", f1, 0.8, {})


def segmentation(models: Any) -> Case:
    picture = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    mask = (picture[:, 0] > -0.4).long() + (picture[:, 0] > 0.4).long()
    mask[:, 0] = 255
    raw, truth = halves(picture, mask)
    task = pl.Task.from_tensors(
        raw[0],
        truth[0],
        models.pixels,
        test=(raw[1], truth[1]),
        ignore_index=255,
        metrics=["iou:background=true", "accuracy"],
        lr=0.5,
    )

    def iou(truth: Any, found: Any) -> float:
        kept = truth != 255
        return float(oracle.jaccard_score(truth[kept], found["codes"][kept], average="macro"))

    return Case(task, raw, truth, "iou", iou, 0.7, {})


KINDS = [
    tensors, data_set, data_frame, natural_clients, two_inputs, dict_output, bf16_model, float64_model, tied_weights, regression,
    multi_label, segmentation,
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Any:
    """Train and save all kinds, and predict from their raw samples in one new process: (case, result, what was found) of each."""
    root = tmp_path_factory.mktemp("twenty_four")
    (root / "my_models.py").write_text(MODELS)
    sys.path.insert(0, str(root))
    try:
        import my_models

        done, asked = {}, []
        for kind in KINDS:
            case = kind(my_models)
            for aggregation in ("plain", "secure"):
                name = f"{kind.__name__}-{aggregation}"
                folder, secure = root / name, aggregation == "secure"
                fields = {"partition": "iid", **case.fields, "evaluation": "federated" if secure else "central"}
                try:
                    result = pl.run(
                        "fedavg",
                        case.task,
                        clients=4,
                        rounds=ROUNDS,
                        folder=folder,
                        aggregation=aggregation,
                        progress=False,
                        **fields,
                    )
                except pl.errors.PacelineError as error:
                    done[name] = error
                    continue
                done[name] = case, result, folder
                asked.append((str(folder), saved(case.raw[0 if secure else 1], root / name)))
        program = subprocess.run(
            [sys.executable, "-c", PREDICT], input=json.dumps(asked), capture_output=True, text=True, cwd=root, check=False
        )
        return done, program
    finally:
        sys.path.remove(str(root))
        sys.modules.pop("my_models", None)


def saved(raw: Any, path: Path) -> str:
    """Save raw samples as a user has them; a table has its columns in another order and without the target."""
    if isinstance(raw, pandas.DataFrame):
        path = path.with_suffix(".csv")
        raw[[name for name in reversed(raw.columns) if name not in ("outcome", "price")]].to_csv(path, index=False)
    else:
        path = path.with_suffix(".raw")
        torch.save(raw, path)
    return str(path)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_the_saved_model_predicts_what_the_run_measured(runs, kind, aggregation):
    done, program = runs
    found = done[f"{kind.__name__}-{aggregation}"]
    assert not isinstance(found, Exception), found
    case, result, folder = found
    assert program.returncode == 0, program.stderr
    last = pl.load(folder).history[-1]
    measured = last[case.figure]
    assert measured == result.history[-1][case.figure]
    assert (measured if case.least > 0 else -measured) >= case.least
    figure = case.compute(case.truth[aggregation == "plain"], torch.load(folder / "found.pt"))
    assert figure == pytest.approx(measured, rel=case.closeness)
