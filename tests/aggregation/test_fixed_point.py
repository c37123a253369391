"""The edges of exact sums: large cohorts, small values and weights, bounds, and clients that were summed before."""

import itertools

import pytest
import torch

from paceline.aggregation import fixed_point
from paceline.aggregation.fixed_point import FixedPoint, Partial, merge
from paceline.aggregation.plain import mean_of
from paceline.core.errors import AggregationError, NonFiniteError, QuorumError, SumOverflowError
from paceline.core.layout import Layout
from paceline.core.update import Update, rebuild
from paceline.engines.stacking.lazy import DeferredColumn, Lazy
from paceline.engines.stacking.stack import Changes

LAYOUT = Layout.build([("w", (3,), "param")])
MANY = 100_000


def mean(replies, clients=None, **options):
    sink = FixedPoint(clients or len(replies), **options).open()
    for client, reply in enumerate(replies):
        sink.add(client, reply, int)
    partial = sink.partial()
    return rebuild(partial.structure, *partial.values())


@pytest.mark.parametrize("value", [1e-8, -1e-8, 1e-12, 3.7e-20, 1.0])
def test_small_values_are_not_lost_in_a_large_cohort(value):
    got = mean([Update(x=torch.full((4,), value), weight=1)] * 200, clients=MANY)
    assert got.x.tolist() == pytest.approx([value] * 4, rel=1e-6)


def test_small_values_are_not_lost_beside_large_ones_of_other_clients():
    """Half of the clients are at 1, half at -1 + 2e-8: the mean is 1e-8."""
    pairs = [Update(x=torch.tensor([v], dtype=torch.float64)) for v in (1.0, -1.0 + 2e-8)]
    assert mean(pairs * 100, clients=MANY).x.tolist() == pytest.approx([1e-8], rel=1e-6)


@pytest.mark.parametrize("weight", [1e-12, 1e-30, 1e-3, 3e5])
def test_small_weights_weigh(weight):
    one, three = (Update(x=torch.tensor([v]), n=v, weight=weight) for v in (1.0, 3.0))
    got = mean([one, three], clients=MANY)
    assert got.x.tolist() == pytest.approx([2.0], rel=1e-6)
    assert got.n == pytest.approx(2.0, rel=1e-12)
    assert got.weight == 2 * weight
    tensors = [Update(x=torch.tensor([v, v]), weight=torch.tensor([weight, 0.0])) for v in (1.0, 3.0)]
    assert mean(tensors, clients=MANY).x.tolist() == pytest.approx([2.0, 0.0], rel=1e-6)


def test_weights_of_very_different_sizes():
    got = mean([Update(x=torch.tensor([5.0, -1e-6]), weight=1e-12), Update(x=torch.tensor([-5.0, 1e-6]), weight=1e5)], clients=MANY)
    assert got.x.tolist() == pytest.approx([-5.0, 1e-6], rel=1e-6)


def test_float32_products_that_are_zero_or_infinite_in_float32():
    tiny = Update(x=torch.tensor([1e-30, 1e-30]), weight=torch.tensor([1e-20, 1e-20]))
    assert mean([tiny, tiny]).x.tolist() == pytest.approx([1e-30, 1e-30], rel=1e-4)
    with pytest.raises(SumOverflowError):
        mean([Update(x=torch.tensor([1e30]), weight=torch.tensor([1e30]))])


@pytest.mark.parametrize(("value", "times"), [(0.5, 1), (1.0, 1), (3e-20, 1), (9e-21, 2), (9e19, 1), (2e20, 2)])
def test_products_are_formed_again_in_float64_only_where_float32_is_near_its_ends(monkeypatch, value, times):
    measured, real = [], fixed_point._ends
    monkeypatch.setattr(fixed_point, "_ends", lambda tensors: measured.append(tensors) or real(tensors))
    got = mean([Update(x=torch.tensor([-value, 0.0]), weight=torch.ones(2))], bound=1e22)
    assert got.x.tolist() == pytest.approx([-value, 0.0], rel=1e-6)
    assert len(measured) == times


