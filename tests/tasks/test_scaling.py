"""Scaling of inputs by a sum over the clients, against NumPy on the pooled rows."""

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError, PlanError
from paceline.run import RunConfig, prepare, resume, run
from paceline.store import RunFolder
from paceline.tasks import load_task, schema_of
from paceline.tasks.schemas import make_schema


def table(folder, shift=0.0, name="t.csv"):
    rng = np.random.default_rng(1)
    rows = [f"{rng.normal(5000 + shift, 300):.3f},{rng.normal(0, 1e-4):.8f},{'xy'[i % 2]},{'ab'[i % 2]}" for i in range(90)]
    (folder / name).write_text("u,v,w,kind\n" + "\n".join(rows))
    return f"csv:{folder / name}"


def shifted(folder, **options):
    """Return the task of a table that lies two deviations beside the sample that the schema was made of."""
    schema = schema_of(load_task(table(folder), standardize="federated"))
    return load_task(table(folder, 600, "site.csv"), schema=schema, **options)


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_mean_and_deviation_are_those_of_all_clients_rows(tmp_path, aggregation):
    task = shifted(tmp_path)
    done = prepare(RunConfig(clients=3, cohort=3, rounds=1, partition="dirichlet:0.5", aggregation=aggregation), task=task)
    done.step()
    params = done.method.model(done.state)
    rows = [task.train.x[done.fed.engine.setup.split(client)[0]].double() for client in range(3)]
    done.close()
    assert len({len(x) for x in rows}) > 1
    weights = torch.tensor([len(x) if aggregation == "plain" else 1 for x in rows]).double()  # secure sums: max_weight is 1
    mean, square = (sum(w * (x**power).mean(0) for w, x in zip(weights, rows, strict=True)) / weights.sum() for power in (1, 2))
    near = 1e-5 if aggregation == "plain" else 1e-2
    assert mean[0] > 1.5
    assert torch.allclose(params["0.mean"][:2].double(), mean[:2], atol=near)
    assert torch.allclose(params["0.deviation"][:2].double(), (square - mean**2).sqrt()[:2], atol=near)
    assert params["0.mean"][2:].tolist() == [0, 0]  # categories
    assert params["0.deviation"][2:].tolist() == [1, 1]


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedavgm", "fedopt", "fluid"])
def test_the_scaling_is_the_same_after_training(tmp_path, method):
    first = prepare(RunConfig(method=method, clients=3, cohort=3, rounds=2), task=shifted(tmp_path))
    first.step()
    before = first.method.model(first.state)["0.mean"].clone()
    first.step()
    assert torch.equal(first.method.model(first.state)["0.mean"], before)
    first.close()


def test_a_run_that_is_resumed_has_the_same_bits(tmp_path):
    table(tmp_path)
    options = {"task": f"csv:{tmp_path / 't.csv'}", "task_options": {"standardize": "federated"}, "clients": 3, "rounds": 3}
    whole = run("fedavg", **{k: v for k, v in options.items() if k != "task"}, task=options["task"], folder=tmp_path / "whole")
    part = prepare(RunConfig(**options, cohort=3), folder=RunFolder.create(tmp_path, "part"))
    part.folder.write_config(part.config.model_dump(exclude_none=True))
    part.step()
    part.close()
    assert resume(tmp_path / "part").model_sha256 == whole.model_sha256


@pytest.mark.parametrize("method", ["localonly", "fedproto", "fedgh", "fedd2s"])
def test_methods_whose_clients_have_networks_of_their_own_refuse_it(tmp_path, method):
    with pytest.raises(PlanError, match="use standardize=schema"):
        prepare(RunConfig(method=method, clients=3, cohort=3, rounds=1), task=shifted(tmp_path))


def test_without_scaling_values_stay_as_they_are(tmp_path):
    task = load_task(table(tmp_path), standardize="none")
    assert task.train.x[:, 0].mean() > 4000
    with pytest.raises(ConfigError, match="must be schema, federated or none"):
        load_task(table(tmp_path), standardize="fed")


@pytest.mark.parametrize("how", ["federated", "none"])
def test_the_name_of_files_may_state_how_inputs_are_scaled(tmp_path, how):
    stated, given = f"{table(tmp_path)}?standardize={how}&target=kind", load_task(table(tmp_path), standardize=how, target="kind")
    assert schema_of(load_task(stated)) == schema_of(given) == make_schema(stated)[0]
    assert torch.equal(load_task(stated).train.x, given.train.x)
    assert schema_of(load_task(stated, standardize="schema")).standardize == "schema"
