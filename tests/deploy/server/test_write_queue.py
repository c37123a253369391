"""The queue before the database: an outage costs no row, doubles none, changes no order, and is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paceline.core.engine import Receipt
from paceline.core.errors import DiskFullError, StoreError, StoreUnavailableError
from paceline.deploy.server import write_queue as backlogs
from paceline.deploy.server.database import ServerState
from paceline.deploy.server.events import Notes
from paceline.deploy.server.write_queue import Backlog
from tests.network.conftest import Lines


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Database:
    """Takes rows while it is there; may lose its answer after it has written."""

    def __init__(self) -> None:
        self.there = True
        self.rows: list[Any] = []
        self.tries = self.mute = 0

    def write(self, row: Any, error: Exception | None = None) -> None:
        self.tries += 1
        if not self.there:
            raise StoreUnavailableError("d does not answer: refused")
        if error is not None:
            raise error
        if row not in self.rows:  # as a row with a key
            self.rows.append(row)
        if self.mute:
            self.mute -= 1
            raise StoreUnavailableError("d does not answer: the connection was lost at commit")


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def open_backlog(lines: Lines, database: Database) -> Iterator[Callable[..., Backlog]]:
    made: list[Backlog] = []

    def go(**options: Any) -> Backlog:
        made.append(Backlog("d", lines, **{"back": 5.0, **options}))
        return made[-1]

    yield go
    database.there = True
    for each in made:
        each.close()


def test_rows_wait_for_the_database_and_are_written_in_order(open_backlog, database, lines):
    backlog = open_backlog(every=0.1)
    backlog.put(database.write, 0)
    until(lambda: database.rows == [0])
    database.there = False
    for number in range(1, 500):
        backlog.put(database.write, number)
    until(lambda: len(lines.of("database_away")) >= 3)
    assert backlog.away
    assert backlog.waiting == 499
    first, *later = lines.of("database_away")
    assert (first["why"], first["room"]) == ("d does not answer: refused", backlogs.ROOM)
    assert later[-1]["waiting"] == 499
    assert later[-1]["seconds"] > 0.1
    database.there = True
    backlog.close()
    assert database.rows == list(range(500))
    [reported] = lines.of("database_back")
    assert reported["waiting"] > 490
    assert not backlog.away
    assert lines.of("error") == []


def test_a_commit_whose_answer_was_lost_is_not_doubled(open_backlog, database):
    backlog, database.mute = open_backlog(), 3
    for number in range(5):
        backlog.put(database.write, number)
    backlog.close()
    assert database.rows == list(range(5))
    assert database.tries == 8


def test_the_run_stops_only_when_there_is_no_room(open_backlog, database, lines):
    backlog, database.there = open_backlog(room=10), False
    backlog.put(database.write, "four", rows=4)
    for number in range(6):
        backlog.put(database.write, number)
    with pytest.raises(
        StoreError,
        match=r"d (has been unavailable for \d+ s|is too slow), and its queue is full with 10 rows; .*restart the database",
    ) as caught:
        backlog.put(database.write, 6)
    assert not isinstance(caught.value, StoreUnavailableError)
    with pytest.raises(StoreError):
        backlog.soon(database.write, 6)
    until(lambda: backlog.away)
    backlog.stream(database.write, "from a stream")
    backlog.last(database.write, "the end")  # how the run ended is always told
    database.there = True
    backlog.close()
    assert database.rows == ["four", *range(6), "the end"]
    assert lines.of("database_back")[0]["left_out"] == 1


def test_a_call_with_more_answers_than_there_is_room_still_goes_through(open_backlog, database):
    backlog = open_backlog(room=10)
    backlog.put(database.write, "many", rows=1000)
    backlog.close()
    assert database.rows == ["many"]


def test_strangers_cannot_fill_it(open_backlog, database, monkeypatch):
    monkeypatch.setattr(backlogs, "FROM_STREAMS", 5)
    backlog, database.there = open_backlog(room=100), False
    for number in range(1000):
        backlog.stream(database.write, number)
    backlog.put(database.write, "ours")
    assert (backlog.waiting, backlog.left_out) == (6, 995)
    database.there = True
    backlog.close()
    assert database.rows == [0, 1, 2, 3, 4, "ours"]


def test_what_must_be_sure_is_waited_for(open_backlog, database):
    backlog, database.there = open_backlog(), False
    threading.Timer(0.3, lambda: setattr(database, "there", True)).start()
    backlog.sure(database.write, 1)
    assert database.rows == [1]
    with pytest.raises(DiskFullError, match="none"):
        backlog.sure(database.write, 1, DiskFullError("none"))


def test_what_must_be_sure_fails_in_the_end_and_the_end_is_not_waited_for_twice(open_backlog, database, lines):
    backlog, database.there = open_backlog(back=0.4), False
    with pytest.raises(
        StoreUnavailableError,
        match=r"d was not available again within 0\.4 s, and 1 rows are queued for it; .*restart the database",
    ):
        backlog.sure(database.write, 1)
    backlog.back = 1000.0
    backlog.close()
    assert "1 rows were not written to d" in lines.of("error")[0]["why"]


def test_what_is_to_be_soon_is_not_waited_for_where_the_database_is_away_or_says_nothing(open_backlog, database, lines):
    backlog = open_backlog(patience=0.2)
    assert backlog.soon(database.write, 1)
    assert database.rows == [1]
    hang = threading.Event()
    assert not backlog.soon(lambda: hang.wait(10))
    assert lines.of("database_away")[0]["why"] == "d has not responded for 0.2 s"
    backlog.patience = 1000.0
    assert not backlog.soon(database.write, 1)  # it is known by now
    hang.set()
    until(lambda: not backlog.away)
    database.there = False
    assert not backlog.soon(database.write, 2)
    database.there = True
    backlog.close()
    assert database.rows == [1, 2]


def test_what_fails_at_once_is_raised_and_what_fails_later_is_raised_at_the_next_row(open_backlog, database, lines):
    backlog = open_backlog()
    with pytest.raises(DiskFullError):
        backlog.soon(database.write, 1, DiskFullError("no room"))
    backlog.put(database.write, 2, StoreError("lost"))  # as ever: a row that is not needed is told of, and left out
    until(lambda: lines.of("error"))
    database.there = False
    assert not backlog.soon(database.write, 3, DiskFullError("no room"))
    database.there = True
    until(lambda: backlog.waiting == 0)
    with pytest.raises(DiskFullError, match="no room"):
        backlog.put(database.write, 4)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ServerState]:
    made = ServerState(tmp_path / "state.db")
    yield made
    made.close()


class Away:
    """Stands for a state whose database can be away, or lose its answers."""

    def __init__(self, state: ServerState) -> None:
        self.state, self.remote, self.away, self.mute = state, True, False, False
        self.reported: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.state, name)
        if name not in ("begin_run", "end_run", "begin_round", "end_round", "begin_phase", "end_phase", "answer", "event"):
            return found

        def write(*values: Any, **facts: Any) -> None:
            if self.away:
                raise StoreUnavailableError("away")
            found(*values, **facts)
            if self.mute and repr((name, values)) not in self.reported:
                self.reported.add(repr((name, values)))
                raise StoreUnavailableError("the answer was lost")

        return write


def rounds(notes: Notes, *numbers: int) -> None:
    for number in numbers:
        notes.phase(number, 0, "train/1", [0, 1])
        notes.event("connected", number, {"number": number})
        notes.answers(number, 0, "train/1", [Receipt(0), Receipt(1, dropped="late")])
        notes.committed(number, 0, {number: [2]})


def test_events_of_an_outage_have_their_own_times_and_are_there_once(state):
    """Each write is tried again after its commit, as when the answer was lost."""
    clock = [100.0]
    state.now = lambda: clock[0]
    away = Away(state)
    notes = Notes(Lines(), None, away)
    notes.begin("r", {}, "")
    away.away = True
    for number in (1, 2, 3):
        clock[0] += 10
        rounds(notes, number)
    clock[0] = 1000.0
    away.mute, away.away = True, False
    notes.ended("done")
    notes.close()
    assert [(e.detail["number"], e.at) for e in state.events("r")] == [(1, 110.0), (2, 120.0), (3, 130.0)]
    times = [(n, "done", 100.0 + 10 * n, 100.0 + 10 * n) for n in (1, 2, 3)]
    assert [(r.round, r.status, r.begun, r.ended) for r in state.rounds("r")] == times
    assert len(away.reported) == 19  # nothing was written at its first try
    assert [p.begun for n in (1, 2, 3) for p in state.phases("r", n)] == [110.0, 120.0, 130.0]
    assert [a.status for a in state.answered("r", 3, 0, "train/1").values()] == ["ok", "late"]
    assert state.runs()[0].ended == 1000.0


def test_whose_work_was_kept_is_on_the_disk_while_the_database_is_away(state, tmp_path):
    """A server that is killed in an outage knows it again: it stands in the run's folder until the database has it."""
    away, folder = Away(state), tmp_path / "run"
    notes = Notes(Lines(), None, away)
    notes.begin("r", {}, str(folder), 1)
    rounds(notes, 1)
    assert not (folder / "kept.json").exists()
    away.away = True
    rounds(notes, 2, 3)
    killed = Notes(Lines(), None, Away(state))
    killed.begin("r", {}, str(folder), 2)
    assert killed.counted(3) == {n: (n, (2,)) for n in (1, 2, 3)}
    assert not (folder / "kept.json").exists()
    killed.close()
    notes.backlog.back = 0.0
    notes.close()


