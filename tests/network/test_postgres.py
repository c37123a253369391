"""Federations that keep their state in a real PostgreSQL server, which is stopped and started while they work."""

from __future__ import annotations

import pytest

from paceline.core.errors import StoreError, StoreUnavailableError
from paceline.deploy.server.database import ServerState
from paceline.network.engine import Stopped

RUN = {"method": "scaffold", "clients": 3, "cohort": 3, "rounds": 6}


def join(loopback, clients=range(3), **options):
    for number in clients:
        loopback.client(number, **options)


def check_whole(url, rounds=6, again=(), phase="train/1"):
    """Every round, call, answer and event is there, once and in order; return the state's rows of events."""
    state = ServerState(url)
    (row,) = state.runs()
    done = [r for r in state.rounds(row.run) if r.status == "done"]
    assert [r.round for r in done] == list(range(1, rounds + 1))
    assert [r.record["kept"] for r in done] == [[0, 1, 2]] * rounds
    begun = [r.begun for r in done]
    assert begun == sorted(begun)
    for each in done:
        assert each.ended is not None
        assert each.begun <= each.ended
        assert phase in [p.phase for p in state.phases(row.run, each.round, each.attempt) if p.ended is not None]
        answers = state.answered(row.run, each.round, each.attempt, phase)
        assert {c: a.status for c, a in answers.items()} == dict.fromkeys(range(3), "ok")
    assert row.status == "done"
    events = state.events(limit=10_000)
    assert [e.at for e in events] == sorted(e.at for e in events)
    joined = [e.client for e in events if e.kind == "connected"]
    assert sorted(joined) == sorted([*range(3), *again])
    state.close()
    return events


def test_a_run(loopback, federate, postgres):
    url = postgres.database()
    loopback.serve(RUN, state=ServerState(url))
    join(loopback)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    loopback.wait(lambda: ServerState(url).runs("done"))
    check_whole(url)
    assert loopback.server_lines.of("database_away", "error") == []


@pytest.mark.parametrize("mode", ["fast", pytest.param("immediate", marks=pytest.mark.slow)])
def test_rounds_go_on_while_the_database_is_away_and_all_rows_are_there_in_the_end(loopback, federate, postgres, mode):
    """Stopped in order, or crashed, in the second round, and started again in the fifth."""
    url, kept = postgres.database(), loopback.root / "run" / "kept.json"
    stood = {}

    def watch(record, total):
        if record["round"] == 2:
            postgres.stop(mode)
        stood[record["round"]] = kept.exists()
        if record["round"] == 4:
            postgres.start()

    loopback.serve(RUN, state=ServerState(url), observer=watch)
    join(loopback, faults=("drop:client=2,phase=train,round=3",))  # a stream breaks and comes back: events of the outage
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    events = check_whole(url, again=[2])
    assert [(e.kind, e.client) for e in events][3:6] == [("refused", 2), ("disconnected", 2), ("connected", 2)]
    assert (stood[1], stood[3], stood[4]) == (False, True, True)
    assert not kept.exists()
    away, [back] = loopback.server_lines.of("database_away"), loopback.server_lines.of("database_back")
    assert "does not respond" in away[0]["why"]
    assert back["waiting"] > 10
    assert loopback.server_lines.of("error") == []


