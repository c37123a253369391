"""Sweeps: every setting and seed, the best first; failures do not end them; they go on where they were stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paceline as pl
from paceline.core.errors import ConfigError, StoreError, UnknownNameError
from paceline.results.space import Range, drawn, grid, parse_space
from tests.conftest import make_task

FIELDS = {"clients": 4, "rounds": 2}


def test_spaces():
    space = parse_space(["lr=log:0.001..1", "mu=0.5,1", "epochs=1..3"])
    found = drawn(space, 40)
    assert found == drawn(space, 60)[:40]
    assert found != drawn(space, 40, seed=1)
    assert {one["epochs"] for one in found} == {1, 2, 3}
    assert {one["mu"] for one in found} == {0.5, 1}
    rates = sorted(one["lr"] for one in found)
    assert 0.001 <= rates[0] < 0.01
    assert 10 < sum(rate < 0.03 for rate in rates) < 30  # half of a logarithmic range
    assert grid({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert drawn({"a": [1, 2]}, 9) == [{"a": 1}, {"a": 2}]
    assert Range(0.0, 1.0).draw(0.25) == 0.25
    assert Range(1, 2, whole=True).draw(0.999) == 2


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1..", "lr=2..1", "lr=log:0..1", "lr=a..b"])
def test_malformed_spaces(text):
    with pytest.raises(ConfigError):
        parse_space([text])


def test_every_setting_and_seed_is_run_and_the_best_comes_first():
    found = pl.sweep(["fedavg", "fedprox"], make_task(), space={"lr": [0.001, 0.2], "mu": [0.1, 1.0]}, seeds=2, **FIELDS)
    assert len(found.rows) == 2 + 4  # fedavg has no mu
    assert all(row["seeds"] == 2 for row in found.rows)
    scores = [row["accuracy"] for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    assert found.best["options"]["lr"] == 0.2
    alone = pl.run("fedprox:lr=0.2,mu=1.0", make_task(), seed=1, **FIELDS)
    same = [r for e, r in zip(found.entries, found.results, strict=True) if e.config["options"] == alone.config.options]
    assert [r.model_sha256 for r in same if r.config.method == "fedprox"][1] == alone.model_sha256
    assert pl.sweep("fedavg", make_task(), space={"clients": [3, 4]}, rounds=1).rows[0]["seeds"] == 1


def test_a_failed_run_does_not_end_the_others(tmp_path):
    found = pl.sweep("fedavg", make_task(), space={"lr": [0.1, 1e30]}, out=tmp_path, **FIELDS)
    assert [row["label"] for row in found.rows] == ["fedavg"]
    assert list(found.failed) == ["fedavg:lr=1e+30, seed 0"]
    with pytest.raises(pl.errors.NonFiniteError):
        pl.sweep("fedavg", make_task(), space={"lr": [1e30]}, **FIELDS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_goes_on(tmp_path, workers):
    fields = {"space": {"lr": [0.05, 0.1, 1e30]}, "out": tmp_path, "name": "lr", "workers": workers, **FIELDS}
    first = pl.sweep("fedavg", make_task(), **fields)
    names = json.loads((tmp_path / "lr" / "comparison.json").read_text())["runs"]
    folder = tmp_path / "lr" / names[1]
    (folder / "summary.json").unlink()
    done = (tmp_path / "lr" / names[0] / "summary.json").stat().st_mtime_ns
    said = tmp_path / "lr" / names[2] / "failed.json"
    said.write_text(said.read_text().replace("round 1", "round one"))
    again = pl.sweep("fedavg", make_task(), **fields)
    assert "round one" in next(iter(again.failed.values()))  # it is not repeated
    assert [r.model_sha256 for r in again.results] == [r.model_sha256 for r in first.results]
    assert again.failed.keys() == first.failed.keys() == {"fedavg:lr=1e+30, seed 0"}
    assert (tmp_path / "lr" / names[0] / "summary.json").stat().st_mtime_ns == done
    with pytest.raises(StoreError, match="contains other runs"):
        pl.sweep("fedavg", make_task(), **fields | {"space": {"lr": [0.05]}})
    one = pl.run("fedavg", make_task(), **FIELDS, options={"lr": 0.05})
    assert one.model_sha256 in [r.model_sha256 for r in again.results]


def test_mistakes():
    with pytest.raises(UnknownNameError, match="setting 'mo'; did you mean model, mu"):
        pl.sweep("fedprox", make_task(), space={"mo": [1]}, **FIELDS)
    with pytest.raises(ConfigError, match="is a range"):
        pl.sweep("fedprox", make_task(), space={"mu": "0..1"}, **FIELDS)
    with pytest.raises(ConfigError, match="needs settings"):
        pl.sweep("fedprox", make_task(), space={}, **FIELDS)
    with pytest.raises(ConfigError, match="several workers need a folder"):
        pl.sweep("fedprox", make_task(), space={"mu": [1]}, workers=2, **FIELDS)
    with pytest.raises(ConfigError, match="mu"):
        pl.sweep("fedprox", make_task(), space={"mu": [1, -1]}, **FIELDS)


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_leaves_no_process_and_goes_on(tmp_path):
    words = [
        "fedavg",
        "-o",
        "lr=0.1,0.2,0.3,0.4",
        "--task",
        "digits",
        "--rounds",
        "60",
        "--clients",
        "4",
        "--workers",
        "2",
        "--name",
        "s",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", "from paceline.cli import main; main()"]
    child = subprocess.Popen([*run, "sweep", *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("runs/s/*/metrics.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == 130
    assert "paceline resume runs/s" in said
    resumed = subprocess.run([*run, "resume", "runs/s", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads(resumed.stdout)["rows"]) == 4
    assert len(list(Path(tmp_path / "runs/s").glob("*/summary.json"))) == 4
