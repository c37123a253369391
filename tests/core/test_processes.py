"""Scripts that start processes: with and without a main guard, from a file, from stdin, on systems that lack what Linux has."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch import nn

from paceline.core import processes as children
from paceline.core.errors import EngineError
from tests.conftest import make_task

SETTINGS = (
    '{"method": %r, "task": "digits", "model": "logreg", "clients": 4, "cohort": 3, "rounds": 2, "workers": 2, "vectorize": "off"}'
)
OWN = """
from dataclasses import dataclass
from paceline.core.method import on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.core.tree import node
from paceline.core.update import Update

@node
class Note:
    seen: float

@dataclass(frozen=True)
class Mine(FedAvg):
    @on_client
    def count(self, client, message):
        return Note(seen=float(client.num_samples))

    def round(self, fed, state):
        assert fed.sum(self.count, Note(seen=1.0), over=[0, 1, 2]).seen > 0
        return super().round(fed, state)
"""
TOP = "import multiprocessing\nfrom paceline.run import RunConfig, run\nmultiprocessing.set_start_method({method!r}, force=True)\n"
RUN = "print(run(RunConfig.build({settings})).model_sha256)\n"
FEDERATE = """
from pathlib import Path
from paceline.deploy.loopback import federate
print(federate(RunConfig.build({{**{settings}, "workers": 1, "on_error": "drop"}}), Path("run")).model_sha256)
"""
GUARD = 'if __name__ == "__main__":'


def script(start: str, method: str, guarded: bool = False, what: str = RUN) -> str:
    body = TOP.format(method=start) + what.format(settings=SETTINGS % method)
    own = OWN if method.startswith("__main__") else ""
    return own + (f"{GUARD}\n" + "".join(f"    {line}\n" for line in body.splitlines()) if guarded else body)


def carry_out(folder: Path, text: str, how: str = "file") -> subprocess.CompletedProcess[str]:
    """Run a script as a file, from stdin, or as text on the command line, where it is no file either (as in a notebook)."""
    (folder / "script.py").write_text(text)
    words = {"file": ["script.py"], "stdin": ["-"], "text": ["-c", text]}[how]
    return subprocess.run(
        [sys.executable, *words], input=text if how == "stdin" else None, cwd=folder, capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bits(tmp_path_factory) -> dict[str, str]:
    """Return the SHA-256 of forked runs."""
    folder = tmp_path_factory.mktemp("forked")
    reported = {method: carry_out(folder, script("fork", method), "stdin") for method in ("fedavg", "__main__:Mine")}
    assert all(ended.returncode == 0 for ended in reported.values()), reported
    return {method: ended.stdout for method, ended in reported.items()}


def test_a_script_without_a_guard_is_told_so(tmp_path):
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine"))
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert "EngineError: this script starts worker processes" in ended.stderr
    assert f"    {GUARD}\n        main()" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.slow
def test_so_is_one_that_fails_in_a_worker_before_it_comes_to_the_run(tmp_path):
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine").replace(", force=True", ""))  # a second time this is an error
    assert ended.returncode == 1
    assert "EngineError: worker 0 could not be started: it exited with code 1" in ended.stderr
    assert GUARD in ended.stderr


@pytest.mark.slow
def test_a_script_with_a_guard_ends_with_the_bits_of_forked_workers(tmp_path, bits):
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine", guarded=True))
    assert (ended.stderr, ended.stdout) == ("", bits["__main__:Mine"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "stdin", "text"])
def test_a_script_that_workers_do_not_need_is_not_imported_there(tmp_path, bits, how):
    ended = carry_out(tmp_path, script("spawn", "fedavg"), how)
    assert (ended.stderr, ended.stdout) == ("", bits["fedavg"])


@pytest.mark.slow
def test_fork_server(tmp_path, bits):
    ended = carry_out(tmp_path, script("forkserver", "__main__:Mine", guarded=True))
    assert (ended.stderr, ended.stdout) == ("", bits["__main__:Mine"])
    assert "EngineError: this script starts worker processes" in carry_out(tmp_path, script("forkserver", "__main__:Mine")).stderr


@pytest.mark.parametrize("how", ["stdin", pytest.param("text", marks=pytest.mark.slow)])
def test_a_script_that_is_no_file_is_told_why_workers_cannot_have_it(tmp_path, how):
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine"), how)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert (
        "this one is not a file (a notebook, or interactive or piped input); move its classes and functions to a module"
        in ended.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "stdin", "text"])
def test_a_federation_needs_no_guard_and_no_file(tmp_path, bits, how):
    ended = carry_out(tmp_path, script("spawn", "fedavg", what=FEDERATE), how)
    assert (ended.stderr, ended.stdout) == ("", bits["fedavg"])


@pytest.mark.slow
def test_a_federation_of_a_method_in_the_script(tmp_path, bits):
    """It needs both, and clients whose configuration and policy name it."""
    policy = {
        "allow": {"methods": ["__main__:Mine"]},
        "secure_aggregation": {"required": False},
        "cohort": {"least": 1, "least_quorum": 1},
    }
    allow = f"client={{'modules': ['__main__']}}, policy={policy}".replace("{", "{{").replace("}", "}}")
    parts = FEDERATE.replace('Path("run"))', f'Path("run"), {allow})')
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine", guarded=True, what=parts))
    assert (ended.stderr, ended.stdout) == ("", bits["__main__:Mine"])
    ended = carry_out(tmp_path, script("spawn", "__main__:Mine", what=parts))
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert "EngineError: this script starts worker processes" in ended.stderr
    assert "move it to a module" in carry_out(tmp_path, script("spawn", "__main__:Mine", what=parts), "stdin").stderr


def test_a_child_of_somebody_else_is_told_too(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    children.check_main()  # a run in this process is none of our business
    with pytest.raises(EngineError, match="__main__"):
        children.check_main(starts=True)


def test_what_cannot_be_pickled_is_named(federate, monkeypatch):
    monkeypatch.setattr(children.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(EngineError, match=r"cannot be pickled .*lambda.*use one worker"):
        federate(task=make_task(model=lambda: nn.Linear(12, 4)), workers=2)


LACKING = ["memfd", pytest.param("fork", marks=pytest.mark.slow), "memfd and fork", "macOS", "signals"]


@pytest.mark.parametrize("lacking", LACKING)
def test_two_workers_have_the_same_bits_where_the_system_lacks(lacking, federate, monkeypatch, tmp_path):
    """What macOS and Windows lack is taken away; two workers end with the bits of one."""
    monkeypatch.setattr("paceline.engines.pipes._folder", lambda: str(tmp_path))
    alone = federate(method="scaffold")
    if "memfd" in lacking:
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    if "fork" in lacking:
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        monkeypatch.delattr(os, "sched_getaffinity")
    if lacking == "macOS":
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.delattr(os, "memfd_create")
    if lacking == "signals":
        for name in ("SIGHUP", "pthread_sigmask", "pthread_kill"):
            monkeypatch.delattr(signal, name)
    forks = []
    monkeypatch.setattr(os, "fork", lambda fork=os.fork: forks.append(fork()) or forks[-1])
    two = federate(method="scaffold", workers=2)
    assert two.model_sha256 == alone.model_sha256
    assert len(forks) == (2 if lacking in ("memfd", "signals") else 0)
    assert list(tmp_path.iterdir()) == []


def test_start_methods(monkeypatch):
    assert children.start_method() == "fork"
    assert children.start_method(without="fork") == "spawn"
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "forkserver")
    assert children.start_method() == "forkserver"
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert children.start_method() == "spawn"


def test_a_signal_that_another_thread_takes_waits_until_the_child_is_known():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("handled"))
    idle = threading.Event()
    try:
        taker = threading.Thread(target=idle.wait)  # was there before, so that it does not block the signal
        taker.start()
        with children.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(100_000))
            assert seen == []
        assert seen == ["handled"]
    finally:
        idle.set()
        signal.signal(signal.SIGTERM, before)


class Inherited:
    """Part of a cycle; its finaliser belongs to the parent."""

    def __init__(self):
        self.me = self

    def __del__(self):
        if os.getpid() != PARENT:
            os._exit(7)


PARENT = os.getpid()


def collect():
    children.begin()
    gc.collect()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is inherited where there is no fork")
def test_what_a_forked_child_inherits_is_not_finalised_there():
    """Such as gRPC's asyncio objects, which wait in a child for a thread of the parent's, for ever."""
    gc.disable()
    try:
        Inherited()  # garbage from here on
        child = multiprocessing.get_context("fork").Process(target=collect)
        child.start()
        child.join(20)
    finally:
        gc.enable()
    assert child.exitcode == 0
