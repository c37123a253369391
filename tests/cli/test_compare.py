"""`paceline compare` and `report`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import QUICK, last_json
from tests.cli.test_run import KEYS


def test_json_lists_every_run(call):
    ended = call("compare", "fedavg", "fedprox:mu=0.1,lr=0.05", *QUICK, "--seeds", "0,1", "--json", "--name", "both")
    told = json.loads(ended.stdout)
    assert [(t["method"], t["seed"]) for t in told] == [("fedavg", 0), ("fedavg", 1), ("fedprox", 0), ("fedprox", 1)]
    assert all(set(t) >= KEYS for t in told)
    assert told[2]["label"] == "fedprox:mu=0.1,lr=0.05"
    assert all(Path(t["run"], "summary.json").exists() for t in told)
    assert Path("runs/both/compare.png").exists()
    listed = json.loads(call("report", "runs/both", "--json").stdout)
    assert {t["model_sha256"] for t in listed} == {t["model_sha256"] for t in told}


def test_a_run_of_a_comparison_has_the_bits_of_a_run_alone(call):
    told = json.loads(call("compare", "fedavg", "scaffold", *QUICK, "--json").stdout)
    alone = json.loads(call("run", "scaffold", *QUICK, "--json").stdout)
    assert told[1]["model_sha256"] == alone["model_sha256"]


def test_table(call):
    shown = call("compare", "fedavg", "fedprox", *QUICK, "--seeds", "0,1", "--quiet", "-o", "lr=0.1").stdout
    assert "±" in shown
    assert "×" in shown
    for column in ("accuracy", "round time", "time to", "total time", "bytes up", "bytes down"):
        assert column in shown
    assert "fedprox" in shown
    assert "lr=0.1" not in shown


def test_a_misfit_is_told_before_anything_is_trained(call):
    seen = last_json(call("compare", "fedavg", "fedprox", *QUICK, "--cohort", "9", "--json", code=3))
    assert seen["message"].count("cohort of 9") == 1
    assert "fedavg, fedprox" in seen["message"]
    assert not Path("runs").exists()


def test_mistakes(call):
    assert "0,1,2" in call("compare", "fedavg", *QUICK, "--seeds", "0;1", code=2).stderr
    assert "differ" in call("compare", "fedavg", *QUICK, "--seeds", "1,1", code=2).stderr
    assert "did you mean" in call("compare", "fedavg", "fedprx", *QUICK, code=2).stderr
    assert "Missing" in call("compare", code=2).stderr


def test_report_of_one_run(call):
    call("run", "fedavg", *QUICK, "--name", "one", "--quiet")
    shown = call("report", "runs/one", "--target-accuracy", "0.01").stdout
    assert "fedavg" in shown
    assert "time to 1 %" in shown
    assert ".png" in shown


def test_report_needs_a_finished_run(call):
    Path("empty").mkdir()
    assert "paceline resume" in call("report", "empty", code=13).stderr
    assert "between 0 and 1" in call("report", "empty", "--target-accuracy", "50", code=2).stderr
