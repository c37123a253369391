"""Scaled displacements and masks: the sheets' numbers, tensors that did not move, and running statistics."""

import numpy as np
import pytest
import torch

from paceline.blocks.saliency import quantile_mask, scaled_saliency
from paceline.core.layout import Layout
from paceline.core.params import Params


def params(*tensors, buffers=()):
    rows = [(f"t{i}", (len(t),), "param") for i, t in enumerate(tensors)] + [
        (f"b{i}", (len(t),), "buffer") for i, t in enumerate(buffers)
    ]
    return Params(torch.tensor([v for t in (*tensors, *buffers) for v in t], dtype=torch.float32), Layout.build(rows))


def test_minmax_robust_and_unit_mean():
    d = params([5.0, 0.5, 2.5])
    np.testing.assert_allclose(scaled_saliency(d).vector, [1, 0, 0.444444], atol=1e-6)
    np.testing.assert_allclose(scaled_saliency(d, "robust").vector, [1.111111, -0.888889, 0], atol=1e-6)
    np.testing.assert_allclose(scaled_saliency(d, unit_mean=True).vector.mean(), 1, atol=1e-6)
    assert d.vector.tolist() == [5.0, 0.5, 2.5]


def test_tensors_are_scaled_apart_and_those_without_differences_count_fully():
    d = params([1.0, 3.0, 2.0], [7.0], [4.0, 4.0], [100.0, 0.0], buffers=([9.0, 0.0],))
    np.testing.assert_allclose(scaled_saliency(d).vector, [0, 1, 0.5, 1, 1, 1, 1, 0, 1, 1])


def test_the_mask_of_the_sheet():
    ls = params([3.666667, 2.666667, 0.0, 4.666667, 0.25])
    guide = scaled_saliency(ls)
    np.testing.assert_allclose(guide.vector, [0.785714, 0.571429, 0, 1, 0.053571], atol=1e-6)
    assert quantile_mask(guide, 0.3).vector.tolist() == [1, 1, 0, 1, 0]
    assert quantile_mask(guide, 0.0).vector.tolist() == [1] * 5


def test_the_quantile_is_over_all_tensors_and_leaves_statistics():
    mask = quantile_mask(params([0.1, 0.2, 0.3], [0.9], buffers=([0.0],)), 0.5)
    assert mask.vector.tolist() == [0, 0, 1, 1, 1]
    many = params(np.linspace(0, 1, 1001).tolist())
    assert float(quantile_mask(many, 0.3).vector.mean()) == pytest.approx(0.7, abs=2e-3)
