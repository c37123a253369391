"""Terms of metrics in evaluations: alone and together, of trees, without samples; which targets count."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.evaluation import Evaluation, evaluate, evaluate_together
from paceline.core.layout import Layout
from paceline.core.losses import NamedLoss
from paceline.core.metrics import figures, measured
from paceline.core.params import Params, Resident
from paceline.core.samples import ClientData
from paceline.core.terms import MetricTerms, leading
from paceline.metrics import F1, MAE, R2, Accuracy, CalibrationError, LogLoss, Metric, Perplexity
from paceline.runner import RoundWarning
from tests.metrics.kit import whole


class Toy:
    """A problem."""

    buffers = "average"

    def __init__(self, loss, num_classes, metrics, ignore_index=None):
        self.loss, self.num_classes, self.metrics, self.ignore_index = loss, num_classes, metrics, ignore_index
        self.mask = self.output = None


def resident(module):
    layout = Layout.of(module)
    return Resident(module, layout), Params.of(module, layout)


X, Y = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 4
METRICS = (F1(), LogLoss(), CalibrationError(bins=5), Accuracy())


def test_clients_judged_together_have_the_terms_of_clients_judged_alone(monkeypatch):
    model, params = resident(nn.Linear(6, 4))
    toy = Toy(F.cross_entropy, 4, METRICS)
    rows = [torch.arange(40), torch.tensor([], dtype=torch.int64), torch.arange(40, 41), torch.arange(41, 90)]
    requests = [Evaluation(model, params, toy, ClientData(X, Y, r)) for r in rows]
    monkeypatch.setattr("paceline.core.evaluation.BATCH", 13)  # clients are cut in the middle
    for one, r in zip(evaluate_together(requests), rows, strict=True):
        alone = evaluate(model, toy, ClientData(X, Y, r))
        assert one["metrics"].keys() == alone["metrics"].keys() == {"macro_f1", "log_loss", "calibration_error"}
        for figure, terms in one["metrics"].items():
            for kind, values in terms.items():
                assert {n: v.shape for n, v in values.items()} == {n: v.shape for n, v in alone["metrics"][figure][kind].items()}
        assert measured(one, METRICS) == pytest.approx(measured(alone, METRICS), abs=1e-6, nan_ok=True)
        with torch.no_grad():
            for metric in METRICS if len(r) else ():
                assert measured(one, [metric]) == pytest.approx(whole(metric, model.module(X[r]), Y[r]), abs=1e-6)


def test_terms_that_every_evaluation_has_are_not_computed_again(monkeypatch):
    model, params = resident(nn.Linear(6, 4))
    monkeypatch.setattr(Accuracy, "terms", lambda *_: 1 / 0)
    toy = Toy(F.cross_entropy, 4, (Accuracy(),))
    data = ClientData(X, Y, torch.arange(90))
    alone, together = evaluate(model, toy, data), evaluate_together([Evaluation(model, params, toy, data)] * 2)
    assert "metrics" not in alone
    assert all("metrics" not in sums for sums in together)
    assert figures(alone, toy.metrics)["accuracy"] == alone["correct"] / 90


def test_the_ignored_class_counts_nowhere():
    model, params = resident(nn.Linear(6, 4))
    y = torch.where(torch.arange(90) % 5 == 0, 255, Y)
    toy = Toy(lambda out, y: F.cross_entropy(out, y, ignore_index=255), 4, METRICS, ignore_index=255)
    data = ClientData(X, y, torch.arange(90))
    known = y < 255
    want = evaluate(model, Toy(F.cross_entropy, 4, METRICS), ClientData(X[known], y[known], torch.arange(int(known.sum()))))
    for sums in (evaluate(model, toy, data, batch_size=90), *evaluate_together([Evaluation(model, params, toy, data)] * 2)):
        assert figures(sums, METRICS) == pytest.approx(figures(want, METRICS), abs=1e-6)
        assert sums["count"] == int(known.sum())


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        return {"hidden": x, "logits": self.linear(x)}


class Spread(Metric):
    """Reads two entries of the outputs, and a dict of targets."""

    def terms(self, outputs, targets):
        return {"hidden": outputs["hidden"].sum(), "logits": outputs["logits"].sum(), "right": targets["extra"].sum()}

    def figures(self, total):
        return {"spread": float(total["hidden"] + total["logits"]) + int(total["right"])}


class Rows(ClientData):
    """Samples whose targets are a dict."""

    def batches(self, size):
        for rows in self.index.split(size):
            yield self.x[rows], {"values": self.y[rows], "extra": torch.ones(len(rows), dtype=torch.int64)}


def test_trees_of_outputs_and_targets():
    model, _ = resident(Tree())
    y = torch.randn(90, 2)
    metrics = (MAE(), R2(), Spread())
    toy = Toy(lambda out, y: F.mse_loss(out["logits"], y["values"]), 0, metrics)
    data = Rows(X, y, torch.arange(90))
    sums = evaluate(model, toy, data, batch_size=37)
    with torch.no_grad():
        out = model.module(X)
    found = figures(sums, metrics)
    assert sums["count"] == 90
    assert found["loss"] == pytest.approx(float(F.mse_loss(out["logits"], y)), rel=1e-6)
    assert found["mae"] == pytest.approx(float((out["logits"] - y).abs().mean()), rel=1e-6)
    assert found["r2"] == pytest.approx(whole(R2(), out["logits"], y)["r2"], abs=1e-6)
    assert found["spread"] == pytest.approx(float(X.sum() + out["logits"].sum()) + 90, rel=1e-4)
    assert "accuracy" not in found


def test_a_client_without_samples_sends_zeros_of_the_right_shape():
    model, _ = resident(nn.Linear(6, 4))
    toy = Toy(F.cross_entropy, 4, METRICS)
    none = evaluate(model, toy, ClientData(X, Y, torch.tensor([], dtype=torch.int64)))
    some = evaluate(model, toy, ClientData(X, Y, torch.arange(9)))
    for figure, terms in some["metrics"].items():
        for kind, values in terms.items():
            for name, value in values.items():
                zero = none["metrics"][figure][kind][name]
                assert zero.shape == value.shape
                assert not bool(zero.any())
    nothing = ClientData(X[:0], Y[:0], torch.tensor([], dtype=torch.int64))
    with pytest.raises(ConfigError, match="macro_f1 cannot be computed without samples"):
        evaluate(model, toy, nothing)
    assert evaluate(model, Toy(F.cross_entropy, 4, (Accuracy(),)), nothing)["count"] == 0


def numbers(loss="mse", y=X[:, 0]):
    return pl.Task.from_tensors(X, y, lambda: nn.Linear(6, 1), loss=loss)


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        (numbers(), "f1", "metric of classes, but the targets are numbers"),
        (numbers(), "auroc", "metric of classes, but the targets are numbers"),
        (numbers(), "exact-match", "metric of labels, but the targets are numbers"),
        (numbers(lambda out, y: (out[:, 0] - y).square().mean()), "accuracy", "metric of classes, but the targets are numbers"),
        (numbers(y=(Y > 1).float()), "f1", "metric of classes, but the targets are numbers"),
        (numbers("bce", 0.5 * (Y > 1)), "auroc", "metric of classes, but the targets are numbers"),
        (numbers("bce", (Y > 1).float()), "rmse", "metric of values, but the targets are labels"),
    ],
)
def test_a_metric_of_other_targets_is_refused(task, metric, words):
    with pytest.raises(DataFormatError, match=words):
        pl.run("fedavg", task, clients=2, rounds=1, metrics=[metric], progress=False)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        (numbers("bce", (Y > 1).float()), "auroc"),
        (numbers("bce", Y.clamp(max=1)), "f1"),
        (numbers(lambda out, y: (out[:, 0] - y).square().mean()), "r2"),
        (numbers("poisson", Y.float()), "mae"),
    ],
)
def test_a_metric_of_these_targets_is_computed(task, metric):
    assert math.isfinite(pl.run("fedavg", task, clients=2, rounds=1, metrics=[metric], progress=False).score)


@dataclass(frozen=True)
class Faulty(Metric):
    """A metric that fails in a function."""

    place: str = ""

    def terms(self, outputs, targets):
        return {"count": torch.tensor(len(targets))} if self.place != "terms" else {}["count"]

    def figures(self, total):
        if self.place == "late" and int(total["count"]) > 2:
            raise ValueError("too many")
        return {"faulty": math.nan if self.place == "nan" else 1 // int(self.place != "figures")}


def test_a_metric_that_fails_is_named_with_its_line():
    cases = {
        "terms": "Faulty.terms failed: KeyError: 'count'",
        "figures": "figures failed: ZeroDivision",
        "late": "ValueError: too many",
    }
    for place, words in cases.items():
        with pytest.raises(ConfigError, match=rf"metric faulty: .*{words}.* \(.*test_terms.py:\d+\)"):
            pl.run("fedavg", numbers(), clients=2, rounds=1, metrics=[Faulty(place)], progress=False)
    with pytest.raises(ConfigError, match="Metric has no function terms; define terms and figures"):
        pl.run("fedavg", numbers(), clients=2, rounds=1, metrics=[Metric()], progress=False)


def test_a_primary_figure_that_is_nan_is_warned_of_once():
    with pytest.warns(RoundWarning) as seen:
        pl.run("fedavg", numbers(), clients=2, rounds=3, metrics=[Faulty("nan")], progress=False)
    told = [str(w.message) for w in seen if w.category is RoundWarning]
    assert told == ["faulty is nan in round 1: targets and patience pass over such rounds"]


def test_an_evaluated_loss_that_is_not_finite_is_warned_of_once():
    """Nothing else would tell that a run has diverged if no bound on its sums is exceeded."""

    def endless(outputs, targets):
        return (outputs[:, 0] - targets).square().mean() * (1 if torch.is_grad_enabled() else math.inf)

    with pytest.warns(RoundWarning) as seen:
        pl.run("fedavg", replace(numbers(), loss=endless), clients=2, rounds=3, progress=False)
    told = [str(w.message) for w in seen if w.category is RoundWarning]
    assert told == ["the evaluated loss is inf in round 1: training may have diverged; lower lr"]


def test_the_judged_tensor_of_a_tree():
    a, b = torch.ones(1), torch.zeros(1)
    assert leading({"x": b, "logits": a}) is a
    assert leading((a, b)) is leading([a]) is leading({"y": (a, b)}) is a
    with pytest.raises(ConfigError, match="the model returns a str"):
        leading("x")


def test_no_metric_reads_a_number_in_a_batch(monkeypatch):
    """A number is read after the last batch: on a GPU every reading waits for it."""
    terms = MetricTerms(Toy(F.cross_entropy, 4, METRICS))
    scores = torch.randn(20, 4)
    for name in ("item", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a number was read"))
    terms.add(scores, Y[:20], counted=True)


class Single(Metric):
    """Returns terms of single precision."""

    def terms(self, outputs, targets):
        return {"value": outputs.sum() + targets.sum()}

    def figures(self, total):
        return {"single": float(total["value"])}


def test_terms_of_low_precision_are_added_in_float64():
    terms = MetricTerms(Toy(F.mse_loss, 0, (Single(),)))
    for value in (2.0**24, 1.0, 1.0):
        terms.add(torch.tensor([value]), torch.zeros(1))
    assert measured(terms.into({}), (Single(),)) == {"single": 2.0**24 + 2}  # single precision has no 2^24 + 1


def test_the_mask_and_the_output_of_a_task_hold_for_all_metrics():
    """Of a dict of targets, and of a dict of outputs whose scores have a name of their own."""
    y, mask = torch.randn(20, 2), torch.arange(20) % 3 > 0
    toy = Toy(F.mse_loss, 0, (MAE(),))
    toy.mask, toy.output = "kept", "found"
    out = {"logits": torch.zeros(20, 2), "found": torch.ones(20, 2)}
    terms = MetricTerms(toy)
    terms.add(out, {"values": y, "kept": mask})
    assert measured(terms.into({}), toy.metrics)["mae"] == pytest.approx(float((1 - y[mask]).abs().mean()), rel=1e-6)
    labels = torch.randint(0, 3, (20, 4))
    terms = MetricTerms(toy)
    marked = terms.marked({"values": labels.to(torch.uint8), "kept": mask})
    assert bool((marked[~mask] == -1).all())
    assert torch.equal(marked[mask], labels[mask])


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_a_vocabulary_may_be_as_large_as_a_sequence_is_long(length):
    """With 5 tokens and sequences of 6, the scores [N, 5, 5] could be read along either axis."""
    tokens = torch.randint(5, (7, length), generator=torch.Generator().manual_seed(0))
    scores = 20.0 * F.one_hot(tokens.roll(-1, 1), 5).float()  # right about each next token
    for metric in (Accuracy(), Perplexity()):
        toy = Toy(NamedLoss("next_token"), 5, (metric,))
        found = metric.figures(metric.terms(*MetricTerms(toy).judged(metric, scores, tokens)))
        assert found[metric.figure] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_loss_of_padded_sequences_is_the_mean_over_their_tokens(batch):
    tokens = torch.randint(5, (8, 6), generator=torch.Generator().manual_seed(1))
    for row in range(8):
        tokens[row, 2 + row // 2 :] = -100

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))

        def forward(self, x):
            return self.table[x.clamp(min=0)]

    model, params = resident(Table())
    data = ClientData(tokens, tokens, torch.arange(8))
    sums = evaluate(model, Toy(NamedLoss("next_token"), 0, ()), data, batch_size=batch)
    kept = tokens[:, 1:] >= 0
    want = F.cross_entropy(params["table"][tokens.clamp(min=0)][:, :-1][kept], tokens[:, 1:][kept])
    assert sums["count"] == int(kept.sum())
    assert sums["loss"] / sums["count"] == pytest.approx(float(want), rel=1e-6)


def test_scores_of_the_next_token_are_compared_with_the_token_after_each_one():
    tokens, scores = torch.randint(0, 5, (3, 7)), torch.randn(3, 7, 5)
    toy = Toy(NamedLoss("next_token"), 5, (Perplexity(),))
    terms = MetricTerms(toy)
    terms.add(scores, tokens)
    want = float(NamedLoss("next_token")(scores, tokens).exp())
    assert measured(terms.into({}), toy.metrics)["perplexity"] == pytest.approx(want, rel=1e-5)
