"""A client's memory on its disk keeps in step with the server, whatever dies when."""

import pytest
import torch

from paceline.core.errors import CheckpointError
from paceline.core.memory import Memory
from paceline.network.client_memory import ClientMemory


@pytest.fixture
def memory(tmp_path):
    return ClientMemory(tmp_path / "m", durable=False)


def commit(memory, round, saved=0):
    memory.write_pending(round, {"n": round, "t": torch.full((3,), float(round))})
    memory.commit(round, saved)


def names(memory):
    return sorted(path.name for path in memory.folder.iterdir())


def test_committed_versions_come_back(memory):
    assert memory.restore(0, 0, 0) == {}
    commit(memory, 1)
    commit(memory, 3)
    stored = ClientMemory(memory.folder).restore(5, 0, 0)
    assert stored["n"] == 3
    assert torch.equal(stored["t"], torch.full((3,), 3.0))


def test_pending_work_counts_only_where_the_server_kept_it(memory):
    commit(memory, 1)
    memory.write_pending(2, {"n": 2})
    assert ClientMemory(memory.folder).restore(1, 2, 1)["n"] == 1  # the round was not completed
    memory.write_pending(2, {"n": 2})
    assert ClientMemory(memory.folder).restore(2, 0, 1)["n"] == 1  # it was, without this client's work
    memory.write_pending(2, {"n": 2})
    assert ClientMemory(memory.folder).restore(2, 2, 1)["n"] == 2  # it was, with it


def test_work_is_committed_only_with_its_own_round(memory):
    """Whether this object has written it, or an earlier process, which has to be read first."""
    for again in (memory, ClientMemory(memory.folder)):
        memory.write_pending(2, {"n": 2})
        assert not again.commit(3, 0)
        assert not again.commit(2, 0)  # the first call has deleted it
        memory.write_pending(2, {"n": 2})
        assert again.commit(2, 0)
        assert not again.commit(2, 0)
        memory.write_pending(4, {"n": 4})
        memory.rollback()
        assert not again.commit(4, 0)
        assert again.latest() == {"n": 2}


@pytest.mark.parametrize(
    ("attempt", "round", "counted"),
    [((1, 0), 1, True), ((1, 1), 1, False), ((2, 0), 1, False), ((1, 0), 0, False), ((), 1, False)],
    ids=["same", "repeated round", "restarted server", "another round", "unknown"],
)
def test_pending_work_waits_for_the_end_of_the_same_attempt(memory, attempt, round, counted):
    commit(memory, 1)
    memory.write_pending(2, {"n": 2}, attempt=(1, 0))
    again = ClientMemory(memory.folder)
    assert again.restore(round, 1, round, attempt=attempt).get("n") == (1 if round else None)
    assert again.commit(2, 1) is counted
    assert again.latest().get("n") == (2 if counted else 1 if round else None)


def test_server_that_goes_back_takes_its_clients_along(memory):
    for round in (1, 2, 3):
        commit(memory, round, saved=1)
    assert memory.restore(2, 0, 1)["n"] == 2
    assert names(memory) == ["1.memory", "2.memory"]
    commit(memory, 3, saved=2)
    assert memory.restore(3, 0, 3)["n"] == 3


def test_only_versions_that_a_server_may_go_back_to_are_kept(memory):
    for round in range(1, 6):
        commit(memory, round, saved=round - 1)
        assert names(memory) == [f"{r}.memory" for r in (round - 1, round) if r]
    memory.commit(9, 8)
    assert names(memory) == ["5.memory"]


def test_a_commit_of_another_round_forgets_pending_work(memory):
    memory.write_pending(2, {"n": 2})
    memory.commit(3, 0)
    assert names(memory) == []


def test_damage_is_noticed(memory):
    commit(memory, 1)
    path = memory.folder / "1.memory"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        memory.restore(1, 0, 0)


@pytest.mark.parametrize("crashed", [False, True])
def test_pending_work_counts_without_what_was_staged_in_lost_operations(memory, crashed):
    """The client was away when the round was committed, and for some rounds more; in the third operation it was lost."""
    commit(memory, 1)
    own = Memory({"n": 1, "t": torch.full((3,), 1.0)})
    own.begin(1)
    own.stage("n", 2)
    own.begin(3)
    own.stage("n", 3)
    own.stage("new", 3)
    own["free"] = True
    memory.write_pending(2, own, own.priors())
    if crashed:
        stored = ClientMemory(memory.folder).restore(7, 2, 1, lost=[3])
    else:
        memory.commit(2, 1, lost=[3])
        stored = memory.restore(7, 0, 1)
    assert {k: stored[k] for k in stored if k != "t"} == {"n": 2, "free": True}
    assert names(memory) == ["1.memory", "2.memory"]
