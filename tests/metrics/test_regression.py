"""Metrics of values against scikit-learn, also where the mean is large against the deviation."""

import math

import pytest
import torch
from sklearn import metrics as sk

from paceline.metrics import MAE, MAPE, R2, RMSE
from tests.metrics.kit import same, summed, whole

SIZES = (3, 0, 200, 197)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12])
def test_against_scikit_learn(columns, scale):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(400, columns, generator=g, dtype=torch.float64) * scale
    out = y + torch.randn(400, columns, generator=g, dtype=torch.float64) * scale / 3
    for metric, want in (
        (MAE(), sk.mean_absolute_error(y, out)),
        (RMSE(), math.sqrt(sk.mean_squared_error(y, out))),
        (MAPE(), sk.mean_absolute_percentage_error(y, out)),
        (R2(), sk.r2_score(y, out)),
    ):
        ours = summed(metric, out, y, SIZES)
        assert ours[metric.figure] == pytest.approx(want, rel=1e-9)
        assert same(ours, whole(metric, out, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_r2_of_targets_far_from_zero(dtype):
    """Sums of squares in float64 would be off by half of the variance here, sums of float32 squares by far more."""
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (noise + (1e6 if dtype == torch.float32 else 1e9)).to(dtype)
    out = y + 0.25 * torch.randn(400, generator=torch.Generator().manual_seed(2)).to(dtype)
    want = sk.r2_score(y.double(), out.double())
    assert summed(R2(), out, y, SIZES)["r2"] == pytest.approx(want, abs=1e-9)


def test_nan_targets_do_not_count():
    y, out = torch.randn(50, 2), torch.randn(50, 2)
    y[:20, 0] = math.nan
    known = ~y.isnan()
    assert whole(MAE(), out, y)["mae"] == pytest.approx(sk.mean_absolute_error(y[known], out[known]), rel=1e-6)
    want = [sk.r2_score(y[known[:, k], k], out[known[:, k], k]) for k in range(2)]
    assert whole(R2(), out, y)["r2"] == pytest.approx(sum(want) / 2, rel=1e-6)
    for metric in (MAE(), RMSE(), MAPE(), R2()):
        assert math.isnan(whole(metric, out, torch.full_like(y, math.nan))[metric.figure])


def test_a_model_that_diverged_has_no_figure():
    y = torch.randn(6)
    for metric in (MAE(), RMSE(), R2()):
        assert math.isnan(summed(metric, torch.full((6,), math.inf), y, (2, 4))[metric.figure])


def test_constant_targets():
    y = torch.full((5,), 2.5)
    assert whole(R2(), y, y) == {"r2": 1.0}
    assert whole(R2(), y + 1, y) == {"r2": -math.inf}
