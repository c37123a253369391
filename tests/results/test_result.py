"""A result's figures and models: the model is the one that was evaluated, at once and from disk."""

import doctest
from dataclasses import dataclass, replace
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import paceline as pl
from paceline.tasks.sequence import split_classes
from tests.conftest import make_task


def accuracy(module, data):
    with torch.no_grad():
        return float(module(data.x).argmax(1).eq(data.y).double().mean())


@pytest.mark.parametrize("module", ["run", "runner", "results.result", "core.task", "core.config"])
def test_examples_run(module):
    reported = doctest.testmod(import_module(f"paceline.{module}"))
    assert reported.attempted
    assert not reported.failed


@pytest.mark.parametrize("rounds_between", [1, 2])
@pytest.mark.parametrize("method", ["fedghsum", "localonly"])
def test_the_last_record_has_the_totals_also_where_clients_evaluate(method, rounds_between):
    result = pl.run(method, make_task(), clients=5, rounds=3, eval_every=rounds_between)
    spent = [record["round_seconds"] + record.get("evaluation_seconds", 0.0) for record in result.history]
    assert result.seconds == result.history[-1]["virtual_seconds"] == pytest.approx(sum(spent))
    assert result.bytes == sum(r["bytes_up"] + r["bytes_down"] for r in result.history)
    judged = [record["round"] for record in result.history if record.get("evaluation_seconds", 0.0) > 0]
    assert judged == ([1, 2, 3] if rounds_between == 1 else [2, 3])


def test_figures():
    result = pl.run(pl.methods.FedProx(mu=0.1), make_task(), clients=5, rounds=3)
    assert (result.method, result.task, result.rounds, result.config.options) == ("fedprox", "blobs", 3, {"mu": 0.1})
    assert [record["round"] for record in result.history] == [1, 2, 3]
    assert result.accuracy == result.history[-1]["accuracy"]
    assert result.seconds == result.history[-1]["virtual_seconds"] > 0
    assert result.bytes == sum(r["bytes_up"] + r["bytes_down"] for r in result.history)
    assert result.params.sha256() == result.model_sha256
    assert result.folder is None
    assert "fedprox on blobs, seed 0: accuracy" in repr(result)
    assert {"history", "config", "final"}.isdisjoint(result.as_dict())


def test_the_model_is_the_one_that_was_evaluated():
    task = make_task()
    result = pl.run("fedavg", task, clients=5, rounds=3)
    model = result.model()
    assert not model.training
    assert accuracy(model, task.test) == result.accuracy
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert accuracy(result.model(), task.test) == result.accuracy


def normed():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("buffers", ["average", "recompute"])
def test_with_batchnorm_too(tmp_path, buffers):
    task = replace(make_task(model=normed), buffers=buffers)
    result = pl.run("fedavg", task, clients=5, rounds=3, folder=tmp_path / "run")
    loaded = pl.load(tmp_path / "run", task=task)
    pl.resume(tmp_path / "run", task=task)  # nothing is left to do, and nothing is lost
    for model in (result.model(), loaded.model(), pl.load(tmp_path / "run", task=task).model()):
        assert accuracy(model, task.test) == result.accuracy
    fresh = normed()
    fresh.load_state_dict(result.state_dict())
    assert accuracy(fresh.eval(), task.test) == result.accuracy
    save_file(result.state_dict(), tmp_path / "one.safetensors")  # refuses tensors that share memory


def test_frozen_parts_are_those_of_the_run():
    task = replace(make_task(), trainable=["4.*"])
    result = pl.run("fedavg", task, clients=5, rounds=2, seed=3)
    assert accuracy(result.model(), task.test) == result.accuracy


PERSONAL = ["finetuned", "fedproto", "fedghsum", "fedgela", "localonly", "fedavg"]


@pytest.mark.parametrize("method", PERSONAL)
def test_a_client_s_model_is_the_one_that_was_evaluated(tmp_path, method):
    task = make_task()
    fields = {"clients": 4, "rounds": 2, "evaluation": "clients", "client_test": 0.3, "partition": "dirichlet:0.5"}
    result = pl.run(method, task, folder=tmp_path / "run", **fields)
    prepared = pl.prepare(result.config, task=task)
    split = prepared.fed.engine.setup.split
    prepared.close()
    hits = count = 0
    for client in range(4):
        rows = split(client)[1]
        data = task.train.subset(rows)
        hits += round(accuracy(result.model(client=client), data) * len(data))
        count += len(data)
    assert hits / count == pytest.approx(result.accuracy)
    first, again = result.model(client=2), pl.load(tmp_path / "run", task=task).model(client=2)
    assert first(task.test.x).equal(again(task.test.x))
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "one.safetensors")


@pytest.mark.parametrize("method", ["finetuned", "fedbabu"])
def test_a_client_s_model_is_of_the_last_round_s_samples(tmp_path, method):
    """Of tasks that follow each other, a client has other samples in each; the server's own worker may have run nothing."""
    task = split_classes(make_task(), stages=2, rounds_each=1, heads=False)
    found = []
    for workers in (1, 2):
        fields = {"clients": 4, "rounds": 2, "evaluation": "clients", "vectorize": "off", "workers": workers}
        result = pl.run(method, task, folder=tmp_path / str(workers), progress=False, **fields)
        loaded = pl.load(tmp_path / str(workers), task=task)
        found += [next(m.model(client=0).parameters()).detach() for m in (result, loaded)]
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_asking_for_a_model_changes_nothing():
    task = make_task()
    run = pl.prepare(pl.RunConfig(method="finetuned", clients=4, cohort=4, rounds=3, evaluation="clients"), task=task)
    run.step()
    run.result().model(client=1)
    while run.step():
        pass
    run.close()
    whole = pl.run("finetuned", task, clients=4, rounds=3, evaluation="clients")
    assert run.result().model_sha256 == whole.model_sha256
    assert run.result().accuracy == whole.accuracy


