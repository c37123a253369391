import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import (
    pack,
    quantise,
    scale_of,
    signed,
    to_words,
    unpack,
)
from paceline.core.errors import ConfigError, NonFiniteError, ProtocolError


class Half:
    """Uniforms that are all 1/2: stochastic rounding becomes rounding to nearest."""

    def random(self, n, dtype):
        return np.full(n, 0.5, dtype=dtype)


def test_s3_the_sheets_numbers():
    assert scale_of(2.0, 8) == 63.5
    words, clipped = quantise(np.array([0.5, -1.25, 3.0], dtype=np.float32), 2.0, 8, Half())
    assert words.tolist() == [32, -79, 127]
    assert clipped == 1
    assert SecureConfig(bits=8).modulus_bits(4) == 10
    assert 2 * 4 * 127 + 1 <= 2**10


def test_s3_stochastic_rounding_is_unbiased():
    words, _ = quantise(np.full(100_000, 0.5), 2.0, 8, np.random.default_rng(0))
    assert set(words.tolist()) == {31, 32}
    assert words.mean() == pytest.approx(31.75, abs=0.01)


def test_modulus_bits_of_the_sheet():
    assert SecureConfig(bits=16).modulus_bits(100) == 23
    assert SecureConfig(bits=16).modulus_bits(1000) == 26
    assert SecureConfig(bits=8).modulus_bits(100) == 15
    assert SecureConfig(bits=16, max_weight=1000).modulus_bits(100) == 33


@given(st.integers(1, 64), st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_words_and_packing_round_trip(bits, values):
    segment = Segment("s", len(values), bits)
    inside = np.array([(v + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) for v in values], dtype=np.int64)
    words = to_words(inside, segment)
    data = pack(words, segment)
    assert len(data) == segment.size == len(values) * -(-bits // 8)
    assert signed(unpack(data, segment), segment).tolist() == inside.tolist()


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_weighted_mean_is_within_the_rounding_error(clients, cap, seed):
    rng = np.random.default_rng(seed)
    config = SecureConfig(clip=1.5, bits=12, max_weight=cap)
    segment = Segment("main", 7, config.modulus_bits(clients))
    xs, ws = rng.uniform(-1.5, 1.5, (clients, 7)), rng.integers(1, cap + 1, clients)
    total = np.zeros(7, dtype=segment.dtype)
    for x, w in zip(xs, ws, strict=True):
        total += to_words(quantise(x, 1.5, 12, rng, int(w))[0], segment)
    mean = signed(total, segment) / scale_of(1.5, 12) / ws.sum()
    assert np.abs(mean - (xs * ws[:, None]).sum(0) / ws.sum()).max() <= 1.001 / scale_of(1.5, 12)


def test_nan_is_refused():
    with pytest.raises(NonFiniteError):
        quantise(np.array([1.0, np.nan]), 1.0, 8, Half())


def test_wrong_lengths_are_named():
    segment = Segment("main", 3, 24)
    with pytest.raises(ProtocolError, match="9 bytes, not 8"):
        unpack(b"12345678", segment)
    with pytest.raises(ProtocolError, match="3 words, not 2"):
        pack(np.zeros(2, dtype="<u4"), segment)
    with pytest.raises(ConfigError):
        Segment("main", 3, 65)


class Draws:
    """A generator whose draws are known."""

    def __init__(self, value):
        self.value = value

    def random(self, size, dtype):
        return np.full(size, self.value, dtype)


@pytest.mark.parametrize(
    ("draw", "whole"), [(0.0, [0, 1, 1, 0, -1]), (0.25, [0, 1, 0, -1, -1]), (0.5, [0, 1, 0, -1, -1]), (0.75, [0, 1, 0, -1, -1])]
)
def test_a_draw_below_the_fraction_rounds_up(draw, whole):
    """Steps of 1: 0, 1 and -1 have no fraction, so that no draw moves them; 0.25 has one of 1/4, and -0.75 too."""
    values = np.array([0.0, 1.0, 0.25, -0.75, -1.0], np.float32)
    got, clipped = quantise(values, 127.0, 8, Draws(draw))
    assert (got.tolist(), clipped) == (whole, 0)


@pytest.mark.parametrize(("bits", "kind"), [(2, np.float32), (16, np.float32), (17, np.float64), (24, np.float64)])
def test_up_to_16_bits_are_rounded_in_float32(bits, kind):
    """Its 24 bits hold the steps and a fraction; the bits of a run depend on the type of the draws."""
    asked = []

    class Notes:
        def random(self, size, dtype):
            asked.append(dtype)
            return np.zeros(size, dtype)

    quantise(np.ones(2, np.float32), 1.0, bits, Notes())
    assert asked == [kind]
