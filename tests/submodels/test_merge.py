import torch

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.cut import Cutter
from paceline.submodels.merge import coverage, masked_mean, zero_fill
from tests.submodels.nets import FemnistCNN

FOUR = Layout.build([("w", (4,), "param")])


def params(*values: float) -> Params:
    return Params(torch.tensor(values), FOUR)


def test_u3_denominators() -> None:
    n = (10.0, 30.0, 20.0)
    updates = (params(1, 2, 3, 4), params(3, 0, 1, 0), params(2, 4, 0, 0))
    masks = (params(1, 1, 1, 1), params(1, 1, 1, 1), params(1, 1, 0, 0))
    total = sum((w * u for w, u in zip(n, updates, strict=True)), params(0, 0, 0, 0))
    weights = sum((w * m for w, m in zip(n, masks, strict=True)), params(0, 0, 0, 0))
    torch.testing.assert_close(zero_fill(total, sum(n)).vector, torch.tensor([2.3333, 1.6667, 1.0, 0.6667]), atol=1e-4, rtol=0)
    torch.testing.assert_close(masked_mean(total, weights).vector, torch.tensor([2.3333, 1.6667, 1.5, 1.0]), atol=1e-4, rtol=0)


def test_what_nobody_trained_stays() -> None:
    assert masked_mean(params(0, 2, 0, 4), params(0, 1, 0, 2)).vector.tolist() == [0, 2, 0, 2]


def test_coverage_is_exact_for_nested_patterns_and_an_upper_bound_otherwise() -> None:
    net = FemnistCNN()
    layout = Layout.of(net)
    cutter = Cutter(net, layout, torch.zeros(1, 1, 28, 28))

    def both(kept_sets: list[dict[str, torch.Tensor]], weights: list[float]) -> tuple[Params, Params]:
        exact = Params(torch.zeros(layout.size), layout)
        units = {g: torch.zeros(k) for g, k in cutter.groups.items()}
        for kept, weight in zip(kept_sets, weights, strict=True):
            exact = exact + weight * cutter.cut(kept).mask()
            for group, chosen in kept.items():
                units[group][chosen] += weight
        return exact, coverage(cutter.graph, exact, units, sum(weights))

    nested = [cutter.first(p).kept for p in (1.0, 0.75, 0.5)]
    exact, bound = both(nested, [10.0, 30.0, 20.0])
    assert torch.equal(exact.vector, bound.vector)
    drawn = [{g: torch.randperm(k)[: k // 2] for g, k in cutter.groups.items()} for _ in range(3)]
    exact, bound = both(drawn, [10.0, 30.0, 20.0])
    assert (bound.vector >= exact.vector).all()
    assert not torch.equal(exact.vector, bound.vector)
