import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.cut import Cutter
from paceline.submodels.graph import AxisUnits, UnitGraph
from paceline.submodels.scores import Scorer, combine, steady_mask, unknown
from tests.submodels.nets import CharLSTM, FemnistCNN
from tests.submodels.u1 import changes, dense, params_of


def u1() -> tuple[Scorer, Params, Params]:
    net = dense()
    layout = Layout.of(net)
    return Scorer(UnitGraph.trace(net, torch.zeros(1, 2)), layout), changes(), params_of(net)


def test_u1_scores() -> None:
    scorer, delta, theta = u1()
    largest = scorer.score(delta, theta, "max", eps=0.0)["0"]
    torch.testing.assert_close(largest, torch.tensor([0.03, 0.10, 0.02, 0.30]))
    mean = scorer.score(delta, theta, "mean", eps=0.0)["0"]
    torch.testing.assert_close(mean, torch.tensor([0.018, 0.045, 0.014, 0.088]), atol=5e-4, rtol=0)


def test_u1_steady_neurons() -> None:
    scorer, delta, theta = u1()
    assert scorer.invariant(steady_mask(delta, theta, 0.025), 1)["0"].tolist() == [False, False, True, False]
    assert scorer.invariant(steady_mask(delta, theta, 0.03), 1)["0"].tolist() == [True, False, True, False]
    assert scorer.invariant(steady_mask(delta.zeros(), theta, 0.0, tolerance=0.0), 1)["0"].all()


def test_the_quorum_counts_clients_by_weight_before_it_joins_bundles() -> None:
    scorer, delta, theta = u1()
    calm, wild = steady_mask(delta, theta, 0.5), steady_mask(delta, theta, 0.0)
    three_of_four = calm + calm + calm + wild
    assert scorer.invariant(three_of_four, 4)["0"].all()
    assert not scorer.invariant(calm + calm + wild + wild, 4)["0"].any()


def bundle(cutter: Cutter, group: str, unit: int) -> np.ndarray:
    """Coordinates of one unit's bundle, by a loop over all coordinates."""
    out = []
    for entry in cutter.layout.entries[: len(list(cutter.full.parameters()))]:
        axes = cutter.graph.axes[entry.name]
        for k, at in enumerate(np.ndindex(entry.shape)):
            if any(a.group == group and int(a.units[i]) == unit for a, i in zip(axes, at, strict=True)):
                out.append(entry.offset + k)
    return np.array(out)


@pytest.mark.parametrize("reduce", ["max", "mean", "l2"])
@pytest.mark.parametrize("which", ["lstm", "residual", "cnn"])
def test_scores_match_a_loop(which: str, reduce: str) -> None:
    torch.manual_seed(0)
    if which == "lstm":
        net, x = CharLSTM(5, 4), torch.zeros(1, 3, dtype=torch.int64)
    elif which == "cnn":
        net, x = (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
            torch.zeros(1, 1, 4, 4),
        )
    else:
        net, x = Skip(), torch.zeros(1, 3)
    layout = Layout.of(net)
    cutter = Cutter(net, layout, x)
    theta = Params(torch.randn(layout.size), layout)
    delta = Params(torch.randn(layout.size), layout)
    scores = Scorer(cutter.graph, layout).score(delta, theta, reduce)
    eps = np.zeros(layout.size)
    for layer in {e.name.rpartition(".")[0] for e in layout.entries}:
        mine = [e for e in layout.entries if e.name.rpartition(".")[0] == layer and e.kind == "param"]
        where = np.concatenate([np.arange(e.offset, e.offset + e.size) for e in mine])
        eps[where] = 1e-3 * np.sqrt(np.mean(theta.vector.numpy()[where] ** 2))
    top, bottom = np.abs(delta.vector.numpy()), np.abs(theta.vector.numpy()) + eps
    for group, size in cutter.groups.items():
        for unit in range(size):
            b = bundle(cutter, group, unit)
            if reduce == "l2":
                expected = np.sqrt((top[b] ** 2).sum()) / np.sqrt((bottom[b] ** 2).sum())
            else:
                expected = getattr(np, reduce)(top[b] / bottom[b])
            assert float(scores[group][unit]) == pytest.approx(expected, rel=1e-4)


