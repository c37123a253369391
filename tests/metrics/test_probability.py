"""Likelihood, Brier score and calibration against scikit-learn, and a direct computation."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from paceline.metrics import Brier, CalibrationError, LogLoss, Perplexity
from tests.metrics.kit import same, summed, whole

G = torch.Generator().manual_seed(7)
SCORES = torch.randn(500, 5, generator=G) * 3
TARGETS = torch.randint(0, 5, (500,), generator=G)
P = SCORES.double().softmax(1).numpy()
SIZES = (499, 0, 1)


def test_likelihood_and_brier():
    loss = sk.log_loss(TARGETS, P)
    assert summed(LogLoss(), SCORES, TARGETS, SIZES) == {"log_loss": pytest.approx(loss, rel=1e-9)}
    assert summed(Perplexity(), SCORES, TARGETS, SIZES) == {"perplexity": pytest.approx(math.exp(loss), rel=1e-9)}
    brier = ((P - np.eye(5)[TARGETS]) ** 2).sum(1).mean()
    assert summed(Brier(scale=1), SCORES, TARGETS, SIZES) == {"brier": pytest.approx(brier, rel=1e-9)}
    two, y = SCORES[:, :2], TARGETS % 2
    p = two.double().softmax(1)[:, 1].numpy()
    assert whole(Brier(), two, y)["brier"] == pytest.approx(sk.brier_score_loss(y, p), rel=1e-9)


def calibration(p, y, bins):
    """Expected and maximum calibration error, bin by bin."""
    confidence, right = p.max(1), p.argmax(1) == y
    gaps = []
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            gaps.append((inside.mean(), abs(confidence[inside].mean() - right[inside].mean())))
    return sum(share * gap for share, gap in gaps), max(gap for _, gap in gaps)


@pytest.mark.parametrize("bins", [1, 15, 40])
def test_calibration(bins):
    metric = CalibrationError(bins=bins)
    ours = summed(metric, SCORES, TARGETS, SIZES)
    assert list(ours.values()) == pytest.approx(calibration(P, TARGETS.numpy(), bins), abs=1e-9)
    assert same(ours, whole(metric, SCORES, TARGETS))


def test_perplexity_is_per_token_not_per_sentence():
    scores, y = torch.randn(2, 5, 6, generator=G), torch.randint(0, 5, (2, 6), generator=G)
    y[0, 1:] = -100
    nats = torch.nn.functional.cross_entropy(scores.double(), y)
    assert whole(Perplexity(), scores, y)["perplexity"] == pytest.approx(float(nats.exp()), rel=1e-9)


def test_nothing():
    empty = torch.full_like(TARGETS, -1)
    for metric in (LogLoss(), Perplexity(), Brier(), CalibrationError()):
        assert math.isnan(whole(metric, SCORES, empty)[metric.figure])
