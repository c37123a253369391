"""Corruptions of pictures: what each does, that severities rise, and that a stream decides everything."""

from itertools import pairwise

import numpy as np
import pytest

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.data.corruptions import CORRUPTIONS, corrupt


def pictures(count=6, side=24, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side, :channels][:2]
    angles = rng.uniform(0.3, 1.2, (2, count, 1, 1, 1))
    waves = np.sin(angles[0] * rows + angles[1] * columns)
    return (110 + 40 * waves + 20 * rng.random((count, side, side, channels))).astype(np.uint8)


def distance(a, b):
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severities_rise_and_nothing_else_changes(kind):
    x = pictures()
    before = x.copy()
    away = [distance(x, corrupt(x, kind, level, np.random.default_rng(1))) for level in range(1, 6)]
    assert away[0] > 0.5
    assert all(a < 1.02 * b for a, b in pairwise(away)), away
    assert away[-1] > 1.5 * away[0]
    assert (x == before).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_stream_decides(kind):
    x = pictures()
    one, again, other = (corrupt(x, kind, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.uint8
    assert one.shape == x.shape
    assert (one == again).all()
    fixed = {"brightness", "darkness", "contrast", "defocus-blur", "zoom-blur", "lens", "resolution"}
    assert (one == other).all() == (kind in fixed)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_grey_pictures_and_pictures_of_any_size(kind):
    grey = pictures(channels=1)[..., 0][:, :20, :12]
    assert corrupt(grey, kind, 2, np.random.default_rng(0)).shape == (6, 20, 12)
    assert corrupt(grey[:0], kind, 2, np.random.default_rng(0)).shape == (0, 20, 12)


def test_noise_has_the_published_size():
    x = np.full((40, 32, 32), 128, dtype=np.uint8)
    noise = corrupt(x, "gaussian-noise", 2, np.random.default_rng(0)) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.12, rel=0.02)
    shot = corrupt(x, "shot-noise", 1, np.random.default_rng(0)) / 255
    assert shot.std() == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.03)
    hit = corrupt(x, "impulse-noise", 4, np.random.default_rng(0))
    assert np.isin(hit, (0, 128, 255)).all()
    assert (hit == 0).mean() == pytest.approx(0.085, rel=0.1)
    assert (hit == 255).mean() == pytest.approx(0.085, rel=0.1)


def test_contrast_and_light_by_hand():
    x = np.array([[[0, 100], [200, 100]]], dtype=np.uint8)
    assert corrupt(x, "contrast", 3, np.random.default_rng(0)).tolist() == [[[80, 100], [120, 100]]]
    assert corrupt(x, "brightness", 5, np.random.default_rng(0))[0].tolist() == [[128, 228], [255, 228]]
    assert corrupt(x, "darkness", 1, np.random.default_rng(0))[0].tolist() == [[0, 74], [174, 74]]


def test_a_blur_preserves_a_constant_picture_and_spreads_a_point():
    flat, point = np.full((1, 32, 32), 90, dtype=np.uint8), np.zeros((1, 32, 32), dtype=np.uint8)
    point[0, 16, 16] = 255
    for kind in ("defocus-blur", "motion-blur", "zoom-blur", "glass-blur", "lens"):
        assert np.abs(corrupt(flat, kind, 5, np.random.default_rng(0)).astype(int) - 90).max() <= 1, kind
    spread = corrupt(point, "defocus-blur", 5, np.random.default_rng(0))[0].astype(int)
    assert spread.sum() == pytest.approx(255, abs=12)
    assert (spread == spread.T).all()
    assert spread.max() < 40


def test_clean_pictures_are_a_copy():
    x = pictures()
    same = corrupt(x, "clean", 1, np.random.default_rng(0))
    assert (same == x).all()
    assert not np.shares_memory(same, x)


def test_styles_by_hand():
    x = pictures(channels=1)[..., 0]
    for severity in (1, 5):
        assert (corrupt(x, "inverted", severity, np.random.default_rng(0)) == 255 - x).all()
        for turns in range(4):
            turned = corrupt(x, f"turned-{90 * turns}", severity, np.random.default_rng(0))
            assert np.abs(turned.astype(int) - np.rot90(x, turns, (1, 2))).max() <= 1, turns
    point = np.zeros((1, 25, 25), dtype=np.uint8)
    point[0, 12, 20] = 255  # to the right of the centre
    rows, columns = np.nonzero(corrupt(point, "turned-45", 1, np.random.default_rng(0))[0] > 40)
    assert (rows < 12).all()
    assert (columns > 12).all()
    with pytest.raises(UnknownNameError, match="turned-90"):
        corrupt(x, "turned-left", 1, np.random.default_rng(0))


def test_refusals():
    x = pictures()
    with pytest.raises(UnknownNameError, match="gaussian-noise"):
        corrupt(x, "gaussian-nose", 1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="severity=6"):
        corrupt(x, "fog", 6, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="uint8"):
        corrupt(x / 255, "fog", 1, np.random.default_rng(0))


def test_chunks_are_not_visible(monkeypatch):
    x = pictures(count=7)
    whole = {kind: corrupt(x, kind, 3, np.random.default_rng(5)) for kind in ("contrast", "resolution")}
    monkeypatch.setattr("paceline.data.corruptions._CHUNK", 3)
    for kind, wanted in whole.items():
        assert (corrupt(x, kind, 3, np.random.default_rng(5)) == wanted).all()
