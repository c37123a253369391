"""Ray actors: the same bits as the local engine, and clear errors."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from paceline.core.errors import (
    ConfigError,
    EngineError,
    MissingDataError,
    MissingExtraError,
    WorkerDiedError,
)
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.engines.ray import RayEngine
from paceline.engines.ray_cluster import connect, pack, unpack
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from paceline.tasks import blobs


def test_without_ray_the_error_names_the_command(federate, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paceline\[ray\]'"):
        federate(engine="ray")


@pytest.fixture(scope="module")
def package():
    """Return the package `ray`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    return pytest.importorskip("ray", reason="Ray is not installed; pip install 'paceline[ray]'")


@pytest.fixture(scope="module")
def ray(package):
    """Return Ray, started in a small way."""
    package.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield package
    package.shutdown()


@pytest.mark.slow
def test_other_engines_do_not_import_ray():
    code = "import sys, paceline.cli, paceline.run, paceline.engines; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cluster_that_does_not_answer_is_named_at_once(package, federate):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"no Ray cluster answers at {address}: .*; start one with: ray start --head"):
        federate(engine="ray", ray_address=address)


@pytest.mark.parametrize("address", ["here:now", "host", "ray://host:10001", ":6379"])
def test_an_address_that_is_none_is_refused(package, federate, address):
    with pytest.raises(ConfigError, match=f"ray_address.* = {re.escape(repr(address))}: "):
        federate(engine="ray", ray_address=address)


def test_a_server_that_is_no_ray_cluster_costs_limited_time(package):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(EngineError, match=r"did not let a Ray client in within 1 s"),
    ):
        connect(f"127.0.0.1:{silent.getsockname()[1]}", 1.0, patience=1.0)


def test_actors_of_a_cluster_say_what_they_need_of_gpus(federate):
    with pytest.raises(ConfigError, match="with ray_gpus"):
        federate(engine="ray", ray_address="auto", device="cuda")
    with pytest.raises(ConfigError, match="'cuda:1' with Ray: set the GPUs"):
        RayEngine(SimpleNamespace(device="cuda:1"))


def test_a_message_has_the_size_of_its_tensors_and_can_be_changed(package):
    stack = torch.arange(32 * 5000, dtype=torch.float32).view(32, 5000)
    sent = {"rows": [stack[k] for k in range(32)], "small": stack[0, :3], "half": stack[:4].bfloat16(), "none": stack[:0], "n": 3}
    header, parts = pack(sent)
    assert len(header) + sum(part.nbytes for part in parts) < 4 * stack.numel() + 2 * 4 * 5000 + 8000
    for part in parts:
        part.flags.writeable = False  # as the object store shares them
    received = unpack((header, parts))
    for before, after in zip(
        sent["rows"] + [sent[k] for k in ("small", "half", "none")],
        received["rows"] + [received[k] for k in ("small", "half", "none")],
        strict=True,
    ):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
        after.add_(1)
    assert torch.equal(stack, torch.arange(32 * 5000, dtype=torch.float32).view(32, 5000))


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fjord", "clip"])
def test_sums_over_parts_of_a_model_across_actors(ray, method):
    """Clients send the segments of their tiers; bits and bytes are those of sums without masks, here and there."""
    common = {
        "method": method,
        "options": {"segmented": True, "straggler_share": 0.34, "warmup": 1},
        "fleet": "stragglers:share=0.34,slow=3,compute=1e5",
        "secure": {"gamma": 0.0, "threshold": 4, "least_contributors": 2},
        "rounds": 4,
    }
    shas = set()
    for aggregation in ("secure", "secure-arithmetic"):
        here, *there = (
            go(**common, aggregation=aggregation, **engine)[1]
            for engine in ({}, {"engine": "ray", "workers": 1}, {"engine": "ray", "workers": 2})
        )
        shas |= {summary.model_sha256 for summary in (here, *there)}
        assert {(summary.bytes_up, summary.bytes_down) for summary in there} == {(here.bytes_up, here.bytes_down)}
        assert here.history[-1]["bytes_up"] < 0.95 * here.history[0]["bytes_up"] or aggregation == "secure"
    assert len(shas) == 1


