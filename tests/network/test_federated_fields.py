"""Every field of a run means in a federation what it means in a simulation, or is refused at the start with a reason."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paceline.core.errors import PacelineError, PlanError
from paceline.deploy.federated_fields import FEDERATED_FIELDS, Reach, misfits
from paceline.deploy.loopback import LoopbackFederation
from paceline.run import RunConfig, prepare

BASE = {
    "task": "digits",
    "model": "logistic",
    "task_options": {"limit": 240},
    "clients": 4,
    "cohort": 4,
    "rounds": 2,
    "on_error": "stop",
}

SLOW = {"fleet": "stragglers:share=0.25,slow=50,compute=1e6"}
"""One client takes 50 times as long as the others."""

CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "method": ("scaffold", {}),
    "options": ({"lr": 0.5}, {}),
    "task_options": ({"limit": 200}, {}),
    "secure": ({"clip": 0.01}, {"aggregation": "secure-arithmetic"}),
    "task": ("split", {"task_options": {}, "model": None, "rounds": 1}),
    "model": ("mlp", {}),
    "partition": ("dirichlet:0.3", {}),
    "clients": (5, {}),
    "client_test": (0.3, {}),
    "client_samples": (20, {}),
    "allow_empty": (True, {"partition": "quantity:0.05"}),
    "cohort": (2, {}),
    "rounds": (1, {}),
    "seed": (3, {}),
    "aggregation": ("secure-arithmetic", {}),
    "sum_bound": (1e-6, {"cohort": 1}),  # of several clients, the first reply to arrive would be named
    "quorum": (4, {"participation": "bernoulli:0.8"}),
    "least_group": (5, {"method": "ocfl", "options": {"sketch": 16}, "rounds": 1}),
    "on_error": ("drop", {"options": {"lr": 1e30}}),
    "deadline": (0.5, SLOW),
    "fleet": ("stragglers", {}),
    "participation": ("bernoulli:0.6", {}),
    "precision": ("bf16", {"model": "mlp"}),
    "evaluation": ("clients", {"client_test": 0.3}),
    "eval_every": (2, {}),
    "metrics": (("f1", "auroc:bins=50"), {"evaluation": "federated", "client_test": 0.3}),
    "target_accuracy": (0.1, {}),
    "target_score": (5.0, {"metrics": ("log-loss",)}),
    "stop_at_target": (True, {"target_accuracy": 0.05}),
    "patience": (1, {"rounds": 3, "options": {"lr": 1e-9}}),
}
"""Another value of each field, and what else it needs to show: it has to change something, and the same over the network."""

ELSEWHERE = {
    "checkpoint_every": "when the server saves its state: test_federate.py",
    "start_from": "names a file: test_starting.py",
    "measured": "times are real ones, which no two runs share: below",
}

SIMULATED = {
    "adversary": "signflip:0.2",
    "engine": "debug",
    "workers": 2,
    "ray_address": "auto",
    "ray_cpus": 2.0,
    "ray_gpus": 1.0,
    "vectorize": "on",
    "chunk": 4,
    "one_step": False,
    "kernels": "graph",
    "memory_mib": 8,
    "by_group": True,
}


def of(*reaches: Reach) -> set[str]:
    return {name for name, field in FEDERATED_FIELDS.items() if field.reach in reaches}


def outcome(run: Any) -> Any:
    """Return all that a run leaves but real seconds, or the error that it ends with."""
    try:
        summary = run()
    except PacelineError as error:
        return type(error).__name__, str(error).partition(";")[0]
    history = [{k: repr(v) for k, v in record.items() if k != "wall_seconds"} for record in summary.history]
    return summary.model_sha256, summary.stopped, summary.target_seconds, history


def test_every_field_is_classified_and_tested():
    assert set(FEDERATED_FIELDS) == set(RunConfig.model_fields)
    assert set(CHANGED) | set(ELSEWHERE) == of(Reach.CLIENTS, Reach.SERVER)
    assert set(SIMULATED) == of(Reach.SIMULATION)
    assert of(Reach.PARTY) == {"device", "threads"}


@pytest.mark.parametrize("name", CHANGED)
def test_a_field_has_the_same_effect_over_the_network(loopback, name):
    value, also = CHANGED[name]
    before = {**BASE, **also}
    run = {**before, name: value}
    simulated = lambda values: outcome(lambda: prepare(RunConfig.build({**values, "vectorize": "off"})).go())  # noqa: E731
    here = simulated(run)
    assert here != simulated(before), "this value shows nothing"
    loopback.task = None  # the clients read theirs, as the run's configuration says

    def federated() -> Any:
        loopback.serve(run)
        for number in range(run["clients"]):
            loopback.client(number)
        return loopback.finish()

    assert outcome(federated) == here


def test_measured_times_are_those_of_the_clients_own_machines(networked, federate):
    run = {"clients": 3, "cohort": 3, "rounds": 1, **SLOW}
    there, virtual = networked({**run, "measured": True}), federate(vectorize="off", **run)
    assert there.model_sha256 == virtual.model_sha256
    assert 0 < there.total_seconds < 20
    assert not math.isclose(there.total_seconds, virtual.total_seconds, rel_tol=1e-3)


def test_a_client_chooses_its_threads_itself(loopback):
    loopback.serve({"clients": 1, "cohort": 1, "rounds": 1, "threads": 2})
    node = loopback.client(0)
    loopback.finish()
    assert loopback.server.engine.home.setup.threads == 2
    assert node.runner.worker.setup.threads == 1


@pytest.mark.parametrize("name", SIMULATED)
def test_what_only_simulations_have_is_refused_at_the_start(loopback, tmp_path, name):
    config = RunConfig.build({**BASE, name: SIMULATED[name]})
    for start in (lambda: loopback.serve({name: SIMULATED[name]}), LoopbackFederation(config, tmp_path / "run").run):
        with pytest.raises(PlanError, match=f"{name}=.* applies to simulations"):
            start()
    assert not (tmp_path / "run").exists()


def test_a_client_refuses_a_simulated_option_of_a_server_that_does_not(loopback, monkeypatch):
    """A server that lies could make a client change its own labels."""
    monkeypatch.setattr("paceline.deploy.server.server.check_federated", lambda run: None)
    loopback.serve({"clients": 2, "cohort": 2, "rounds": 1, "adversary": "labelflip:0.5"})
    for number in range(2):
        loopback.client(number)
    with pytest.raises(PacelineError, match="adversary"):
        loopback.result.result(20)


def test_values_that_describe_a_federation_are_let_through():
    fits = [(name, value) for name, field in FEDERATED_FIELDS.items() for value in field.fits]
    assert fits
    assert not misfits(RunConfig.build(dict(fits)))
