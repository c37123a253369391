"""`paceline run` and `resume`: JSON, files, precedence, and messages for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK, last_json
from tests.pretend import PretendCuda

KEYS = {
    "run", "method", "task", "rounds", "seed", "accuracy", "loss", "round_seconds", "total_seconds",
    "wall_seconds", "bytes_up", "bytes_down", "model_sha256",
}  # fmt: skip


def test_json_is_one_object_and_nothing_else(call):
    ended = call("run", "fedavg", *QUICK, "--json", "--seed", "3")
    reported = json.loads(ended.stdout)
    assert set(reported) >= KEYS
    assert (reported["method"], reported["task"], reported["rounds"], reported["seed"]) == ("fedavg", "digits", 2, 3)
    assert Path(reported["run"], "config.toml").exists()
    assert len(reported["model_sha256"]) == 64
    assert ended.stderr == ""


def test_table_progress_and_plot_for_people(call):
    ended = call("run", "fedavg", *QUICK, "--name", "mine")
    assert "Accuracy" in ended.stdout
    assert "Time per round (virtual)" in ended.stdout
    assert "round 2/2" in ended.stderr
    assert "virtual" in ended.stderr
    assert Path("runs/mine/plots/run.png").exists()
    assert call("run", "fedavg", *QUICK, "--quiet").stderr == ""


def test_each_metric_that_was_asked_for_is_shown(call):
    words = ("run", "fedavg", *QUICK, "--metric", "f1", "--metric", "auroc", "--seed", "5")
    shown = call(*words, "--name", "shown").stdout
    reported = json.loads(call(*words, "--json").stdout)
    figures = reported["figures"]
    assert figures["macro_f1"] == reported["score"]
    assert {"accuracy", "loss", "auroc", "auroc_resolution"} < set(figures)
    assert not {"round", "metric", "dropped", "wall_seconds"} & set(figures)
    row = next(line for line in shown.splitlines() if "Auroc" in line)
    assert f"{figures['auroc']:.4g}" in row
    assert "resolution" not in shown
    assert "Worst class" not in shown


def test_warnings_are_messages_without_lines_of_source(tmp_path):
    (tmp_path / "t.csv").write_text("dose,kind\n" + "".join(f"{-999 if i % 9 == 0 else i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    said = subprocess.run(
        [sys.executable, "-c", "from paceline.cli import main; main()", "schema", "csv:t.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert said.startswith("ColumnWarning: t.csv: column 'dose' has -999 in 7 rows")
    assert said.count("\n") == 1


def test_a_profile_shows_the_time_of_this_process_and_of_a_gpu(call):
    plain = call("run", "fedavg", *QUICK, "--quiet", "--profile", "--name", "plain").stdout
    assert "local steps" in plain
    assert "GPU" not in plain
    with PretendCuda():
        told = call("run", "fedavg", *QUICK, "--quiet", "--profile", "--name", "there", "--device", "cuda", "--chunk", "2").stdout
    heading = next(line for line in told.splitlines() if "this process" in line)
    assert "GPU" in heading
    assert "gpu:" not in told


def test_same_line_same_bits_other_seed_other_bits(call):
    sums = [json.loads(call("run", *QUICK, "--json", "--seed", s).stdout)["model_sha256"] for s in ("0", "0", "1")]
    assert sums[0] == sums[1] != sums[2]


def test_options_win_over_the_file_and_the_run_writes_what_it_used(call):
    Path("mine.toml").write_text(
        'method = "fedprox"\ntask = "digits"\nmodel = "logreg"\nclients = 4\ncohort = 3\nrounds = 4\n'
        "[options]\nmu = 0.5\nlr = 0.2\n"
    )
    reported = json.loads(call("run", "--config", "mine.toml", "--rounds", "1", "-o", "lr=0.05", "--json").stdout)
    assert (reported["method"], reported["rounds"]) == ("fedprox", 1)
    used = tomllib.loads(Path(reported["run"], "config.toml").read_text())
    assert used["options"] == {"mu": 0.5, "lr": 0.05}
    assert (used["rounds"], used["cohort"]) == (1, 3)
    again = json.loads(call("run", "--config", f"{reported['run']}/config.toml", "--json").stdout)
    assert again["model_sha256"] == reported["model_sha256"]
    assert again["run"] != reported["run"]


def test_default_of_an_option_does_not_undo_the_file(call):
    Path("mine.toml").write_text('task = "digits"\nmodel = "logreg"\nclients = 4\ncohort = 2\nrounds = 1\nseed = 5\n')
    assert json.loads(call("run", "--config", "mine.toml", "--json").stdout)["seed"] == 5
    assert json.loads(call("run", "--config", "mine.toml", "--seed", "0", "--json").stdout)["seed"] == 0


@pytest.mark.parametrize(
    ("words", "error", "code", "reported"),
    [
        (["fedavgg"], "UnknownNameError", 2, "fedavg"),
        (["fedavg", "--task", "digit"], "UnknownNameError", 2, "digits"),
        (["fedavg", "-o", "epoch=2"], "UnknownNameError", 2, "epochs"),
        (["fedavg:epochs=many"], "ConfigError", 2, "epochs='many'"),
        (["fedavg", "-o", "lr"], "ConfigError", 2, "name=value"),
        (["fedavg", "--rounds", "0"], "ConfigError", 2, "rounds=0"),
        (["fedavg", "--on-error", "pray"], "ConfigError", 2, "on_error='pray'"),
        (["fedavg", "--cohort", "9"], "PlanError", 3, "cohort of 9"),
        (["fedavg", "--aggregation", "secur"], "UnknownNameError", 2, "secure"),
        (["fedavg", "--fleet", "straglers"], "UnknownNameError", 2, "stragglers"),
        (["fedavg", "--partition", "dirichle:1"], "UnknownNameError", 2, "dirichlet"),
        (["fedavg", "--config", "absent.toml"], "ConfigError", 2, "absent.toml"),
    ],
)
def test_mistakes(call, words, error, code, reported):
    ended = call("run", *QUICK, *words, "--json", code=code)
    assert ended.stdout == ""
    seen = last_json(ended)
    assert (seen["error"], seen["exit_code"]) == (error, code)
    assert reported in seen["message"]
    assert not list(Path("runs").glob("*/summary.json"))


def test_unknown_key_in_a_file(call):
    Path("mine.toml").write_text("rouns = 3\n")
    assert "did you mean rounds" in call("run", "--config", "mine.toml", code=2).stderr


def test_message_without_traceback_unless_asked(call):
    plain = call("run", "fedavgg", *QUICK, code=2).stderr
    assert "UnknownNameError" in plain
    assert "Traceback" not in plain
    assert "Traceback" in call("run", "fedavgg", *QUICK, "--debug", code=2).stderr


def test_a_run_that_fails_at_its_trackers_leaves_its_name_free(call):
    call("run", "fedavg", *QUICK, "--name", "mine", "--track", "tests.lab:Nothing", code=2)
    assert not Path("runs/mine").exists()
    call("run", "fedavg", *QUICK, "--name", "mine")


def test_taken_name(call):
    call("run", *QUICK, "--name", "mine", "--quiet")
    before = Path("runs/mine/summary.json").read_bytes()
    assert "--replace" in call("run", *QUICK, "--name", "mine", code=13).stderr
    assert Path("runs/mine/summary.json").read_bytes() == before
    call("run", *QUICK, "--name", "mine", "--replace", "--quiet", "--seed", "1")
    assert json.loads(Path("runs/mine/summary.json").read_text())["seed"] == 1


def test_replace_spares_a_folder_that_holds_no_run(call):
    Path("runs/precious").mkdir(parents=True)
    Path("runs/precious/letter.txt").write_text("keep")
    call("run", *QUICK, "--name", "precious", "--replace", code=13)
    assert Path("runs/precious/letter.txt").read_text() == "keep"


def test_a_failed_attempt_to_replace_keeps_the_earlier_run(call):
    call("run", *QUICK, "--name", "mine", "--quiet")
    call("run", *QUICK, "--name", "mine", "--replace", "--cohort", "9", code=3)
    assert Path("runs/mine/summary.json").exists()


def test_resume_ends_with_the_same_bits(call, monkeypatch):
    whole = json.loads(call("run", *QUICK, "--name", "whole", "--json").stdout)
    from paceline.run import Run

    done = Run._round

    def stop_after_one(self):
        if self.round == 1:
            raise KeyboardInterrupt
        done(self)

    monkeypatch.setattr(Run, "_round", stop_after_one)
    stopped = call("run", *QUICK, "--name", "cut", code=130)
    assert "paceline resume runs/cut" in stopped.stderr
    monkeypatch.setattr(Run, "_round", done)
    resumed = json.loads(call("resume", "runs/cut", "--json").stdout)
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["rounds"] == 2
    assert resumed["total_seconds"] == whole["total_seconds"]


def test_without_a_cohort_it_is_at_most_everybody(call):
    words = ("--task", "digits", "--model", "logreg", "--rounds", "1", "--quiet")
    for count, cohort in (("4", 4), ("25", 20)):
        call("run", "fedavg", *words, "--clients", count, "--name", count)
        assert tomllib.loads(Path("runs", count, "config.toml").read_text()).get("cohort", 20) == cohort
    refused = call("run", "fedavg", *words, "--clients", "4", "--cohort", "5", code=3)
    assert "set --cohort to 4 or less" in refused.stderr


def test_resume_of_nothing(call):
    assert last_json(call("resume", "nowhere", "--json", code=13))["error"].endswith("Error")
