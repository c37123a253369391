"""TensorBoard, MLflow and Weights & Biases: what a run leaves is read back with their own readers."""

import json
import struct

import pytest

import paceline as pl
from tests.conftest import make_task

SMALL = {"clients": 4, "rounds": 3, "options": {"lr": 0.1}}


def run(observer, **changes):
    return pl.run("fedavg", make_task(), observer=observer, **SMALL | changes)


def test_tensorboard_reads_the_scalars_of_two_runs(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    results = {seed: run(f"tensorboard:{tmp_path}", seed=seed) for seed in (0, 1)}
    for seed, result in results.items():
        read = accumulator.EventAccumulator(str(tmp_path / f"fedavg-blobs-s{seed}"))
        read.Reload()
        accuracy = read.Scalars("accuracy")
        assert [event.step for event in accuracy] == [1, 2, 3]
        assert [event.value for event in accuracy] == pytest.approx([r["accuracy"] for r in result.history])
        (final,) = read.Scalars("final/accuracy")
        assert final.value == pytest.approx(result.accuracy)


def test_mlflow_reads_parameters_metrics_and_the_end(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = run(pl.trackers.MLflow(uri, experiment="trials"))
    with pytest.raises(pl.errors.PacelineError):
        run(f"mlflow:{uri},experiment=trials", on_error="stop", sum_bound=1e-9)
    client = tracking.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("trials").experiment_id], order_by=["attributes.start_time"])
    assert [one.info.status for one in found] == ["FINISHED", "FAILED"]
    done = found[0]
    assert (done.data.params["method"], done.data.params["options.lr"]) == ("fedavg", "0.1")
    assert done.data.tags["paceline.model_sha256"] == result.model_sha256
    history = sorted(client.get_metric_history(done.info.run_id, "loss"), key=lambda metric: metric.step)
    assert [metric.step for metric in history] == [1, 2, 3]
    assert [metric.value for metric in history] == pytest.approx([r["loss"] for r in result.history])


def log_records(data):
    """Yield the records of a log in LevelDB's format, whose header has 7 bytes and whose blocks have 32 KiB."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the end of one
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_reads_its_offline_file(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.chdir(tmp_path)
    result = run(f"wandb:{tmp_path},project=trials")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rounds, config, code = [], {}, None
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            rounds.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
        elif record.WhichOneof("record_type") == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.WhichOneof("record_type") == "exit":
            code = record.exit.exit_code
    assert config["method"] == "fedavg"
    assert [one["_step"] for one in rounds] == [1, 2, 3]
    assert [one["accuracy"] for one in rounds] == pytest.approx([r["accuracy"] for r in result.history])
    assert code == 0
