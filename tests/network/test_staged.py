"""What a client stages counts only if its reply does: over the network as in a simulation, whatever else it answered."""

import asyncio
import shutil

import grpc
import pytest

from paceline.network.job_queue import JobQueue

RUN = {
    "method": "scaffold",
    "clients": 6,
    "cohort": 6,
    "rounds": 6,
    "fleet": "mobile:link=5e5,least=0.8,vary=1.5,compute=1e7",
    "deadline": 0.35,
}


@pytest.mark.parametrize("evaluation", ["central", "federated"])
def test_a_late_reply_leaves_nothing_behind(networked, federate, evaluation):
    """Those that were late in training answer the evaluation of the same round, so that the round keeps them."""
    run = RUN | {"evaluation": evaluation}
    there, here = networked(run), federate(vectorize="off", **run)
    assert sum(r["dropped"] > 0 for r in here.history) > 2
    assert there.model_sha256 == here.model_sha256


def test_an_operation_that_counts_is_kept_although_a_later_one_of_the_round_is_lost(networked, federate):
    """In the first round all clients send their first controls, and some are late with the training that follows."""
    run = RUN | {"method": "scaffoldmvr", "rounds": 4}
    there, here = networked(run), federate(vectorize="off", **run)
    assert here.history[0]["dropped"] > 0
    assert there.model_sha256 == here.model_sha256


@pytest.mark.parametrize(("method", "refused"), [("scaffold", True), ("fedavg", False)])
def test_a_client_that_comes_back_without_its_memory_is_refused(loopback, method, refused):
    """The server counts a control that the client no longer has; a method that stores nothing goes on."""
    loopback.serve({"method": method, "clients": 3, "cohort": 3, "rounds": 100_000}, {"least": 2}, {"reconnect": 0.1})
    for number in range(3):
        loopback.client(number)
    progress = loopback.server.engine.hub.progress
    loopback.wait(lambda: progress.kept.get(0, (0, ()))[0] >= 2)
    asyncio.run_coroutine_threadsafe(loopback.nodes[0].stop(), loopback.loop._loop).result(10)
    loopback.ends[0].result(10)
    loopback.wait(lambda: progress.round >= progress.kept[0][0] + 2)  # rounds that it misses do not change which counted it last
    kept = progress.kept[0][0]
    shutil.rmtree(loopback.root / "state0")
    loopback.client(0)
    loopback.wait(lambda: loopback.client_lines.of("refused") if refused else progress.kept[0][0] > kept)
    told = [reason for facts in loopback.client_lines.of("refused") for reason in facts["reasons"]]
    assert [f"up to round {kept}, but its memory" in reason for reason in told] == [True] * refused


@pytest.fixture
def between(loopback, monkeypatch):
    """Return a function that lets something happen to client 0 in round 2, once its reply is counted and before the round ends."""

    def go(happen):
        answer = JobQueue._answer

        async def held(jobs, key, message):
            if (jobs._runner.number, message.head["round"]) == (1, 2):
                phase = loopback.server.engine.hub.dispatcher.phase
                await until(lambda: 0 in phase.answered)
                await happen()
            await answer(jobs, key, message)

        monkeypatch.setattr(JobQueue, "_answer", held)

    return go


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_round_that_ends_while_a_client_returns_counts_at_the_client_too(loopback, federate, between, monkeypatch):
    """Its stream is new, and it has not reported that it is ready when the server commits the round."""
    run = {"method": "scaffold", "clients": 3, "cohort": 3, "rounds": 4}
    loopback.serve(run, waiting={"reconnect": 10.0})
    hub, ready, waits = loopback.server.engine.hub, JobQueue._ready, []

    async def late(jobs, welcome):
        await until(lambda: hub.progress.round == 2)
        ready(jobs, welcome)

    def report(jobs, welcome):
        if (jobs._runner.number, welcome.round) == (0, 1):
            waits.append(asyncio.ensure_future(late(jobs, welcome)))
        else:
            ready(jobs, welcome)

    async def cut():
        before = hub.sessions[0]
        loopback.server.engine.loop.call(before.close, grpc.StatusCode.UNAVAILABLE, "cut")
        await until(lambda: hub.sessions.get(0, before) is not before)

    monkeypatch.setattr(JobQueue, "_ready", report)
    between(cut)
    for number in range(3):
        loopback.client(number)
    there = loopback.finish()
    assert [record["dropped"] for record in there.history] == [0] * 4
    assert there.model_sha256 == federate(vectorize="off", **run).model_sha256


def test_work_that_was_counted_survives_a_restart_before_the_round_ends(loopback, federate, between):
    run = {"method": "scaffold", "clients": 3, "cohort": 3, "rounds": 4}
    loopback.serve(run, waiting={"reconnect": 10.0})
    hub = loopback.server.engine.hub

    async def restart():
        before = hub.sessions[0]
        loopback.ends.pop(0).cancel()
        await until(lambda: 0 not in hub.sessions)
        await asyncio.to_thread(loopback.client, 0)
        await until(lambda: hub.sessions.get(0, before) is not before and hub.sessions[0].ready)

    between(restart)
    for number in range(3):
        loopback.client(number)
    there = loopback.finish()
    assert [record["dropped"] for record in there.history] == [0] * 4
    assert there.model_sha256 == federate(vectorize="off", **run).model_sha256
