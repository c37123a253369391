"""What is opened must be something that the survivors can have sent: so nobody moves a mean out of its clip."""

import numpy as np
import pytest
import torch

from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig
from paceline.core.errors import SumOverflowError
from paceline.core.update import Update, rebuild


def summed(codec, replies, tamper=None):
    """Return what a sum of these replies opens to; `tamper` changes the words of the last client."""
    total, shape = None, None
    for number, reply in enumerate(replies):
        encoded = codec.encode(reply, number)
        if tamper is not None and number == len(replies) - 1:
            for segment, words in encoded.segments:
                tamper(segment, words)
        shape = shape or encoded.shape
        assert encoded.shape == shape
        if total is None:
            total = encoded.segments
        else:
            for (_, a), (_, b) in zip(total, encoded.segments, strict=True):
                np.add(a, b, out=a)
    return codec.decode(shape, total, list(range(len(replies))))


def mean(codec, replies, tamper=None):
    opened = summed(codec, replies, tamper)
    return rebuild(opened.structure, opened.tensors, opened.scalars, opened.denominators)


def update(value=0.5, weight=1.0, size=20):
    return Update(delta=torch.full((size,), value), loss=0.25, weight=weight)


@pytest.mark.parametrize("n", [3, 4, 8, 10, 100])
@pytest.mark.parametrize("cap", [1, 7, 1000])
@pytest.mark.parametrize("bits", [2, 8, 16, 20])
def test_honest_extremes_are_within_the_bounds(n, cap, bits):
    """Every client at its clip, with the largest weight: nothing is rejected, for either sign."""
    codec = Codec(SecureConfig(clip=0.3, bits=bits, max_weight=cap), n)
    for value in (0.3, -0.3, 100.0, -100.0):
        got = mean(codec, [update(value, cap) for _ in range(n)])
        assert torch.allclose(got.delta, torch.full((20,), 0.3 * np.sign(value)))
        assert got.weight == n * cap
        assert got.loss == pytest.approx(0.25)


def test_weights_lie_in_a_modulus_of_their_own():
    codec = Codec(SecureConfig(max_weight=7), 10)
    segments = {s.name: s for s in codec.segments(codec.shape(update()))}
    assert segments["counts"].length == 1
    assert segments["counts"].bits == 8  # up to 70, and a sign
    assert segments["exact"].length == 3  # the loss in two words, and how many coordinates were clipped


def add(name, by):
    def tamper(segment, words):
        if segment.name == name:
            words[:] = (words + np.array(by).astype(words.dtype)) & words.dtype.type(segment.mask)

    return tamper


@pytest.mark.parametrize("by", [-10, -11, -16, 1, 5, 20])
def test_a_sum_of_weights_that_nobody_can_have_sent(by):
    codec = Codec(SecureConfig(), 10)
    with pytest.raises(SumOverflowError):
        mean(codec, [update() for _ in range(10)], add("counts", by))


@pytest.mark.parametrize("by", range(-9, 1))
def test_a_weight_below_what_a_client_has_leaves_means_within_the_clip(by):
    """Updates of .1 under a clip of 1: the mean grows tenfold at most, and then sums of weights are rejected."""
    codec = Codec(SecureConfig(), 10)
    try:
        got = mean(codec, [update(0.1) for _ in range(10)], add("counts", by))
    except SumOverflowError:
        assert (10 + by) * 0.999 < 0.1 * 10
    else:
        assert float(got.delta.abs().max()) <= 1.0


@pytest.mark.parametrize("cap", [1, 5])
def test_no_words_move_a_mean_out_of_the_clip(cap):
    """One of ten sends words at random, in all segments or in one: rejected, or within [-C, C]."""
    codec = Codec(SecureConfig(clip=0.5, max_weight=cap), 10)
    rng = np.random.default_rng(0)
    outcomes = {"rejected": 0, "within": 0}
    for number in range(300):
        only = (None, "main", "counts", "exact")[number % 4]

        def tamper(segment, words, only=only):
            if only in (None, segment.name):
                words[:] = rng.integers(0, 1 << 63, len(words)).astype(words.dtype) & words.dtype.type(segment.mask)

        try:
            got = mean(codec, [update(0.1, cap, size=1) for _ in range(10)], tamper)
        except SumOverflowError:
            outcomes["rejected"] += 1
        else:
            outcomes["within"] += 1
            assert float(got.delta.abs().max()) <= 0.5 + 1e-9
    assert min(outcomes.values()) > 0


def test_weights_per_coordinate_bound_each_coordinate():
    codec = Codec(SecureConfig(), 4)
    mask = torch.tensor([1.0, 0.0, 1.0])
    reply = Update(delta=torch.tensor([0.5, 0.0, -0.5]), loss=0.1, weight={"delta": mask, "loss": 1})
    got = mean(codec, [reply] * 4)
    assert got.delta.tolist() == pytest.approx([0.5, 0.0, -0.5], abs=1e-4)

    def where_nobody_trained(segment, words):
        if segment.name == "main":
            words[1] = 1000

    with pytest.raises(SumOverflowError):
        mean(codec, [reply] * 4, where_nobody_trained)


def test_sums_without_weights_are_bounded_by_the_survivors():
    codec = Codec(SecureConfig(), 5)
    got = summed(codec, [{"a": torch.ones(3), "n": 3}] * 5)
    assert got.tensors[0].tolist() == [5.0] * 3
    with pytest.raises(SumOverflowError):
        summed(codec, [{"a": torch.ones(3), "n": 3}] * 5, add("main", 1))


def test_integers_are_bounded_where_their_method_says_so():
    reply = Update(votes=torch.tensor([1, 0, 1]), weight=1)
    bounded, free = Codec(SecureConfig(), 5, {"votes": 1.0}), Codec(SecureConfig(), 5)
    assert mean(bounded, [reply] * 5).votes.tolist() == [1.0, 0.0, 1.0]
    assert float(mean(free, [reply] * 5, add("exact", 1000)).votes[0]) == 201.0
    with pytest.raises(SumOverflowError, match="votes"):
        mean(bounded, [reply] * 5, add("exact", 1000))
