"""The mean of running statistics, whatever clients report as the number of those that trained."""

import warnings

import pytest
import torch

from paceline.core.statistics import mean_statistics
from paceline.core.update import Update
from paceline.run import prepare
from tests.conftest import make_task

from ..methods.quadratics import by_size
from ..methods.test_edges import SIZES, norm_mlp

OWN = torch.tensor([2.0, 4.0])


@pytest.mark.parametrize(
    ("fields", "weight", "expected"),
    [
        ({}, 3, OWN),
        ({}, 0, None),
        ({"trained": 1.0}, 3, OWN),
        ({"trained": 0.5}, 4, 2 * OWN),
        ({"trained": 0.25}, 4, 4 * OWN),
        ({"trained": 1 / 3}, {"statistics": 3, "trained": 3}, 3 * OWN),
        ({"trained": 1.0}, {"statistics": 0, "trained": 0}, None),
        ({"trained": 0.0}, 4, None),
    ],
)
def test_the_mean_is_over_those_that_trained(fields, weight, expected):
    got = mean_statistics(Update(statistics=OWN, **fields, weight=weight))
    assert got is None if expected is None else torch.allclose(got, expected)
    assert mean_statistics(Update(**fields, loss=0.0, weight=weight)) is None


@pytest.mark.parametrize("share", [0.2, 1e-9, -0.25, 1.001, 1e12])
def test_a_sum_that_honest_clients_cannot_have_is_refused(share):
    with pytest.warns(RuntimeWarning, match="false number of clients that trained"):
        assert mean_statistics(Update(statistics=OWN, trained=share, weight=4)) is None


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
@pytest.mark.parametrize("lie", [0.0, -6.999, -1e6, 1e6])
def test_a_client_that_lies_about_its_training_has_no_unlimited_share(config, monkeypatch, aggregation, lie):
    """One of eight: at 0 the others divide by seven; any other number leaves the statistics of the round before."""
    from paceline.blocks import running
    from paceline.methods.optimisation import momentum

    liar = []

    def false(local):
        fields = running.statistics(local)
        liar.append(None)
        return fields | ({"trained": lie} if len(liar) % 8 == 3 else {})

    monkeypatch.setattr(momentum, "statistics", false)
    values = {"clients": 8, "cohort": 8, "rounds": 1, "aggregation": aggregation, "secure": {"gamma": 0.0}}
    run = prepare(config(method="scaffoldm", **values), task=make_task(model=norm_mlp), split=by_size(SIZES))
    before = run.method.init(run.fed).params
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.go()
    after, count = run.method.model(run.state).vector, before.layout.num_params
    assert any("false number" in str(w.message) for w in caught) == bool(lie)
    assert torch.equal(after[count:], before.vector[count:]) == bool(lie)
    assert 0 < after[count + 8 :].min() <= after[count:].abs().max() < 10
    assert not torch.equal(after[:count], before.vector[:count])