@dataclass(frozen=True)
class Dying(FedAvg):
    once: str = ""

    @on_client
    def train(self, client, message):
        if client.id == 5 and client.round == 2 and self.once and not os.path.exists(self.once):
            if self.once != "never":
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
    with pytest.raises(EngineError, match=r"2 Ray actors of 1000 CPU each exceed the cluster, which has \d"):
        go(engine="ray", workers=2, ray_cpus=1000.0)
    with pytest.raises(EngineError, match="GPU"):
        go(engine="ray", ray_gpus=1.0)


@pytest.mark.slow
def test_actors_that_find_no_room_in_time_say_what_is_free(ray):
    class Other:
        def here(self):
            return True

    other = ray.remote(num_cpus=2)(Other).remote()
    assert ray.get(other.here.remote())
    config = RunConfig.build({"task": "blobs", "clients": 8, "cohort": 8, "rounds": 1})
    with pytest.raises(
        EngineError, match=r"1 of 1 Ray actors did not start within 1 s; each requests 1 CPU .* the cluster has 0 CPU"
    ):
        prepare(config, task=blobs(), engine=lambda setup: RayEngine(setup, 1, patience=1.0))
    ray.kill(other)
    assert prepare(config, task=blobs(), engine=lambda setup: RayEngine(setup, 1)).go().history  # nothing was left behind


@pytest.mark.slow
def test_an_actor_that_always_dies_stops_the_run(ray):
    with pytest.raises(WorkerDiedError, match="a Ray actor died"):
        go(method=f"{__name__}:Dying", options={"once": "never"}, engine="ray", workers=2)


@pytest.mark.slow
def test_an_error_where_the_actor_loads_its_samples_arrives_as_it_was(ray):
    def nothing():
        raise MissingDataError("no data here; run: paceline data fetch digits")

    config = RunConfig.build({"task": "blobs", "clients": 8, "cohort": 8, "rounds": 1})
    with pytest.raises(MissingDataError, match="paceline data fetch"):
        prepare(config, task=blobs(), engine=lambda setup: RayEngine(replace(setup, samples=nothing), 1))


@pytest.mark.slow
def test_the_command_line_joins_a_running_cluster(ray, tmp_path):
    address = ray.get_runtime_context().gcs_address
    shas = []
    for folder, engine in (("ray", ["--engine", "ray", "--workers", "2", "--ray-address", address]), ("here", [])):
        options = ["--task", "digits", "--clients", "6", "--cohort", "6", "--rounds", "2", "--vectorize", "off", *engine]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from paceline.cli import main; main()",
                "run",
                *options,
                "--out",
                str(tmp_path / folder),
                "--json",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shas.append(json.loads(done.stdout)["model_sha256"])
    assert shas[0] == shas[1]
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 2  # it goes on


SCRIPT = """
import ray
from dataclasses import dataclass
from paceline.core.method import on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from paceline.core.tree import node
from paceline.core.update import Update


@node
class Note:
    rounds: int = 0


@dataclass(frozen=True)
class Mine(FedAvg):
    @on_client
    def train(self, client, message):
        note = client.memory.get("note", Note())
        client.memory["note"] = Note(note.rounds + 1)
        return Update(delta=client.sgd(message).params - message, weight=1.0 + note.rounds)


values = {"method": "__main__:Mine", "task": "digits", "clients": 4, "cohort": 4, "rounds": 2, "vectorize": "off"}
shas = {prepare(RunConfig.build({**values, **more})).go().model_sha256 for more in ({}, {"engine": "ray"})}
assert len(shas) == 1
assert not ray.is_initialized()
print("done")
"""


@pytest.mark.slow
def test_a_script_may_define_its_method_and_what_was_started_for_it_ends(package, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.slow
def test_a_named_task_is_loaded_where_the_actor_runs(ray):
    values = {"task": "digits", "clients": 6, "cohort": 6, "rounds": 2, "vectorize": "off"}
    here = prepare(RunConfig.build(values)).go()
    prepared = prepare(RunConfig.build({**values, "engine": "ray", "workers": 2}))
    assert isinstance(prepared.fed.engine, RayEngine)
    assert prepared.fed.engine.setup.samples is not None
    assert prepared.go().model_sha256 == here.model_sha256
