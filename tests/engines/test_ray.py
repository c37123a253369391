"""Ray actors: the same bits as the local engine, and clear errors."""

import os
import signal
import socket
import sys
from dataclasses import dataclass

import pytest

from paceline.engines.ray import RayEngine
from paceline.errors import EngineError, MissingExtraError
from paceline.method import on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from paceline.tasks import blobs
from paceline.update import Update


def test_without_ray_the_error_names_the_command(federate, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paceline\[ray\]'"):
        federate(engine="ray")


@pytest.fixture(scope="module")
def ray():
    """Return Ray, and end what was started."""
    module = pytest.importorskip("ray", reason="Ray is not installed; pip install 'paceline[ray]'")
    yield module
    module.shutdown()


def test_a_cluster_that_does_not_answer_is_named_at_once(ray, federate):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"no Ray cluster answers at {address}"):
        federate(engine="ray", ray_address=address)
    with pytest.raises(EngineError, match="no host:port"):
        federate(engine="ray", ray_address="here:now")


def go(**changes):
    values = {
        "task": "blobs",
        "clients": 8,
        "cohort": 8,
        "rounds": 3,
        "partition": "dirichlet:0.5",
        "vectorize": "on",
        "chunk": 3,
    }
    prepared = prepare(RunConfig.build({**values, **changes}), task=blobs())
    return prepared, prepared.go()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "clip"])
def test_same_bits_on_one_and_two_actors_and_here(ray, method):
    common = {"method": method, "aggregation": "secure-arithmetic", "fleet": "stragglers"}
    common["options"] = {"warmup": 1} if method == "clip" else {}
    shas = {go(**common)[1].model_sha256}
    shas |= {go(**common, engine="ray", workers=w)[1].model_sha256 for w in (1, 2)}
    assert len(shas) == 1


@pytest.mark.slow
def test_real_secure_aggregation_across_actors(ray):
    common = {"aggregation": "secure", "rounds": 2}
    assert go(**common, engine="ray", workers=2)[1].model_sha256 == go(**common)[1].model_sha256


@dataclass(frozen=True)
class Dying(FedAvg):
    once: str = ""

    @on_client
    def train(self, client, message):
        if client.id == 5 and client.round == 2 and self.once and not os.path.exists(self.once):
            open(self.once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        local = client.sgd(message)
        client.memory["seen"] = client.memory.get("seen", 0) + 1
        return Update(delta=local.params - message, weight=client.num_samples + client.memory["seen"])


@pytest.mark.slow
def test_an_actor_killed_in_mid_round_changes_no_bit(ray, tmp_path):
    name = f"{__name__}:Dying"
    killed, summary = go(method=name, options={"once": str(tmp_path / "once")}, engine="ray", workers=2)
    assert (tmp_path / "once").exists()
    assert summary.model_sha256 == go(method=name)[1].model_sha256
    assert {killed.fed.engine.memories[c]["seen"] for c in range(8)} == {3}


@pytest.mark.slow
def test_what_the_cluster_has_not_got_is_refused_at_once(ray):
    with pytest.raises(EngineError, match=r"2 Ray actors of 1000 CPU each cannot be had: the cluster has \d"):
        go(engine="ray", workers=2, ray_cpus=1000.0)
    with pytest.raises(EngineError, match="GPU"):
        go(engine="ray", ray_gpus=1.0)


@pytest.mark.slow
def test_a_named_task_is_loaded_where_the_actor_runs(ray):
    values = {"task": "digits", "clients": 6, "cohort": 6, "rounds": 2, "vectorize": "off"}
    here = prepare(RunConfig.build(values)).go()
    prepared = prepare(RunConfig.build({**values, "engine": "ray", "workers": 2}))
    assert isinstance(prepared.fed.engine, RayEngine)
    assert prepared.fed.engine.setup.samples is not None
    assert prepared.go().model_sha256 == here.model_sha256
