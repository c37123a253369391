"""Sites whose files differ in form: mapped to the schema of the run by name, or refused with the difference on both consoles."""

import asyncio
import json
import random
import shutil

import pytest

from paceline.aggregation.secure.task_hash import Agreement
from paceline.core.errors import CohortError, PolicyError
from paceline.data.schema import Schema
from paceline.deploy.client.client import make_node
from paceline.deploy.plan import Plan
from paceline.deploy.settings import ClientConfig
from paceline.registry import find_method
from paceline.run import RunConfig, run
from paceline.tasks import load_task
from tests.network.conftest import OPEN, Loopback

SECURE = {"aggregation": "secure", "secure": {"gamma": 0.0, "delta": 0.0, "eta": 1}}
CENTRES = {"a": (3, 0), "b": (0, 3), "c": (0, 0)}


def rows(classes, each, seed):
    rng = random.Random(seed)
    made = [(CENTRES[k][0] + rng.gauss(0, 0.7), CENTRES[k][1] + rng.gauss(0, 0.7), k) for k in classes for _ in range(each)]
    rng.shuffle(made)
    return made


def write(path, made, order=("u", "v", "kind"), names=None):
    """Write rows with the columns in an order, and the classes under other names."""
    values = [{"u": f"{u:.3f}", "v": f"{v:.3f}", "kind": (names or {}).get(k, k)} for u, v, k in made]
    path.write_text(",".join(order) + "\n" + "".join(",".join(row[name] for name in order) + "\n" for row in values))


@pytest.fixture
def sites(keys, tmp_path):
    """Four files: the server's sample; columns in another order; other names of classes; a class that is missing."""
    shutil.copytree(keys, tmp_path / "f")
    made = Loopback(tmp_path / "f", None)
    write(tmp_path / "sample.csv", rows("abc", 60, 0))
    write(tmp_path / "0.csv", rows("abc", 60, 1), order=("kind", "v", "u"))
    write(tmp_path / "1.csv", rows("abc", 60, 2), names={"a": "x", "b": "a", "c": "b"})
    write(tmp_path / "2.csv", rows("ab", 90, 3))
    yield made, tmp_path
    made.close()


MAPPED = {"values": {"kind": {"x": "a", "a": "b", "b": "c"}}}


def serve(loopback, folder, **values):
    base = {"task": f"csv:{folder / 'sample.csv'}", "clients": 3, "cohort": 3, "rounds": 8, "options": {"lr": 0.1}}
    loopback.serve({**base, **values})


def join(loopback, folder, number, policy=OPEN, **data):
    (loopback.root / f"policy{number}.toml").write_text(policy + "[allow]\ntasks = ['csv:*']")
    part = {"server": f"localhost:{loopback.server.port}", "folder": loopback.root / f"client{number}", "first": 0.05}
    part |= {"state": loopback.root / f"state{number}", "policy": loopback.root / f"policy{number}.toml"}
    config = ClientConfig.model_validate({"client": part, "data": {"task": f"csv:{folder / f'{number}.csv'}", **data}})
    node = loopback.nodes[number] = make_node(config, loopback.client_lines, pool=loopback.pool)
    loopback.ends[number] = asyncio.run_coroutine_threadsafe(node.run(), loopback.loop._loop)
    return node


def test_order_names_and_a_missing_class_cost_no_accuracy(sites):
    loopback, folder = sites
    serve(loopback, folder)
    nodes = [join(loopback, folder, n, **(MAPPED if n == 1 else {})) for n in range(3)]
    apart = loopback.finish().accuracy
    # the same 540 rows in one file of one form, split three ways, judged by the same test rows
    write(
        folder / "whole.csv",
        [row for n, classes, each in ((1, "abc", 60), (2, "abc", 60), (3, "ab", 90)) for row in rows(classes, each, n)],
    )
    schema = loopback.root / "run" / "schema.json"
    whole = load_task(f"csv:{folder / 'whole.csv'}", schema=str(schema))
    whole = type(whole)(**{**vars(whole), "test": load_task(f"csv:{folder / 'sample.csv'}").test, "name": "whole"})
    together = run("fedavg", whole, clients=3, rounds=8, options={"lr": 0.1}).accuracy
    assert apart > 0.9
    assert abs(apart - together) <= 0.01
    assert [node.runner.worker.setup.task.train.y.bincount(minlength=3).tolist()[2] > 0 for node in nodes] == [True, True, False]


