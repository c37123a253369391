from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from paceline.core.errors import ConfigError, DiskFullError, MissingExtraError, StoreError, StoreUnavailableError
from paceline.deploy.server import database as states
from paceline.deploy.server import schema
from paceline.deploy.server.database import AnswerRow, ServerState
from tests.postgres import Postgres

WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ServerState]:
    made = ServerState(tmp_path / "server" / "state.db")
    yield made
    made.close()


def fill(state: ServerState) -> None:
    state.begin_run("r", {"method": "fedavg", "rounds": 3}, folder="runs/r")
    for attempt in range(2):
        state.begin_round("r", 1, attempt)
        state.begin_phase("r", 1, attempt, "advertise", [0, 1, 2])
        state.answer("r", 1, attempt, "advertise", AnswerRow(0, "ok", 0.5, 10, 20), AnswerRow(1, "gone", error="reset"))
        state.answer("r", 1, attempt, "advertise", AnswerRow(2, "late", 9.0))
        state.end_phase("r", 1, attempt, "advertise")
        state.end_round("r", 1, attempt, "done" if attempt else "lost", {"accuracy": 0.5, "nan": math.nan} if attempt else None)
    state.event("joined", "r", 0, {"name": "a"}, key="joined-0")
    state.event("left", "r", 1)
    state.end_run("r", "stopped", "by hand")


def everything(state: ServerState) -> list[Any]:
    phases = [state.phases("r", 1, a) for a in range(2)]
    answered = [state.answered("r", 1, a, "advertise") for a in range(2)]
    return [state.runs(), state.rounds("r"), phases, answered, state.events()]


def test_what_is_written_is_read(state: ServerState) -> None:
    fill(state)
    run = state.run("r")
    assert run is not None
    assert (run.plan, run.folder, run.status, run.detail) == ({"method": "fedavg", "rounds": 3}, "runs/r", "stopped", "by hand")
    assert state.run("other") is None
    assert [(r.round, r.attempt, r.status) for r in state.rounds("r")] == [(1, 0, "lost"), (1, 1, "done")]
    assert state.rounds("r")[1].record == {"accuracy": 0.5, "nan": None}
    assert state.last_round("r") == 1
    assert state.last_round("other") == 0
    [phase] = state.phases("r", 1, 1)
    assert (phase.phase, phase.asked) == ("advertise", (0, 1, 2))
    assert phase.ended is not None
    assert phase.ended >= phase.begun
    answers = state.answered("r", 1, 1, "advertise")
    assert answers == {0: AnswerRow(0, "ok", 0.5, 10, 20), 1: AnswerRow(1, "gone", error="reset"), 2: AnswerRow(2, "late", 9.0)}
    assert [(e.kind, e.client, e.detail) for e in state.events("r")] == [("joined", 0, {"name": "a"}), ("left", 1, {})]
    assert [e.kind for e in state.events(kind="left")] == ["left"]
    assert state.events(after=state.events()[-1].id) == []
    assert [r.run for r in state.runs("running")] == []


def test_writes_are_idempotent(state: ServerState) -> None:
    fill(state)
    before = everything(state)
    state.begin_round("r", 1, 1)
    state.begin_phase("r", 1, 1, "advertise", [7])
    state.answer("r", 1, 1, "advertise", AnswerRow(0, "ok", 0.5, 10, 20), AnswerRow(0, "late", 99.0))
    state.end_phase("r", 1, 1, "advertise")
    state.end_round("r", 1, 1, "done", {"accuracy": 0.5, "nan": math.nan})
    state.end_run("r", "stopped", "by hand")
    state.event("joined", "r", 0, {"name": "b"}, key="joined-0")
    assert everything(state) == before
    state.answer("r", 1, 1, "advertise", AnswerRow(2, "ok", 9.5))
    assert state.answered("r", 1, 1, "advertise")[2].status == "ok"  # it came back


def test_a_run_goes_on_with_its_own_plan_only(state: ServerState) -> None:
    fill(state)
    state.begin_run("r", {"rounds": 3, "method": "fedavg"}, folder="elsewhere")
    run = state.run("r")
    assert run is not None
    assert (run.status, run.folder, run.ended) == ("running", "runs/r", None)
    with pytest.raises(StoreError, match="another plan"):
        state.begin_run("r", {"method": "scaffold"})


def test_what_never_began_cannot_end(state: ServerState) -> None:
    with pytest.raises(StoreError, match="without having started"):
        state.end_run("r")
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        state.begin_round("r", 1)
    state.begin_run("r", {})
    for call in (lambda: state.end_round("r", 1), lambda: state.end_phase("r", 1, 0, "x")):
        with pytest.raises(StoreError, match="without having started"):
            call()


def test_tensors_stay_out(state: ServerState) -> None:
    for value in (torch.zeros(3), b"bytes", {1, 2}):
        with pytest.raises(StoreError, match="run's folder"):
            state.begin_run("r", {"model": value})
    with pytest.raises(StoreError, match="exceed the limit"):
        state.event("x", detail={"text": "x" * (2 << 20)})
    assert state.runs() == []


def test_the_file_is_private_and_in_wal(state: ServerState) -> None:
    assert Path(state.where).stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(state.where) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_process_sees_all(state: ServerState) -> None:
    fill(state)
    other = ServerState(state.where)
    assert everything(other) == everything(state)
    other.close()


def test_threads(state: ServerState) -> None:
    state.begin_run("r", {})

    def work(client: int) -> None:
        for number in range(10):
            state.answer("r", number, 0, "train", AnswerRow(client))
            state.event("seen", "r", client, key=f"{client // 2}-{number}")

    threads = [threading.Thread(target=work, args=(c,)) for c in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(state.answered("r", n, 0, "train")) == 6 for n in range(10))
    assert len(state.events()) == 30


