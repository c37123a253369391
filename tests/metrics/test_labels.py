"""Multi-label metrics and overlaps of segmentations against scikit-learn."""

import math

import pytest
import torch
from sklearn import metrics as sk

from paceline.metrics import Dice, ExactMatch, Hamming, IoU, MultilabelF1
from tests.metrics.kit import summed, whole

G = torch.Generator().manual_seed(5)
LABELS = (torch.rand(250, 5, generator=G) < 0.4).long()
LABELS[:, 4] = 0
LOGITS = torch.randn(250, 5, generator=G) + LABELS
FOUND = (LOGITS > 0).long()
SIZES = (100, 0, 150)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.bool])
def test_labels(kind):
    for metric, want in (
        (ExactMatch(), sk.accuracy_score(LABELS, FOUND)),
        (Hamming(), sk.hamming_loss(LABELS, FOUND)),
        (MultilabelF1(average="macro"), sk.f1_score(LABELS, FOUND, average="macro", zero_division=0)),
        (MultilabelF1(average="micro"), sk.f1_score(LABELS, FOUND, average="micro")),
    ):
        assert summed(metric, LOGITS, LABELS.to(kind), SIZES) == {metric.figure: pytest.approx(want, abs=1e-12)}
    raised = (LOGITS > 0.7).long()
    assert whole(Hamming(threshold=0.7), LOGITS, LABELS)["hamming"] == pytest.approx(sk.hamming_loss(LABELS, raised))


def test_unknown_labels_do_not_count():
    y = LABELS.clone()
    y[:50] = -1
    y[50, 0] = -1
    for metric in (Hamming(), MultilabelF1(average="micro")):
        flat = y.reshape(-1) >= 0
        want = whole(metric, LOGITS.reshape(-1)[flat][:, None], y.reshape(-1)[flat][:, None])
        assert whole(metric, LOGITS, y) == {metric.figure: pytest.approx(want[metric.figure])}
    right = ((y == FOUND) | (y < 0)).all(1)[50:]
    assert whole(ExactMatch(), LOGITS, y)["exact_match"] == pytest.approx(float(right.double().mean()))
    for metric in (ExactMatch(), Hamming(), MultilabelF1()):
        assert math.isnan(whole(metric, LOGITS, torch.full_like(y, -1))[metric.figure])


@pytest.mark.parametrize("background", [False, True])
def test_overlaps(background):
    maps, y = torch.randn(6, 4, 8, 9, generator=G), torch.randint(0, 4, (6, 8, 9), generator=G)
    y[:, :2] = -1  # as an ignore_index is marked
    known = y.reshape(-1) >= 0
    flat, found = y.reshape(-1)[known], maps.argmax(1).reshape(-1)[known]
    labels = list(range(0 if background else 1, 4))
    for metric, want in (
        (Dice(background=background, per_class=True), sk.f1_score(flat, found, labels=labels, average=None)),
        (IoU(background=background, per_class=True), sk.jaccard_score(flat, found, labels=labels, average=None)),
    ):
        ours = summed(metric, maps, y, (2, 1, 3))
        assert ours[metric.figure] == pytest.approx(want.mean())
        assert [ours[f"class_{c}_{metric.figure}"] for c in labels] == pytest.approx(want.tolist())


def test_a_binary_mask():
    z, y = torch.randn(3, 1, 6, 6, generator=G), torch.randint(0, 2, (3, 6, 6), generator=G)
    want = sk.f1_score(y.reshape(-1), z.reshape(-1) > 0)
    assert whole(Dice(), z.squeeze(1), y)["dice"] == pytest.approx(want)
    assert whole(Dice(), z, y[:, None])["dice"] == pytest.approx(want)
