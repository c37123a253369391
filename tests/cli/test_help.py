"""Help pages: light to load, complete, and in step with the configuration."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.cli import exitcodes
from paceline.cli.fields import FIELDS
from paceline.core.config import PANELS, RunConfig

COMMANDS = (
    "run",
    "compare",
    "resume",
    "report",
    "methods",
    "tasks",
    "partition",
    "data",
    "ca",
    "doctor",
    "server",
    "client",
    "federate",
)
ROOT = Path(__file__).parents[2]
IMPORTS = """
import sys
from typer.testing import CliRunner
from paceline.cli.app import app
for words in (["--help"], ["run", "--help"], ["compare", "--help"], ["data", "--help"], ["ca", "--help"], ["methods", "--help"]):
    assert CliRunner().invoke(app, words).exit_code == 0, words
print([name for name in ("torch", "numpy", "matplotlib") if name in sys.modules])
"""


def test_help_loads_neither_torch_nor_numpy():
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_every_field_of_the_configuration_is_an_option():
    own = {"method", "options", "task_options", "secure"}
    assert {o.field for o in FIELDS} == set(RunConfig.model_fields) - own
    for option in FIELDS:
        assert option.help
        assert option.panel in PANELS
        assert option.default is not None or option.absent, f"{option.field}: say what its absence means"


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_every_option_has_help_and_default(command):
    from typer.main import get_command

    from paceline.cli.app import app

    group = get_command(app)
    shown = group if command is None else group.commands[command]
    for each in [shown, *getattr(shown, "commands", {}).values()]:
        for param in each.params:
            if param.name in ("install_completion", "show_completion", "help"):
                continue
            assert param.help, f"{each.name} {param.name}"
            assert param.required or param.show_default, f"{each.name} {param.name}"


def test_commands_are_documented(call):
    text = (ROOT / "docs" / "cli.md").read_text()
    shown = call("--help").stdout
    for command in COMMANDS:
        assert f"`paceline {command}" in text
        assert f" {command} " in shown


def test_help_ends_with_exit_codes(call):
    shown = call("--help").stdout
    for code, names in exitcodes.codes().items():
        assert f"{code:>3}  {names.split(', ')[0]}" in shown


def test_errors_page_is_complete():
    from paceline.core import errors

    assert (ROOT / "docs" / "errors.md").read_text() == exitcodes.page(), "python -m paceline.cli.exitcodes > docs/errors.md"
    classes = {n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, errors.PacelineError)}
    assert classes == {row.name for row in exitcodes.rows()}
    assert all(row.meaning for row in exitcodes.rows())


def test_version_and_no_arguments(call):
    assert call("--version").stdout.startswith("paceline ")
    assert "Usage" in call("methods", "--help").stdout


def test_malformed_lines(call):
    assert "Did you mean 'compare'" in call("copare", code=2).stderr
    assert "--rounds" in call("run", "--ronds", "3", code=2).stderr
    reported = json.loads(call("run", "--json", "--rounds", "many", code=2).stderr)
    assert reported["exit_code"] == 2
    assert "--rounds" in reported["message"]
