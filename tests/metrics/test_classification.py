"""Metrics of classes against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from paceline.core.errors import ConfigError, DataFormatError
from paceline.metrics import F1, Accuracy, BalancedAccuracy, Kappa, Matthews, Precision, Recall
from tests.metrics.kit import same, summed, whole

CLASSES = 6
GENERATOR = torch.Generator().manual_seed(3)
SCORES = torch.randn(300, CLASSES, generator=GENERATOR)
TARGETS = torch.randint(0, CLASSES - 1, (300,), generator=GENERATOR)  # the last class is only predicted
SCORES[torch.arange(300), TARGETS] += 1.0
SCORES[:, 3] -= 9  # class 3 is never predicted
FOUND = SCORES.argmax(1).numpy()
Y = TARGETS.numpy()
SIZES = (1, 0, 120, 179)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize(("made", "theirs"), [(F1, sk.f1_score), (Precision, sk.precision_score), (Recall, sk.recall_score)])
def test_precision_recall_and_f1(made, theirs, average):
    metric = made(average=average, per_class=True)
    ours = summed(metric, SCORES, TARGETS, SIZES)
    assert ours[metric.figure] == pytest.approx(theirs(Y, FOUND, average=average, zero_division=0), abs=1e-12)
    each = theirs(Y, FOUND, average=None, labels=range(CLASSES), zero_division=0)
    assert [ours[f"class_{c}_{made.name}"] for c in range(CLASSES)] == pytest.approx(each.tolist())
    assert same(ours, whole(metric, SCORES, TARGETS))


@pytest.mark.parametrize("top", [1, 2, 4])
def test_accuracy(top):
    ours = summed(Accuracy(top=top, per_class=True), SCORES, TARGETS, SIZES)
    name = "accuracy" if top == 1 else f"top{top}_accuracy"
    right = (SCORES.numpy().argsort(1)[:, -top:] == Y[:, None]).any(1)
    each = [right[c == Y].mean() for c in range(CLASSES - 1)]
    assert ours[name] == pytest.approx(sk.top_k_accuracy_score(Y, SCORES.numpy(), k=top, labels=range(CLASSES)))
    assert ours[f"worst_class_{name}"] == pytest.approx(min(each))
    assert [ours[f"class_{c}_{name}"] for c in range(CLASSES - 1)] == pytest.approx(each)
    assert math.isnan(ours[f"class_{CLASSES - 1}_{name}"])


def test_balanced_accuracy_matthews_and_kappas():
    for metric, want in (
        (BalancedAccuracy(), np.mean([(FOUND[c == Y] == c).mean() for c in range(CLASSES - 1)])),
        (Matthews(), sk.matthews_corrcoef(Y, FOUND)),
        (Kappa(), sk.cohen_kappa_score(Y, FOUND)),
        (Kappa(weights="linear"), sk.cohen_kappa_score(Y, FOUND, weights="linear")),
        (Kappa(weights="quadratic"), sk.cohen_kappa_score(Y, FOUND, weights="quadratic")),
    ):
        assert summed(metric, SCORES, TARGETS, SIZES) == {metric.figure: pytest.approx(want, abs=1e-12)}


METRICS = [
    Accuracy(),
    Accuracy(top=2),
    BalancedAccuracy(),
    F1(),
    Precision(average="micro"),
    Recall(average="weighted"),
    Matthews(),
    Kappa(),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.figure)
def test_targets_below_zero_do_not_count_and_classes_may_be_any_axis(metric):
    maps, y = torch.randn(4, CLASSES, 5, 7), torch.randint(0, CLASSES, (4, 5, 7))
    y[1], y[0, 2, 3] = -100, -1
    known = y.reshape(-1) >= 0
    flat = whole(metric, maps.movedim(1, -1).reshape(-1, CLASSES)[known], y.reshape(-1)[known])
    assert same(whole(metric, maps, y), flat)
    assert same(whole(metric, maps.movedim(1, -1), y), flat)
    assert same(whole(metric, {"hidden": y, "logits": maps}, (y,)), flat)
    nothing = whole(metric, maps, torch.full_like(y, -1))
    assert all(math.isnan(v) for v in nothing.values())


def test_a_binary_logit_has_two_classes():
    z, y = torch.tensor([0.1, -2.0, 3.0, -0.2]), torch.tensor([1, 0, 0, 1])
    for out in (z, z[:, None]):
        assert whole(F1(average="macro"), out, y)["macro_f1"] == pytest.approx(sk.f1_score(y, z > 0, average="macro"))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(DataFormatError, match=r"macro_f1 does not fit outputs of shape \[4, 2, 3\] and targets of shape \[4\]"):
        F1().terms(torch.randn(4, 2, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="top=0"):
        Accuracy(top=0)
