"""Drawing of pen strokes and small digits, and the two data sets with domains."""

import numpy as np
import pytest

from paceline.core.errors import DataFormatError
from paceline.data.sources.four_digits import _table, draw_pen, enlarge
from tests.conftest import fetched


def test_a_stroke_is_drawn_where_it_was_written():
    up = np.array([[50, 0, 50, 10, 50, 25, 50, 40, 50, 55, 50, 70, 50, 85, 50, 100]])
    corner = np.array([[0, 100, 0, 100, 0, 100, 0, 100, 0, 100, 0, 100, 20, 100, 40, 100]])
    line, top = draw_pen(np.concatenate([up, corner]))
    rows, columns = np.nonzero(line > 100)
    assert (rows.min(), rows.max()) == (4, 23)
    assert set(columns.tolist()) <= {13, 14}
    rows, columns = np.nonzero(top > 100)
    assert rows.max() <= 5
    assert columns.min() == 4
    assert columns.max() in (11, 12)


def test_small_digits_are_enlarged():
    small = np.zeros((2, 64), dtype=np.int64)
    small[1] = 16
    assert enlarge(small).shape == (2, 28, 28)
    assert enlarge(small)[0].max() == 0
    assert enlarge(small)[1].min() == 255
    small[0, 0] = 16
    assert np.unravel_index(enlarge(small)[0].argmax(), (28, 28)) in [(0, 0), (1, 1), (0, 1), (1, 0)]


def test_a_damaged_table_is_told():
    assert _table(b"1,2\n3,4\n", 2, "t").tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataFormatError, match="expected 3 columns"):
        _table(b"1,2\n3,4\n", 3, "t")
    with pytest.raises(DataFormatError, match="whole numbers"):
        _table(b"1,a\n", 2, "t")


def test_four_digits():
    data = fetched("four-digits").load()
    assert data.owners == ("mnist", "optdigits", "pen", "font")
    assert np.bincount(data.train.owner).tolist() == [4000, 4000, 4000, 3840]
    assert np.bincount(data.test.owner).tolist() == [1000, 1000, 1000, 960]
    assert (np.bincount(data.train.owner * 10 + data.train.y).reshape(4, 10) > 380).all()
    mnist = fetched("mnist-5k").load()
    ours = {x.tobytes() for x in data.train.x[data.train.owner == 0]} | {x.tobytes() for x in data.test.x[data.test.owner == 0]}
    assert {x.tobytes() for x in mnist.train.x} <= ours


def test_emoji_vendors():
    data = fetched("emoji-vendors").load()
    assert data.owners == ("google", "twitter", "openmoji")
    for part in (data.train, data.test):
        labels = [part.y[part.owner == vendor] for vendor in range(3)]
        assert (labels[0] == labels[1]).all()
        assert (labels[0] == labels[2]).all()
    assert len(data.train) == 3 * 1103
    assert len(data.test) == 3 * 276
    assert len(data.classes) == 8
    first = [data.train.x[data.train.owner == vendor] for vendor in range(3)]
    assert all((a != b).any() for a, b in ((first[0], first[1]), (first[1], first[2])))
