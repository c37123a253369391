"""Generators: shapes, conditions, ranges, and banks of features."""

import numpy as np
import pytest
import torch

from paceline.blocks.banks import FeatureBank, moving_means
from paceline.blocks.generators import FeatureGenerator, FeatureTransform, PictureGenerator, balanced_labels
from paceline.blocks.voting import elected, votes
from paceline.core.serialization import dumps, loads


def test_balanced_labels():
    assert balanced_labels(4, 10, shift=12).tolist() == [2, 3, 4, 5]
    assert torch.bincount(balanced_labels(30, 10, 7)).tolist() == [3] * 10


def test_features_depend_on_noise_and_label_and_are_not_negative():
    torch.manual_seed(0)
    made, y = FeatureGenerator(10, 4, 8), balanced_labels(20, 10)
    z = torch.rand(20, 4)
    out = made(z, y)
    assert out.shape == (20, 8)
    assert float(out.min()) >= 0
    made.eval()
    assert not torch.equal(made(z, y), made(z, (y + 1) % 10))
    assert not torch.equal(made(z, y), made(z.flip(0), y))
    assert sum(p.numel() for p in made.parameters()) == (4 + 10) * 8 + 8 + 8 * 8 + 8 + 2 * 16


def test_a_transform_adds_to_its_reference():
    made, y = FeatureTransform(3, 5, 8).eval(), balanced_labels(6, 3)
    v, f = torch.rand(6, 8), torch.rand(6, 8)
    assert torch.allclose(made(v, f, y) - made(v, torch.zeros_like(f), y), f, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 10, 7)])
def test_pictures_have_the_wanted_shape(shape):
    made = PictureGenerator(4, 6, shape, width=8)
    assert made(torch.randn(3, 6), balanced_labels(3, 4)).shape == (3, *shape)


def test_moving_means():
    f, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 0, 2])
    once = moving_means(torch.zeros(3, 2), f, y, 0.3)
    np.testing.assert_allclose(once, [[0.6, 0.9], [0, 0], [1.5, 1.8]], atol=1e-6)
    assert moving_means(torch.ones(3, 2), f, y, 0.3)[1].tolist() == [1, 1]
    np.testing.assert_allclose(moving_means(once, f, y, 0.3), [[1.02, 1.53], [0, 0], [2.55, 3.06]], atol=1e-6)


def test_a_bank_keeps_the_last_of_each_class():
    bank = FeatureBank.empty(1, 2).added(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0]))
    bank = bank.added(torch.tensor([[4.0], [5.0]]), torch.tensor([0, 2]))
    assert bank.features.flatten().tolist() == [2, 3, 4, 5]
    assert bank.labels.tolist() == [1, 0, 0, 2]
    x, y = bank.draw(50, torch.Generator().manual_seed(0))
    assert {(float(a), int(b)) for a, b in zip(x.flatten(), y, strict=True)} == {(2, 1), (3, 0), (4, 0), (5, 2)}
    assert len(FeatureBank.empty(3, 2).draw(5, torch.Generator())[1]) == 0
    assert loads(dumps(bank)).labels.tolist() == bank.labels.tolist()


def test_votes_add_up():
    scores = [torch.eye(3)[[2, 0]], torch.eye(3)[[2, 1]], torch.eye(3)[[1, 1]], torch.eye(3)[[0, 0]]]
    total = torch.stack([votes(s) for s in scores]).sum(0)
    which, known = elected(total)
    assert which.tolist() == [2, 0]
    assert known.all()
    assert elected(total, least=0.6)[1].tolist() == [False, False]
    unsure = votes(torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0]]), least=0.9)
    assert unsure.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert elected(unsure)[1].tolist() == [False, True]
