"""Who may come in: certificates, one stream each, revocation that takes effect on live streams."""

import asyncio
import os

import grpc
import grpc.aio
import pytest

from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.pki import utc_now
from paceline.network import protocol as p
from paceline.network.frames import HEAD, MessagePart, frames
from paceline.network.tls import options, through
from tests.network.conftest import publish
from tests.network.strange import Strange, outcome, refused

CODE = grpc.StatusCode
RUN = {"clients": 3, "cohort": 3, "rounds": 1}


@pytest.fixture
def serving(loopback):
    """A server of three clients of whom none is there yet."""
    loopback.serve(RUN)
    return loopback


def talk(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def greeted(folder, port, **hello):
    async with Strange(folder, port) as strange:
        return await outcome(strange, strange.hello(**hello))


def test_a_client_without_a_certificate_gets_no_further_than_the_handshake(serving):
    async def dial():
        roots = serving.server.trust.roots
        async with grpc.aio.secure_channel(
            f"localhost:{serving.server.port}", grpc.ssl_channel_credentials(roots), through()
        ) as channel:
            call = channel.stream_stream(p.METHOD)()
            return await refused(call.write(b"hello"))

    assert talk(dial())[0] == CODE.UNAVAILABLE
    assert serving.server.engine.hub.ready() == []


def test_a_certificate_of_another_authority_gets_no_further_than_the_handshake(serving, tmp_path):
    other = Authority.create(tmp_path / "other", "test")
    folder = other.issue_client("client0").write(tmp_path / "stranger")
    (folder / "trust.pem").write_bytes((serving.root / "server" / "trust.pem").read_bytes())
    assert talk(greeted(folder, serving.server.port))[0] == CODE.UNAVAILABLE


def test_an_expired_certificate_is_refused(serving, tmp_path):
    from datetime import timedelta

    late = Authority.open(serving.root / "ca", clock=lambda: utc_now() - timedelta(days=400))
    folder = late.issue_client("expired", days=30).write(tmp_path / "expired")
    publish(serving.root)
    assert talk(greeted(folder, serving.server.port))[0] in (CODE.UNAVAILABLE, CODE.UNAUTHENTICATED)


def test_a_server_of_another_authority_is_not_trusted(serving, tmp_path):
    folder = Authority.create(tmp_path / "other", "test").issue_client("client0").write(tmp_path / "mistaken")
    assert talk(greeted(folder, serving.server.port))[0] == CODE.UNAVAILABLE


def test_a_revoked_client_is_refused_and_its_live_stream_ends(serving):
    folder, port = serving.root / "client1", serving.server.port

    async def live():
        async with Strange(folder, port) as strange:
            assert (await strange.hello()).head["number"] == 1
            Authority.open(serving.root / "ca").revoke("client1", "keyCompromise")
            publish(serving.root)
            while await strange.link.receive():
                pass

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        talk(live())
    assert ended.value.code() == CODE.PERMISSION_DENIED
    assert "no longer" in ended.value.details()
    assert talk(greeted(folder, port))[0] == CODE.PERMISSION_DENIED
    assert [f["reason"] for f in serving.server_lines.of("refused")] == ["certificate"] * 2
    assert talk(first_welcome(serving.root / "client2", port))["number"] == 2


async def first_welcome(folder, port, **hello):
    async with Strange(folder, port) as strange:
        return (await strange.hello(**hello)).head


def test_a_certificate_is_for_one_client_at_a_time(serving):
    folder, port = serving.root / "client1", serving.server.port

    async def two():
        async with Strange(folder, port) as first:
            assert await first.hello()
            again = await greeted(folder, port)
            await first.link.send(p.PONG)
            return again

    assert talk(two())[0] == CODE.ALREADY_EXISTS
    assert [f["reason"] for f in serving.server_lines.of("refused")] == ["twice"]


def test_the_same_process_takes_its_own_place(serving):
    folder, port, instance = serving.root / "client1", serving.server.port, os.urandom(16)

    async def two():
        async with Strange(folder, port) as first, Strange(folder, port) as second:
            assert await first.hello(instance=instance)
            assert (await second.hello(instance=instance)).head["number"] == 1
            return await refused(first.link.receive())

    assert talk(two())[0] == CODE.CANCELLED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": 3}, CODE.FAILED_PRECONDITION),
        ({"protocol": "1"}, CODE.INVALID_ARGUMENT),
        ({"instance": b"short"}, CODE.INVALID_ARGUMENT),
        ({"instance": None}, CODE.INVALID_ARGUMENT),
    ],
)
def test_malformed_hellos_are_refused(serving, changes, code):
    assert talk(greeted(serving.root / "client0", serving.server.port, **changes))[0] == code


FRAME = next(iter(frames(p.HELLO, (MessagePart.of({}),), 0)))


async def send_garbage(strange, frame):
    await strange.call.write(frame)
    await strange.link.receive()


@pytest.mark.parametrize("frame", [b"garbage" * 10, FRAME[:-1], FRAME[: HEAD.size] + b"\xff" * 100, b"\0" * 300_000, b"PL"])
def test_streams_that_begin_with_garbage_are_refused(serving, frame):
    async def send():
        async with Strange(serving.root / "client0", serving.server.port) as strange:
            return await outcome(strange, send_garbage(strange, frame))

    assert talk(send())[0] in (CODE.INVALID_ARGUMENT, CODE.RESOURCE_EXHAUSTED)


def test_a_thousand_streams_and_connections_keep_nobody_out(serving):
    """One client opens a thousand streams and as many bare connections; the others carry out the run."""

    async def crowd():
        strange = Strange(serving.root / "client5", serving.server.port)
        channel = grpc.aio.secure_channel(f"localhost:{serving.server.port}", strange.credentials.channel(), options=options())
        calls = [channel.stream_stream(p.METHOD)() for _ in range(1000)]
        bare = [await asyncio.open_connection("127.0.0.1", serving.server.port) for _ in range(300)]
        ended = [asyncio.ensure_future(call.code()) for call in calls]
        while sum(code.done() for code in ended) < 500:
            await asyncio.sleep(0.05)
        codes = [code.result() for code in ended if code.done()]
        for number in range(3):
            serving.client(number)
        summary = await asyncio.to_thread(serving.finish)
        for _, writer in bare:
            writer.close()
        await channel.close()
        return summary, codes

    summary, codes = asyncio.run(asyncio.wait_for(crowd(), 60))
    assert summary.rounds == 1
    assert set(codes) == {CODE.RESOURCE_EXHAUSTED}
    assert serving.server_lines.of("refused")[0]["reason"] == "crowd"
