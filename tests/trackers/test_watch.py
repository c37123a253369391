"""Observers and trackers of a run: several at once, by name and as objects, with a beginning and an end."""

import csv
import math
import sys
from typing import ClassVar

import pytest

import paceline as pl
from paceline.core.errors import ConfigError, MissingExtraError, PacelineError, UnknownNameError
from paceline.trackers import Tracker
from paceline.trackers.base import figures, flat
from tests.conftest import make_task

SMALL = {"clients": 4, "rounds": 3, "eval_every": 2}


class Kept(Tracker):
    seen: ClassVar[list] = []

    def __init__(self, place="", level=1):
        self.place, self.level = place, level

    def begin(self, name, config):
        type(self).seen = [("begin", name, config["method"], self.place, self.level)]

    def log(self, round, figures):
        self.seen.append((round, figures))

    def end(self, outcome):
        self.seen.append(("end", outcome and outcome["model_sha256"]))


def test_a_tracker_learns_the_configuration_the_figures_and_the_outcome(tmp_path):
    records = []
    watch = [Kept(), lambda record, total: records.append((record["round"], total))]
    result = pl.run("fedavg", make_task(), observer=watch, folder=tmp_path / "one", **SMALL)
    assert records == [(1, 3), (2, 3), (3, 3)]
    begin, *rounds, end = Kept.seen
    assert begin == ("begin", "one", "fedavg", "", 1)
    assert end == ("end", result.model_sha256)
    assert [number for number, _ in rounds] == [1, 2, 3]
    for (_, shown), record in zip(rounds, result.history, strict=True):
        assert shown == figures(record)
    assert "accuracy" not in rounds[0][1]
    assert rounds[1][1]["accuracy"] == result.history[1]["accuracy"]


def test_trackers_have_names_and_options_and_end_with_a_run_that_fails():
    with pytest.raises(PacelineError):
        pl.run("fedavg", make_task(), observer=f"{__name__}:Kept:there,level=3", **SMALL, on_error="stop", sum_bound=1e-9)
    assert Kept.seen == [("begin", "fedavg-blobs-s0", "fedavg", "there", 3), ("end", None)]
    with pytest.raises(UnknownNameError, match="tensorboard"):
        pl.run("fedavg", make_task(), observer="tensorbord", **SMALL)
    with pytest.raises(ConfigError, match="neither"):
        pl.run("fedavg", make_task(), observer=[3], **SMALL)


def test_a_tracker_that_cannot_begin_ends_those_before_it():
    class Broken(Kept):
        def begin(self, name, config):
            raise ConfigError("no disk")

    with pytest.raises(ConfigError, match="no disk"):
        pl.run("fedavg", make_task(), observer=[Kept(), Broken()], **SMALL)
    assert Kept.seen[-1] == ("end", None)


def test_a_resumed_run_is_tracked_from_where_it_was(tmp_path):
    class Stop(Exception):
        pass

    def stop(record, total):
        if record["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        pl.run("fedavg", make_task(), observer=stop, folder=tmp_path / "one", checkpoint_every=1, **SMALL)
    result = pl.resume(tmp_path / "one", Kept(), task=make_task())
    assert [entry[0] for entry in Kept.seen] == ["begin", *range(Kept.seen[1][0], 4), "end"]
    assert Kept.seen[-1] == ("end", result.model_sha256)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_names_its_command(monkeypatch, name):
    for module in ("tensorboard", "mlflow.tracking", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'paceline\[{name}\]'"):
        pl.run("fedavg", make_task(), observer=name, **SMALL)


def test_figures_are_finite_numbers():
    record = {"round": 3, "accuracy": 0.5, "loss": math.nan, "why": "text", "dropped": 2, "late": True}
    assert figures(record) == {"accuracy": 0.5, "dropped": 2.0, "late": 1.0}
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_the_history_as_a_table(tmp_path):
    result = pl.run("fedavg", make_task(), folder=tmp_path / "one", **SMALL)
    with open(tmp_path / "one" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [1, 2, 3]
    assert rows[0]["accuracy"] == ""
    assert float(rows[1]["accuracy"]) == result.history[1]["accuracy"]
    pandas = pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["bytes_up"]) == [record["bytes_up"] for record in result.history]


def test_pandas_is_optional(monkeypatch):
    result = pl.run("fedavg", make_task(), **SMALL)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paceline\[pandas\]'"):
        result.to_pandas()
