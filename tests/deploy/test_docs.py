"""The page says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from paceline.deploy.client.policy import Policy

PAGE = (Path(__file__).parents[2] / "docs" / "identity_and_policy.md").read_text()


def test_the_policy_shown_is_valid_and_complete() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    values = tomllib.loads(text)
    policy = Policy.build(values)
    assert policy.limits.bytes == 20 * 10**9
    for table, part in Policy.model_fields.items():
        assert sorted(values[table]) == sorted(part.annotation.model_fields), table  # type: ignore[union-attr]


def test_the_commands_shown_exist() -> None:
    from typer.main import get_command

    from paceline.cli.app import app

    known = get_command(app).commands["ca"].commands  # type: ignore[attr-defined]
    lines = [line.split() for line in re.findall(r"paceline ca ([^#`\n]+)", PAGE)]
    shown = {(words[0], tuple(o for o in words if o.startswith("--"))) for words in lines}
    assert {name for name, _ in shown} == set(known)
    for name, options in shown:
        assert set(options) <= {o for p in known[name].params for o in p.opts}, name
