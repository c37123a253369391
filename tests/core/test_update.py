import pickle

import numpy as np
import pytest
import torch

from paceline.aggregation.fixed_point import FixedPoint, Partial, merge
from paceline.core.errors import AggregationError, NonFiniteError, SumOverflowError, TreeError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.update import Terms, Update, rebuild

LAYOUT = Layout.build([("w", (2, 3), "param"), ("b", (2,), "param")])


def mean_of(updates):
    sinks = [FixedPoint(len(updates)).open() for _ in range(2)]
    for i, update in enumerate(updates):
        sinks[i % 2].add(i, update, 0)
    total = merge([s.partial() for s in sinks])
    return rebuild(total.structure, *total.values())


def test_mean_matches_numpy():
    rng = np.random.default_rng(0)
    xs, ws = rng.normal(size=(7, 8)), rng.integers(1, 50, size=7)
    updates = [
        Update(delta=Params(torch.tensor(x, dtype=torch.float32), LAYOUT), loss=float(x[0]), weight=int(w))
        for x, w in zip(xs, ws, strict=True)
    ]
    mean = mean_of(updates)
    expected = (xs.astype(np.float32) * ws[:, None]).sum(0) / ws.sum()
    np.testing.assert_allclose(mean.delta.vector.numpy(), expected, rtol=0, atol=1e-7)
    assert mean.loss == pytest.approx((xs[:, 0] * ws).sum() / ws.sum(), abs=1e-9)
    assert mean.weight == ws.sum()
    assert mean.delta.layout.digest == LAYOUT.digest


def test_weight_per_coordinate_leaves_untrained_at_zero():
    a = Update(delta=torch.tensor([1.0, 2.0, 0.0]), weight=torch.tensor([10.0, 10.0, 0.0]))
    b = Update(delta=torch.tensor([4.0, 0.0, 0.0]), weight=torch.tensor([30.0, 0.0, 0.0]))
    mean = mean_of([a, b])
    assert mean.delta.tolist() == pytest.approx([(10 + 120) / 40, 2.0, 0.0])
    assert mean.weight.tolist() == [40, 10, 0]


def test_weight_for_each_field():
    a = Update(x=torch.ones(2), y=3.0, weight={"x": 1, "y": 2})
    b = Update(x=torch.zeros(2), y=0.0, weight={"x": 3, "y": 1})
    mean = mean_of([a, b])
    assert mean.x.tolist() == [0.25, 0.25]
    assert mean.y == pytest.approx(2.0)
    with pytest.raises(AggregationError, match="the weight of field"):
        Terms.of(Update(x=1.0, y=2.0, weight={"x": 1}))


def test_sum_of_trees_keeps_integers_and_shapes():
    reply = {"correct": 3, "loss": 0.5, "per_class": torch.tensor([[1, 2], [3, 4]])}
    total = mean_of([reply, reply, reply])
    assert total["correct"] == 9
    assert isinstance(total["correct"], int)
    assert total["loss"] == 1.5
    assert total["per_class"].tolist() == [[3, 6], [9, 12]]


def test_sum_is_the_same_bits_in_any_order_and_grouping():
    rng = torch.Generator().manual_seed(1)
    updates = [Update(delta=torch.randn(1000, generator=rng) * 10 ** (i % 7 - 3), weight=i + 1) for i in range(20)]

    def total(order, groups):
        parts = [Partial(30, 2.0**20) for _ in range(groups)]
        for place, i in enumerate(order):
            parts[place % groups].add(i, updates[i])
        return merge(parts).values()[0][0]

    first = total(range(20), 1)
    assert torch.equal(first, total(reversed(range(20)), 3))
    assert torch.equal(first, total(torch.randperm(20, generator=rng).tolist(), 5))


def test_bad_values_are_named_and_leave_the_sum_whole():
    part = Partial(30, 100.0)
    part.add(1, Update(delta=torch.ones(3)))
    with pytest.raises(NonFiniteError, match=r"client 2.*delta"):
        part.add(2, Update(delta=torch.tensor([1.0, float("nan"), 0.0])))
    with pytest.raises(SumOverflowError, match="client 3"):
        part.add(3, Update(delta=torch.full((3,), 30.0), weight=4))
    with pytest.raises(AggregationError, match="different structure"):
        part.add(4, Update(delta=torch.ones(4)))
    with pytest.raises(TreeError, match="cannot be summed"):
        part.add(5, {"name": "x"})
    with pytest.raises(NonFiniteError):
        part.add(6, {"loss": float("inf")})
    assert part.clients == [1]
    assert part.values()[0][0].tolist() == [1, 1, 1]


def test_capped_weights_are_whole_numbers():
    terms = Terms.of(Update(delta=torch.ones(2), weight=250), cap=12)
    assert terms.weights == [12.0]
    assert terms.scalars == [12.0]
    assert Terms.of(Update(delta=torch.ones(2), weight=0), cap=12).weights == [0.0]
    masked = Terms.of(Update(delta=torch.ones(2), weight=torch.tensor([0.0, 40.0])), cap=1)
    assert masked.weights[0].tolist() == [0, 1]


def test_an_update_survives_the_way_between_processes():
    update = pickle.loads(pickle.dumps(Update(delta=torch.arange(3.0), loss=2.0, weight=7)))
    assert update.delta.tolist() == [0.0, 1.0, 2.0]
    assert (update.loss, update.weight) == (2.0, 7)


def test_sums_of_integer_tensors_are_exact_where_float32_is_not():
    high = torch.tensor([2**24 + 1, 3, -7])
    partial = Partial(fraction=20, bound=2.0**26)
    for client in range(2):
        partial.add(client, {"votes": high, "share": torch.tensor([0.5])})
    out = rebuild(partial.structure, *partial.values())
    assert out["votes"].dtype == torch.int64
    assert out["votes"].tolist() == [2**25 + 2, 6, -14]
    assert out["share"].dtype == torch.float32
