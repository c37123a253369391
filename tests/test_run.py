import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from paceline.core.errors import (
    CheckpointError,
    CohortError,
    ConfigError,
    DiskFullError,
    PlanError,
    QuorumError,
    UnknownNameError,
)
from paceline.run import RunConfig, prepare, resume
from paceline.store import RunFolder, load_checkpoint
from tests.conftest import make_task

RUNNER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from paceline.run import RunConfig, prepare
from paceline.store import RunFolder
from tests.conftest import make_task

def observer(record, total):
    if record["round"] == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)

config = RunConfig.build({config!r})
folder = RunFolder.create({out!r}, "run")
folder.write_config(config.model_dump(exclude_none=True))
prepare(config, task=make_task(), folder=folder, observer=observer).go()
"""


def fresh(tmp_path, config, name="run"):
    folder = RunFolder.create(tmp_path, name)
    folder.write_config(config.model_dump(exclude_none=True))
    return folder


CASES = [(m, "plain") for m in ("fedavg", "scaffold", "clip", "fluid", "dropstragglers", "fedopt")]
CASES += [("clip", "secure"), ("scaffold", "secure-arithmetic")]


QUICK = {(4, "fedavg", "plain"), (4, "clip", "plain"), (4, "fluid", "plain"), (4, "scaffold", "secure-arithmetic")}
QUICK |= {(1, "scaffold", "plain"), (1, "clip", "secure")}
"""Cases of the default suite: each aggregation, both moments, methods with and without state of clients and of the server."""


@pytest.mark.parametrize(
    ("stop", "method", "aggregation"),
    [pytest.param(stop, *case, marks=[] if (stop, *case) in QUICK else [pytest.mark.slow]) for stop in (4, 1) for case in CASES],
)
def test_killed_and_resumed_ends_with_the_same_bits(config, tmp_path, method, aggregation, stop):
    made = config(
        method=method,
        aggregation=aggregation,
        rounds=6,
        clients=8,
        cohort=6,
        fleet="stragglers:churn=0.1",
        checkpoint_every=2,
    )
    whole = prepare(made, task=make_task()).go()
    root = str(Path(__file__).parent.parent)
    code = RUNNER.format(root=root, stop=stop, config=made.model_dump(exclude_none=True), out=str(tmp_path))
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = resume(tmp_path / "run", task=make_task())
    assert again.model_sha256 == whole.model_sha256
    keys = ("round", "virtual_seconds", "bytes_up", "bytes_down", "accuracy")
    assert [[r[k] for k in keys] for r in again.history] == [[r[k] for k in keys] for r in whole.history]


def test_a_finished_run_leaves_everything_in_its_folder(config, tmp_path):
    made = config(rounds=2)
    folder = fresh(tmp_path, made)
    summary = prepare(made, task=make_task(), folder=folder).go()
    assert RunConfig.build(folder.read_config()) == made
    assert [json.loads(line)["round"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((folder.path / "summary.json").read_text())["model_sha256"] == summary.model_sha256
    assert (folder.path / "model.safetensors").exists()
    assert resume(folder.path, task=make_task()).model_sha256 == summary.model_sha256


def test_a_corrupt_checkpoint_is_named(config, tmp_path):
    made = config(rounds=2)
    folder = fresh(tmp_path, made)
    prepare(made, task=make_task(), folder=folder).go()
    data = bytearray(folder.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    folder.checkpoint.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        resume(folder.path, task=make_task())


def test_a_checkpoint_of_another_configuration_is_refused(config, tmp_path):
    folder = fresh(tmp_path, config(rounds=2))
    prepare(config(rounds=2), task=make_task(), folder=folder).go()
    folder.write_config(config(rounds=4, seed=3).model_dump(exclude_none=True))
    with pytest.raises(CheckpointError, match="does not belong to config"):
        resume(folder.path, task=make_task())


def test_a_full_disk_leaves_the_last_checkpoint_whole(config, tmp_path, monkeypatch):
    made = config(rounds=4)
    folder = fresh(tmp_path, made)
    real, calls = os.replace, []

    def replace(a, b, **kw):
        if str(b).endswith(folder.checkpoint.name):
            calls.append(b)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
        return real(a, b, **kw)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(DiskFullError):
        prepare(made, task=make_task(), folder=folder).go()
    monkeypatch.undo()
    assert load_checkpoint(folder.checkpoint)["round"] == 2
    assert resume(folder.path, task=make_task()).model_sha256 == prepare(made, task=make_task()).go().model_sha256


def test_all_misfits_come_at_once(task, config):
    with pytest.raises(PlanError) as caught:
        prepare(config(method="fluid", aggregation="secure", clients=5, cohort=8, quorum=9), task=task)
    text = str(caught.value)
    assert len(caught.value.misfits) == 3
    assert "cohort of 8" in text
    assert "quorum of 9" in text
    assert "train_part" in text
    assert "clip" in text


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "fedavgg"}, UnknownNameError, "fedavg"),
        ({"options": {"learning": 1}}, UnknownNameError, "field"),
        ({"options": {"lr": "fast"}}, ConfigError, "lr='fast'"),
        ({"aggregation": "secur"}, UnknownNameError, "secure"),
        ({"engine": "locl"}, UnknownNameError, "local"),
        ({"fleet": "mobil"}, UnknownNameError, "mobile"),
        ({"partition": "dirichlt:1"}, UnknownNameError, "dirichlet"),
    ],
)
def test_unknown_names_list_the_nearest(task, config, changes, error, words):
    with pytest.raises(error, match=words):
        prepare(config(**changes), task=task)


def test_wrong_options_are_all_named():
    with pytest.raises(ConfigError, match=r"rounds=0.*clients=-1|clients=-1.*rounds=0"):
        RunConfig.build({"rounds": 0, "clients": -1})
    with pytest.raises(UnknownNameError, match="did you mean rounds"):
        RunConfig.build({"round": 3})


def test_nobody_there_is_named(federate):
    with pytest.raises(CohortError, match="no client is available"):
        federate(fleet="stragglers:churn=0.9999999")


def test_a_lost_quorum_is_tried_again_and_leaves_no_trace(federate, config):
    lost = []

    def drop(round, client, function):
        if round == 2 and function == "train" and len(lost) < 4:
            lost.append(client)
            return True
        return False

    summary = federate(method="scaffold", clients=6, cohort=6, quorum=4, drop=drop)
    assert [r["attempts"] for r in summary.history] == [1, 2, 1]


def test_a_quorum_that_stays_lost_stops_the_run(federate):
    with pytest.raises(QuorumError, match="quorum"):
        federate(quorum=4, drop=lambda r, c, f: c < 3)


def test_target_and_patience(federate):
    full = federate(rounds=12)
    best = max(r["accuracy"] for r in full.history)
    hit = federate(rounds=12, target_accuracy=best - 0.05, stop_at_target=True)
    assert hit.stopped == "target accuracy reached"
    assert hit.target_seconds == hit.total_seconds
    assert hit.rounds < 12
    patient = federate(rounds=30, patience=3, options={"lr": 1e-9})
    assert patient.rounds == 4
    assert "did not improve" in patient.stopped


def test_federated_evaluation_equals_central_over_the_same_samples(federate):
    task = make_task()
    summary = federate(task=task, evaluation="federated", rounds=1)
    other = federate(task=replace(task, test=task.train), rounds=1)
    assert summary.accuracy == pytest.approx(other.accuracy, abs=1e-12)
    assert summary.loss == pytest.approx(other.loss, rel=1e-6)


def test_a_client_without_samples_takes_part_without_weight(config):
    small = make_task(samples=4)
    summary = prepare(config(clients=6, cohort=6, allow_empty=True, partition="dirichlet:0.05"), task=small).go()
    assert summary.rounds == 3
    scaffold = prepare(
        config(method="scaffold", clients=6, cohort=6, allow_empty=True, partition="dirichlet:0.05"), task=small
    ).go()
    assert scaffold.rounds == 3


@pytest.mark.parametrize("policy", ["average", "local", "recompute"])
def test_batchnorm_policies(config, policy):
    def model():
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    task = replace(make_task(model=model), buffers=policy)
    summary = prepare(config(rounds=8, cohort=6), task=task).go()
    assert summary.accuracy > 0.6
    prepared = prepare(config(rounds=1), task=task)
    names = prepared.fed.init_params().layout.by_name
    assert ("1.running_mean" in names) == (policy != "local")
    assert torch.isfinite(prepared.fed.init_params().vector).all()