def test_the_file_goes_once_the_database_has_all(state, tmp_path):
    away = Away(state)
    notes = Notes(Lines(), None, away)
    notes.begin("r", {}, str(tmp_path), 1)
    away.away = True
    rounds(notes, 1)
    assert (tmp_path / "kept.json").exists()
    away.away = False
    until(lambda: not notes.backlog.away)
    rounds(notes, 2)
    assert not (tmp_path / "kept.json").exists()
    notes.close()
    assert [r.record for r in state.rounds("r")] == [{"kept": [n], "lost": {str(n): [2]}, "start": 1} for n in (1, 2)]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"run": "other", "rounds": {}}', '{"run": "r", "rounds": {"1": {"attempt": 0}}}']
)
def test_a_damaged_file_is_named(state, tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    notes = Notes(Lines(), None, state)
    with pytest.raises(StoreError, match=r"kept\.json is damaged"):
        notes.begin("r", {}, str(tmp_path), 1)
    notes.close()


def test_two_servers_in_one_database_do_not_take_each_other_s_keys(state):
    first, second = Notes(Lines(), None, state), Notes(Lines(), None, state)
    for number in range(5):
        for notes in (first, second):
            notes.event("connected", number, {})
    first.close()
    second.close()
    assert sorted(e.client for e in state.events()) == sorted([*range(5)] * 2)
