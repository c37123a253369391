"""Messages name settings as the front end takes them: the command line's options on it, keywords everywhere else."""

import pytest

from paceline.cli.app import app
from paceline.core.errors import PlanError, StoreError
from paceline.core.wording import as_commands, command, setting
from paceline.run import RunConfig, load, prepare
from paceline.store import RunFolder


def test_a_plan_names_the_setting_of_the_front_end(task):
    plan = RunConfig(method="localonly", evaluation="central", cohort=9, clients=8)
    with pytest.raises(PlanError) as python:
        prepare(plan, task=task)
    with as_commands(), pytest.raises(PlanError) as line:
        prepare(plan, task=task)
    assert "use evaluation='clients'" in str(python.value)
    assert "set cohort to 8" in str(python.value)
    assert "--" not in str(python.value)
    assert "use --evaluation clients" in str(line.value)
    assert "set --cohort to 8" in str(line.value)


def test_a_folder_that_is_taken_is_gone_on_with_as_the_front_end_does(tmp_path):
    place = RunFolder.create(tmp_path, "a").path
    (place / "config.toml").write_text("")
    with pytest.raises(StoreError, match=r"paceline\.resume\('"):
        load(place)
    with as_commands(), pytest.raises(StoreError, match="continue it with paceline resume /"):
        load(place)


def test_the_command_line_leaves_no_trace(tmp_path):
    from typer.testing import CliRunner

    assert CliRunner().invoke(app, ["resume", str(tmp_path / "nothing")]).exit_code
    assert (setting("secure"), command("load", "a")) == ("secure", "paceline.load('a')")
    with as_commands():
        assert (setting("secure"), setting("task_options"), setting("ray_gpus")) == (
            "--secure-option",
            "--task-option",
            "--ray-gpus",
        )
