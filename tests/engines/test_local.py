import os
import signal
from dataclasses import dataclass

import pytest

from paceline.core.client import SGD
from paceline.core.errors import ClientError, NonFiniteError, PlanError, WorkerDiedError
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import prepare
from paceline.runner import RoundWarning

BITS = ["fedavg", "scaffold", "fedprox", "fedopt"]


@pytest.mark.parametrize("method", BITS)
def test_same_bits_for_any_number_of_workers(federate, method):
    shas = {federate(method=method, workers=w, partition="dirichlet:0.5").model_sha256 for w in (1, 2, 3)}
    assert len(shas) == 1


@dataclass(frozen=True)
class Broken(FedAvg):
    how: str = "raise"

    @on_client
    def train(self, client, message):
        if client.id == 2:
            if self.how == "raise":
                raise ValueError("no such tensor")
            if self.how == "kill" and client.round == 2 and not os.path.exists(os.environ["ONCE"]):
                open(os.environ["ONCE"], "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "always":
                os.kill(os.getpid(), signal.SIGKILL)
        seen = client.memory.get("rounds", 0)
        client.memory["rounds"] = seen + 1
        lr = float("inf") if self.how == "nan" else 0.1
        local = client.sgd(message, optimizer=SGD(lr))
        return Update(delta=local.params - message, weight=client.num_samples + seen)


NAME = f"{__name__}:Broken"


@pytest.mark.parametrize("engine", ["local", "debug"])
def test_a_clients_error_names_client_function_and_round(federate, engine):
    with pytest.raises(ClientError, match=r"client 2, function 'train', round 1: ValueError: no such tensor"):
        federate(method=NAME, clients=5, engine=engine)


def test_the_debug_engine_keeps_the_cause_and_names_the_step(federate):
    with pytest.raises(ClientError, match=r"step 1.*batch: inputs \(10, 12\), targets \[") as caught:
        federate(method=NAME, options={"how": "nan"}, engine="debug")
    assert isinstance(caught.value.__cause__, NonFiniteError)


def test_nan_loss_is_named(federate):
    with pytest.raises(NonFiniteError, match=r"client \d, function 'train', round 1"):
        federate(method=NAME, options={"how": "nan"})


def test_errors_may_drop_the_client_instead(federate):
    summary = federate(method=NAME, clients=5, on_error="drop")
    assert [r["dropped"] for r in summary.history] == [1, 1, 1]


def test_a_killed_worker_is_replaced_and_the_round_has_the_same_bits(federate, tmp_path, monkeypatch):
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    with pytest.warns(RoundWarning, match=r"round 2 is repeated: worker \d \(pid \d+\) died"):
        killed = federate(method=NAME, options={"how": "kill"}, clients=5, workers=2)
    assert (tmp_path / "once").exists()
    quiet = federate(method=NAME, options={"how": "none"}, clients=5, workers=2)
    assert killed.model_sha256 == quiet.model_sha256


def test_a_worker_killed_before_its_memories_are_committed_changes_no_bit(task, config, federate, monkeypatch):
    prepared = prepare(config(method="scaffold", workers=2), task=task)
    engine, killed = prepared.fed.engine, []
    commit = engine.commit

    def kill_first():
        if prepared.round == 1 and not killed:
            killed.append(engine.pids[1])
            os.kill(killed[0], signal.SIGKILL)
        return commit()

    monkeypatch.setattr(engine, "commit", kill_first)
    summary, quiet = prepared.go(), federate(method="scaffold", workers=2)
    assert killed
    assert summary.model_sha256 == quiet.model_sha256
    assert [r["virtual_seconds"] for r in summary.history] == [r["virtual_seconds"] for r in quiet.history]
    assert [r["bytes_up"] for r in summary.history] == [r["bytes_up"] for r in quiet.history]


def test_a_worker_that_always_dies_stops_the_run(federate):
    with pytest.raises(WorkerDiedError, match="worker"):
        federate(method=NAME, options={"how": "always"}, clients=5, workers=2)


def test_late_clients_are_dropped_from_the_sum(federate):
    full = federate(fleet="stragglers:share=0.4,slow=5,up=1e5", clients=5)
    times = full.history[0]["round_seconds"]
    cut = federate(fleet="stragglers:share=0.4,slow=5,up=1e5", clients=5, deadline=times * 0.9)
    assert [r["dropped"] for r in cut.history] == [2, 2, 2]
    assert cut.history[0]["round_seconds"] == pytest.approx(times * 0.9)


def test_each_needs_a_declared_function(task, config):
    prepared = prepare(config(), task=task)
    prepared.fed.start_round(1)
    state = prepared.method.init(prepared.fed)
    with pytest.raises(PlanError, match="each=True"):
        prepared.fed.each(prepared.method.train, state.params, over=[0, 1])