def test_steps_end_with_the_same_bits(tmp_path):
    task = make_task()
    config = pl.RunConfig(method="scaffold", clients=5, cohort=3, rounds=3)
    run = pl.prepare(config, task=task)
    records = [run.step(), run.step(), run.step()]
    assert run.step() is None
    run.close()
    whole = pl.run(config, task)
    assert run.result().model_sha256 == whole.model_sha256
    assert [r["accuracy"] for r in records] == [r["accuracy"] for r in whole.history]


def test_a_run_that_was_left_early_says_so():
    run = pl.prepare(pl.RunConfig(clients=4, cohort=4, rounds=3), task=make_task())
    run.step()
    run.close()
    assert (run.result().rounds, run.result().stopped) == (1, "before its end")


def test_models_that_are_not_there_are_named():
    result = pl.run("fedproto", make_task(), clients=4, rounds=1)
    with pytest.raises(pl.errors.ConfigError, match=r"FedProto has no global model.*model\(client=0\)"):
        result.model()
    with pytest.raises(pl.errors.ConfigError, match="client 4 does not exist; clients are 0 to 3"):
        result.model(client=4)


def test_a_run_is_resumed_with_its_task_and_no_other(tmp_path):
    def stop(record, total):
        if record["round"] == 2:
            raise KeyboardInterrupt

    task, folder = make_task(), tmp_path / "run"
    task = replace(task, name="mine")
    fields = {"clients": 5, "rounds": 4}
    with pytest.raises(KeyboardInterrupt):
        pl.run("scaffold", task, folder=folder, observer=stop, **fields)
    with pytest.raises(pl.errors.StoreError, match=r"has not ended; continue it with paceline\.resume"):
        pl.load(folder)
    with pytest.raises(pl.errors.ConfigError, match=r"task 'mine' was an object, which is not saved; pass it again: task="):
        pl.resume(folder)
    with pytest.raises(pl.errors.CheckpointError, match="data have changed"):
        pl.resume(folder, task=make_task(samples=200))
    assert pl.resume(folder, task=task).model_sha256 == pl.run("scaffold", task, **fields).model_sha256


@dataclass(frozen=True)
class Own(pl.methods.FedAvg):
    """A user's own class, at the top of a module."""

    part: float = 1.0
    shape: tuple[int, ...] = (1, 2)

    def round(self, fed, state):
        mean = fed.mean(self.train, state.params, over=fed.sample())
        return pl.State(params=state.params + self.part * mean.delta)


def test_a_method_s_name_and_fields_are_kept(tmp_path):
    result = pl.run(Own(part=0.5, shape=(3,)), make_task(), clients=4, rounds=2, folder=tmp_path / "run")
    assert result.config.method == f"{__name__}:Own"
    assert result.config.options == {"part": 0.5, "shape": [3]}
    loaded = pl.load(tmp_path / "run", task=make_task())
    assert loaded.config == result.config
    assert loaded.model_sha256 == loaded.params.sha256() == result.model_sha256
    assert pl.run(f"{__name__}:Own:part=0.5", make_task(), clients=4, rounds=2).model_sha256 == result.model_sha256
    assert pl.run(Own(), make_task(), clients=4, rounds=2).model_sha256 != result.model_sha256


def test_a_method_without_a_name_runs_and_is_given_again(tmp_path):
    @dataclass(frozen=True)
    class Hidden(Own):
        scale: object = None

        def round(self, fed, state):
            mean = fed.mean(self.train, state.params, over=fed.sample())
            return pl.State(params=state.params + self.scale(mean.delta))

    method, fields = Hidden(scale=lambda delta: delta * 0.5), {"clients": 4, "rounds": 2}
    result = pl.run(method, make_task(), folder=tmp_path / "run", **fields)
    assert result.model_sha256 == pl.run(Own(part=0.5), make_task(), **fields).model_sha256
    with pytest.raises(pl.errors.ConfigError, match="or pass the run's method as an object: method="):
        pl.resume(tmp_path / "run", task=make_task())
    assert pl.resume(tmp_path / "run", task=make_task(), method=method).model_sha256 == result.model_sha256


def test_none_cannot_be_kept(tmp_path):
    method = pl.methods.FedSpeed(clip=None)
    assert pl.run(method, make_task(), clients=4, rounds=1).config.options == {"clip": None}
    with pytest.raises(pl.errors.ConfigError, match="fedspeed with clip=None cannot be saved"):
        pl.run(method, make_task(), clients=4, rounds=1, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_another_task_s_model_is_refused(tmp_path):
    pl.run("fedavg", make_task(), clients=4, rounds=1, folder=tmp_path / "run")
    with pytest.raises(pl.errors.StoreError, match="does not match the model of task 'blobs'"):
        pl.load(tmp_path / "run", task=make_task(model=normed)).model()


def test_places(tmp_path):
    fields = {"clients": 4, "rounds": 1}
    names = [pl.run("fedavg", make_task(), out=tmp_path, **fields).folder.name for _ in range(2)]
    assert names == ["fedavg-blobs-s0", "fedavg-blobs-s0-2"]
    with pytest.raises(pl.errors.StoreError, match="exists"):
        pl.run("fedavg", make_task(), folder=tmp_path / names[0], **fields)
    with pytest.raises(pl.errors.ConfigError, match="not both"):
        pl.run("fedavg", make_task(), folder=tmp_path / "a", out=tmp_path, **fields)