def test_without_the_mapping_the_difference_is_on_both_consoles(sites):
    loopback, folder = sites
    serve(loopback, folder, rounds=1)
    for n in range(3):
        join(loopback, folder, n)
    with pytest.raises(
        CohortError, match=r"client 1: .*the target 'kind' has values that are no class of the schema \(a, b, c\)"
    ) as caught:
        loopback.finish()
    assert "'x'" not in str(caught.value)
    (seen,) = [line for line in loopback.server_lines.of("refused_by_client")][:1]
    assert "map them in [data.values.kind]" in seen["reasons"][0]
    assert "x" not in seen["reasons"][0].split()
    (own,) = loopback.client_lines.of("refused")
    assert "'x' 60x" in own["why"]
    assert own["reasons"] == seen["reasons"]


@pytest.mark.parametrize("report", ["differences", "nothing"])
def test_under_secure_aggregation_names_alone_are_told_and_only_if_the_site_allows_it(sites, report):
    loopback, folder = sites
    (folder / "1.csv").write_text((folder / "1.csv").read_text().replace("u,v", "u,weight", 1))
    serve(loopback, folder, rounds=1, **SECURE)
    for n in range(3):
        join(loopback, folder, n, report=report)
    told = "column 'v' (number) is missing; this file also has 'weight'" if report == "differences" else "see this client's own log"
    loopback.wait(lambda: loopback.server_lines.of("refused_by_client"))
    reasons = " ".join(loopback.server_lines.of("refused_by_client")[0]["reasons"])
    assert told in reasons
    assert ("weight" in reasons) == (report == "differences")
    assert "60x" not in reasons
    own = loopback.client_lines.of("refused")[0]["why"]
    assert "60x" in own
    assert "'weight'" in own


def test_a_site_refuses_a_schema_that_it_has_not_agreed_to(sites):
    loopback, folder = sites
    other = Schema.parse(load_task(f"csv:{folder / 'sample.csv'}").info["schema"])
    column = other.columns[0].model_copy(update={"mean": other.columns[0].mean + 1})
    (folder / "agreed.json").write_text(other.model_copy(update={"columns": (column, *other.columns[1:])}).to_json())
    serve(loopback, folder, rounds=1)
    for n in range(3):
        join(loopback, folder, n, **(MAPPED if n == 1 else {}), **({"schema_file": folder / "agreed.json"} if n == 0 else {}))
    with pytest.raises(CohortError, match=r"client 0: .*not the one that this client has agreed to"):
        loopback.finish()


def test_scaling_by_a_secure_sum_is_that_of_all_rows(sites):
    loopback, folder = sites
    serve(loopback, folder, rounds=1, task_options={"standardize": "federated"}, **SECURE)
    nodes = [join(loopback, folder, n, **(MAPPED if n == 1 else {})) for n in range(3)]
    loopback.finish()
    import torch
    from safetensors.torch import load_file

    model = load_file(loopback.root / "run" / "model.safetensors")
    tasks = [node.runner.worker.setup.task for node in nodes]
    pooled = torch.cat([task.train.x for task in tasks]).double()
    assert torch.allclose(model["0.mean"].double(), pooled.mean(0), atol=2e-3)
    assert torch.allclose(model["0.deviation"].double(), pooled.std(0, correction=0), atol=8e-3)
    schema = json.loads((loopback.root / "run" / "schema.json").read_text())
    assert schema["standardize"] == "federated"


def test_the_schema_is_part_of_what_clients_agree_on(sites):
    _, folder = sites
    config, schema = RunConfig(), Schema.parse(load_task(f"csv:{folder / 'sample.csv'}").info["schema"])
    column = schema.columns[0].model_copy(update={"deviation": 1e9})
    other = schema.model_copy(update={"columns": (column, *schema.columns[1:])})
    agreed = [Agreement.of(config, find_method("fedavg"), each) for each in (None, schema, other)]
    assert len({a.run for a in agreed}) == len({a.method for a in agreed}) == 3
    plan = Plan.of(config, None, schema)
    assert Plan.from_tree(plan.to_tree()) == plan
    assert plan.digest != Plan.of(config, None, other).digest


def test_a_hostile_schema_is_refused(sites):
    _, folder = sites
    tree = Plan.of(RunConfig(), None, Schema.parse(load_task(f"csv:{folder / 'sample.csv'}").info["schema"])).to_tree()
    for change in ({"deviation": 0.0}, {"deviation": -1.0}, {"mean": float("nan")}, {"kind": "code"}, {"name": ""}, {"run": "rm"}):
        bad = json.loads(json.dumps(tree))
        bad["data_schema"]["columns"][0] |= change
        with pytest.raises((PolicyError, ValueError), match="data_schema"):
            Plan.from_tree(bad)
