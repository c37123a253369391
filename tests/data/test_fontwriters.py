"""Drawing with a font: the same bytes for the same seed, and writers that differ."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from paceline.core.errors import ConfigError, DataError
from paceline.data.sources.families import FAMILIES
from paceline.data.sources.fontwriters import CLASSES, FONTWRITERS, _decode, draw_writer

FONT = (Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf").read_bytes()


def test_the_seed_decides_every_pixel():
    first, again = (draw_writer(FONT, "some", 1, 2, seed=3) for _ in range(2))
    assert first.shape == (62, 2, 28, 28)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    for other in (draw_writer(FONT, "some", 2, 2, seed=3), draw_writer(FONT, "some", 1, 2, seed=4)):
        assert not np.array_equal(first, other)


def test_every_letter_shows_and_samples_differ():
    drawn = draw_writer(FONT, "some", 0, 2)
    assert (drawn.max(axis=(2, 3)) > 120).all()
    assert (drawn[:, 0] != drawn[:, 1]).any(axis=(1, 2)).all()
    assert (drawn[:, :, [0, -1]].mean(axis=(2, 3)) < 60).all()


def test_decoding_holds_samples_of_each_class_of_each_writer_out():
    arrays = _decode({"@fontsource/some:package/files/x.woff2": FONT}, {"families": 1, "samples": 2})
    assert arrays["train_x"].shape == arrays["test_x"].shape == (4 * 62, 28, 28)
    assert arrays["owners"].tolist() == [f"some/{pen}" for pen in (1, 2, 3, 4)]
    assert np.bincount(arrays["test_owner"]).tolist() == [62] * 4
    assert arrays["classes"].tolist() == list(CLASSES)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="font some"):
        _decode({"@fontsource/some:package/files/x.woff2": b"no font"}, {"families": 1, "samples": 2})
    with pytest.raises(ConfigError, match="samples=1"):
        _decode({}, {"families": 1, "samples": 1})
    with pytest.raises(ConfigError, match=f"1 to {len(FAMILIES)}"):
        FONTWRITERS.packages({"families": len(FAMILIES) + 1, "samples": 2})
