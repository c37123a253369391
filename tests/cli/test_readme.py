"""What the README says can be run, runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block() -> str:
    """Return the README's Python example."""
    (found,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_example_is_the_file_and_short():
    assert (ROOT / "examples" / "my_method.py").read_text().partition('"""\n\n')[2] == block()
    assert len([line for line in block().splitlines() if line.strip()]) <= 15


def test_example_trains_under_secure_aggregation(call, tmp_path):
    (tmp_path / "readme_method.py").write_text(block())
    words = ("run", "readme_method:SignVote", "--task", "digits", "--model", "logreg", "--rounds", "2", "--clients", "8")
    told = json.loads(call(*words, "--cohort", "8", "--aggregation", "secure", "--json").stdout)
    assert told["accuracy"] > 0.3


def test_demo_configuration_is_valid():
    from paceline.core.parsing import read_toml
    from paceline.run import RunConfig

    config = RunConfig.build(read_toml(ROOT / "examples" / "demo.toml"))
    assert (config.task, config.clients, config.aggregation) == ("mnist-5k", 20, "secure")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
