"""The detector of centres: its loss in small cases, its peaks as boxes, and one that is trained finds its objects."""

import math

import pytest
import torch

from paceline.metrics import DetectionMAP
from paceline.models.detector import CentreNet, centre_loss

BOXES = {"boxes": torch.tensor([[[2.0, 4.0, 10.0, 8.0]]]), "labels": torch.tensor([[1]])}


def maps(heat=0.0):
    return {"heat": torch.full((1, 2, 4, 4), heat), "shape": torch.zeros(1, 4, 4, 4)}


def test_the_loss_of_one_object():
    """An oracle by loops: the centre (6, 6) is in cell (1, 1); the size of 2 x 1 cells gives a spread of half a cell."""
    wanted = 0.0
    for cls in range(2):
        for y in range(4):
            for x in range(4):
                near = math.exp(-((x - 1) ** 2 + (y - 1) ** 2) / (2 * 0.5**2)) if cls == 1 else 0.0
                wanted -= 0.25 * math.log(0.5) if near == 1 else (1 - near) ** 4 * 0.25 * math.log(0.5)
    wanted += 0.1 * (0.5 + 0.5 + 2 + 1)
    assert float(centre_loss(maps(), BOXES)) == pytest.approx(wanted, rel=1e-5)


def test_a_picture_without_objects_wants_no_peak():
    none = {"boxes": torch.zeros(1, 2, 4), "labels": torch.full((1, 2), -1)}
    assert float(centre_loss(maps(-20.0), none)) == pytest.approx(0.0, abs=1e-6)
    assert float(centre_loss(maps(), none)) == pytest.approx(32 * 0.25 * math.log(2), rel=1e-5)


def test_a_peak_becomes_its_box():
    net, out = CentreNet(3, 2, width=4, detections=3), maps(-9.0)
    out["heat"][0, 1, 1, 1] = 9.0
    out["shape"][0, :, 1, 1] = torch.tensor([0.5, 0.5, 2.0, 1.0])
    found = net.decode(out["heat"], out["shape"])
    assert found["boxes"][0, 0].tolist() == [2, 4, 10, 8]
    assert (int(found["labels"][0, 0]), found["scores"].shape) == (1, (1, 3))
    assert float(found["scores"][0, 0]) > 0.999
    metric = DetectionMAP(2)
    assert metric.figures(metric.terms(found, BOXES))["map"] == 1.0
    assert set(net(torch.rand(1, 3, 16, 16))) == {"heat", "shape"}
    assert {"boxes", "scores", "labels"} < set(net.eval()(torch.rand(1, 3, 16, 16)))


@pytest.mark.slow
def test_a_detector_learns_where_squares_are():
    torch.manual_seed(0)
    x, y = torch.zeros(12, 3, 32, 32), {"boxes": torch.zeros(12, 1, 4), "labels": torch.arange(12)[:, None] % 2}
    for row in range(12):
        left, top, side = 3 + row % 5 * 4, 2 + row % 7 * 3, 8
        x[row, row % 2, top : top + side, left : left + side] = 1.0
        y["boxes"][row, 0] = torch.tensor([left, top, left + side, top + side])
    net, metric = CentreNet(3, 2, width=8), DetectionMAP(2)
    rule = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(30):
        rule.zero_grad()
        centre_loss(net(x), y).backward()
        rule.step()
    with torch.no_grad():
        assert metric.figures(metric.terms(net.eval()(x), y))["map"] > 0.9
