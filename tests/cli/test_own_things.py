"""A user's own method, task, model, fleet ... on the command line and in a file, beside the built-in ones."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.methods.optimisation.fedprox import FedProx
from paceline.registry import load
from tests.cli.conftest import QUICK
from tests.lab import distribution


def test_two_packages_of_one_name_are_named(lab, site, call):
    distribution(site, "labone", methods={"mine": "mylab:FedProx"})
    distribution(site, "labtwo", methods={"mine": "yourlab:Mine"})
    for words in (("methods",), ("run", "mine", *QUICK), ("compare", "fedavg", "mine", *QUICK)):
        reported = " ".join(call(*words, code=2).stderr.split())
        assert "mylab:FedProx of labone and yourlab:Mine of labtwo" in reported
    call("run", "fedavg", *QUICK)


def test_a_class_of_a_user_does_not_take_the_place_of_a_built_in_one(lab, call):
    call("compare", "fedprox", "mylab:FedProx", *QUICK, "--quiet", "--name", "both", "-o", "epochs=2")
    reported = json.loads(call("report", "runs/both", "--json").stdout)
    assert [entry["label"] for entry in reported] == ["fedprox", "mylab:FedProx"]
    assert [entry["method"] for entry in reported] == ["fedprox", "mylab:FedProx"]
    theirs, own = (entry["model_sha256"] for entry in reported)
    alone = {
        name: json.loads(call("run", name, *QUICK, "-o", "epochs=2", "--json").stdout)["model_sha256"]
        for name in ("fedprox", "fedprox:mu=2.0", "mylab:FedProx")
    }
    assert theirs == alone["fedprox"] != own == alone["mylab:FedProx"] == alone["fedprox:mu=2.0"]
    assert load("method", "fedprox") is FedProx
    cards = {card["name"]: card for card in json.loads(call("methods", "--json").stdout)}
    assert [f["default"] for f in cards["fedprox"]["fields"] if f["name"] == "mu"] == [0.01]
    own_card = json.loads(call("methods", "mylab:FedProx", "--json").stdout)
    assert (own_card["name"], own_card["effects"]) == ("mylab:FedProx", [])


def test_everything_in_a_run_can_be_a_users_own(lab, call):
    words = {
        "--task": "mylab:task", "--engine": "mylab:Engine", "--aggregation": "mylab:Sums:scale=2",
        "--fleet": "mylab:Trams:delay=2,churn=0.1", "--participation": "mylab:Weekends:every=3", "--adversary": "mylab:Loud:0.3,scale=2",
    }  # fmt: skip
    line = [text for pair in words.items() for text in pair]
    reported = json.loads(
        call("run", "mylab:FedProx:mu=0.5", *line, "--clients", "4", "--cohort", "3", "--rounds", "2", "--json").stdout
    )
    config = Path(reported["run"], "config.toml").read_text()
    assert all(f'"{text}"' in config for text in words.values())
    again = json.loads(call("run", "--config", f"{reported['run']}/config.toml", "--json").stdout)
    assert again["model_sha256"] == reported["model_sha256"]
    other = json.loads(call("run", "--config", f"{reported['run']}/config.toml", "--json", "--task-option", "samples=40").stdout)
    assert other["model_sha256"] != reported["model_sha256"]
    model = json.loads(call("run", *QUICK[:2], "--model", "mylab:Net", *QUICK[4:], "--task-option", "width=3", "--json").stdout)
    assert model["rounds"] == 2
    assert "unknown option" in call("run", "--task", "mylab:task", "--task-option", "sampels=40", *QUICK[4:], code=2).stderr
