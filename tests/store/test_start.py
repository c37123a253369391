"""A run starts from given weights, everywhere; what does not match is named."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import paceline as pl
from paceline.core.errors import LayoutError, StoreError
from paceline.store.weights import read_weights, weights_digest
from tests.conftest import make_task, small_mlp

FIELDS = {"clients": 4, "rounds": 2}


def initial(config, task, **parts):
    run = pl.prepare(config, task=task, **parts)
    params = run.fed.init_params()
    run.close()
    return params


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested"])
def test_files_of_weights(tmp_path, form):
    module = small_mlp()
    file = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(module.state_dict(), file)
    else:
        torch.save(module.state_dict() if form == "pt" else {"epoch": 3, "state_dict": module.state_dict()}, file)
    start = initial(pl.RunConfig(clients=4, cohort=4, start_from=str(file)), make_task())
    assert all(start[name].equal(value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("method", ["fedavg", "fedper", "ditto", "fedopt"])
def test_a_run_goes_on_from_the_model_of_another(tmp_path, method):
    first = pl.run("fedavg", make_task(), folder=tmp_path / "first", **FIELDS)
    second = pl.run(method, make_task(), folder=tmp_path / "second", start_from=str(tmp_path / "first"), **FIELDS)
    shutil.rmtree(tmp_path / "first")  # the run keeps its start
    assert pl.resume(tmp_path / "second", task=make_task()).model_sha256 == second.model_sha256
    longer = pl.resume(tmp_path / "second", rounds=3, task=make_task())
    pl.run("fedavg", make_task(), folder=tmp_path / "first", **FIELDS)
    fields = FIELDS | {"rounds": 3, "start_from": str(tmp_path / "first")}
    assert pl.run(method, make_task(), **fields).model_sha256 == longer.model_sha256
    assert pl.run(method, make_task(), workers=2, **fields).model_sha256 == longer.model_sha256
    assert first.config.start_from is None
    assert second.config.start_from.startswith(f"{tmp_path / 'first'}#sha256=")


def test_the_rounds_of_two_runs_are_those_of_one_where_nothing_else_is_kept(tmp_path):
    pl.run("fedavg", make_task(), folder=tmp_path / "first", **FIELDS)
    start = initial(pl.RunConfig(clients=4, cohort=4, start_from=str(tmp_path / "first"), seed=5), make_task())
    assert start.sha256() == pl.load(tmp_path / "first").model_sha256


def test_differences_are_named(tmp_path):
    other = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 7))
    state = other.state_dict()
    state["extra.weight"] = state.pop("0.bias")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(LayoutError) as caught:
        pl.run("fedavg", make_task(), start_from=str(tmp_path / "other.pt"), **FIELDS)
    text = str(caught.value)
    assert "missing there: 0.bias" in text
    assert "unknown to the model: extra.weight" in text
    assert "4.weight is [7, 8] there, but [4, 8] in the model" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"rubbish", "cannot be read as weights"), ([1, 2], "no state dict"), ("folder", "is no run")],
)
def test_what_has_no_weights_is_named(tmp_path, content, words):
    file = tmp_path / "weights.pt"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(StoreError, match=words):
        read_weights(file)


def test_a_file_that_has_changed_is_refused(tmp_path):
    torch.save(small_mlp().state_dict(), tmp_path / "w.pt")
    digest = weights_digest(read_weights(tmp_path / "w.pt"))
    config = pl.RunConfig(clients=4, cohort=4, start_from=f"{tmp_path / 'w.pt'}#sha256={digest}")
    initial(config, make_task())
    torch.save(small_mlp().state_dict(), tmp_path / "w.pt")
    with pytest.raises(StoreError, match="has changed since"):
        initial(config, make_task())


def normed():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def test_statistics_and_frozen_parts_start_there_too():
    import dataclasses

    from paceline.tasks.start import started

    trained = normed()
    trained[1].running_mean.fill_(3.0)
    task = dataclasses.replace(make_task(model=normed), trainable=["3.*"])
    without_counter = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    result = pl.run("fedavg", started(task, without_counter, "memory"), **FIELDS)
    assert result.model()[0].weight.equal(trained[0].weight)


def test_workers_that_read_the_data_themselves_start_there_too(tmp_path):
    pl.run("fedavg", "digits", model="logreg", folder=tmp_path / "first", **FIELDS)
    config = pl.RunConfig(task="digits", model="logreg", clients=4, cohort=4, start_from=str(tmp_path / "first"))
    run = pl.prepare(config)
    task, _ = run.fed.engine.setup.samples()
    run.close()
    weights = read_weights(tmp_path / "first")
    assert all(value.equal(weights[name]) for name, value in task.build(9).state_dict().items())


def test_the_scaling_of_inputs_is_that_of_the_weights(tmp_path):
    for name, shift in (("a", 0), ("b", 50)):
        rows = [f"{shift + i % 17},{'no' if i % 17 < 9 else 'yes'}" for i in range(120)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["dose,sick", *rows]))

    def run(name, **more):
        options = {"standardize": "federated"}
        return pl.run("fedavg", f"csv:{tmp_path}/{name}.csv", task_options=options, **FIELDS, **more)

    first = run("a", folder=tmp_path / "first", client_samples=9)
    second = run("b", start_from=str(tmp_path / "first"))
    assert second.model().state_dict()["0.mean"].equal(first.model().state_dict()["0.mean"])


def test_a_tuning_of_the_weights_of_a_whole_model(tmp_path):
    pl.run("fedavg", "digits", model="mlp", folder=tmp_path / "first", **FIELDS)
    fields = {**FIELDS, "model": "mlp", "task_options": {"peft": "bias"}}
    tuned = pl.run("fedavg", "digits", folder=tmp_path / "tuned", start_from=str(tmp_path / "first"), **fields)
    weights = read_weights(tmp_path / "first")
    state = tuned.state_dict()
    frozen = [name for name in state if name not in tuned.params]
    assert any(name.endswith("weight") for name in frozen)
    assert all(state[name].equal(weights[name]) for name in frozen)
    again = pl.run("fedavg", "digits", start_from=str(tmp_path / "tuned"), **fields)
    assert all(again.state_dict()[name].equal(state[name]) for name in frozen)
