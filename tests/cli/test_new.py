"""`paceline new` writes a project whose README's commands work."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest


@pytest.fixture
def project(call, tmp_path, monkeypatch):
    """Return the folder of a new project, the current one, and its README's commands."""
    call("new", "demo-project")
    monkeypatch.chdir(tmp_path / "demo-project")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "demo-project")])
    text = (tmp_path / "demo-project" / "README.md").read_text()
    yield [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for name in [name for name in sys.modules if name.partition(".")[0] == "demo_project"]:
        del sys.modules[name]


def words(line):
    return [word.strip('"') for word in line.split()[1:]]


def test_the_commands_of_its_readme_work(call, project, tmp_path):
    run, predict, compare, test, federate, schema, check = project
    result = json.loads(call(*words(run), "--json").stdout)
    assert result["accuracy"] > 0.85
    call(*words(predict))
    rows = list(csv.DictReader((tmp_path / "demo-project" / "predictions.csv").read_text().splitlines()))
    truth = [r["result"] for r in csv.DictReader((tmp_path / "demo-project" / "data" / "site.csv").read_text().splitlines())]
    right = sum({"ill": "positive", "well": "negative"}[r["prediction"]] == t for r, t in zip(rows, truth, strict=True))
    assert right / len(rows) > 0.8
    assert "demo_project.method:DemoProject" in call(*words(compare), "--rounds", "1").stdout
    call(*words(schema))
    assert "the data match" in call(*words(check)).stdout
    assert (test, federate.split()[:2]) == ("python -m pytest", ["paceline", "federate"])


@pytest.mark.slow
def test_its_test_passes_and_it_federates(call, project):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words(project[3]), "-p", "no:cacheprovider"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout
    shell = [sys.executable, "-c", "from paceline.cli import main; main()"]
    lines = [[*words(line), "--json"] for line in (project[0], project[4])]
    ended = [subprocess.run([*shell, *line], capture_output=True, text=True, env=environment) for line in lines]
    assert all(each.returncode == 0 for each in ended), [each.stderr for each in ended]
    simulated, federated = (json.loads(each.stdout) for each in ended)
    assert federated["model_sha256"] == simulated["model_sha256"]


def test_names(call, tmp_path):
    for name, said in (
        ("json", "module 'json' already"),
        ("torch", "module 'torch' already"),
        ("1x", "no name"),
        ("class", "no name"),
    ):
        assert said in call("new", name, code=2).stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    assert "exists" in call("new", "taken", code=13).stderr
    assert "cd 'two words' &&" in call("new", "two words").stdout
    call("new", "other", "--out", str(tmp_path / "below"))
    assert (tmp_path / "below" / "other" / "other" / "method.py").is_file()
