"""The named data sets: counts, options, and what is said when they are absent."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from paceline.core.errors import ChecksumError, ConfigError, MissingDataError, UnknownNameError
from paceline.data.fetch import Package
from paceline.data.raw import Part, RawData
from paceline.data.sources import find_source, source_names
from paceline.data.sources.fontwriters import FONTWRITERS
from paceline.data.sources.shakespeare import ALPHABET, SEQUENCE, encode_text, speeches, windows
from paceline.data.sources.source import Source
from tests.conftest import fetched

PLAY = """**HAMLET**
To be, or not to be,
_Aside._
that is

**OPHELIA**
_Enter one,
and leave again._
My \\[good\\] lord.

Scene 2
"""


def test_digits_are_always_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    data = find_source("digits").load()
    assert data.train.x.shape == (1438, 8, 8)
    assert data.test.x.shape == (359, 8, 8)
    assert set(data.train.y) == set(data.test.y) == set(range(10))


def test_mnist():
    mnist = fetched("mnist-5k").load()
    assert mnist.train.x.shape == (4000, 28, 28)
    assert mnist.train.x.dtype == np.uint8
    assert np.bincount(mnist.train.y).tolist() == [400] * 10
    assert np.bincount(mnist.test.y).tolist() == [100] * 10


def test_fashion():
    data = fetched("fashion-mnist").load()
    assert (data.train.x.shape, data.test.x.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(data.train.y).tolist() == [6000] * 10


def test_cifar():
    data = fetched("cifar10-test-split").load()
    x = np.concatenate([data.train.x, data.test.x])
    assert (len(data.train), len(data.test)) == (8000, 2000)
    assert len({picture.tobytes() for picture in x}) == 10_000
    assert (x / 255).mean(axis=(0, 1, 2)).round(4).tolist() == [0.4942, 0.4851, 0.4504]


def test_shakespeare():
    data = fetched("shakespeare").load()
    assert data.train.x.shape[1:] == (SEQUENCE,)
    assert len(data.owners) > 1000
    assert data.classes == tuple(ALPHABET)
    assert int(max(data.train.owner.max(), data.test.owner.max())) < len(data.owners)


def test_fontwriters():
    data = fetched("fontwriters").load()
    assert len(data.owners) >= 4 * 20
    assert len(data.classes) == 62
    seen = {(o, y) for o, y in zip(data.test.owner.tolist(), data.test.y.tolist(), strict=True)}
    assert len(seen) == 62 * len(data.owners)
    few = FONTWRITERS.load(families=5)
    assert set(few.owners) == set(data.owners[:20])


def test_speeches():
    assert list(speeches(PLAY)) == [
        ("HAMLET", ["To be, or not to be,", "that is"]),
        ("OPHELIA", ["My [good] lord."]),
    ]


def test_unknown_characters_share_a_symbol():
    assert encode_text("é~").tolist() == [len(ALPHABET) - 1] * 2
    assert "".join(ALPHABET[c] for c in encode_text("Who's there?\n")) == "Who's there?\n"


def test_windows_do_not_reach_over_the_cut():
    train, test = windows(100, 1100, 7)
    assert train[-1] + SEQUENCE < 900 <= test[0]
    assert test[-1] + SEQUENCE < 1100
    assert [len(w) for w in windows(0, SEQUENCE, 1)] == [0, 0]
    assert windows(100, 1100, 7, 50)[1].tolist() == [900, 950, 1000]


def test_absent_data_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with pytest.raises(MissingDataError, match="paceline data fetch fashion-mnist"):
        find_source("fashion-mnist").load()
    with pytest.raises(MissingDataError, match="fetch fontwriters -o families=5"):
        find_source("fontwriters").load(families=5)


def test_names_and_options():
    assert set(source_names()) >= {"digits", "mnist-5k", "fashion-mnist", "shakespeare", "fontwriters"}
    with pytest.raises(UnknownNameError, match="mnist-5k"):
        find_source("mnist")
    with pytest.raises(UnknownNameError):
        find_source("digits").load(families=3)
    for wrong in (0, -1, True, "many"):
        with pytest.raises(ConfigError):
            find_source("fontwriters").settle({"families": wrong})


def test_a_failed_fetch_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    package = Package("wheel", "p", "1", {"a": hashlib.sha256(b"right").hexdigest()})
    source = Source("tiny", "", "", 1, lambda options: (package,), lambda files, options: {})

    def bring(packages, folder, say):
        raise ChecksumError("another hash")

    monkeypatch.setattr("paceline.data.sources.source.bring", bring)
    with pytest.raises(ChecksumError):
        source.fetch()
    assert not (tmp_path / "cache").exists()


def test_fetched_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    part = Part(np.zeros((2, 3), dtype=np.uint8), np.array([0, 1]))
    calls = []
    source = Source("tiny", "", "", 1, lambda options: (), lambda files, options: RawData(part, part, ("a", "b")).arrays())
    monkeypatch.setattr("paceline.data.sources.source.bring", lambda *rest: calls.append(1) or {})
    source.fetch()
    source.fetch()
    assert len(calls) == 1
    source.fetch(force=True)
    assert len(calls) == 2
    assert source.load().classes == ("a", "b")
