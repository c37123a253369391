"""`paceline federate`: separate processes, killed with SIGKILL, end with the bits of a local run."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from paceline.core.errors import CohortError, ConfigError, PlanError, PolicyError, StoreError
from paceline.deploy.loopback import LoopbackFederation
from paceline.run import RunConfig, run
from tests.network.conftest import Loopback

STEPS = ("secagg.advertise", "secagg.share", "secagg.masked", "secagg.consistency", "secagg.unmask")
ALONE = STEPS[:2]
"""Steps that only a sum has whose keys were not prepared in the round before."""


def settings(method: str, clients: int = 3, **changes) -> RunConfig:
    values = {"method": method, "task": "digits", "model": "logreg", "clients": clients, "cohort": clients, "rounds": 3}
    return RunConfig.build({**values, "aggregation": "secure", "on_error": "drop", **changes})


def local(config: RunConfig):
    return run(config.model_copy(update={"vectorize": "off"}))


@pytest.fixture
def hold_run():
    """Return a function that lets another process hold a new folder, and returns that process's number."""
    owners = []

    def start(path):
        path.mkdir()
        code = f"import time; from paceline.store import RunFolder; f = RunFolder({str(path)!r}).hold(); print(flush=True); time.sleep(60)"
        owners.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        owners[-1].stdout.readline()
        return owners[-1].pid

    yield start
    for owner in owners:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def starts(federation: LoopbackFederation) -> dict[str, int]:
    return {party.role: party.starts for party in federation.parties}


def test_a_fault_of_a_client_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no client 3 among 3"):
        LoopbackFederation(settings("fedavg"), tmp_path / "run", ["slow:client=3,factor=2"])


def test_killed_server_goes_on_to_the_same_bits(tmp_path):
    config = settings("scaffold")
    federation = LoopbackFederation(config, tmp_path / "run", faults=["kill:client=server,phase=secagg.masked,round=2,when=reply"])
    summary = federation.run()
    assert starts(federation) == {"server": 2, "client0": 1, "client1": 1, "client2": 1}
    assert summary.model_sha256 == local(config).model_sha256
    assert [r["round"] for r in summary.history] == [1, 2, 3]


def test_a_method_of_a_users_own_needs_no_settings(lab, tmp_path):
    config = settings(f"{lab}:FedProx", rounds=1)
    assert LoopbackFederation(config, tmp_path / "run").run().model_sha256 == local(config).model_sha256


def test_a_name_inside_a_field_of_the_method_needs_no_settings_either(lab, tmp_path):
    config = settings("fedghsum", rounds=1, options={"models": [f"{lab}:chain:width=5"]})
    assert LoopbackFederation(config, tmp_path / "run").run().accuracy == local(config).accuracy


def test_a_refusal_is_the_error_of_the_server_and_nothing_else(tmp_path):
    with pytest.raises(PlanError) as told:
        LoopbackFederation(settings("krum"), tmp_path / "run").run()
    assert str(told.value) == "\n".join(
        ("this run cannot start: 1 incompatible setting(s):",
         "  1. method 'krum' needs every client's own reply from submit(), which 'secure' aggregation hides from the server; "
         "run it with aggregation='plain', or choose a sum-only method")
    )  # fmt: skip


def test_a_clients_refusal_is_told_without_the_log(tmp_path):
    """By the server or by a client: whoever ends first."""
    closed = {"allow": {"methods": ["fedprox"]}}
    with pytest.raises((PolicyError, CohortError), match=r"client ?\d: .*method 'fedavg' is not allowed; allowed: fedprox") as told:
        LoopbackFederation(settings("fedavg"), tmp_path / "run", policy=closed).run()
    assert "\n" not in str(told.value)
    assert "{" not in str(told.value)


def test_a_run_that_is_held_is_neither_served_nor_federated(loopback, tmp_path, hold_run):
    loopback.serve({"clients": 1, "cohort": 1, "quorum": 1})
    facts = (loopback.root / "run/federation.json").read_bytes()
    second = Loopback(loopback.root, loopback.task)
    try:
        with pytest.raises(StoreError, match="run is already in use by this process"):
            second.serve({"clients": 1, "cohort": 1, "quorum": 1})
    finally:
        second.close()
    assert (loopback.root / "run/federation.json").read_bytes() == facts, "a start that was refused does not count"
    owner = hold_run(tmp_path / "taken")
    with pytest.raises(StoreError, match=f"taken is in use by process {owner}"):
        LoopbackFederation(settings("fedavg"), tmp_path / "taken").run()


def test_killed_client_drops_out_and_is_back_in_the_next_round(tmp_path):
    config = settings("fedavg", clients=4, secure={"threshold": 2, "active": False, "gamma": 0.0})
    seen = []
    federation = LoopbackFederation(
        config, tmp_path / "run", faults=["kill:client=1,phase=secagg.masked,round=2"], waiting={"reconnect": 0.1}
    )
    summary = federation.run(lambda record, total: seen.append(record))
    assert starts(federation)["client1"] == 2
    assert [r["dropped"] for r in summary.history] == [0, 1, 0]
    assert [r["round"] for r in seen] == [1, 2, 3]
    assert summary.accuracy > 0.8


