"""What is pasted, where, and what becomes of the old annotations, against numbers computed by hand."""

import pytest
import torch

from paceline.blocks.pasting import Crop, fitting_objects, fitting_place, object_crops, paste, repaired, similarity

WORDS = ("boat", "person", "car", "sea", "road", "nothing")
BOAT, PERSON, CAR, SEA, ROAD, NOTHING = range(6)
VECTORS = torch.tensor([[0.9, 0.3, 0.1], [0.5, 0.6, 0.5], [0.1, 1.0, 0.2], [1.0, 0.2, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 0.0]])


def test_similarities_of_words():
    near = similarity(VECTORS)
    assert near[SEA, [BOAT, PERSON, CAR]].tolist() == pytest.approx([0.9868, 0.6556, 0.2871], abs=5e-5)
    assert near[ROAD, [CAR, PERSON, BOAT]].tolist() == pytest.approx([0.9905, 0.6974, 0.3234], abs=5e-5)
    assert near[NOTHING].tolist() == [0.0] * 6


def test_the_objects_that_fit_are_not_present_yet():
    near = similarity(VECTORS)
    assert fitting_objects(near[SEA], [SEA], 3) == [BOAT, PERSON, CAR]
    assert fitting_objects(near[ROAD], [ROAD], 3, top=1) == [CAR]
    assert fitting_objects(near[SEA], [BOAT, SEA], 3) == [PERSON, CAR]
    assert fitting_objects(near[NOTHING], [NOTHING], 3) == [0, 1, 2]
    assert fitting_objects(near[SEA], [0, 1, 2, SEA], 3) == []


def test_the_place_that_fits_is_each_annotation_of_the_nearest_word():
    near = similarity(VECTORS)
    assert fitting_place(near[BOAT], [ROAD, SEA, ROAD, SEA]) == [1, 3]
    assert fitting_place(near[CAR], [ROAD, SEA]) == [0]
    assert fitting_place(near[CAR], []) == []


def full(side, value=1.0):
    return Crop(torch.full((3, side, side), value), torch.ones(side, side, dtype=torch.bool))


def test_a_crop_at_the_corner_is_cut():
    done = paste(torch.zeros(3, 10, 10), full(4), (1, 1))
    assert done.box.tolist() == [0, 0, 3, 3]
    assert int(done.pixels.sum()) == 9
    assert (done.picture[:, :3, :3] == 1).all()
    assert int((done.picture != 0).sum()) == 27


def test_a_crop_is_pasted_by_its_mask_and_centred():
    mask = torch.eye(5, dtype=torch.bool)
    picture = torch.arange(75.0).view(3, 5, 5) + 1
    done = paste(torch.zeros(3, 12, 12), Crop(picture, mask), (6.7, 5.2))
    assert done.box.tolist() == [4, 3, 9, 8]
    assert torch.equal(done.picture[:, 3:8, 4:9], picture * mask)
    assert torch.equal(torch.nonzero(done.pixels), torch.tensor([[3 + i, 4 + i] for i in range(5)]))


def test_what_lies_outside_or_has_no_pixel_is_not_pasted():
    assert paste(torch.zeros(3, 10, 10), full(4), (30, 5)) is None
    corner = Crop(torch.ones(3, 4, 4), torch.zeros(4, 4, dtype=torch.bool).index_fill(0, torch.tensor([0]), True))
    assert paste(torch.zeros(3, 10, 10), corner, (5, 0)) is None  # its only row is above the picture


def box_mask(*box, side=10):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_covered_objects_are_removed_others_cut_or_left():
    boxes = torch.tensor([[0, 0, 2, 2], [2, 1, 6, 3], [7, 7, 9.5, 9], [0, 0, 0, 0]]).float()
    masks = torch.stack([box_mask(0, 0, 2, 2), box_mask(2, 1, 6, 3), box_mask(7, 7, 9, 9), torch.zeros(10, 10, dtype=torch.bool)])
    labels = torch.tensor([0, 2, 1, -1])
    new, kept, visible = repaired(boxes, labels, masks, box_mask(0, 0, 4, 4))
    assert kept.tolist() == [-1, 2, 1, -1]
    assert new[1].tolist() == [4, 1, 6, 3]
    assert torch.equal(new[2], boxes[2])
    assert torch.equal(visible[2], masks[2])
    assert torch.equal(visible[1], box_mask(4, 1, 6, 3))
    assert labels.tolist() == [0, 2, 1, -1], "arguments stay as they are"


def test_the_crops_of_a_picture():
    picture = torch.rand(3, 10, 10)
    boxes = torch.tensor([[2, 1, 6, 3], [0, 0, 0, 0], [1, 1, 3, 3]]).float()
    masks = torch.stack([box_mask(2, 1, 6, 3), box_mask(0, 0, 0, 0), box_mask(5, 5, 6, 6)])
    [(label, crop)] = object_crops(picture, boxes, torch.tensor([4, -1, 2]), masks)
    assert label == 4
    assert torch.equal(crop.picture, picture[:, 1:3, 2:6])
    assert crop.mask.all()
