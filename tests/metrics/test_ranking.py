"""Binned AUROC and average precision against scikit-learn: within their stated resolution, and exact for binned scores."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from paceline.metrics import AUROC, AveragePrecision, Youden
from paceline.metrics.ranking import log_odds
from tests.metrics.kit import summed, whole


def data(n=600, classes=4, scale=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    scores = torch.randn(n, classes, generator=g) * scale
    scores[torch.arange(n), y] += scale
    return scores, y


THEIRS = {"auroc": sk.roc_auc_score, "average_precision": sk.average_precision_score}


@pytest.mark.parametrize("made", [AUROC, AveragePrecision])
@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("bins", [20, 1000])
def test_one_against_the_rest(made, average, bins):
    scores, y = data()
    metric = made(bins=bins, average=average)
    ours = summed(metric, scores, y, (5, 0, 300, 295))
    p, hot = scores.double().softmax(1).numpy(), np.eye(4, dtype=int)[y]
    exact = THEIRS[metric.figure](hot, p, average=average)
    limit = ours[f"{metric.figure}_resolution"]
    assert abs(ours[metric.figure] - exact) <= limit
    assert limit < (0.15 if bins == 20 else 3e-3)
    z = torch.from_numpy(p).logit().numpy() + np.log(3)
    binned = np.floor((np.arcsinh(20 * z) / np.arcsinh(800) + 1) / 2 * bins)
    assert ours[metric.figure] == pytest.approx(THEIRS[metric.figure](hot, binned, average=average), abs=1e-9)


@pytest.mark.parametrize("made", [AUROC, AveragePrecision])
def test_two_classes_one_logit_and_labels(made):
    scores, y = data(classes=2, seed=1)
    metric = made()
    z = (scores[:, 1] - scores[:, 0]).double()
    exact = THEIRS[metric.figure](y, z)
    for out in (scores, z, z[:, None]):
        ours = whole(metric, out, y)
        assert abs(ours[metric.figure] - exact) <= ours[f"{metric.figure}_resolution"] + 1e-12
    labels = (torch.rand(600, 3, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    logits = torch.randn(600, 3) + 2 * labels
    ours = summed(metric, logits, labels, (200, 400))
    assert abs(ours[metric.figure] - THEIRS[metric.figure](labels, logits, average="macro")) <= ours[f"{metric.figure}_resolution"]


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("made", [AUROC, AveragePrecision])
def test_the_resolution_of_a_thousand_bins(made, scale):
    """Of models that have learned nothing, something, and everything."""
    scores, y = data(n=2000, classes=10, scale=scale)
    assert whole(made(), scores / 2, y)[f"{made().figure}_resolution"] < (0.003 if made is AUROC else 0.01)


def test_confident_scores_keep_their_order():
    """In bins of probability all of these would be one; float32 probabilities are even equal."""
    z = torch.linspace(12, 25, 200)
    y = (torch.arange(200) >= 100).long()
    ours = whole(AUROC(), torch.stack([torch.zeros(200), z], 1), y)
    assert ours["auroc"] == pytest.approx(1, abs=1e-3)
    assert len(z.softmax(0).unique()) > 1
    assert len(torch.stack([torch.zeros(200), z], 1).softmax(1)[:, 1].unique()) < 60


def test_log_odds_keep_their_digits():
    scores = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 40
    p = scores.softmax(1)
    exact = [[float(s[c] - torch.cat([s[:c], s[c + 1 :]]).logsumexp(0)) for c in range(5)] for s in scores]
    assert log_odds(scores) == pytest.approx(np.array(exact), rel=1e-9)
    assert bool((p == 1).any())  # where log(p / (1 - p)) is infinite


def test_classes_without_positives_or_negatives_do_not_count():
    scores, y = data()
    y[y == 2] = 1
    ours = whole(AUROC(), scores, y)
    p = scores.double().softmax(1).numpy()
    want = np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in (0, 1, 3)])
    assert ours["auroc"] == pytest.approx(want, abs=ours["auroc_resolution"])
    assert math.isnan(whole(AveragePrecision(), scores[:, :2], torch.zeros_like(y))["average_precision"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("made", [AUROC, AveragePrecision])
def test_the_resolution_is_reached_by_the_best_and_the_worst_order_within_a_bin(made, order):
    """All scores share one bin; positives are first or last."""
    y = torch.tensor([0] * 6 + [1] * 3)
    z = 1 + order * torch.arange(9) * 1e-6
    metric = made(bins=4)
    ours = whole(metric, z, y)
    off = abs(ours[metric.figure] - THEIRS[metric.figure](y, z))
    other = abs(ours[metric.figure] - THEIRS[metric.figure](y, -z))
    assert max(off, other) == pytest.approx(ours[f"{metric.figure}_resolution"], rel=1e-9)


@pytest.mark.parametrize("bins", [100, 5000])
def test_youden_s_index_and_what_its_threshold_finds(bins):
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, 2, (500,), generator=g)
    z = torch.randn(500, generator=g, dtype=torch.float64) + 1.5 * y
    ours = summed(Youden(bins=bins), z, y, (120, 0, 380))
    fpr, tpr, thresholds = sk.roc_curve(y, z, drop_intermediate=False)
    assert 0 <= (tpr - fpr).max() - ours["youden"] <= ours["youden_resolution"]
    binned = np.floor((np.arcsinh(20 * z.numpy()) / np.arcsinh(800) + 1) / 2 * bins)
    fpr, tpr, thresholds = sk.roc_curve(y, binned, drop_intermediate=False)
    best = (tpr - fpr).argmax()
    found = binned >= thresholds[best]
    assert ours["youden"] == pytest.approx((tpr - fpr)[best])
    scores = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for name, score in scores.items():
        assert ours[f"youden_{name}"] == pytest.approx(score(y, found))
    perfect = whole(Youden(), torch.tensor([-2.0, -1.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1]))
    assert (perfect["youden"], perfect["youden_f1"]) == (1.0, 1.0)
    assert math.isnan(whole(Youden(), torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))["youden_f1"])
