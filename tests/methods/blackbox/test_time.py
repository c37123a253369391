"""Queries of a black-box objective take virtual time: the work of its torch operations, at least one FLOP per coordinate."""

from types import SimpleNamespace

import pytest
import torch

from paceline.blocks.blackbox import Queries
from paceline.run import RunConfig, prepare


def compute(method, dim, **options):
    """Return the seconds of work in one round, and the queries, on a device of 1000 FLOP/s."""
    values = {"task": "quadratic", "task_options": {"dim": dim, "clients": 2}, "clients": 2, "cohort": 2, "partition": "natural"}
    config = RunConfig.build(values | {"method": method, "rounds": 1, "options": options, "fleet": "homogeneous:compute=1e3"})
    prepared = prepare(config)
    prepared.fed.start_round(1)
    state = prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    return sum(phase.compute for phase in prepared.fed.clock.phases), state.queries


def test_time_grows_with_queries_and_dimension():
    seconds, queries = compute("fedzo", 20, steps=2, directions=4)
    assert queries == 2 * 2 * 5
    assert seconds >= queries / 2 * 20 / 1e3  # one client's
    longer, _ = compute("fedzo", 20, steps=4, directions=4)
    assert longer == pytest.approx(2 * seconds)
    larger, _ = compute("fedzo", 200, steps=2, directions=4)
    assert 8 * seconds < larger < 12 * seconds
    surrogates = {
        "steps": 2,
        "features": 50,
        "candidates": 4,
        "active": 1,
        "survey_candidates": 4,
        "survey_active": 1,
        "initial": 2,
    }
    assert compute("fzoos", 20, **surrogates)[0] > 0


def test_an_objective_without_torch_costs_its_coordinates():
    client = SimpleNamespace(flops=0.0, problem=SimpleNamespace(objective=SimpleNamespace(value=lambda client, x: 0.5)))
    Queries(client, None).all(torch.zeros(3, 7, dtype=torch.float64))
    assert client.flops == 3 * 7
