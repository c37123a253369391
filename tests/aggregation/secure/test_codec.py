"""What is opened must be something that the survivors can have sent: so nobody moves a mean out of its clip."""

import math
import warnings

import numpy as np
import pytest
import torch

from paceline.aggregation.secure.codec import Codec, ResolutionWarning
from paceline.aggregation.secure.config import SecureConfig
from paceline.core.declarations import ClientFunction, Nesting
from paceline.core.errors import NonFiniteError, PlanError, SumOverflowError
from paceline.core.layout import Layout
from paceline.core.params import Params
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


@pytest.mark.parametrize("value", [-1e-8, 1e-8, 3e-13, 0.7, -12345.678901234567, 1e6 + 1e-7, 0.0])
@pytest.mark.parametrize("n", [3, 10_000])
def test_numbers_are_summed_to_a_billionth_of_a_billionth(value, n):
    codec = Codec(SecureConfig(), n)
    got = summed(codec, [{"x": value}, {"x": value}, {"x": -3 * value}, {"x": 2 * value}])
    assert got.scalars[0] == pytest.approx(value, rel=1e-15, abs=4 * 2.0**-61)


def test_small_numbers_weigh_in_a_mean():
    got = mean(Codec(SecureConfig(max_weight=10), 3), [Update(x=v, weight=w) for v, w in ((1e-9, 1), (4e-9, 2))])
    assert got.x == pytest.approx(3e-9, rel=1e-6)
    assert got.weight == 3


def test_the_largest_number_fits_and_more_is_refused_without_its_value():
    codec = Codec(SecureConfig(), 3)
    most = (2.0**63 - 1024) / 3 / 2**20
    for sign in (1, -1):
        assert summed(codec, [{"x": sign * most}] * 3).scalars[0] == pytest.approx(3 * sign * most, rel=1e-15)
        with pytest.raises(SumOverflowError) as caught:
            codec.encode({"x": sign * 1.001 * most}, 0)
        assert str(int(most))[:3] not in str(caught.value)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError):
            codec.encode({"x": bad}, 0)


@pytest.mark.parametrize("cap", [10, 1000])
@pytest.mark.parametrize("bound", [1.0, 1e-12, 40.0])
def test_weights_are_fractions_of_a_declared_bound(cap, bound):
    """Weights of 0.3 and 0.7 of the bound, however small it is; none is lost, and none above the bound counts for more."""
    codec = Codec(SecureConfig(max_weight=cap, bits=20), 3, {"weight": bound})
    replies = [Update(x=torch.tensor([x]), n=x, weight=w * bound) for x, w in ((1.0, 0.3), (0.0, 0.7))]
    got = mean(codec, replies)
    assert got.x.item() == pytest.approx(0.3, abs=1e-5)
    assert got.n == pytest.approx(0.3, rel=1e-9)
    assert got.weight == pytest.approx(bound, rel=1e-9)
    tiny = mean(codec, [replies[0], Update(x=torch.tensor([0.0]), n=0.0, weight=1e-30 * bound)])
    assert tiny.weight == pytest.approx((0.3 + 1 / cap) * bound, rel=1e-9)
    more = mean(codec, [Update(x=torch.tensor([1.0]), n=1.0, weight=5 * bound), Update(x=torch.tensor([0.0]), n=0.0, weight=0.0)])
    assert (more.weight, more.n) == (pytest.approx(bound), pytest.approx(1.0))


def test_weights_per_coordinate_are_fractions_of_a_declared_bound_too():
    layout = Layout.build([("w", (3,), "param")])
    codec = Codec(SecureConfig(max_weight=10, bits=20), 3, {"weight": 2.0})
    replies = [
        Update(x=Params(torch.ones(3), layout), weight=Params(torch.tensor([2.0, 0.2, 0.0]), layout)),
        Update(x=Params(torch.zeros(3), layout), weight=Params(torch.tensor([2.0, 0.6, 0.0]), layout)),
    ]
    got = mean(codec, replies)
    assert got.x.vector.tolist() == pytest.approx([0.5, 0.25, 0.0], abs=1e-5)
    assert got.weight.vector.tolist() == pytest.approx([4.0, 0.8, 0.0])


def test_a_bound_of_weights_does_not_scale_what_has_none():
    codec = Codec(SecureConfig(max_weight=10), 3, {"weight": 2.0})
    assert summed(codec, [{"a": torch.ones(1), "n": 3}] * 2).scalars == [6.0]
    assert summed(codec, [{"a": torch.ones(1), "n": 3}] * 2).tensors[0].tolist() == [2.0]


