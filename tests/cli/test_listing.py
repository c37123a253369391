"""`paceline methods`, `tasks`, `partition` and `doctor`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from paceline.cli import doctor, listing
from paceline.cli.listing import card, sum_only
from paceline.core.fields import field_docs
from paceline.core.method import Method, on_client
from paceline.registry import method_names
from tests.cli.conftest import last_json


def test_methods_are_listed_with_what_the_server_sees(call):
    cards = {c["name"]: c for c in json.loads(call("methods", "--json").stdout)}
    assert {"fedavg", "fedprox", "fedopt", "scaffold"} <= set(cards)
    assert cards["fedavg"]["secure"] is True
    assert "control" in cards["scaffold"]["client_state"]
    shown = call("methods").stdout
    assert "scaffold" in shown
    assert "the server sees" in shown


def test_the_list_is_readable_on_80_columns(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("methods").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split() for line in lines].count(["asynchronous"]) == 1
    assert any(line.startswith("fedamd") and " sums of updates " in line for line in lines)
    assert {"secure", "stacks"} <= set(lines[1].split())
    assert len(lines) < 2 * len(method_names())


def test_card_of_one_method(call):
    shown = call("methods", "fedprox").stdout
    assert "float, at least 0" in shown
    assert "int, above 0" in shown
    for text in ("Federated Optimization in Heterogeneous Networks", "mu", "0.01", "epochs", "local passes"):
        assert text in shown
    assert "did you mean fedprox" in call("methods", "fedprx", code=2).stderr


def test_a_card_shows_effects_with_interval_and_verdict(call, monkeypatch):
    """Differences keep their sign, ratios are shown as factors, and a figure that is missing is no number."""
    effect = {"of": "fedprox", "claim": "it helps", "versus": "fedavg", "figure": "accuracy", "ratio": False, "date": "2026-01-02"}
    effect |= {"effect": -0.03, "low": -0.04, "high": -0.02, "verdict": "does not hold", "seeds": [0, 1, 2, 3, 4]}
    ratio = {**effect, "ratio": True, "effect": math.log(2), "low": math.log(1.5), "high": math.log(2.5), "verdict": "holds"}
    missing = {**effect, "effect": math.nan, "low": math.nan, "high": math.nan}
    monkeypatch.setattr(listing, "effects", lambda name: [effect, ratio, missing])
    shown = call("methods", "fedprox").stdout
    assert "it helps; accuracy: -0.03 [-0.04, -0.02] against fedavg: does not hold (5 seeds, 2026-01-02)" in shown
    assert "it helps; accuracy: 2x better [1.5x, 2.5x] against fedavg: holds (5 seeds, 2026-01-02)" in shown
    assert "it helps; accuracy: no figure against fedavg: does not hold (5 seeds, 2026-01-02)" in shown


def test_every_field_of_every_method_has_a_text(call):
    cards = json.loads(call("methods", "--json").stdout)
    bare = [f"{c['name']}.{f['name']}" for c in cards for f in c["fields"] if not f["doc"]]
    assert bare == []


def test_sum_only_and_docs_of_shared_lines():
    @dataclass(frozen=True)
    class Peek(Method):
        """Look at each.

        Args:
            alpha, beta: two of them,
                told over two lines.
        """

        alpha: float = 1.0
        beta: float = 2.0

        @on_client(each=True)
        def look(self, client, message): ...

    assert not sum_only(Peek)
    assert field_docs(Peek) == dict.fromkeys(("alpha", "beta"), "two of them, told over two lines.")
    assert card(Peek, "peek")["fields"][1] == {
        "name": "beta", "type": "float", "range": "", "default": 2.0, "doc": "two of them, told over two lines.",
    }  # fmt: skip


def test_tasks(call):
    found = {t["name"]: t for t in json.loads(call("tasks", "--json").stdout)}
    assert found["digits"]["ready"]
    assert "digits" in call("tasks").stdout


def test_partition(call):
    words = ("partition", "--task", "digits", "--partition", "shards:2", "--clients", "5")
    reported = json.loads(call(*words, "--json", "--out", "split.png").stdout)
    assert len(reported["clients"]) == 5
    assert sum(c["samples"] for c in reported["clients"]) <= 1797
    assert Path("split.png").stat().st_size > 1000
    assert "client" in call(*words).stdout
    assert last_json(call("partition", "--task", "digits", "--clients", "0", "--json", code=2))["error"] == "ConfigError"


def test_doctor(call, monkeypatch):
    reported = json.loads(call("doctor", "--json").stdout)
    assert reported["ok"]
    seen = {f["what"] for f in reported["findings"]}
    assert {"Python", "torch", "processor cores", "cache of data sets", "folder of runs", "task digits", "extra postgres"} <= seen
    assert "torch" in call("doctor").stdout
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    reported = json.loads(call("doctor", "--json", code=1).stdout)
    assert [f["what"] for f in reported["findings"] if f["state"] == "missing"] == ["no-such-package"]


def test_doctor_warns_of_a_server_that_can_admit_its_own_clients(call, tmp_path):
    (tmp_path / "server.toml").write_text('[server]\nca = "ca"\n')
    (tmp_path / "apart.toml").write_text('[server]\nlisten = "0.0.0.0:9100"\n')
    states = {}
    for name in ("server", "apart"):
        reported = json.loads(call("doctor", "--json", "--config", tmp_path / f"{name}.toml", code=1).stdout)  # there are no keys
        states[name] = next((f["state"], f["found"]) for f in reported["findings"] if f["what"] == "authority")
    assert states["server"][0] == "warning"
    assert "can admit clients and surround an honest one" in states["server"][1]
    assert states["apart"][0] == "ok"


def test_doctor_finds_a_folder_that_cannot_be_written(call):
    Path("file").write_text("")
    assert "file" in call("doctor", "--out", "file/runs", code=1).stdout


@pytest.mark.parametrize("line", ["torch>=2.4", "pytest>=8; extra == 'dev'", 'pytest-xdist>=3.6; extra == "dev"'])
def test_extras_are_read_from_the_package(line, monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: [line])
    found = list(doctor._extras(Path()))
    assert [f.what for f in found] == (["extra dev"] if "extra" in line else [])
    assert all(f.found == "installed" for f in found)


def test_the_card_of_a_method_begins_with_the_claims_that_do_not_hold_and_with_its_differences(call, monkeypatch):
    effect = {"figure": "accuracy", "versus": "fedavg", "effect": 0.1, "low": 0.0, "high": 0.2, "ratio": False}
    effect |= {"seeds": [1, 2, 3, 4, 5], "date": "2026-01-01"}
    measured = [{"claim": "a good one", "verdict": "holds"}, {"claim": "a bad one", "verdict": "does not hold"}]
    monkeypatch.setattr(listing, "effects", lambda name: [effect | made for made in measured])
    lines = [line.strip("│ ") for line in call("methods", "fedbuff").stdout.splitlines()]
    assert lines[1] == "does not hold    a bad one (accuracy, against fedavg)"
    assert lines[2].startswith("differs          local SGD has momentum")
    assert [line.split(";")[0] for line in lines if line.startswith("measured here")] == [
        "measured here: a bad one",
        "measured here: a good one",
    ]