def test_zero_weights_give_zero_and_what_has_weight_zero_counts_for_nothing():
    assert mean([Update(x=torch.full((2,), 1e9), n=3.0, weight=0)] * 3).x.tolist() == [0.0, 0.0]
    assert mean([Update(x=torch.full((2,), 1e9), weight=0), Update(x=torch.ones(2), weight=2)]).x.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_whatever_its_weight(bad):
    for reply in (
        Update(x=torch.tensor([1.0, bad])),
        Update(x=torch.tensor([1.0, bad]), weight=0),
        Update(x=torch.tensor([1.0, bad]), weight=torch.tensor([1.0, 0.0])),
        Update(x=torch.ones(2), weight=bad),
        Update(x=torch.zeros(2), weight=torch.tensor([1.0, bad])),
        Update(n=bad),
        {"n": bad},
    ):
        with pytest.raises(NonFiniteError, match="client 0"):
            mean([reply])


def test_the_bound_is_that_of_one_clients_weighted_coordinate():
    fits, wide = Update(x=torch.tensor([-25.0]), weight=4), Update(x=torch.tensor([-25.1]), weight=4)
    assert mean([fits] * 50, bound=100.0).x.tolist() == [-25.0]
    with pytest.raises(SumOverflowError, match=r"client 0.*'x' reaches 100.*sum_bound"):
        mean([wide], bound=100.0)
    with pytest.raises(SumOverflowError, match=r"client 0.*'x'"):
        mean([Update(x=torch.tensor([-25.1]), weight=-4)], bound=100.0)
    with pytest.raises(SumOverflowError, match="weight"):
        mean([Update(x=torch.zeros(1), weight=torch.tensor([101.0]))], bound=100.0)