@pytest.mark.parametrize("weight", [0.5, 1e-12, torch.tensor([1.0, 0.5]), {"x": 1, "n": 2.5}])
def test_fractions_without_a_bound_are_rounded_up_with_a_warning(weight):
    reply = Update(x=torch.ones(2), n=1.0, weight=weight)
    if isinstance(weight, torch.Tensor):
        reply = Update(x=torch.ones(2), weight=weight)
    with pytest.warns(ResolutionWarning, match="fractions"):
        Codec(SecureConfig(max_weight=10), 3).encode(reply, 0)


def test_an_integer_above_its_bound_leaves_nobody():
    codec = Codec(SecureConfig(), 5, {"votes": 4.0})
    for value in (4, -4):
        codec.encode({"votes": torch.tensor([0, value])}, 0)
    for value in (5, -5, 987_654_321):
        with pytest.raises(SumOverflowError, match="'votes' exceeds the bound 4") as caught:
            codec.encode({"votes": torch.tensor([0, value])}, 0)
        assert "987" not in str(caught.value)
    free = Codec(SecureConfig(max_weight=4), 8)
    free.encode(Update(x=torch.tensor([2**48]), weight=4), 0)  # 2^48 4 8 = 2^53
    with pytest.raises(SumOverflowError, match="2\\^53 / n"):
        free.encode(Update(x=torch.tensor([2**48 + 1]), weight=4), 0)


def test_the_fields_of_a_tree_have_bounds_of_their_own():
    codec = Codec(SecureConfig(bits=20), 3, {"sums": 4.0, "value": 8.0})
    got = summed(codec, [{"sums": [torch.full((2,), 9.0)], "counts": torch.tensor([1000]), "other": torch.full((1,), 9.0)}] * 2)
    assert [t.tolist() for t in got.tensors] == [[8.0, 8.0], [2000.0], [2.0]]
    assert summed(codec, [torch.full((1,), 9.0)] * 2).tensors[0].tolist() == [16.0]
    assert summed(codec, [[torch.full((1,), 9.0), 3]] * 2).tensors[0].tolist() == [16.0]


def test_floats_with_an_infinite_bound_are_summed_exactly():
    """Sums over many samples are neither clipped nor rounded at random, and a client that exceeds the bound of plain sums sends nothing."""
    codec = Codec(SecureConfig(bits=4), 3, {"sums": math.inf})
    replies = [{"sums": torch.tensor([[1e6, -3e5], [0.1, 2.0**-20]]), "other": torch.ones(1)} for _ in range(3)]
    opened = summed(codec, replies)
    assert opened.notes == {"clipped": 0.0}
    np.testing.assert_allclose(opened.tensors[0], 3 * replies[0]["sums"].flatten().double(), atol=3 * 2.0**-21)
    weighted = Codec(SecureConfig(max_weight=9), 3, {"sums": math.inf})
    got = mean(weighted, [Update(sums=torch.tensor([900.0]), weight=9), Update(sums=torch.tensor([400.0]), weight=1)])
    assert got.sums.tolist() == [850.0]
    apart = [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])]  # a weight for each coordinate
    values = [torch.tensor([300.0, 7.25]), torch.tensor([-0.5, 1e3])]
    got = mean(weighted, [Update(sums=x, weight={"sums": w}) for x, w in zip(values, apart, strict=True)])
    np.testing.assert_allclose(got.sums, [599.5 / 3, 1e3])
    assert codec.size({"sums": torch.ones(6)}) - codec.size({"sums": torch.ones(2)}) == 32
    with pytest.raises(SumOverflowError, match=r"'sums' exceeds the bound 1.04858e\+06"):
        codec.encode({"sums": torch.tensor([2.0**20 + 1])}, 0)
    with pytest.raises(SumOverflowError, match=r"'sums' exceeds the bound 8589\.93"):
        Codec(SecureConfig(), 10**6, {"sums": math.inf}).encode({"sums": torch.tensor([9000.0])}, 0)
    with pytest.raises(NonFiniteError, match="'sums'"):
        codec.encode({"sums": torch.tensor([math.nan])}, 0)

    def forged(segment, words):
        words[0] += 2**43 if segment.name == "exact" else 0

    with pytest.raises(SumOverflowError, match="a client cheated"):
        summed(codec, replies, forged)
    with pytest.raises(PlanError, match="finite bounds"):
        ClientFunction(bounds={"delta": math.inf}, nested=Nesting("tier", "order", (1.0,)))