def test_a_coordinate_counts_once_for_each_of_its_units() -> None:
    """Of a tensor whose three axes belong to the same units, by a loop; 4 units of two rows each."""
    units = torch.arange(4).repeat_interleave(2)
    layout = Layout.build([("w", (8, 8, 8), "param")])
    graph = UnitGraph({"g": 4}, {"w": (AxisUnits("g", units),) * 3}, {}, (), {})
    values = torch.rand(8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = Scorer(graph, layout).total(Params(values.flatten(), layout))["g"]
    for unit in range(4):
        mine = sum(float(values[at]) for at in np.ndindex(8, 8, 8) if unit in units[list(at)])
        assert float(total[unit]) == pytest.approx(mine)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.out(x + self.b(x))


def test_fresh_zero_biases_do_not_explode() -> None:
    scorer, delta, theta = u1()
    theta["0.bias"].zero_()
    bare = scorer.score(delta, theta, eps=0.0)["0"]
    assert bare.isinf().all()
    assert scorer.score(delta, theta)["0"].isfinite().all()
    still = theta.zeros()
    assert scorer.score(still, theta, eps=0.0)["0"].tolist() == [0.0] * 4  # 0 / 0 is steady


def test_only_trained_coordinates_count() -> None:
    net = FemnistCNN()
    layout = Layout.of(net)
    cutter = Cutter(net, layout, torch.zeros(1, 1, 28, 28))
    sub = cutter.first(0.5)
    theta = Params(torch.randn(layout.size), layout)
    delta = sub.scatter(sub.extract(theta * 0.1))
    scores = Scorer(cutter.graph, layout).score(delta, theta, "mean", eps=0.0, trained=sub.mask())
    for group, size in cutter.groups.items():
        kept = len(sub.kept[group])
        torch.testing.assert_close(scores[group][:kept], torch.full((kept,), 0.1))
        assert scores[group][kept:].isnan().all()
        assert len(scores[group]) == size


def test_mixed_scores() -> None:
    local, public = {"a": torch.tensor([1.0, 2.0, 3.0])}, {"a": torch.tensor([10.0, 20.0, 30.0])}
    kept = {"a": torch.tensor([0, 2])}
    assert combine(local, public, kept)["a"].tolist() == [1, 20, 3]
    before = {"a": torch.tensor([3.0, float("nan"), 1.0])}
    assert combine(local, public, kept, before)["a"].tolist() == [2, 20, 2]
    assert combine(local, public, kept, before, age=11)["a"].tolist() == [1, 20, 3]
    assert combine(local, public, kept, before, limit=0)["a"].tolist() == [1, 20, 3]
    assert combine(local, public, kept, before, age=10)["a"].tolist() == [2, 20, 2]
    assert combine(local, public, kept, before, factor=0.75)["a"].tolist() == [1.5, 20, 2.5]
    blank = unknown({"a": 3})
    assert combine(blank, public, kept, before)["a"].tolist() == [6.5, 20, 15.5]
    assert combine(blank, blank, kept, before)["a"].tolist()[::2] == [3, 1]


def test_an_unknown_reduction_is_refused() -> None:
    scorer, delta, theta = u1()
    with pytest.raises(ConfigError, match="max, mean or l2"):
        scorer.score(delta, theta, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("clients", [4, 8, 64, 400])
@pytest.mark.parametrize("quorum", [0.5, 0.75, 1.0])
def test_a_quorum_that_is_just_met(clients: int, quorum: float) -> None:
    """Also where float32 cannot tell the quorum from a little less."""
    scorer, delta, _ = u1()
    for short, steady in ((0.0, True), (1.0, False)):
        mask = scorer.invariant(delta.zeros() + (quorum * clients - short), clients, quorum)["0"]
        assert mask.tolist() == [steady] * 4
