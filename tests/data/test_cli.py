"""`paceline data` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.data import sources
from paceline.data.raw import Part, RawData
from paceline.data.sources import find_source


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Return a function that runs `paceline data` with an empty cache and checks the exit code."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words, code=0):
        result = CliRunner().invoke(app, ["data", *words])
        assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        return result

    return run


def test_list(call):
    reported = {row["name"]: row for row in json.loads(call("list", "--json").stdout)}
    assert reported["digits"]["ready"]
    assert not reported["fashion-mnist"]["ready"]
    assert "NOT comparable" in reported["cifar10-test-split"]["about"]
    assert "mnist-5k" in call("list").stdout


def test_nothing_needs_fetching_for_digits(call):
    assert "included in Paceline" in call("fetch", "digits").stdout
    assert json.loads(call("path", "digits", "--json").stdout)["path"] is None


def test_fetch_and_path(call, monkeypatch):
    part = Part(np.zeros((2, 28, 28), dtype=np.uint8), np.array([0, 1]))
    tiny = replace(find_source("mnist-5k"), decode=lambda files, options: RawData(part, part, ("a", "b")).arrays())
    monkeypatch.setitem(sources._SOURCES, "mnist-5k", tiny)
    monkeypatch.setattr("paceline.data.sources.source.bring", lambda packages, folder, say: {})
    kept = json.loads(call("fetch", "mnist-5k", "--json").stdout)["mnist-5k"]
    reported = json.loads(call("path", "mnist-5k", "--json").stdout)
    assert reported == {"name": "mnist-5k", "path": kept, "ready": True}


def test_what_does_not_exist(call):
    assert "did you mean mnist-5k" in call("fetch", "mnist", code=2).stderr
    assert "families" in call("fetch", "fontwriters", "-o", "familys=5", code=2).stderr
    assert "whole number" in call("fetch", "fontwriters", "-o", "families=few", code=2).stderr
