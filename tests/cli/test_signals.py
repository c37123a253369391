"""Commands that are asked to end, or killed, with worker processes or a whole federation below them: nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.run import RunConfig, run
from paceline.store import RunFolder

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="survivors are found in /proc")

SLEEPY = """
import os, time
from dataclasses import dataclass
from paceline.core.method import on_client
from paceline.methods.optimisation.scaffold import Scaffold

@dataclass(frozen=True)
class Sleepy(Scaffold):
    @on_client(peer_record=None)
    def train(self, client, message):
        if client.round == 3 and not os.path.exists("awake"):
            open(f"asleep-{os.getpid()}", "w").close()
            time.sleep(60)
        return super().train(client, message)
"""
SMALL = ("--task", "digits", "--model", "logreg", "--clients", "3", "--cohort", "3", "--vectorize", "off")
LOCAL = ("run", "scaffold", "--workers", "2", "--rounds", "4")
FEDERATE = ("federate", "scaffold", "--rounds", "15", "--fault", "delay:client=1,seconds=0.1")


@pytest.fixture(autouse=True)
def hangup_ends() -> Iterator[None]:
    """Let SIGHUP end the commands, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Command:
    """A paceline command in a session of its own, whose processes carry a mark."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.temporary = folder / "t"  # sockets lie in it, whose paths are short
        self.temporary.mkdir(exist_ok=True)
        self.errors = folder / "stderr"
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from paceline.cli import main; main()", *words],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=self.errors.open("wb"), start_new_session=True,
            env={**os.environ, "MARK": self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def all(self) -> dict[int, str]:
        """Return the processes that carry the mark, and what they run."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"MARK={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def left(self, seconds: float = 20.0) -> dict[int, str]:
        """Return what is still there some seconds later."""
        end = time.monotonic() + seconds
        while (there := self.all()) and time.monotonic() < end:
            time.sleep(0.05)
        return there

    def until(self, condition, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.errors.read_text()
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        for pid in self.all():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a command in an empty folder; what it leaves is killed."""
    started = []
    (tmp_path / "sleepy.py").write_text(SLEEPY)

    def go(*words: str) -> Command:
        started.append(Command(tmp_path, *words))
        return started[-1]

    yield go
    for command in started:
        command.kill()


def rounds(place: Path) -> int:
    return len(RunFolder(place).read_metrics())


def asleep(command: Command) -> bool:
    return len(list(command.folder.glob("asleep-*"))) == 2


def send(command: Command, number: int, to: str) -> None:
    """Send a signal to the command, or to its whole process group as a terminal does."""
    (os.killpg if to == "group" else os.kill)(command.process.pid, number)


def sha(method: str, count: int) -> str:
    values = {"method": method, "task": "digits", "model": "logreg", "clients": 3, "cohort": 3, "rounds": count, "vectorize": "off"}
    return run(RunConfig.build(values)).model_sha256


ENDINGS = [
    pytest.param(signal.SIGTERM, "one", 143, "terminated by SIGTERM", id="term"),
    pytest.param(signal.SIGINT, "group", 130, "interrupted", id="ctrl-c"),
    pytest.param(signal.SIGTERM, "group", 143, "terminated by SIGTERM", id="term-group"),
    pytest.param(signal.SIGHUP, "group", 129, "terminated by SIGHUP", id="hangup"),
]


def slow_after(params, default: int):
    """Leave all but the first few cases to the slow tests."""
    return [*params[:default], *(pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in params[default:])]


@pytest.mark.parametrize(("number", "to", "code", "how"), slow_after(ENDINGS, 2))
def test_a_run_with_workers_ends_in_the_middle_of_their_work(start, tmp_path, number, to, code, how):
    command = start(*LOCAL[:1], "sleepy:Sleepy", *LOCAL[2:], *SMALL, "--name", "here")
    command.until(lambda: asleep(command))
    assert len(command.all()) == 3
    send(command, number, to)
    assert command.process.wait(20) == code
    assert command.left() == {}
    reported = command.errors.read_text().splitlines()
    assert reported[-1] == f"{how}; resume with: paceline resume runs/here"
    assert all("round" in line for line in reported[:-1]), reported
    assert list(command.temporary.iterdir()) == []


@pytest.mark.slow
def test_a_run_goes_on_after_sigterm(start, tmp_path):
    command = start(*LOCAL[:1], "sleepy:Sleepy", *LOCAL[2:], *SMALL, "--name", "here")
    command.until(lambda: asleep(command))
    send(command, signal.SIGTERM, "one")
    assert command.process.wait(20) == 143
    (tmp_path / "awake").touch()
    assert start("resume", "runs/here").process.wait(60) == 0
    assert RunFolder(tmp_path / "runs" / "here").read_summary()["model_sha256"] == sha("scaffold", 4)


def test_workers_of_a_killed_run_end_in_the_middle_of_their_work(start):
    command = start(*LOCAL[:1], "sleepy:Sleepy", *LOCAL[2:], *SMALL)
    command.until(lambda: asleep(command))
    command.process.kill()
    command.process.wait()
    assert command.left() == {}


@pytest.mark.slow
def test_a_comparison_says_which_run_goes_on(start):
    command = start("compare", "fedavg", "sleepy:Sleepy", *LOCAL[2:], *SMALL, "--name", "both", "--quiet")
    command.until(lambda: asleep(command))
    send(command, signal.SIGINT, "group")
    assert command.process.wait(20) == 130
    assert command.left() == {}
    (line,) = command.errors.read_text().splitlines()
    assert line.startswith("interrupted; resume with: paceline resume runs/both/sleepy")


@pytest.mark.slow
def test_an_ignored_hangup_stays_ignored(start):
    """As with nohup: neither the command nor its workers end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = start(*LOCAL[:1], "sleepy:Sleepy", *LOCAL[2:], *SMALL)
    finally:
        signal.signal(signal.SIGHUP, before)
    command.until(lambda: asleep(command))
    send(command, signal.SIGHUP, "group")
    assert len(command.left(1.0)) == 3


@pytest.mark.parametrize(
    ("number", "to", "code", "how", "goes_on"),
    [
        pytest.param(*ENDINGS[0].values, False, id="term, without going on"),
        *(pytest.param(*p.values, True, id=p.id, marks=pytest.mark.slow) for p in ENDINGS),
    ],
)
def test_a_federation_ends_and_goes_on_to_the_same_bits(start, tmp_path, number, to, code, how, goes_on):
    place = tmp_path / "runs" / "here"
    command = start(*FEDERATE, *SMALL, "--name", "here", "--quiet")
    command.until(lambda: rounds(place) >= 2)
    assert len(command.all()) == 7  # the command, fork server and tracker, a server and 3 clients
    send(command, number, to)
    assert command.process.wait(10) == code
    assert command.left() == {}
    assert command.errors.read_text().splitlines() == [f"{how}; resume with: paceline resume runs/here"]
    assert list(command.temporary.iterdir()) == []
    assert rounds(place) < 15
    if not goes_on:
        return
    again = start("resume", "runs/here", "--quiet")
    assert again.process.wait(60) == 0, again.errors.read_text()
    assert RunFolder(place).read_summary()["model_sha256"] == sha("scaffold", 15)
    assert not (place / "clients").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "in a round"])
