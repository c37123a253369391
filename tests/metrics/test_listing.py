"""`paceline metrics`, `--metric` and the page on metrics list what is registered."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline import registry
from paceline.cli.app import app
from paceline.metrics import Metric

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def call(*words):
    ended = CliRunner().invoke(app, list(words))
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_all_are_listed_with_direction_and_options():
    rows = {row["name"]: row for row in json.loads(call("metrics", "--json"))}
    assert list(rows) == registry.names("metric")
    assert all(row["about"] for row in rows.values())
    assert rows["rmse"]["range"] == [0.0, None]
    assert [(o["name"], o["default"]) for o in rows["f1"]["options"]] == [("average", "macro"), ("per_class", False)]
    assert all(o["doc"] for row in rows.values() for o in row["options"])
    text = call("metrics")
    assert all(name in text for name in rows)


def test_the_page_lists_all_with_direction_and_options():
    table = PAGE.read_text().partition("| metric | figure |")[2].partition("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.split("|")[1:5]] for line in table]
    found = [[name.strip("`"), *rest] for name, *rest in found]
    rows = {row["name"]: row for row in json.loads(call("metrics", "--json"))}
    assert {name: better == "higher" for name, _, better, _ in found} == {n: r["higher_is_better"] for n, r in rows.items()}
    for name, figures, _, options in found:
        assert re.findall(r"`(\w+)`", options) == [o["name"] for o in rows[name]["options"]], name
        required = {"detection-map": {"classes": 2}, "concordance": {"horizon": 1.0}}.get(name, {})
        assert registry.load("metric", name)(**required).figure in re.findall(r"`(\w+)`", figures)


def test_every_class_with_figures_is_registered():
    def below(cls):
        return {cls, *(c for sub in cls.__subclasses__() for c in below(sub))}

    ours = {c for c in below(Metric) if c.__module__.startswith("paceline.metrics.") and not c.__name__.startswith("_")}
    named = {registry.load("metric", name) for name in registry.names("metric")}
    assert {c.__name__ for c in ours - named} == {"ClassMetric", "LabelMetric", "TokenMetric", "ValueMetric"}


@pytest.mark.parametrize("words", [("--metric", "f1", "--metric", "log-loss"), ("--config", "run.toml")])
def test_a_run_on_the_command_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('metrics = ["f1", "log-loss"]\n')
    run = ["run", "fedavg", "--task", "digits", "--rounds", "1", "--out", str(tmp_path / "runs"), *words]
    found = json.loads(call(*run, "--json"))
    assert (found["metric"], found["higher_is_better"]) == ("macro_f1", True)
    record = json.loads((tmp_path / "runs" / "fedavg-digits-s0" / "metrics.jsonl").read_text())
    assert found["score"] == record["macro_f1"]
    assert record["log_loss"] == pytest.approx(record["loss"], rel=1e-5)
    assert "Macro f1" in call(*run, "--replace")
    assert (tmp_path / "runs" / "fedavg-digits-s0" / "plots" / "run.png").exists()
