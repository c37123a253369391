"""A federation starts from given weights as a simulation does; what would not reach its clients is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from paceline.core.errors import PlanError
from paceline.run import RunConfig, prepare
from paceline.store import RunFolder
from paceline.store.weights import read_weights
from tests.conftest import make_task, small_mlp


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    torch.save(small_mlp().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_federation_starts_from_the_same_model(networked, loopback, weights, aggregation):
    run = {"aggregation": aggregation, "start_from": str(weights), "clients": 4, "cohort": 4, "on_error": "stop"}
    there = networked(run)
    alike = {**run, "task": "blobs", "rounds": 2, "vectorize": "off", "aggregation": "secure-arithmetic"}
    here = prepare(RunConfig.build(alike | ({} if aggregation == "secure" else {"aggregation": "plain"})), task=make_task()).go()
    assert there.model_sha256 == here.model_sha256
    kept = RunFolder.open(loopback.root / "run")
    assert kept.read_config()["start_from"].startswith("weights.pt#sha256=")  # clients do not learn the path
    assert read_weights(kept.path / "start.safetensors").keys() == read_weights(weights).keys()


def test_the_server_goes_on_without_the_file(loopback, weights):
    run = {"start_from": str(weights), "clients": 3, "cohort": 3, "on_error": "stop", "rounds": 1}
    loopback.serve(run)
    for number in range(3):
        loopback.client(number)
    first = loopback.finish()
    weights.unlink()
    loopback.server.listening.clear()
    loopback.serve(run)
    assert loopback.result.result(20).model_sha256 == first.model_sha256


def test_what_clients_would_not_receive_is_refused(loopback, weights):
    with pytest.raises(PlanError, match="keeps a part of the model at the clients"):
        loopback.serve({"method": "fedper", "start_from": str(weights)})


def test_frozen_values_that_differ_are_refused(loopback, weights):
    loopback.task = dataclasses.replace(make_task(), trainable=["4.*"])
    with pytest.raises(PlanError, match=r"other values than the clients' models in 0\.weight, 0\.bias"):
        loopback.serve({"start_from": str(weights)})


@pytest.mark.parametrize(("method", "aggregation"), [("fedper", "secure"), ("finetuned", "plain")])
def test_a_client_keeps_its_own_model(networked, loopback, method, aggregation):
    from paceline.results.predictor import load_predictor

    run = {"method": method, "aggregation": aggregation, "evaluation": "clients", "client_test": 0.3, "clients": 4, "cohort": 4}
    result = networked(run)
    hits = count = 0
    for number in range(4):
        (folder,) = (loopback.root / f"state{number}").glob("*/model")
        split = loopback.nodes[number].runner.worker.setup.split(number)[1]
        data = loopback.task.train.subset(split)
        made = load_predictor(folder)
        assert made.card.client == number
        hits, count = hits + int(made.predict(data.x).codes.eq(data.y).sum()), count + len(data)
    assert hits / count == pytest.approx(result.accuracy)
    assert not list((loopback.root / "run").glob("*/model"))


def test_a_client_that_keeps_none(networked, loopback):
    networked({"method": "fedper", "evaluation": "clients", "clients": 3, "cohort": 3}, keep_model=False)
    assert not list(loopback.root.glob("state*/*/model"))