def test_ctrl_c_while_a_federation_starts_shows_no_traceback(start, tmp_path, when):
    command = start(*FEDERATE, *SMALL, "--name", "here", "--quiet")
    command.until(lambda: len(command.all()) >= (3 if when == "at once" else 7))
    time.sleep(0.3)
    send(command, signal.SIGINT, "group")
    assert command.process.wait(10) == 130
    assert command.left() == {}
    assert "Traceback" not in command.errors.read_text()
    assert list(command.temporary.iterdir()) == []


@pytest.mark.slow
def test_a_killed_federation_leaves_no_process_and_goes_on_to_the_same_bits(start, tmp_path):
    place = tmp_path / "runs" / "here"
    command = start(*FEDERATE, *SMALL, "--name", "here", "--aggregation", "secure")
    command.until(lambda: rounds(place) >= 2)
    command.process.kill()
    command.process.wait()
    assert command.left() == {}
    assert start("resume", "runs/here").process.wait(60) == 0
    values = {
        "method": "scaffold",
        "task": "digits",
        "model": "logreg",
        "clients": 3,
        "cohort": 3,
        "rounds": 15,
        "vectorize": "off",
    }
    assert RunFolder(place).read_summary()["model_sha256"] == run(RunConfig.build({**values, "aggregation": "secure"})).model_sha256


@pytest.mark.slow
def test_a_killed_fork_server_ends_the_federation(start, tmp_path):
    place = tmp_path / "runs" / "here"
    command = start(*FEDERATE, *SMALL, "--name", "here", "--json")
    command.until(lambda: rounds(place) >= 2)
    parents = {pid: int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]) for pid in command.all()}
    (server,) = {parent for parent in parents.values() if list(parents.values()).count(parent) == 4}
    os.kill(server, signal.SIGKILL)
    assert command.process.wait(10) == 12
    assert command.left(1.0) == {}
    assert json.loads(command.errors.read_text())["error"] == "EngineError"
    assert list(command.temporary.iterdir()) == []


@pytest.mark.slow
def test_a_failed_federation_leaves_no_process(start, tmp_path):
    """A disk error in the parent: its folder of parties is gone."""
    place = tmp_path / "runs" / "here"
    command = start(*FEDERATE, *SMALL, "--name", "here", "--json")
    command.until(lambda: rounds(place) >= 2)
    (place / "metrics.jsonl").write_text("no record\n")
    assert command.process.wait(10) == 13
    assert command.left() == {}
    assert list(command.temporary.iterdir()) == []


DROPPED = """
import os, signal, time
from paceline.cli.signals import Interrupted, listen

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

listen()
try:
    Ends()
    time.sleep(20)
except Interrupted as stopped:
    print(stopped.number)
"""


def test_a_signal_in_a_finaliser_is_not_lost():
    ended = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=15, check=True)
    assert (ended.stdout, ended.stderr) == ("15\n", "")