@pytest.mark.slow
def test_a_server_that_is_stopped_in_an_outage_goes_on_with_the_same_database(loopback, federate, postgres):
    """Rows of the outage are lost with its process, but not whose work was kept, nor the run."""
    url = postgres.database()

    def stop(record, total):
        if record["round"] == 2:
            postgres.stop()
        if record["round"] == 4:
            loopback.server.notes.backlog.back = 0.2
            loopback.server.stop()

    port = loopback.serve(RUN, state=ServerState(url), observer=stop)
    join(loopback)
    with pytest.raises(Stopped):
        loopback.result.result(20)
    loopback.wait(lambda: loopback.server_lines.of("error"))
    assert "rows were not written" in loopback.server_lines.of("error")[0]["why"]
    with pytest.raises(StoreUnavailableError, match=r"does not respond: .*start the database, then this server"):
        ServerState(url, wait=0.3)
    postgres.start()
    loopback.serve(RUN, {"listen": f"127.0.0.1:{port}"}, state=ServerState(url))
    assert loopback.server.engine.hub.progress.kept == {
        c: (4, ()) for c in range(3)
    }  # of the fourth round, which the database had missed
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    state = ServerState(url)
    done = [r for r in state.rounds(state.runs("done")[0].run) if r.status == "done"]
    assert [(r.round, r.record) for r in done] == [(n, {"kept": [0, 1, 2], "lost": {}, "start": 1 + (n > 4)}) for n in range(1, 7)]
    assert not (loopback.root / "run" / "kept.json").exists()
    state.close()


@pytest.mark.slow
def test_a_database_that_takes_rows_and_does_not_answer_holds_no_round_up(loopback, federate, postgres):
    """Somebody holds a lock on a table, from the second round to the fourth."""
    import psycopg

    url = postgres.database()
    other = psycopg.connect(url)

    def watch(record, total):
        if record["round"] == 1:
            loopback.server.notes.backlog.patience = 0.2
        if record["round"] == 2:
            other.execute("LOCK TABLE rounds IN ACCESS EXCLUSIVE MODE")
        if record["round"] == 4:
            other.rollback()

    loopback.serve(RUN, state=ServerState(url), observer=watch)
    join(loopback)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    check_whole(url)
    [away] = loopback.server_lines.of("database_away")
    assert away["why"].endswith("has not responded for 0.2 s")
    other.close()


@pytest.mark.slow
def test_a_server_starts_again_on_its_database(loopback, federate, postgres):
    url = postgres.database()

    def stop(record, total):
        if record["round"] == 3:
            loopback.server.stop()

    port = loopback.serve(RUN, state=ServerState(url), observer=stop)
    join(loopback)
    with pytest.raises(Stopped):
        loopback.result.result(20)
    loopback.wait(lambda: ServerState(url).runs("stopped"))
    loopback.serve(RUN, {"listen": f"127.0.0.1:{port}"}, state=ServerState(url))
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    check_whole(url, again=range(3))


@pytest.mark.slow
def test_the_run_ends_once_too_many_rows_wait(loopback, postgres):
    url = postgres.database()

    def watch(record, total):
        if record["round"] == 2:
            loopback.server.notes.backlog.room = 20
            loopback.server.notes.backlog.back = 0.2
            postgres.stop()

    loopback.serve({**RUN, "rounds": 200}, state=ServerState(url), observer=watch)
    join(loopback)
    with pytest.raises(StoreError, match=r"queue is full with .*restart the database"):
        loopback.result.result(30)
    assert loopback.server_lines.of("database_away")
    postgres.start()
    state = ServerState(url)
    (row,) = state.runs()
    assert state.last_round(row.run) == 2
    state.close()


@pytest.mark.slow
def test_two_runs_side_by_side_in_one_database(make_loopback, federate, postgres):
    url = postgres.database()
    both = [make_loopback(), make_loopback()]
    for number, each in enumerate(both):
        each.serve({**RUN, "seed": number}, state=ServerState(url))
        join(each)
    for number, each in enumerate(both):
        assert each.finish().model_sha256 == federate(vectorize="off", **RUN, seed=number).model_sha256
    both[0].wait(lambda: len(ServerState(url).runs("done")) == 2)
    state = ServerState(url)
    for row in state.runs():
        done = [r for r in state.rounds(row.run) if r.status == "done"]
        assert [(r.round, r.record["kept"]) for r in done] == [(n, [0, 1, 2]) for n in range(1, 7)]
        assert all(len(state.answered(row.run, n, 0, "train/1")) == 3 for n in range(1, 7))
    # streams of both may begin before their runs have names; each has its own rows all the same
    assert sorted(e.client for e in state.events(kind="connected")) == [0, 0, 1, 1, 2, 2]
    state.close()