@pytest.mark.slow
def test_rounds_that_are_repeated_from_a_checkpoint_are_summed_over_the_same_clients(tmp_path):
    """A client drops out in round 2 and is back when the server, killed in round 3, repeats both: it may not join that sum."""
    config = settings("fedavg", clients=5, checkpoint_every=5, rounds=4, secure={"pipelined": False, "gamma": 0.0, "threshold": 3})
    faults, waiting = ["kill:client=1,phase=secagg.masked,round=2"], {"reconnect": 0.1}
    expected = LoopbackFederation(config, tmp_path / "through", faults=faults, waiting=waiting).run()
    assert [r["dropped"] for r in expected.history] == [0, 1, 0, 0]
    faults = [*faults, "kill:client=server,phase=secagg.unmask,round=3,when=reply"]
    federation = LoopbackFederation(config, tmp_path / "run", faults=faults, waiting=waiting)
    summary = federation.run()
    assert starts(federation)["server"] == 2
    assert [r["attempts"] for r in summary.history] == [1] * 4
    assert summary.model_sha256 == expected.model_sha256


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["plain", "secure"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "clip"])
def test_ten_clients_end_with_the_bits_of_a_local_run(tmp_path, method, aggregation):
    config = settings(method, 10, aggregation=aggregation, model="mlp", fleet="stragglers:share=0.2,slow=3", rounds=5)
    assert LoopbackFederation(config, tmp_path / "run").run().model_sha256 == local(config).model_sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregation", "phase", "when"),
    [
        *itertools.product(["secure"], STEPS, ["start", "reply"]),
        *itertools.product(["plain"], ["train"], ["start", "reply"]),
        ("secure", "commit", "start"),
        ("plain", "commit", "start"),
    ],
)
@pytest.mark.parametrize("method", ["scaffold", "clip"])
def test_server_killed_anywhere(tmp_path, method, aggregation, phase, when):
    options = {"pipelined": False} if phase in ALONE else {}
    config = settings(method, 3, aggregation=aggregation, model="mlp", fleet="stragglers:share=0.34,slow=3", secure=options)
    federation = LoopbackFederation(config, tmp_path / "run", faults=[f"kill:client=server,phase={phase},round=2,when={when}"])
    summary = federation.run()
    assert starts(federation)["server"] == 2
    assert summary.model_sha256 == local(config).model_sha256


@pytest.mark.slow
@pytest.mark.parametrize("when", ["start", "reply"])
@pytest.mark.parametrize("phase", [*STEPS, "train"])
def test_client_killed_anywhere(tmp_path, phase, when):
    secure = phase != "train"
    options = {"threshold": 2, "active": False, "gamma": 0.0, "pipelined": phase not in ALONE} if secure else {}
    config = settings("scaffold", 4, aggregation="secure" if secure else "plain", secure=options)
    faults = [f"kill:client=1,phase={phase},round=2,when={when}"]
    federation = LoopbackFederation(config, tmp_path / "run", faults=faults, waiting={"reconnect": 0.1})
    summary = federation.run()
    assert starts(federation)["client1"] == 2
    assert summary.rounds == 3
    assert summary.accuracy > 0.8
    assert summary.history[2]["dropped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_client_killed_before_it_commits_has_not_lost_its_work(tmp_path, aggregation):
    """The server has the reply and completed the round: the client finds its work of that round on its disk."""
    config = settings("scaffold", 3, aggregation=aggregation)
    federation = LoopbackFederation(config, tmp_path / "run", faults=["kill:client=1,phase=commit,round=2"])
    summary = federation.run()
    assert starts(federation)["client1"] == 2
    assert summary.model_sha256 == local(config).model_sha256


@pytest.mark.slow
def test_both_sides_killed_and_checkpoints_far_apart(tmp_path):
    config = settings("scaffold", 3, rounds=5, checkpoint_every=2, secure={"pipelined": False})
    faults = ["kill:client=server,phase=secagg.unmask,round=4,when=reply", "kill:client=2,phase=secagg.share,round=4"]
    federation = LoopbackFederation(config, tmp_path / "run", faults=faults, waiting={"reconnect": 0.1})
    summary = federation.run()
    assert starts(federation)["server"] >= 2
    assert summary.rounds == 5
    faults = ["kill:client=server,phase=secagg.masked,round=4"]
    federation = LoopbackFederation(config, tmp_path / "again", faults=faults)
    assert federation.run().model_sha256 == local(config).model_sha256


@pytest.mark.slow
@pytest.mark.parametrize("when", ["start", "reply"])
@pytest.mark.parametrize(
    ("method", "phase"),
    [("scaffold", "train"), ("fedrep", "train"), ("scaffold", "secagg.advertise"), ("clip", "secagg.advertise")],
)
def test_a_killed_client_that_is_asked_again_changes_nothing(tmp_path, method, phase, when):
    """Whether its work was on its disk already or not."""
    secure = {"aggregation": "secure", "secure": {"pipelined": False}} if phase != "train" else {"aggregation": "plain"}
    config = settings(method, 3, model="mlp", **secure)
    faults = [f"kill:client=1,phase={phase},round=2,when={when}"]
    federation = LoopbackFederation(config, tmp_path / "run", faults=faults, waiting={"reconnect": 20.0})
    summary = federation.run()
    assert starts(federation)["client1"] == 2
    assert summary.model_sha256 == local(config).model_sha256


@pytest.mark.slow
def test_without_a_fork_server_the_bits_are_the_same(tmp_path, monkeypatch):
    """As on Windows: the parties are spawned."""
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    config = settings("scaffold", 3, aggregation="plain")
    federation = LoopbackFederation(
        config, tmp_path / "run", faults=["kill:client=1,phase=train,round=2"], waiting={"reconnect": 20.0}
    )
    summary = federation.run()
    assert starts(federation)["client1"] == 2
    assert summary.model_sha256 == local(config).model_sha256