def kill_and_look(path: Path, least: int) -> int:
    """Kill the writer once it has said that `least` rounds are committed; return the last one it spoke of."""
    process = subprocess.Popen([sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    logged = 0
    for line in process.stdout:
        logged = int(line)
        if logged >= least:
            process.send_signal(signal.SIGKILL)
            break
    logged = max([logged, *(int(line) for line in process.stdout.read().split())])
    assert process.wait() == -signal.SIGKILL
    return logged


def check_whole(path: Path, logged: int) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    state = ServerState(path)
    assert logged <= state.last_round("r") <= logged + 1
    done = [r for r in state.rounds("r") if r.status == "done"]
    assert [r.round for r in done] == list(range(1, state.last_round("r") + 1))
    for row in done:
        assert row.record == {"loss": 1 / row.round}
        assert state.answered("r", row.round, 0, "train") == {c: AnswerRow(c, "ok", 0.5, 100, 200) for c in range(5)}
    assert [e.detail["round"] for e in state.events(limit=100_000)][: len(done)] == [r.round for r in done]
    state.close()


def test_nothing_that_was_committed_is_lost_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    check_whole(path, kill_and_look(path, 5))


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    path, least = tmp_path / "state.db", 0
    for turn in range(12):
        logged = kill_and_look(path, least + 1 + 7 * turn)
        check_whole(path, logged)
        least = logged


def flood(state: ServerState, count: int) -> None:
    for number in range(count):
        state.event("x", "r", detail={"text": "x" * 10_000}, key=str(number))


def test_a_full_disk(state: ServerState) -> None:
    fill(state)
    before = everything(state)
    state.engine.dispose()
    limit = [1]

    def narrow(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {limit[0]}").close()

    sa.event.listen(state.engine, "connect", narrow)
    with pytest.raises(DiskFullError, match=r"no disk space for .*state\.db.*free some space"):
        flood(state, 100)
    written = state.events(kind="x")
    assert everything(state)[:4] == before[:4]
    state.engine.dispose()
    limit[0] = 1 << 20  # somebody made room
    flood(state, 100)
    assert state.events(kind="x")[: len(written)] == written
    assert len(state.events(kind="x")) == 100


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        state = ServerState(place / "state.db")
        fill(state)
        with pytest.raises(DiskFullError, match="no disk space"):
            flood(state, 1000)
        assert state.last_round("r") == 1
        written = len(state.events(kind="x"))
        state.close()
        subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
        again = ServerState(place / "state.db")
        again.event("after", "r")
        assert len(again.events(kind="x")) == written
        again.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_databases_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.db").write_bytes(b"x" * 10_000)
    with pytest.raises(StoreError, match=r"damaged\.db is damaged"):
        ServerState(tmp_path / "damaged.db")
    with pytest.raises(StoreError, match="cannot be created"):
        ServerState(tmp_path)
    monkeypatch.setattr(states, "FORMAT", "0")
    ServerState(tmp_path / "old.db").close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 0"):
        ServerState(tmp_path / "old.db")
    urls = {":memory:": "name a file", "sqlite://": "name a file", "mysql://u:secret@h/d": "use sqlite", "://": "neither"}
    for url, text in urls.items():
        with pytest.raises(ConfigError, match=text) as caught:
            ServerState(url)
        assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"paceline\[postgres\]"):
        ServerState("postgresql+pg8000://u:secret@localhost/d")


def test_tables_suit_postgresql() -> None:
    dialect = postgresql.dialect()
    made = [str(CreateTable(table).compile(dialect=dialect)) for table in schema.metadata.sorted_tables]
    assert len(made) == 6
    assert any("BIGSERIAL" in text for text in made)


def test_postgresql(postgres: Postgres) -> None:
    url = postgres.database()
    state = ServerState(url)
    test_what_is_written_is_read(state)
    test_writes_are_idempotent(state)
    test_a_run_goes_on_with_its_own_plan_only(state)
    state.end_run("r", "stopped", "by hand")
    before = everything(state)
    state.close()
    again = ServerState(url)
    assert everything(again) == before
    with pytest.raises(StoreError, match="foreign key") as caught:
        again.begin_round("other", 1)
    assert not isinstance(caught.value, StoreUnavailableError)
    again.close()


def test_servers_that_begin_at_once_in_a_new_postgresql_database(postgres: Postgres) -> None:
    url = postgres.database()
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: ServerState(url), range(8)))
    for number, state in enumerate(states):
        state.begin_run(f"run{number}", {})
    assert len(states[0].runs()) == 8
    for state in states:
        state.close()


def test_a_postgresql_database_that_is_away_is_waited_for_and_named(postgres: Postgres, tmp_path: Path) -> None:
    reported: list[str] = []
    nowhere = f"postgresql://u:secret@/d?host={tmp_path}"
    with pytest.raises(
        StoreUnavailableError, match=r"does not respond: .*\(waited 0.5 s\); start the database, then this server"
    ) as caught:
        ServerState(nowhere, wait=0.5, warn=reported.append)
    assert len(reported) == 1
    assert "secret" not in reported[0] + str(caught.value)
    with pytest.raises(StoreError, match='database "nothing" does not exist') as caught:  # no waiting mends it
        ServerState(f"postgresql://u@/nothing?host={postgres.place}", wait=60)
    assert not isinstance(caught.value, StoreUnavailableError)
    url = postgres.database()
    postgres.stop()
    threading.Timer(0.5, postgres.start).start()
    state = ServerState(url, wait=30, warn=reported.append)
    state.begin_run("r", {})
    assert len(reported) == 2
    state.close()
