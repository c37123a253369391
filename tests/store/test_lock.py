"""A run belongs to one process at a time; a process that is gone holds nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paceline.cli.folders import new_place
from paceline.core.errors import StoreError
from paceline.store import RunFolder

PACELINE = str(Path(sys.executable).with_name("paceline"))

HOLD = """
import os, sys, time
from paceline.store import RunFolder
folder = RunFolder(sys.argv[1]).hold()
child = 0
if "fork" in sys.argv and not (child := os.fork()):
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


class Owner:
    """A process that holds a folder, and maybe one forked from it."""

    def __init__(self, path, *words):
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *words], stdout=subprocess.PIPE, text=True)
        self.child = int(self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def hold():
    owners = []

    def start(path, *words):
        owners.append(Owner(path, *words))
        return owners[-1]

    yield start
    for owner in owners:
        owner.kill()
        owner.process.stdout.close()
        if owner.child:
            os.kill(owner.child, signal.SIGKILL)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    folder.write_config({"method": "fedavg"})
    folder.release()
    return tmp_path / "run"


def test_a_folder_that_another_process_holds_is_refused_and_can_be_read(run, hold):
    owner = hold(run)
    with pytest.raises(StoreError, match=rf"run is in use by process {owner.process.pid} on "):
        RunFolder.open(run).hold()
    assert RunFolder.open(run).read_config() == {"method": "fedavg"}
    assert [f.path for f in RunFolder.list(run.parent)] == [run]


def test_a_killed_process_holds_nothing_even_while_what_it_forked_lives_on(run, hold):
    owner = hold(run, "fork")
    owner.kill()
    os.kill(owner.child, 0)
    RunFolder.open(run).hold().release()


def test_one_process_holds_a_folder_once(run, tmp_path):
    (tmp_path / "alias").symlink_to(run)
    first = RunFolder.open(run).hold()
    assert first.hold() is first
    with pytest.raises(StoreError, match="already in use by this process"):
        RunFolder.open(tmp_path / "alias").hold()
    first.release()
    first.release()
    second = RunFolder.open(run).hold()
    del second
    RunFolder.open(run).hold()


def test_a_refused_attempt_does_not_end_the_hold(run, hold):
    mine = RunFolder.open(run).hold()
    with pytest.raises(StoreError):
        RunFolder.open(run).hold()
    code = f"from paceline.store import RunFolder; RunFolder({str(run)!r}).hold()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in other.stderr
    mine.release()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_place_that_was_just_taken_is_neither_used_nor_removed(tmp_path, hold):
    (tmp_path / "run").mkdir()
    hold(tmp_path / "run")  # it has nothing in it yet but its lock
    with pytest.raises(StoreError, match="in use by process"):
        RunFolder.create(tmp_path, "run")
    with new_place(tmp_path, None, "new", False) as place:
        place.mkdir()
        hold(place)
    assert place.exists()


def test_a_live_run_is_not_replaced(run, hold):
    owner = hold(run)
    with pytest.raises(StoreError, match="in use by process"), new_place(run.parent, "run", "", True):
        pass
    assert (run / "config.toml").exists()
    owner.kill()
    with new_place(run.parent, "run", "", True) as place:
        RunFolder.create(place.parent, place.name).write_config({})
    assert RunFolder.open(run).read_config() == {}


def test_a_comparison_with_a_live_run_is_not_replaced(tmp_path, hold):
    (tmp_path / "both").mkdir()
    (tmp_path / "both/comparison.json").write_text('{"runs": ["run"]}')
    RunFolder.create(tmp_path / "both", "run").write_config({})
    hold(tmp_path / "both/run")
    with pytest.raises(StoreError, match="run is in use"), new_place(tmp_path, "both", "", True):
        pass
    RunFolder(tmp_path / "both").hold().release()


@pytest.mark.slow
def test_a_live_run_is_refused_to_a_second_command_and_goes_on_after_a_kill(tmp_path):
    def command(*words):
        return subprocess.run([PACELINE, *words], cwd=tmp_path, capture_output=True, text=True)

    start = [
        "run",
        "--task",
        "digits",
        "--model",
        "logreg",
        "--clients",
        "4",
        "--cohort",
        "4",
        "--rounds",
        "400",
        "--name",
        "a",
        "--quiet",
    ]
    whole = command(*[w if w != "a" else "whole" for w in start], "--json")
    assert whole.returncode == 0, whole.stderr
    owner = subprocess.Popen([PACELINE, *start, "--workers", "2"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "runs/a/metrics.jsonl"
    end = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert owner.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    owner.send_signal(signal.SIGSTOP)  # it lives, and its rounds do not run out under this test
    for words in (["resume", "runs/a"], [*start, "--replace"]):
        refused = command(*words)
        assert refused.returncode == 13
        assert f"runs/a is in use by process {owner.pid} on " in " ".join(refused.stderr.split())
    owner.kill()
    owner.wait()
    resumed = command("resume", "runs/a", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["model_sha256"] == json.loads(whole.stdout)["model_sha256"]
