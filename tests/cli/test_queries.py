"""Options behind the name of a task or model: on the command line, in a file, in Python, and for real clients."""

from __future__ import annotations

import json
import sys

import pytest

import paceline as pl
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.deploy.settings import DataConfig
from paceline.run import RunConfig
from paceline.tasks import load_task

RUN = ("--clients", "3", "--cohort", "3", "--rounds", "2", "--quiet")


def test_all_front_ends_read_them_alike(lab, call, tmp_path):
    def sha(*words):
        return json.loads(call("run", *words, "--json", "--replace").stdout)["model_sha256"]

    (tmp_path / "run.toml").write_text('task = "mylab:task?samples=90"\nclients = 3\ncohort = 3\nrounds = 2\n')
    asked = sha("--task", "mylab:task?samples=90", *RUN)
    assert asked == sha("--task", "mylab:task", "--task-option", "samples=90", *RUN)
    assert asked == sha("--config", str(tmp_path / "run.toml"), "--quiet")
    assert asked == pl.run("fedavg", "mylab:task?samples=90", clients=3, rounds=2).model_sha256
    assert asked != sha("--task", "mylab:task", *RUN)
    named = pl.run("fedavg", "digits", model="mylab:Net?width=3", clients=3, rounds=1)
    assert (
        named.model_sha256 == pl.run("fedavg", "digits?width=3", model=sys.modules["mylab"].Net, clients=3, rounds=1).model_sha256
    )
    assert named.model().a.out_features == 3


def test_they_become_options_of_the_task():
    config = RunConfig(task="lab.data:make?samples=90&kind=wide", model="lab:Net?width=7", task_options={"kind": "flat"})
    assert (config.task, config.model) == ("lab.data:make", "lab:Net")
    assert config.task_options == {"samples": 90, "kind": "flat", "width": 7}  # what is written apart counts
    assert RunConfig(task="csv:/a/b.csv?target=y").task == "csv:/a/b.csv?target=y"
    assert RunConfig(task="20newsgroups?length=50&words=500").task_options == {"length": 50, "words": 500}
    site = DataConfig(task="lab:make?samples=9", task_options={"seed_of": 1})
    assert (site.task, site.task_options) == ("lab:make", {"samples": 9, "seed_of": 1})
    assert len(load_task("digits?limit=50").train) == 50


@pytest.mark.parametrize(
    ("task", "error", "named"),
    [
        ("mylab:task?sampels=9", UnknownNameError, "option of mylab:task 'sampels'; did you mean samples"),
        ("mylab:task?samples", ConfigError, "'samples' is not of the form name.option=value"),
        ("mylab:tsak", ConfigError, r"mylab.py has no 'tsak'"),
        ("mylob:task?samples=9", ConfigError, "task 'mylob:task'.*mylob"),
        ("mylab:task?seed=3", ConfigError, "seed is not an option of a task; use seed=3"),
        ("mylab:math", ConfigError, "task 'mylab:math' is a module; it must be a `Task`"),
        ("mylab:Popen", ConfigError, "task 'mylab:Popen' needs args=VALUE; write mylab:Popen.args=VALUE"),
    ],
)
def test_mistakes_say_what_to_write(lab, task, error, named):
    with pytest.raises(error, match=named):
        pl.run("fedavg", task, clients=3, rounds=1)


def test_a_federation_runs_them_as_a_simulation_does(lab, call):
    words = ("--task", "mylab:task?samples=90", *RUN)
    simulated = json.loads(call("run", *words, "--json").stdout)
    federated = json.loads(call("federate", "fedavg", *words, "--json").stdout)
    assert federated["model_sha256"] == simulated["model_sha256"]
