from itertools import combinations, product

import torch
from torch import nn

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.cut import Cutter
from paceline.submodels.merge import coverage, filled, inclusion, masked_mean, zero_fill
from tests.submodels.nets import CharLSTM, FemnistCNN

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


def test_inclusion_is_the_share_of_all_selections_that_train_a_coordinate() -> None:
    """So the mean of the scattered updates divided by it is the update of the full model; running statistics are not multiplied."""
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2))
    cases = [(CharLSTM(4, 3), torch.zeros(2, 3, dtype=torch.int64)), (normed, torch.zeros(2, 1, 4, 4))]
    for net, example in cases:
        layout = Layout.of(net)
        cutter = Cutter(net, layout, example)
        for fraction in (0.4, 0.7):
            counts = cutter.keep(fraction)
            found = inclusion(cutter.graph, Params.of(net, layout), counts)
            lists = [list(combinations(range(n), counts[g])) for g, n in cutter.groups.items()]
            masks = [
                cutter.cut({g: torch.tensor(u) for g, u in zip(cutter.groups, chosen, strict=True)}).mask().vector
                for chosen in product(*lists)
            ]
            share = torch.stack(masks).mean(0)
            for entry in layout.entries:
                expected = layout.view(share, entry.name) if entry.kind == "param" else torch.ones(entry.shape)
                expected = torch.where(expected > 0, expected, 1.0)
                torch.testing.assert_close(found[entry.name], expected, msg=f"{entry.name} at {fraction}")


def test_a_filled_update_has_the_last_one_where_nothing_was_trained_but_not_of_running_statistics() -> None:
    layout = Layout.build([("w", (3,), "param"), ("mean", (2,), "buffer")])
    update, mask, last = (
        Params(torch.tensor(values), layout) for values in ([1.0, 0, 0, 5, 0], [1.0, 0, 1, 1, 0], [7.0, 8, 9, 10, 11])
    )
    assert filled(update, mask, last).vector.tolist() == [1, 8, 0, 5, 0]
    assert update.vector.tolist() == [1, 0, 0, 5, 0]
