"""A client's memory over the attempts at a round, where the client is started anew between them."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from paceline.core.engine import Receipt
from paceline.core.errors import DiskFullError
from paceline.core.memory import Memory
from paceline.core.method import client_functions
from paceline.network.client_runner import Runner
from paceline.network.handshake import Welcome
from paceline.registry import find_method


@dataclass(frozen=True)
class Add:
    """A value that is the one before and some more."""

    more: int


@dataclass
class Stub:
    """A worker whose calls write what they are told to the client's memory."""

    x: torch.Tensor = field(default_factory=lambda: torch.zeros(2, 1))
    y: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    memories: dict = field(default_factory=lambda: {0: Memory()})
    sessions: dict = field(default_factory=dict)

    @property
    def setup(self):
        return SimpleNamespace(
            split=lambda number: (torch.arange(2),), programs={"method": find_method("scaffold")}, measured=False
        )

    @property
    def functions(self):
        return {"method": client_functions(find_method("scaffold"))}

    def run(self, call):
        self.memories[0].begin(call.operation)
        for key, value in call.message.items():
            if key.startswith("staged"):
                self.memories[0].stage(key, value)
            elif isinstance(value, Add):
                self.memories[0][key] = self.memories[0].get(key, 0) + value.more
            else:
                self.memories[0][key] = value
        yield Receipt(0)

    def withdraw(self, operation, clients):
        self.memories[0].withdraw(operation)

    def rollback(self):
        self.memories[0].rollback()

    def commit(self):
        self.memories[0].commit()

    def restore(self, stored):
        self.memories[0] = Memory(stored[0])


def welcome(take, round=0, kept=0, lost=()):
    return Welcome("run", 1, 0, round=round, take=take, saved=0, kept=kept, lost=lost, plan={}, heartbeat=1.0)


@pytest.fixture
def started(tmp_path):
    """Return a function that starts the client and welcomes it to an attempt at round 1."""

    def start(take):
        runner = Runner(0, tmp_path, lambda welcome: Stub())
        runner.join(welcome(take))
        return runner

    return start


def call(runner, number, take, **written):
    head = {"id": (1 << 32) + number, "round": 1, "take": take, "operation": number, "program": "method", "function": "train"}
    answer = runner.call(head | {"stream": "", "channel": {"kind": "sum"}}, written, None)
    assert answer.why is None


def kept(runner, lost=()):
    runner.commit({"round": 1, "saved": 0, "kept": True, "took": 0.0, "lost": list(lost)})
    return stored(runner)


def stored(runner):
    kept = dict(runner.memory.latest())
    assert dict(runner.worker.memories[0]) == kept
    return kept


def test_what_was_written_in_an_earlier_attempt_does_not_outlive_a_restart(started):
    call(started(take=1), 1, take=1, control=1.0)
    again = started(take=1)
    call(again, 2, take=2)
    assert kept(again) == {}


def test_what_was_written_in_the_attempt_that_counts_does(started):
    call(started(take=1), 1, take=1, control=1.0)
    assert kept(started(take=1)) == {"control": 1.0}


def test_a_later_attempt_may_write_as_well(started):
    call(started(take=1), 1, take=1, control=1.0, seen=True)
    again = started(take=1)
    call(again, 2, take=2, control=2.0)
    assert kept(again) == {"control": 2.0}


def test_a_call_that_is_asked_again_begins_from_the_memory_before_it(started):
    """The client ended after it had written and before it replied."""
    call(started(take=1), 1, take=1, count=Add(1), control=1.0)
    again = started(take=1)
    call(again, 1, take=1, count=Add(1))
    assert kept(again) == {"count": 1}


def test_a_client_started_anew_drops_what_was_staged_in_operations_that_did_not_count_it(started):
    first = started(take=1)
    call(first, 1, take=1, control=1.0, staged=2.0)
    call(first, 2, take=1, **{"staged also": 3.0})
    again = started(take=1)
    assert dict(again.worker.memories[0]) == {}
    assert kept(again, lost=[1]) == {"control": 1.0, "staged also": 3.0}


def test_a_welcome_that_fails_for_a_full_disk_is_tried_again(started, tmp_path, monkeypatch):
    def full(*_, **__):
        raise DiskFullError("full")

    call(started(take=1), 1, take=1, control=1.0, staged=2.0)
    runner = Runner(0, tmp_path, lambda welcome: Stub())
    with monkeypatch.context() as disk:
        disk.setattr("paceline.network.client_memory.save_checkpoint", full)
        with pytest.raises(DiskFullError):
            runner.join(welcome(take=1, round=1, kept=1, lost=(1,)))
    runner.join(welcome(take=1, round=1, kept=1, lost=(1,)))
    assert stored(runner) == {"control": 1.0}


@pytest.mark.parametrize(("counted", "left"), [(1, {"control": 1.0}), (0, {})])
def test_a_client_started_anew_whose_stream_breaks_hears_of_the_round_in_the_next_welcome(started, counted, left):
    call(started(take=1), 1, take=1, control=1.0)
    again = started(take=1)
    again.join(welcome(take=1, round=1, kept=counted))
    assert stored(again) == left


def test_a_client_started_anew_whose_stream_breaks_and_whose_attempt_is_over_forgets_it(started):
    call(started(take=1), 1, take=1, control=1.0)
    again = started(take=1)
    again.join(welcome(take=2))
    assert stored(again) == {}
    assert kept(again) == {}


def test_times_that_another_process_measured_stay(started):
    call(started(take=1), 1, take=1, _times=[5.0, 6.0])
    again = started(take=1)
    again.commit({"round": 1, "saved": 0, "kept": True, "took": 9.0, "lost": []})
    assert stored(again) == {"_times": [5.0, 6.0]}
