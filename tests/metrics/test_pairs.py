"""Concordance and mean average precision of boxes against direct computations over pairs and boxes."""

import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from paceline.core.errors import ConfigError, DataFormatError
from paceline.metrics import Concordance, DetectionMAP
from tests.metrics.kit import summed, whole

G = torch.Generator().manual_seed(13)


def harrell(time, event, risk):
    """Harrell's C-index, pair by pair."""
    good = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and time[i] < time[j]:
                pairs += 1
                good += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return good / pairs


def survival(n=150):
    generator = torch.Generator().manual_seed(3)
    time = torch.rand(n, generator=generator) * 10
    event = torch.rand(n, generator=generator) < 0.6
    return -time / 2 + torch.randn(n, generator=generator), torch.stack([time, event.float()], 1)


@pytest.mark.parametrize("bins", [10, 400])
def test_concordance_is_within_its_resolution(bins):
    risk, y = survival()
    ours = summed(Concordance(horizon=10.0, bins=bins), risk, y, (50, 0, 100))
    off = abs(ours["concordance"] - harrell(*y.T.tolist(), risk.tolist()))
    assert off <= ours["concordance_resolution"] < (0.4 if bins == 10 else 0.02)


def test_concordance_of_binned_times_and_risks_is_exact():
    risk, y = survival()
    bins = 25
    time, place = (y[:, 0] / 10 * bins).floor(), ((torch.asinh(risk.double() * 20) / math.asinh(800) + 1) / 2 * bins).floor()
    ours = whole(Concordance(horizon=10.0, bins=bins), risk, y)["concordance"]
    assert ours == pytest.approx(harrell(time.tolist(), y[:, 1].tolist(), place.tolist()), abs=1e-12)


def test_times_after_the_horizon_are_censored_there():
    risk, y = survival()
    y[:30, 0] = 50.0
    cut = y.clone()
    cut[:30] = torch.tensor([9.999, 0.0])
    assert whole(Concordance(horizon=10.0), risk, y) == whole(Concordance(horizon=10.0), risk, cut)
    y[:, 1] = 0
    assert math.isnan(whole(Concordance(horizon=10.0), risk, y)["concordance"])


def test_what_concordance_needs_is_named():
    with pytest.raises(DataFormatError, match="time, event"):
        Concordance(horizon=1.0).terms(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ConfigError, match="horizon"):
        Concordance(horizon=0.0)


def images(n=12, detections=9, boxes=4, classes=3):
    corner = torch.rand(n, boxes, 2, generator=G) * 4
    true = torch.cat([corner, corner + 0.5 + torch.rand(n, boxes, 2, generator=G)], 2)
    labels = torch.randint(-1, classes, (n, boxes), generator=G)
    which = torch.randint(0, boxes, (n, detections), generator=G)
    found = true.gather(1, which[..., None].expand(-1, -1, 4)) + 0.15 * torch.randn(n, detections, 4, generator=G)
    other = torch.randint(-1, classes, which.shape, generator=G)
    guess = torch.where(torch.rand(n, detections, generator=G) < 0.7, labels.gather(1, which), other)
    scores = torch.rand(n, detections, generator=G)
    return {"boxes": found, "scores": scores, "labels": guess}, {"boxes": true, "labels": labels}


