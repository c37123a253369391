"""Options of secure aggregation at the ends of their ranges, and the words of a masked vector."""

import dataclasses
import math

import numpy as np
import pytest

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.core.errors import ConfigError

DEFAULTS = {
    "clip": 1.0, "clip_norm": None, "bits": 16, "max_weight": 1, "gamma": 0.1, "delta": 0.1, "active": True, "prg": "aes128ctr",
    "sigma": 40, "eta": 30, "complete_up_to": 50, "threshold": None, "neighbours": None, "least_contributors": 3,
    "pipelined": True,
}  # fmt: skip

ENDS = {
    "clip": ((1e-9, 1e9), (0.0, -1.0, math.inf, math.nan)),
    "clip_norm": ((1e-9, 1e9, None), (0.0, -1.0, math.inf, math.nan)),
    "bits": ((2, 24), (1, 25)),
    "max_weight": ((1, 2**20), (0, 2**20 + 1)),
    "gamma": ((0.0, 0.999), (-0.001, 1.0)),
    "delta": ((0.0, 0.999), (-0.001, 1.0)),
    "least_contributors": ((1, 3, 100), (0, -1)),
    "prg": (("aes128ctr", "chacha20"), ("aes256ctr", "")),
    "sigma": ((1, 128), (0,)),
    "eta": ((1, 128), (0,)),
    "complete_up_to": ((0, 1000), (-1,)),
    "threshold": ((1, None), (0,)),
    "neighbours": ((1, None), (0,)),
}
"""Values at the ends of a range, and just outside."""


def test_defaults():
    assert {f.name: f.default for f in dataclasses.fields(SecureConfig)} == DEFAULTS


@pytest.mark.parametrize("name", ENDS)
def test_ranges(name):
    inside, outside = ENDS[name]
    for value in inside:
        assert getattr(SecureConfig(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(ConfigError, match=f"{name}="):
            SecureConfig(**{name: value})


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError, match=r"clip=0.*bits=1 .*gamma=1 .*sigma=0 "):
        SecureConfig(clip=0, bits=1, gamma=1, sigma=0)


@pytest.mark.parametrize(
    ("gamma", "clients", "least"),
    [(0.1, 10, 4), (0.1, 11, 5), (0.1, 30, 6), (0.3, 10, 6), (0.0, 10, 3), (0.0, 2, 2), (0.5, 3, 3)],
)  # 0.1 * 30 is a little more than 3 in floats
def test_least_survivors(gamma, clients, least):
    assert SecureConfig(gamma=gamma).least(clients) == least


@pytest.mark.parametrize(
    ("bits", "weight", "clients", "modulus"), [(16, 1, 1, 16), (16, 1, 2, 17), (16, 1, 3, 18), (16, 8, 3, 21), (2, 1, 1025, 13)]
)
def test_a_sum_of_the_largest_words_fits_the_modulus_but_not_half_of_it(bits, weight, clients, modulus):
    assert SecureConfig(bits=bits, max_weight=weight).modulus_bits(clients) == modulus
    assert SecureConfig(bits=bits, max_weight=weight).modulus_bits(0) == bits
    assert 2 ** (modulus - 1) < clients * weight * 2**bits <= 2**modulus


@pytest.mark.parametrize(
    ("bits", "dtype", "width"),
    [(1, "<u4", 1), (8, "<u4", 1), (9, "<u4", 2), (32, "<u4", 4), (33, "<u8", 5), (64, "<u8", 8)],
)
def test_words_of_a_segment(bits, dtype, width):
    segment = Segment("main", 3, bits)
    assert (segment.dtype, segment.width, segment.size) == (dtype, width, 3 * width)
    assert segment.mask == 2**bits - 1
    assert np.dtype(dtype).type(segment.mask) == segment.mask
    assert Segment("main", 0, bits).size == 0


@pytest.mark.parametrize(("length", "bits"), [(1, 0), (1, 65), (-1, 8)])
def test_words_have_1_to_64_bits(length, bits):
    with pytest.raises(ConfigError, match="1 to 64 bits"):
        Segment("main", length, bits)
