"""Texts into values, and figures into texts."""

from __future__ import annotations

import doctest
import math

import pytest

from paceline.cli import folders, show
from paceline.core import parsing as values
from paceline.core.errors import ConfigError
from paceline.core.parsing import Spec, pairs, read_toml
from paceline.results import display, groups
from paceline.results.groups import RunEntry, common_target, comparison, grouped, labels


@pytest.mark.parametrize("module", [values, display, groups, folders])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("clip", "clip", {}),
        ("clip:network=true", "clip", {"network": True}),
        ("fedopt:optimizer=yogi,lr=0.1", "fedopt", {"optimizer": "yogi", "lr": 0.1}),
        ("clip:tiers=[1, 0.5],phi=0.2", "clip", {"tiers": [1, 0.5], "phi": 0.2}),
        ("x:path=a:b", "x", {"path": "a:b"}),
        ('x:text="a,b",n=1', "x", {"text": "a,b", "n": 1}),
        ("my.module:Mine", "my.module:Mine", {}),
        ("my.module:Mine:lr=1", "my.module:Mine", {"lr": 1}),
        ("x:batch-size=5", "x", {"batch_size": 5}),
    ],
)
def test_method_spec(text, name, options):
    assert Spec.parse(text) == Spec(text, name, options)


@pytest.mark.parametrize("text", ["", ":lr=1", "clip:lr=1,network", "clip:=3,a=1"])
def test_malformed_method_spec(text):
    with pytest.raises(ConfigError):
        Spec.parse(text)


def test_pairs():
    assert pairs(None) == {}
    assert pairs(["a=", "b=x = y"]) == {"a": "", "b": "x = y"}
    with pytest.raises(ConfigError, match=r"lr0\.1"):
        pairs(["lr0.1"])


def test_toml_faults_name_the_file(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("rounds = ")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        read_toml(broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")


def entry(method, seed, accuracies, step=1.0, **config):
    history = [{"virtual_seconds": step * (i + 1), "accuracy": a} for i, a in enumerate(accuracies)]
    summary = {
        "accuracy": accuracies[-1],
        "round_seconds": step,
        "total_seconds": step * len(accuracies),
        "bytes_up": 1000,
        "bytes_down": 2000,
    }
    return RunEntry({"method": method, "seed": seed, **config}, summary, history)


def test_labels_tell_what_differs():
    configs = [
        {"method": "a", "seed": 0, "task": "t", "options": {"lr": 0.1}, "secure": {}},
        {"method": "a", "seed": 1, "task": "t", "options": {"lr": 0.1, "on": True}, "secure": {"k": 3}},
    ]
    assert labels(configs) == ["a", "a:on=true,k=3"]


def test_comparison_has_means_deviations_and_ratios():
    groups = grouped(
        [entry("a", 0, [0.5, 0.8], 2.0), entry("a", 1, [0.5, 0.9], 2.0), entry("b", 0, [0.85], 1.0), entry("b", 1, [0.75], 1.0)]
    )
    assert [g.label for g in groups] == ["a", "b"]
    target = common_target(groups)
    assert target == 0.75
    made = comparison("x", groups, target)
    cells = [list(column.cells) for column in made.columns]
    assert cells[0] == ["a", "b"]
    assert cells[2] == ["85.0 ± 7.1 %", "80.0 ± 7.1 %"]
    assert cells[3] == ["2 ± 0 s", "1 ± 0 s ×0.50"]
    assert cells[4] == ["4 ± 0 s", "1 ± 0 s ×0.25"]
    assert made.columns[4].header == "time to 75 %"


def test_unreached_target_is_told():
    groups = grouped([entry("a", 0, [0.5]), entry("b", 0, [0.9]), entry("b", 1, [0.6])])
    cells = list(comparison("x", groups, 0.8).columns[4].cells)
    assert cells == ["not reached", "1 s (1 of 2)"]
    assert common_target([]) is None


def test_json_has_no_figure_that_is_not_finite(capsys):
    show.print_json({"loss": math.nan, "list": [math.inf, 1.5]})
    assert '"loss": null' in capsys.readouterr().out