def area(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def average_precision(outputs, targets, cls, least):
    """Area below the precision-recall envelope of one class, detection by detection."""
    listed, boxes = [], 0
    for i in range(len(targets["labels"])):
        there = [g for g, label in enumerate(targets["labels"][i].tolist()) if label == cls]
        boxes += len(there)
        free = set(there)
        rows = zip(outputs["scores"][i].tolist(), outputs["labels"][i].tolist(), strict=True)
        found = [(s, k) for k, (s, label) in enumerate(rows) if label == cls]
        for score, k in sorted(found, reverse=True):
            best = max(free, key=lambda g: area(outputs["boxes"][i, k].tolist(), targets["boxes"][i, g].tolist()), default=None)
            hit = best is not None and area(outputs["boxes"][i, k].tolist(), targets["boxes"][i, best].tolist()) >= least
            free -= {best} if hit else set()
            listed.append((score, hit))
    listed.sort(reverse=True)
    precision = [sum(h for _, h in listed[: n + 1]) / (n + 1) for n in range(len(listed))]
    return sum(max(precision[n:]) for n, (_, hit) in enumerate(listed) if hit) / boxes


@pytest.mark.parametrize("bins", [15, 100_000])
def test_detections(bins):
    outputs, targets = images()
    ours = summed(DetectionMAP(classes=3, overlap=[0.5, 0.75], bins=bins), outputs, targets, (5, 0, 7))
    exact = sum(average_precision(outputs, targets, c, t) for c in range(3) for t in (0.5, 0.75)) / 6
    assert -1e-9 <= exact - ours["map"] <= ours["map_resolution"] + 1e-9
    assert ours["map_resolution"] < (0.2 if bins == 15 else 1e-6)


def coco(outputs, targets, overlap):
    """COCO's figure by its own program, with boxes as it stores them: x, y, width, height."""

    def listed(tree):
        for image, (boxes, labels) in enumerate(zip(tree["boxes"].tolist(), tree["labels"].tolist(), strict=True)):
            scores = tree["scores"][image].tolist() if "scores" in tree else [1.0] * len(labels)
            for (x, y, right, below), label, score in zip(boxes, labels, scores, strict=True):
                where = {"image_id": image, "category_id": label, "bbox": [x, y, right - x, below - y], "iscrowd": 0}
                yield where | {"score": score, "area": (right - x) * (below - y)}

    there, found = COCO(), COCO()
    images = [{"id": i} for i in range(len(targets["labels"]))]
    for kept, tree in ((there, targets), (found, outputs)):
        boxes = [box | {"id": number} for number, box in enumerate(listed(tree), 1) if box["category_id"] >= 0]
        kept.dataset = {"images": images, "categories": [{"id": c} for c in range(3)], "annotations": boxes}
        kept.createIndex()
    judge = COCOeval(there, found, "bbox")
    judge.params.iouThrs, judge.params.areaRng, judge.params.areaRngLbl = np.array(overlap), [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]  # [thresholds, points, classes]
    return float(precision[precision > -1].mean())


@pytest.mark.parametrize("bins", [15, 100_000])
@pytest.mark.parametrize("kept", [12, 3])
def test_recall_points_are_those_of_coco(bins, kept):
    outputs, targets = images()
    outputs, targets = ({name: part[:kept] for name, part in tree.items()} for tree in (outputs, targets))
    overlap = [0.5, 0.75]
    ours = summed(DetectionMAP(classes=3, overlap=overlap, bins=bins, recall_points=101), outputs, targets, (1, 0, kept - 1))
    exact = coco(outputs, targets, overlap)
    assert 0.05 < exact < 0.95
    assert -1e-9 <= exact - ours["map"] <= ours["map_resolution"] + 1e-9
    assert ours["map_resolution"] < (0.25 if bins == 15 else 1e-6)
    blind = {**outputs, "labels": torch.full_like(outputs["labels"], -1)}
    assert whole(DetectionMAP(classes=3, recall_points=101), blind, targets)["map"] == 0
    with pytest.raises(ConfigError, match="recall_points=1 must be 0 or at least 2"):
        DetectionMAP(classes=3, recall_points=1)


def test_images_without_boxes_or_detections():
    outputs, targets = images()
    none = {"boxes": targets["boxes"], "labels": torch.full_like(targets["labels"], -1)}
    assert math.isnan(whole(DetectionMAP(classes=3), outputs, none)["map"])
    blind = {**outputs, "labels": torch.full_like(outputs["labels"], -1)}
    assert whole(DetectionMAP(classes=3), blind, targets) == {"map": 0.0, "map_resolution": 0.0}
    empty = {"boxes": torch.zeros(12, 0, 4), "labels": torch.zeros(12, 0, dtype=torch.int64)}
    assert math.isnan(whole(DetectionMAP(classes=3), outputs, empty)["map"])
    with pytest.raises(DataFormatError, match="boxes, scores and labels"):
        DetectionMAP(classes=3).terms(torch.zeros(3), targets)