def test_whole_numbers_are_bounded_by_their_method_and_by_float64_only():
    votes = {"votes": torch.tensor([2**30, 5])}
    assert mean([votes] * 4)["votes"].tolist() == [2**32, 20]
    assert mean([votes] * 4, limits={"votes": 2.0**30})["votes"].tolist() == [2**32, 20]
    assert mean([{"other": torch.tensor([7])}], limits={"votes": 1.0})["other"].tolist() == [7]
    for sign in (1, -1):
        with pytest.raises(SumOverflowError, match=r"client 0.*'votes' reaches 5 .*method declares"):
            mean([{"votes": sign * torch.tensor([5, 0])}], limits={"votes": 4.0})
    most = 2**53 // MANY
    assert mean([Update(x=torch.tensor([most // 4]), weight=4)] * 2, clients=MANY).x.tolist() == [pytest.approx(most // 4)]
    for weight in (5, -5):
        with pytest.raises(SumOverflowError, match="exact sum of whole numbers"):
            mean([Update(x=torch.tensor([most // 4]), weight=weight)], clients=MANY)
    with pytest.raises(SumOverflowError, match="exact sum of whole numbers"):
        mean([{"votes": torch.tensor([2**40])}], clients=MANY)


def test_whole_numbers_with_weights():
    half, whole = (Update(x=torch.tensor([3, 2**30 + 1]), weight=w) for w in (0.5, 2))
    with pytest.raises(SumOverflowError):  # a fraction of them is no whole number: the bound of floats holds
        mean([half])
    assert mean([whole, whole]).x.tolist() == [3.0, pytest.approx(2**30 + 1)]
    assert mean([Update(x=torch.tensor([3, 5]), weight=0.5), Update(x=torch.tensor([1, 1]), weight=1)]).x.tolist() == pytest.approx(
        [2.5 / 1.5, 3.5 / 1.5]
    )


def test_partial_sums_merge_in_any_order_to_the_same_bits_over_all_levels():
    generator = torch.Generator().manual_seed(3)
    replies = [
        Update(x=torch.randn(40, generator=generator) * 10.0**e, n=0.1 * e, weight=10.0 ** (e / 3)) for e in range(-25, 4)
    ] * 2
    totals = []
    for order in (range(58), reversed(range(58)), torch.randperm(58, generator=generator).tolist()):
        parts = [FixedPoint(MANY).open() for _ in range(4)]
        for place, k in enumerate(order):
            parts[place * 7 % 4].add(k, replies[k], int)
        totals.append(merge([part.partial() for part in parts]).values())
    for one, other in itertools.pairwise(totals):
        assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
        assert one[1] == other[1]


def test_an_empty_partial_changes_nothing_and_other_shapes_do_not_merge():
    part, other = Partial(30, 10.0), Partial(30, 10.0)
    part.add(0, Update(x=torch.ones(2)))
    part.merge(Partial(30, 10.0))
    assert part.values()[0][0].tolist() == [1.0, 1.0]
    other.add(1, Update(x=torch.ones(3)))
    with pytest.raises(AggregationError, match="different structures"):
        part.merge(other)


def test_replies_that_the_server_has_are_summed_to_the_same_bits():
    replies = [Update(x=torch.tensor([0.1 * k, 1e-9]), weight=k + 0.5) for k in range(5)]
    one, other = mean_of(dict(enumerate(replies))), mean(replies)
    assert torch.equal(one.x, other.x)
    assert one.weight == other.weight


# -- clients that trained together ---------------------------------------------------------------


def stacked(rows, weights, numbers=None, bound=100.0, clients=None):
    """Sum clients of one stack in one step; return the errors by client and the mean."""
    whole = Changes(torch.tensor(rows))
    numbers = numbers or [0.5] * len(rows)
    replies = [Update(x=Lazy(whole, k, LAYOUT), n=numbers[k], weight=w) for k, w in enumerate(weights)]
    sink = FixedPoint(clients or len(rows), bound).open()
    values = sink.add_all([(k, reply, int) for k, reply in enumerate(replies)])
    formed = [r.x.formed for r in replies]
    partial = sink.partial()
    errors = {k: e for k, e in enumerate(values) if e is not None}
    return errors, rebuild(partial.structure, *partial.values()), formed


def single(rows, weights, numbers=None, bound=100.0, clients=None):
    """Sum the same clients one by one."""
    partial, errors = FixedPoint(clients or len(rows), bound).open().partial(), {}
    for k, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        try:
            partial.add(
                k, Update(x=Lazy(Changes(torch.tensor([row])), 0, LAYOUT), n=(numbers or [0.5] * len(rows))[k], weight=weight)
            )
        except Exception as error:
            errors[k] = error
    return errors, rebuild(partial.structure, *partial.values())


CASES = {
    "within": ([[9.0, 1.0, 0.0], [8.0, -1.0, 0.0]], [10, 10]),
    "sum above": ([[90.0, 0.0, 0.0]] * 5, [1] * 5),
    "one above": ([[101.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], [1, 1, 1]),
    "weight makes it": ([[9.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], [12, 1, 1]),
    "they cancel": ([[300.0, 0.0, 0.0], [-300.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [1, 1, 1]),
    "weights cancel": ([[300.0, 0.0, 0.0], [300.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [1, -1, 1]),
    "negative": ([[-101.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], [1, 1, 1]),
    "negative weight": ([[26.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], [-4, 5, 1]),
    "nan": ([[float("nan"), 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], [1, 1, 1]),
    "small": ([[1e-9, 0.0, 2e-9], [3e-9, 2e-9, 0.0]], [1e-6, 1e-6]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("clients", [None, MANY])
def test_a_bound_means_the_same_for_clients_that_trained_together(name, clients):
    errors, got, formed = stacked(*CASES[name], clients=clients)
    alone, expected = single(*CASES[name], clients=clients)
    assert {k: (type(e), str(e)) for k, e in errors.items()} == {k: (type(e), str(e)) for k, e in alone.items()}
    assert got.x.vector.tolist() == pytest.approx(expected.x.vector.tolist(), rel=1e-6)
    assert (got.n, got.weight) == (expected.n, expected.weight)
    assert any(formed) == bool(errors)  # vectors are formed only where somebody is at fault


def test_models_that_are_returned_whole_count_with_what_was_sent():
    """x = change + start: the bound is on their sum; where a rough bound exceeds it, the clients are added one by one."""
    start = torch.tensor([80.0, 0.0, 0.0])
    rows = Changes(torch.tensor([[10.0, 0.0, 0.0], [-90.0, 1.0, 0.0], [30.0, 0.0, 0.0]]))
    for sign in (1, -1):
        replies = [Update(x=Lazy(rows, k, LAYOUT, 1.0, ((1.0, start),)), weight=sign) for k in range(3)]
        sink = FixedPoint(3, 100.0).open()
        values = sink.add_all([(k, reply, int) for k, reply in enumerate(replies)])
        assert [type(v) for v in values] == [type(None), type(None), SumOverflowError]
        assert sink.partial().clients == [0, 1]
    for sign in (1, -1):
        level = Changes(torch.tensor([[25.0, 0.0, 0.0], [-25.0, 1.0, 0.0]]))
        reply = Update(x=Lazy(level, None, LAYOUT, 1.0, ((1.0, start),)), weight=sign)
        with pytest.raises(SumOverflowError, match="reaches 105"):
            FixedPoint(2, 100.0).open().add_uniform([0, 1], reply)


class Unformed(Changes):
    """Rows whose single values are not known, like those of one backward pass."""

    def largest(self, coefficients):
        return None


def test_sums_of_values_that_are_not_formed_are_held_to_the_bound_of_one_client():
    for value, formed in ((40.0, False), (60.0, True), (120.0, True)):
        rows = Unformed(torch.tensor([[value, 0.0, 0.0]] * 2))
        replies = [Update(x=Lazy(rows, k, LAYOUT)) for k in range(2)]
        sink = FixedPoint(2, 100.0).open()
        values = sink.add_all([(k, reply, int) for k, reply in enumerate(replies)])
        assert [v is None for v in values] == [value <= 100.0] * 2
        assert replies[0].x.formed is formed


@pytest.mark.parametrize(("value", "fits"), [(100.0, True), (101.0, False)])
def test_a_reply_that_stands_for_all_is_held_to_the_bound(value, fits):
    rows = Changes(torch.tensor([[value, 1.0, 0.0], [-value, 1.0, 0.0]]))
    reply = Update(x=Lazy(rows, None, LAYOUT), loss=DeferredColumn([0.1, 0.2]), steps=3, weight=4)
    sink = FixedPoint(2, 400.0).open()
    if not fits:
        with pytest.raises(SumOverflowError):
            sink.add_uniform([0, 1], reply)
        return
    assert sink.add_uniform([0, 1], reply)
    got = rebuild(sink.partial().structure, *sink.partial().values())
    assert got.x.vector.tolist() == [0.0, 1.0, 0.0]
    assert (got.loss, got.steps, got.weight) == (pytest.approx(0.15), 3, 8)


def test_numbers_have_the_same_bits_in_any_chunks():
    numbers, weights = [0.1, 1e-9, 1e9 / 3, -0.7, 1e-17], [0.3, 7, 1e-5, 2.5, 11]
    rows = [[0.0, 1.0, 2.0]] * 5
    _, whole, _ = stacked(rows, weights, numbers, 2.0**40)
    _, alone = single(rows, weights, numbers, 2.0**40)
    assert (whole.n, whole.weight) == (alone.n, alone.weight)


def test_whole_numbers_of_clients_with_different_weights_have_one_shape():
    """A client of one sample is like every other."""
    got = mean([Update(n=3, x=torch.tensor([4]), weight=1), Update(n=6, x=torch.tensor([7]), weight=2)])
    assert (got.n, got.x.tolist()) == (5.0, [6.0])


@pytest.mark.parametrize(
    ("partition", "epochs", "bound", "dropped"),
    [("iid", 1, 1.0, [1, 0]), ("iid", 2, 4.0, None), ("quantity:0.5", 1, 1.0, [1, 1]), ("quantity:0.5", 2, 0.5, [4, 4])],
)
def test_a_bound_drops_the_same_clients_however_they_run(federate, partition, epochs, bound, dropped):
    """One step, as one batch; several steps, as a stack; of equal sizes, once for all; on two workers; and one by one."""
    common = {"clients": 6, "cohort": 6, "rounds": 2, "sum_bound": bound, "on_error": "drop", "partition": partition}
    common["options"] = {"epochs": epochs, "batch_size": 1000 if epochs == 1 else 10}
    for way in ({"vectorize": "off"}, {"vectorize": "on", "chunk": 3}, {"vectorize": "on", "chunk": 6, "workers": 2}):
        if dropped is None:
            with pytest.raises(QuorumError, match=r"round 2.*6 of 6"):
                federate(**common, **way)
        else:
            assert [row["dropped"] for row in federate(**common, **way).history] == dropped
