"""Clients with files of their own, which no other party has."""

import asyncio
import csv
import shutil

import pytest
import torch

from paceline.core.errors import CohortError
from paceline.deploy.client.client import make_node
from paceline.deploy.settings import ClientConfig
from tests.network.conftest import OPEN, Loopback


def write(path, seed, rows=60, features=4):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=rng)
    y = (x[:, 0] + x[:, 1] > 0).long()
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*(f"f{i}" for i in range(features)), "label"])
        out.writerows([*(f"{v:.4f}" for v in row), int(label)] for row, label in zip(x.tolist(), y.tolist(), strict=True))


@pytest.fixture
def sites(keys, tmp_path):
    shutil.copytree(keys, tmp_path / "f")
    made = Loopback(tmp_path / "f", None)
    for name in ("sample", 0, 1, 2):
        write(tmp_path / f"{name}.csv", hash(str(name)) % 1000 if name == "sample" else int(name))
    yield made, tmp_path
    made.close()


def join(loopback, folder, number, file, **data):
    (loopback.root / "policy.toml").write_text(OPEN + "[allow]\ntasks = ['csv:*']")
    part = {"server": f"localhost:{loopback.server.port}", "folder": loopback.root / f"client{number}", "first": 0.05}
    part |= {"state": loopback.root / f"state{number}", "policy": loopback.root / "policy.toml"}
    config = ClientConfig.model_validate({"client": part, "data": {"task": f"csv:{folder / file}", **data}})
    node = loopback.nodes[number] = make_node(config, loopback.client_lines, pool=loopback.pool)
    loopback.ends[number] = asyncio.run_coroutine_threadsafe(node.run(), loopback.loop._loop)
    return node


def serve(loopback, folder, **run):
    values = {"task": f"csv:{folder / 'sample.csv'}", "clients": 3, "cohort": 3, "rounds": 8, "client_test": 0.25}
    loopback.serve({**values, "evaluation": "federated", "options": {"lr": 0.3}, **run})


def test_files_of_their_own(sites):
    loopback, folder = sites
    serve(loopback, folder)
    nodes = [join(loopback, folder, n, f"{n}.csv") for n in range(3)]
    summary = loopback.finish()
    assert summary.accuracy > 0.75
    rows = [node.runner.worker.setup.split(n) for n, node in enumerate(nodes)]
    assert [(len(train), len(test)) for train, test in rows] == [(45, 15)] * 3
    assert not torch.equal(nodes[0].runner.worker.x, nodes[1].runner.worker.x)


def test_files_without_a_column_are_refused_at_joining(sites):
    loopback, folder = sites
    write(folder / "narrow.csv", 5, features=3)
    serve(loopback, folder, rounds=1, evaluation="central")
    for n in range(3):
        join(loopback, folder, n, "narrow.csv" if n == 2 else f"{n}.csv")
    with pytest.raises(CohortError, match=r"client 2: .* do not match the schema of the run: column 'f3' \(number\) is missing"):
        loopback.finish()


def test_files_that_are_missing_are_told_to_the_server(sites):
    loopback, folder = sites
    serve(loopback, folder)
    for n in range(3):
        join(loopback, folder, n, "nowhere.csv")
    with pytest.raises(Exception, match=r"refuse to participate.*nowhere.csv"):
        loopback.result.result(20)


def test_a_client_that_comes_back_with_other_data_is_refused_and_says_why(sites):
    loopback, folder = sites
    serve(loopback, folder, rounds=400, method="scaffold")
    node = join(loopback, folder, 0, "0.csv")
    for number in (1, 2):
        join(loopback, folder, number, f"{number}.csv")
    loopback.wait(lambda: (loopback.root / "run/metrics.jsonl").exists())
    asyncio.run_coroutine_threadsafe(node.stop(), loopback.loop._loop).result(5)
    loopback.ends[0].result(5)
    memory = loopback.root / "state0" / loopback.server._facts["id"] / "memory"
    kept = (memory / "data").read_bytes()
    same = folder / "copy.csv"  # the same data elsewhere are welcome
    shutil.copy(folder / "0.csv", same)
    other = folder / "other.csv"
    write(other, 7)
    refused = join(loopback, folder, 0, "other.csv")
    loopback.wait(lambda: any("data have changed since it joined this run" in str(line) for line in loopback.client_lines.lines))
    assert refused.runner.worker is None
    assert (memory / "data").read_bytes() == kept
    asyncio.run_coroutine_threadsafe(refused.stop(), loopback.loop._loop).result(5)
    loopback.ends[0].result(5)
    back = join(loopback, folder, 0, "copy.csv")
    loopback.wait(lambda: back.runner.at is not None)
    assert back.runner.worker is not None