@pytest.mark.parametrize(
    ("value", "clip", "bits", "n", "coarse"),
    [
        (0.5, 1.0, 16, 3, False),
        (0.008, 1.0, 16, 3, True),  # half a step / sqrt(3) is 9e-6: 1.1e-3 of 0.008
        (0.01, 1.0, 16, 3, False),
        (0.008, 0.06, 16, 3, False),
        (0.008, 1.0, 20, 3, False),
        (0.008, 1.0, 16, 1000, False),  # rounding averages out
        (1e-8, 1.0, 16, 100_000, True),
        (0.0, 1.0, 16, 3, False),
    ],
)
def test_a_warning_where_rounding_shows_in_the_mean(value, clip, bits, n, coarse):
    codec = Codec(SecureConfig(clip=clip, bits=bits), n)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codec.encode(Update(delta=torch.tensor([0.0, -value])), 0)
    assert [w.category for w in caught] == [ResolutionWarning] * coarse
    assert all("'delta'" in str(w.message) and str(value) not in str(w.message) for w in caught)


@pytest.mark.parametrize(
    ("clients", "cap", "bits"), [(1, 1, 2), (2, 1, 3), (3, 1, 3), (4, 1, 4), (7, 1, 4), (8, 1, 5), (3, 5, 5), (4, 4, 6)]
)
def test_words_of_weights_hold_the_largest_sum_and_a_sign(clients, cap, bits):
    codec = Codec(SecureConfig(max_weight=cap), clients)
    (counts,) = [s for s in codec.segments(codec.shape(Update(x=torch.ones(2), weight=1))) if s.name == "counts"]
    assert counts.bits == bits
    assert 2 ** (bits - 2) <= clients * cap < 2 ** (bits - 1)


def test_clipped_coordinates_are_counted_over_all_fields():
    codec = Codec(SecureConfig(clip=0.5), 3, {"b": 2.0})
    reply = Update(a=torch.tensor([0.5, 0.6, -0.7]), b=torch.tensor([1.9, -2.1]), weight=1)
    assert summed(codec, [reply] * 3).notes == {"clipped": 9.0}
    assert summed(codec, [Update(a=torch.zeros(3), b=torch.zeros(2), weight=1)] * 3).notes == {"clipped": 0.0}


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 3.0])
def test_weights_in_steps_of_any_size(step):
    codec = Codec(SecureConfig(max_weight=10, bits=20), 3, {"weight": 10 * step})
    got = mean(codec, [Update(x=torch.tensor([x]), n=x, weight=w * step) for x, w in ((1.0, 1), (0.5, 4))])
    assert got.x.item() == pytest.approx((1 + 0.5 * 4) / 5, abs=1e-5)
    assert (got.weight, got.n) == (pytest.approx(5 * step), pytest.approx(3 / 5))


def test_fields_with_weights_of_their_own_are_bounded_by_these():
    """The field with the larger weight comes second, then first."""
    for small, large in (("a", "b"), ("b", "a")):
        fields = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([-1.0, 1.0])}
        codec = Codec(SecureConfig(max_weight=5), 3)
        opened = summed(codec, [Update(**fields, weight={small: 1, large: 5})] * 3)
        got = rebuild(opened.structure, opened.tensors, opened.scalars, opened.denominators)
        assert got.a.tolist() == pytest.approx([1.0, -1.0])
        assert got.b.tolist() == pytest.approx([-1.0, 1.0])


def test_a_client_that_could_not_do_the_work_counts_as_failed():
    codec = Codec(SecureConfig(), 3)
    reply = Update(x=torch.ones(2), votes=torch.tensor([1, 2]), loss=0.5, weight=1)
    nothing, real = codec.nothing(reply), codec.encode(reply, 0)
    assert nothing.shape == real.shape
    for (_, a), (_, b) in zip(real.segments, nothing.segments, strict=True):
        np.add(a, b, out=a)
    opened = codec.decode(real.shape, real.segments, [0, 1])
    assert opened.notes == {"clipped": 0.0, "failed": 1.0}
    got = rebuild(opened.structure, opened.tensors, opened.scalars, opened.denominators)
    assert (got.x.tolist(), got.votes.tolist(), got.loss, got.weight) == ([1.0, 1.0], [1.0, 2.0], pytest.approx(0.5), 1.0)


def test_norms_are_taken_over_all_fields():
    codec = Codec(SecureConfig(clip=10.0, clip_norm=2.5, bits=20), 3)
    got = mean(codec, [Update(a=torch.tensor([3.0]), b=torch.tensor([4.0]), n=7.0, weight=1)] * 3)
    assert (got.a.item(), got.b.item()) == (pytest.approx(1.5, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert got.n == pytest.approx(7.0)
    same = mean(codec, [Update(a=torch.tensor([1.5]), b=torch.tensor([2.0]), weight=1)] * 3)
    assert (same.a.item(), same.b.item()) == (pytest.approx(1.5, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert mean(codec, [Update(a=torch.zeros(1), weight=1)] * 3).a.item() == 0.0
