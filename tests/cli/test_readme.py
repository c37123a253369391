"""What the README says can be run, runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    """Return the README's Python."""
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block() -> str:
    """Return the README's method."""
    _, method = blocks()
    return method


LINES = """\
import paceline as pl

task = pl.Task.from_datasets(train, test, model=Net)             # any map-style Dataset, or tensors
result = pl.run(pl.methods.FedProx(mu=0.1), task, clients=20, rounds=10, partition="dirichlet:0.3", aggregation="secure")
result.accuracy, result.history, result.model()                  # floats, a list of dicts, an nn.Module
table = pl.compare([pl.methods.FedAvg(), pl.methods.Clip()], task, seeds=range(3)); table.plot()
"""


def test_python_comes_first_and_runs_as_it_stands(tmp_path):
    face, _ = blocks()
    assert all(line in face.splitlines() for line in LINES.splitlines())
    assert README.index("## In Python") < README.index("## On the command line")
    check = """
assert result.accuracy > 0.9 and len(result.history) == 10 and isinstance(result.model(), nn.Module)
assert [row["label"] for row in table.rows] == ["fedavg", "clip"] and min(table.mean().values()) > 0.9
"""
    (tmp_path / "face.py").write_text("import torch; torch.manual_seed(0)\n" + face + check)
    ended = subprocess.run([sys.executable, "face.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout + ended.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["face.py"]


def test_example_is_the_file_and_short():
    assert (ROOT / "examples" / "my_method.py").read_text().partition('"""\n\n')[2] == block()
    assert len([line for line in block().splitlines() if line.strip()]) <= 15


def test_example_trains_under_secure_aggregation(call, tmp_path):
    (tmp_path / "readme_method.py").write_text(block())
    words = ("run", "readme_method:SignVote", "--task", "digits", "--model", "logreg", "--rounds", "2", "--clients", "8")
    reported = json.loads(call(*words, "--cohort", "8", "--aggregation", "secure", "--json").stdout)
    assert reported["accuracy"] > 0.3


def test_demo_configuration_is_valid():
    from paceline.core.parsing import read_toml
    from paceline.run import RunConfig

    config = RunConfig.build(read_toml(ROOT / "examples" / "demo.toml"))
    assert (config.task, config.clients, config.aggregation) == ("mnist-5k", 20, "secure")


def test_the_page_on_stragglers_has_the_demo_s_table_too():
    page = (ROOT / "docs" / "methods" / "stragglers.md").read_text()
    _, line, *rows = re.search(r"(\| method \| accuracy \|.*?\n)(.*?)\n\n", README, re.DOTALL)[0].strip().splitlines()
    command = re.search(r"Command: `(.*)`", README)[1]
    assert len(rows) == 4
    assert "\n".join([line, *rows]) in page
    assert f"    {command}\n" in page


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
