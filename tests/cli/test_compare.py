"""`paceline compare` and `report`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK, Call, last_json
from tests.cli.test_run import KEYS


def test_json_lists_every_run(call):
    ended = call("compare", "fedavg", "fedprox:mu=0.1,lr=0.05", *QUICK, "--seeds", "0,1", "--json", "--name", "both")
    reported = json.loads(ended.stdout)
    assert [(t["method"], t["seed"]) for t in reported] == [("fedavg", 0), ("fedavg", 1), ("fedprox", 0), ("fedprox", 1)]
    assert all(set(t) >= KEYS for t in reported)
    assert reported[2]["label"] == "fedprox:mu=0.1,lr=0.05"
    assert all(Path(t["run"], "summary.json").exists() for t in reported)
    assert Path("runs/both/compare.png").exists()
    listed = json.loads(call("report", "runs/both", "--json").stdout)
    assert {t["model_sha256"] for t in listed} == {t["model_sha256"] for t in reported}


def test_a_run_of_a_comparison_has_the_bits_of_a_run_alone(call):
    reported = json.loads(call("compare", "fedavg", "scaffold", *QUICK, "--json").stdout)
    alone = json.loads(call("run", "scaffold", *QUICK, "--json").stdout)
    assert reported[1]["model_sha256"] == alone["model_sha256"]


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


@pytest.mark.parametrize("name", ["my run (1) ü", *(pytest.param(name, marks=pytest.mark.slow) for name in ("x" * 250, "ü" * 200))])
def test_runs_and_comparisons_of_any_name(call: Call, name: str) -> None:
    from paceline.core.names import safe_name

    words = ("--rounds", "1", "--name", name, *QUICK[:-2], "--json")
    for command in (("run", "fedavg"), ("compare", "fedavg", "fedprox:mu=0.1")):
        for again in ((), ("--replace",)):
            call(*command, *words, *again)
        assert [path.name for path in Path("runs").iterdir()] == [safe_name(name)]
        call(*command, *words, code=13)
        shutil.rmtree("runs")


def test_a_folder_that_cannot_be_is_named(call: Call) -> None:
    assert "cannot" in call("run", "fedavg", *QUICK, "--out", "x" * 300, code=13).stderr
    call("resume", "x" * 300, code=13)
    call("doctor", "--out", "x" * 300, code=1)
