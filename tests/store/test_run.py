import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paceline.core.errors import ConfigError, StoreError
from paceline.store import RunFolder
from paceline.store.toml import to_toml
from paceline.store.weights import save_weights

text = st.text(st.characters(codec="utf-8"), max_size=6)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(text, values, max_size=4))
def test_toml_reads_back_to_the_same_values(config: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(config)) == config


def test_toml_is_pleasant_to_read() -> None:
    config = {"method": "fedavg", "options": {"lr": 0.1, "hidden": [8, 4], "a b": True}, "clients": 20}
    assert to_toml(config) == ('method = "fedavg"\nclients = 20\n\n[options]\nlr = 0.1\nhidden = [8, 4]\n"a b" = true\n')
    assert math.isnan(tomllib.loads(to_toml({"x": math.nan}))["x"])
    assert tomllib.loads(to_toml({"x": 2.0**70, "y": -math.inf, "z": ("a", 1)})) == {
        "x": 2.0**70,
        "y": -math.inf,
        "z": ["a", 1],
    }
    for bad in (None, {1: 2}, object(), [None], "\ud800"):
        with pytest.raises(ConfigError):
            to_toml({"options": {"x": bad}})


def test_a_run_is_created_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", "one")
    assert folder.path.is_dir()
    with pytest.raises(StoreError, match="is not a run folder"):
        RunFolder.open(folder.path)
    folder.write_config({"method": "fedavg"})
    with pytest.raises(StoreError, match=r"continue it with: paceline.resume"):
        RunFolder.create(tmp_path / "runs", "one")
    assert RunFolder.open(folder.path).read_config() == {"method": "fedavg"}
    assert [f.name for f in RunFolder.list(tmp_path / "runs")] == ["one"]
    assert RunFolder.list(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "/abs", ".hidden", "a\0b"])
def test_names_stay_inside_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="not a valid run name"):
        RunFolder.create(tmp_path, name)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        RunFolder.create(tmp_path, "one")


def records(last: int) -> list[dict[str, Any]]:
    return [{"round": r, "accuracy": 0.1 * r / 3, "virtual_seconds": 1e9 / 7 * r} for r in range(1, last + 1)]


def test_metrics_are_exact_and_cut_back_on_resume(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    assert folder.read_metrics() == []
    for record in records(5):
        folder.append_metrics(record)
    assert folder.read_metrics() == records(5)
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"round": 6, "accu')
    assert folder.read_metrics() == records(5)
    assert folder.truncate_metrics(3) == records(3)
    folder.append_metrics(records(4)[3])
    assert folder.read_metrics() == records(4)
    assert folder.truncate_metrics(0) == []


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    folder.append_metrics({"round": 1, "loss": math.nan, "each": [math.inf, 1.0], "note": "é"})
    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "round": 1,
        "loss": None,
        "each": [None, 1.0],
        "note": "é",
    }
    assert math.isnan(folder.read_metrics()[0]["loss"])
    (folder.path / "metrics.jsonl").write_text('{"round": 1}\nbroken\n{"round": 2}\n')
    with pytest.raises(StoreError, match="line 2"):
        folder.read_metrics()


def test_summary_and_model_come_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    assert folder.read_summary() is None
    folder.write_summary({"accuracy": 0.5, "target_seconds": None, "loss": math.nan})
    assert folder.read_summary() == {"accuracy": 0.5, "target_seconds": None, "loss": None}
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    save_weights(folder.model, net.state_dict())
    loaded = folder.load_model()
    assert set(loaded) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert torch.equal(loaded["0.weight"], net[0].weight)
    folder.model.write_bytes(b"broken")
    with pytest.raises(StoreError, match="cannot be read"):
        folder.load_model()
    (folder.path / "summary.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        folder.read_summary()


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    (folder.path / "config.toml").write_text("a = = 1")
    with pytest.raises(StoreError, match=r"config\.toml cannot be read"):
        RunFolder.open(folder.path).read_config()
