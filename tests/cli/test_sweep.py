"""`paceline sweep`: the table of the best, JSON, going on, and messages for what is wrong."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK


def test_a_table_of_the_best_and_json(call):
    words = ("sweep", "fedavg", "fedprox", "-o", "lr=0.001,0.1", "-o", "mu=0.1,1", *QUICK, "--seeds", "2")
    shown = call(
        "sweep", "fedavg", "-o", "lr=0.001,0.01,0.1", *QUICK, "--rounds", "1", "--seeds", "2", "--top", "2", "--quiet"
    ).stdout
    assert "the best 2 of 3" in shown
    assert "±" in shown
    assert Path("runs/sweep-digits/compare.png").exists()
    found = json.loads(call(*words, "--json", "--workers", "2", "--name", "again").stdout)
    assert len(found["rows"]) == 6
    assert found["best"]["options"]["lr"] == 0.1
    assert found["failed"] == {}
    (Path(found["folder"]) / "fedavg-lr=0.1-s0" / "summary.json").unlink(missing_ok=True)
    assert json.loads(call("resume", "runs/again", "--json").stdout)["rows"] == found["rows"]


def test_random_settings_and_fields_of_the_run(call):
    words = (
        "sweep",
        "fedavg",
        "-o",
        "lr=log:0.01..1",
        "-o",
        "partition=iid,dirichlet:0.5",
        "--random",
        "3",
        *QUICK,
        "--rounds",
        "1",
    )
    found = json.loads(call(*words, "--json").stdout)
    assert len(found["rows"]) == 3
    rates = [float(row["label"].partition("lr=")[2].partition(",")[0]) for row in found["rows"]]
    assert all(0.01 <= rate <= 1 for rate in rates)
    assert len(set(rates)) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "lr=0.1..1"), "--random"),
        (("-o", "mo=1"), "did you mean"),
        ((), "needs settings"),
        (("-o", "lr=0.1", "--seeds", "0"), "seeds must differ"),
        (("-o", "lr=0.1", "--seeds", "a"), "whole numbers"),
    ],
)
def test_mistakes(call, words, said):
    assert said in call("sweep", "fedprox", *words, *QUICK, code=2).stderr
